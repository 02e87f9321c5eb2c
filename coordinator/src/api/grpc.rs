//! `paceline.v1.Inference`, with the same admission, router and replays as HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use proto::Asked;
use proto::reason::parse;
use proto::v1;
use proto::v1::generate_response::Event as Said;
use proto::v1::inference_server::{Inference, InferenceServer};
use request::{RequestId, Tokens as _};
use tonic::{Request, Response, Status};

use crate::admission::Permit;
use crate::failure::{self, Reason};
use crate::frontdoor::{FrontDoor, request_id};
use crate::generate::{Ended, Event, Pump, StopReason, TokensOut};
use crate::question::{Question, Spelling};

mod gate;

use gate::Gate;

const SPELLING: Spelling = Spelling {
    prompt: "prompt",
    max_tokens: "max_tokens",
    stop_ids: "stop_token_ids",
    prediction: "prediction",
};

#[derive(Debug)]
pub(crate) struct Service {
    door: Arc<FrontDoor>,
    slow_client: Duration,
}

pub(crate) fn service(
    door: Arc<FrontDoor>,
    slow_client: Duration,
    max_message: usize,
) -> Gate<InferenceServer<Service>> {
    let service = Service { door: Arc::clone(&door), slow_client };
    Gate { inner: InferenceServer::new(service).max_decoding_message_size(max_message), door }
}

/// Of failures; an answer's is in its Accepted.
const REQUEST_ID: &str = "x-request-id";

type Answers = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Answers;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Answers>, Status> {
        // One that is no id is refused where the other fields are, under a name that we draw.
        let id = RequestId::new(&request.get_ref().request_id).or_else(|_| request_id())?;
        self.answer(request, id.clone()).await.map_err(|mut status| {
            failure::log(id.as_str(), &parse(&status));
            if let Ok(id) = id.as_str().parse() {
                status.metadata_mut().insert(REQUEST_ID, id);
            }
            status
        })
    }

    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.door.models.all().iter().map(|model| {
            let serving = self.door.serving(model);
            v1::Model {
                name: model.name.clone(),
                aliases: model.aliases.clone(),
                context: serving.context,
                ready_workers: serving.ready_workers,
                ready_drafters: serving.ready_drafters,
                fingerprints: serving.fingerprints,
            }
        });
        Ok(Response::new(v1::ListModelsResponse { models: models.collect() }))
    }
}

impl Service {
    /// Nothing is sent before the first token, so that every failure until then is the call's own.
    async fn answer(
        &self,
        mut request: Request<v1::GenerateRequest>,
        id: RequestId,
    ) -> Result<Response<Answers>, Status> {
        let deadline = self.door.deadline(proto::timeout(request.metadata())?);
        // Without the gate in front there would be none.
        let permit = match request.extensions_mut().remove::<Permit>() {
            Some(permit) => permit,
            None => self.door.admit()?,
        };
        let asked = Asked { id: Some(id), ..Asked::try_from(request.into_inner())? };
        let prepared = self.door.prepare(Question::from(asked), SPELLING, deadline).await?;
        let (request_id, choices) = (prepared.request.id.to_string(), prepared.n);
        let answers = self.door.generate(prepared, permit).await?;
        let seed = answers.seed();
        let accepted = accepted(&request_id, seed, answers.fingerprint().to_owned());
        let pump = Some(Pump::new(answers, self.slow_client));
        let says = Says { pump, request_id, seed, choices };
        let rest = stream::unfold(says, |mut says| async {
            let said = says.next().await?;
            Some((said, says))
        });
        let all = futures::StreamExt::chain(stream::iter([Ok(accepted)]), rest);
        Ok(Response::new(Box::pin(all)))
    }
}

/// An answer in the words of the wire.
struct Says {
    /// Dropped with the last word.
    pump: Option<Pump>,
    request_id: String,
    seed: u64,
    /// Those that have not ended.
    choices: u32,
}

impl Says {
    async fn next(&mut self) -> Option<Result<v1::GenerateResponse, Status>> {
        let said = match self.pump.as_mut()?.next().await {
            Some(Ok((_, Event::Crossed { fingerprint }))) => {
                Ok(accepted(&self.request_id, self.seed, fingerprint))
            }
            Some(Ok((choice, Event::Tokens(out)))) => Ok(say(Said::Tokens(tokens(choice, out)))),
            Some(Ok((choice, Event::Ended(ended)))) => {
                self.choices = self.choices.saturating_sub(1);
                Ok(say(Said::Finish(finish(choice, *ended))))
            }
            Some(Err(failure)) => {
                tracing::warn!(request = self.request_id, reason = %failure.reason, why = %failure, "answer broken off");
                Err(failure)
            }
            None => Err(failure::new(Reason::Internal, "the answer ended without saying why")),
        };
        if said.is_err() || self.choices == 0 {
            self.pump = None;
        }
        Some(said.map_err(Into::into))
    }
}

fn say(event: Said) -> v1::GenerateResponse {
    v1::GenerateResponse { event: Some(event) }
}

fn accepted(request_id: &str, seed: u64, fingerprint: String) -> v1::GenerateResponse {
    say(Said::Accepted(v1::Accepted { request_id: request_id.to_owned(), seed, fingerprint }))
}

fn tokens(choice: u32, out: TokensOut) -> v1::Tokens {
    let text = out.text();
    // All false is written as nothing.
    let drafted = if out.drafted.contains(&true) { out.drafted } else { Vec::new() };
    let logprobs = out.logprobs.into_iter().map(Into::into).collect();
    v1::Tokens { choice, index: out.index, ids: out.ids.to_ids(), text, logprobs, drafted }
}

fn finish(choice: u32, ended: Ended) -> v1::Finish {
    v1::Finish {
        choice,
        reason: v1::FinishReason::from(ended.finish).into(),
        usage: Some(ended.usage.into()),
        speculation: Some(ended.speculation.into()),
        stopped_by: ended.stop_reason.map(|reason| match reason {
            StopReason::Text(string) => v1::finish::StoppedBy::Stop(string),
            StopReason::Token(id) => v1::finish::StoppedBy::StopTokenId(id.0),
        }),
    }
}

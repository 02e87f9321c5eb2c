//! `POST /v1/completions`: prompts without a template, several at once, and gaps to fill.

use std::sync::Arc;

use ::request::RequestId;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use tokio::sync::Barrier;

use super::asking::{self, Asking};
use super::events::{direct, pumped, respond};
use super::{Api, body, mark};
use crate::failure::{Failure, invalid};
use crate::question::{Prompt, Question, Spelling};

mod fill;
mod request;
mod response;
mod voice;

use self::request::CompletionRequest;
use response::Head;
use voice::Speaking;

const SPELLING: Spelling = Spelling {
    prompt: "prompt",
    max_tokens: "max_tokens",
    stop_ids: "stop_token_ids",
    prediction: "prediction",
};

const PREFIX: &str = "cmpl-";

pub(super) async fn complete(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    asking::named(PREFIX, |id| answer(api, headers, body, id)).await
}

/// Nothing is sent before every prompt has its first token, so that every failure until then has a
/// status of its own.
async fn answer(api: Api, headers: HeaderMap, body: Body, id: RequestId) -> Result<Response, Failure> {
    let deadline = asking::deadline(&api, &headers)?;
    let permit = api.door.admit()?;
    let body = body::read(&headers, body, api.max_body_bytes, deadline).await?;
    let CompletionRequest { mut question, prompts, suffix, echo, form, stream, include_usage } =
        CompletionRequest::parse(&body)?;
    let flags = asking::draft_flags(&headers);
    let (n, count) = (question.n, question.n as usize * prompts.len());
    if flags && !stream && count > 1 {
        return Err(invalid("n", "n: x-paceline-draft-flags is for one choice, or for a stream"));
    }
    let model = api.door.models.find(&question.model)?.clone();
    let before = echo.then(|| prompts.clone());
    let prompts = match suffix {
        Some(suffix) => {
            let bytes = suffix.len() + prompts.iter().map(Prompt::bytes).sum::<usize>();
            let model = Arc::clone(&model);
            let work = move || fill::gaps(prompts, &suffix, &model);
            api.door.aside.run(bytes, SPELLING.prompt, deadline, work).await?
        }
        None => prompts,
    };
    question.constraint = form.as_ref().map(|form| form.constraint.clone());
    let resumed = mark::resumed(&headers, &body, stream, question.seed, count, &question.speculation)?;
    let digest = mark::digest(&body);
    drop(body);
    let mut asking = Asking::new(&model, &mut question, &id, PREFIX, resumed, form)?;
    let reporter = question.logprobs.map(|_| asking.reporter());
    // All choices of all prompts at once, or none.
    permit.widen(u32::try_from(count).unwrap_or(u32::MAX))?;
    let questions = prompts.into_iter().enumerate().map(|(i, prompt)| {
        // The prompts of one request are requests of their own to the workers.
        let id = if i == 0 { Ok(id.clone()) } else { RequestId::new(&format!("{id}-{i}")) };
        id.map(|id| Question { id: Some(id), prompt, ..question.clone() })
    });
    let questions: Vec<Question> =
        questions.collect::<Result<_, _>>().map_err(|e| crate::failure::from_field(&e))?;
    let prompts = questions.len();
    let (door, all_begun) = (&api.door, &Barrier::new(prompts));
    let begun = questions.into_iter().enumerate().map(|(i, question)| {
        let permit = permit.clone();
        async move {
            let prepared = door.prepare(question, SPELLING, deadline).await;
            let prepared =
                prepared.map_err(|failure| if prompts > 1 { of_prompt(i, failure) } else { failure })?;
            let mut answers = door.generate(prepared, permit).await?;
            let begun = async {
                all_begun.wait().await;
            };
            answers.hold(begun).await?;
            Ok(answers)
        }
    });
    let answers = asking.spelled(try_join_all(begun).await)?;
    let fingerprint = answers.first().map(|answers| answers.fingerprint().to_owned()).unwrap_or_default();
    let head = Head::new(&asking, fingerprint.clone());
    // Now that the prompts are known to fit: an id can stand for hundreds of bytes.
    let before = before.map(|prompts| prompts.iter().map(|prompt| request::text(prompt, &model)).collect());
    let speaking = Speaking::new(head, count, n, before, reporter, flags);
    let sums = asking.sums(prompts, n);
    let response = if stream {
        let (answer, resumed) = asking.mark(digest, &fingerprint)?;
        let choices = pumped(answers, n, api.slow_client);
        respond(speaking.streamed(include_usage), choices, sums, answer, count, resumed)
    } else {
        Json(speaking.whole(direct(answers, n), sums).await?).into_response()
    };
    Ok(asking.sign(response))
}

/// Names the one of several prompts that was refused.
fn of_prompt(i: usize, failure: Failure) -> Failure {
    let named = |text: &str| text.strip_prefix("prompt").map(|rest| format!("prompt[{i}]{rest}"));
    match failure.field.as_deref().and_then(named) {
        Some(field) => {
            let message = named(&failure.message).unwrap_or(failure.message);
            Failure { field: Some(field), message, ..failure }
        }
        None => failure,
    }
}

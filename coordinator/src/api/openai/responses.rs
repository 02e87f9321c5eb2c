//! `POST /v1/responses`, stateless: the whole conversation comes in, one answer goes out, nothing is
//! stored.

use ::request::RequestId;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::asking::{self, Asking};
use super::events::{direct, pumped};
use super::speech::Speech;
use super::{Api, body};
use crate::failure::{self, Failure, Reason, not_built};
use crate::generate::Event;
use crate::question::Spelling;

mod input;
mod object;
mod output;
mod request;
mod stream;

use self::request::ResponseRequest;
use object::Object;
use output::Output;

const SPELLING: Spelling = Spelling {
    prompt: "input",
    max_tokens: "max_output_tokens",
    stop_ids: "stop_token_ids",
    prediction: "prediction",
};

const PREFIX: &str = "resp_";

pub(super) async fn create(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    asking::named(PREFIX, |id| answer(api, headers, body, id)).await
}

async fn answer(api: Api, headers: HeaderMap, body: Body, id: RequestId) -> Result<Response, Failure> {
    let deadline = asking::deadline(&api, &headers)?;
    let permit = api.door.admit()?;
    if headers.contains_key("last-event-id") {
        return Err(not_built(
            "Last-Event-ID",
            "Last-Event-ID: not built for /v1/responses; start over, or stream /v1/chat/completions",
        ));
    }
    let body = body::read(&headers, body, api.max_body_bytes, deadline).await?;
    let ResponseRequest { mut question, offer, form, stream, echoed } = ResponseRequest::parse(&body)?;
    drop(body);
    let model = api.door.models.find(&question.model)?.clone();
    let form = offer.constraint(&model, form.as_ref())?.or(form);
    question.constraint = form.as_ref().map(|form| form.constraint.clone());
    let reading = offer.reading(&model);
    question.shown = offer.shown(&model);
    let asking = Asking::new(&model, &mut question, &id, PREFIX, None, form)?;
    let reporter = question.logprobs.map(|_| asking.reporter());
    question.id = Some(id);
    let prepared = asking.spelled(api.door.prepare(question, SPELLING, deadline).await)?;
    let answers = asking.spelled(api.door.generate(prepared, permit).await)?;
    let speech = Speech::new(reading.as_ref(), &asking.id, 0);
    let object = Object::new(&asking, answers.fingerprint().to_owned(), echoed);
    let output = Output::new(object, speech, reporter);
    let response = if stream {
        stream::respond(output, pumped(vec![answers], 1, api.slow_client), asking.sums(1, 1))
    } else {
        let (mut choices, mut sums) = (direct(vec![answers], 1), asking.sums(1, 1));
        Json(whole(output, &mut choices, &mut sums).await?).into_response()
    };
    Ok(asking.sign(response))
}

/// Reads to the end; the events on the way are nobody's.
async fn whole(
    mut output: Output,
    choices: &mut super::events::Choices,
    sums: &mut super::usage::Sums,
) -> Result<serde_json::Value, Failure> {
    let mut unheard = Vec::new();
    while let Some((choice, event)) = choices.next().await {
        match event? {
            Event::Crossed { fingerprint } => output.object.crossed(fingerprint),
            Event::Tokens(out) => output.take(&out, &mut unheard),
            Event::Ended(ended) => {
                sums.add(choice, &ended);
                output.end(&ended, &mut unheard);
                return Ok(output.object.ended(&ended, sums, output.items));
            }
        }
        unheard.clear();
    }
    Err(failure::new(Reason::Internal, "the answer ended without saying why"))
}

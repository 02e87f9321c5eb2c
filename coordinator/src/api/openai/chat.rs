//! `POST /v1/chat/completions`.

use ::request::RequestId;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::asking::{self, Asking};
use super::events::{direct, pumped, respond};
use super::{Api, body, mark};
use crate::failure::{Failure, invalid};
use crate::question::Spelling;

mod request;
mod response;
mod voice;

use self::request::ChatRequest;
use response::Head;
use voice::Speaking;

/// `max_tokens` where the request says that; see [`ChatRequest::spelling`].
const SPELLING: Spelling = Spelling {
    prompt: "messages",
    max_tokens: "max_completion_tokens",
    stop_ids: "stop_token_ids",
    prediction: "prediction",
};

const PREFIX: &str = "chatcmpl-";

pub(super) async fn complete(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    asking::named(PREFIX, |id| answer(api, headers, body, id)).await
}

/// Nothing is sent before the first token, so that every failure until then has a status of its own.
async fn answer(api: Api, headers: HeaderMap, body: Body, id: RequestId) -> Result<Response, Failure> {
    let deadline = asking::deadline(&api, &headers)?;
    // Before the body is read: what is under way bounds the memory of bodies, too.
    let permit = api.door.admit()?;
    let body = body::read(&headers, body, api.max_body_bytes, deadline).await?;
    let ChatRequest { mut question, spelling, offer, form, stream, include_usage } =
        ChatRequest::parse(&body)?;
    let flags = asking::draft_flags(&headers);
    if flags && !stream && question.n > 1 {
        return Err(invalid("n", "n: x-paceline-draft-flags is for one choice, or for a stream"));
    }
    let model = api.door.models.find(&question.model)?.clone();
    let form = offer.constraint(&model, form.as_ref())?.or(form);
    question.constraint = form.as_ref().map(|form| form.constraint.clone());
    let reading = offer.reading(&model);
    question.shown = offer.shown(&model);
    let count = question.n as usize;
    let resumed = mark::resumed(&headers, &body, stream, question.seed, count, &question.speculation)?;
    let digest = mark::digest(&body);
    drop(body);
    let mut asking = Asking::new(&model, &mut question, &id, PREFIX, resumed, form)?;
    question.id = Some(id);
    let (n, reporter) = (question.n, question.logprobs.map(|_| asking.reporter()));
    let prepared = asking.spelled(api.door.prepare(question, spelling, deadline).await)?;
    let answers = asking.spelled(api.door.generate(prepared, permit).await)?;
    let head = Head::new(&asking, answers.fingerprint().to_owned());
    let speaking = Speaking::new(head, n, reading.as_ref(), reporter, flags);
    let sums = asking.sums(1, n);
    let response = if stream {
        let (answer, resumed) = asking.mark(digest, answers.fingerprint())?;
        let choices = pumped(vec![answers], n, api.slow_client);
        respond(speaking.streamed(include_usage), choices, sums, answer, count, resumed)
    } else {
        Json(speaking.whole(direct(vec![answers], n), sums).await?).into_response()
    };
    Ok(asking.sign(response))
}

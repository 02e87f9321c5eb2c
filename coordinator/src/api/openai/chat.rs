//! `POST /v1/chat/completions`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use request::RequestId;
use tokio::time::{Instant, timeout_at};

use super::request::ChatRequest;
use super::response::{Completion, Head};
use super::{Api, error, stream};
use crate::failure::{self, Failure, Reason};
use crate::frontdoor::request_id;
use crate::generate::{Answers, Event};
use crate::question::{Question, Spelling};
use crate::text::append;

const SPELLING: Spelling = Spelling {
    prompt: "messages",
    max_tokens: "max_tokens",
    stop_ids: "stop_token_ids",
    prediction: "prediction",
};

const SEED: HeaderName = HeaderName::from_static("x-paceline-seed");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Set to 1, the answer says which parts of the text were accepted drafts.
const DRAFT_FLAGS: HeaderName = HeaderName::from_static("x-paceline-draft-flags");

/// For a body to arrive; a client that sends it more slowly holds a place for nothing.
const BODY: Duration = Duration::from_secs(30);

pub(super) async fn complete(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    let id = match request_id() {
        Ok(id) => id,
        Err(failure) => return error::respond(failure),
    };
    let mut response = answer(api, &headers, body, id.clone()).await.unwrap_or_else(|failure| {
        failure::log(id.as_str(), &failure);
        error::respond(failure)
    });
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Nothing is sent before the first token, so that every failure until then has a status of its own.
async fn answer(api: Api, headers: &HeaderMap, body: Body, id: RequestId) -> Result<Response, Failure> {
    let deadline = api.door.deadline(None);
    // Before the body is read: what is under way bounds the memory of bodies, too.
    let permit = api.door.admit()?;
    json_only(headers)?;
    let body = read(headers, body, api.max_body_bytes, deadline).await?;
    let ChatRequest { question, stream, include_usage } = ChatRequest::parse(&body)?;
    drop(body);
    let question = Question { id: Some(id.clone()), ..question };
    let prepared = api.door.prepare(question, SPELLING, deadline).await?;
    let model = prepared.model.name.clone();
    let answer = api.door.generate(prepared, permit).await?;
    let seed = answer.seed();
    let head = Head::new(id.to_string(), now(), model, answer.fingerprint().to_owned());
    let flags = headers.get(&DRAFT_FLAGS).is_some_and(|v| v.as_bytes() == b"1");
    let mut response = if stream {
        stream::respond(answer, api.slow_client, head, include_usage, flags)
    } else {
        Json(whole(answer, head, flags).await?).into_response()
    };
    response.headers_mut().insert(SEED, HeaderValue::from(seed));
    Ok(response)
}

async fn whole(mut answer: Answers, mut head: Head, flags: bool) -> Result<Completion, Failure> {
    let mut pieces = Vec::new();
    while let Some(event) = answer.next().await {
        match event?.1 {
            Event::Crossed { fingerprint } => head.system_fingerprint = fingerprint,
            Event::Tokens(tokens) => {
                for piece in tokens.pieces {
                    append(&piece.text, piece.drafted, &mut pieces);
                }
            }
            Event::Ended(ended) => {
                let content = pieces.iter().map(|p| p.text.as_str()).collect();
                return Ok(Completion::new(head, content, flags.then_some(pieces), &ended));
            }
        }
    }
    Err(failure::new(Reason::Internal, "the answer ended without saying why"))
}

/// A page in a browser can send other types to any address without asking first; JSON it cannot.
fn json_only(headers: &HeaderMap) -> Result<(), Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    Err(failure::new(
        Reason::InvalidField,
        "the header content-type must be application/json (curl: -H 'content-type: application/json')",
    ))
}

async fn read(headers: &HeaderMap, body: Body, most: usize, deadline: Instant) -> Result<Bytes, Failure> {
    let too_large = || {
        failure::new(
            Reason::TooLarge,
            format!("the body is longer than {most} bytes, the most this server takes (max_body_bytes)"),
        )
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > most as u64) {
        return Err(too_large());
    }
    match timeout_at(deadline.min(Instant::now() + BODY), Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(failure::new(Reason::InvalidField, format!("the body could not be read: {e}"))),
        Err(_) => Err(failure::new(Reason::SlowClient, format!("the body did not arrive within {BODY:?}"))),
    }
}

/// Unix seconds; 0 with a clock before 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

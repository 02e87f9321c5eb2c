//! What the paths that generate do alike around their own parts: names, seed, what a client that comes
//! back has, the spelling of errors, headers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use request::{RequestId, TokenId};
use serde::Deserialize;
use tokio::time::Instant;

use super::Api;
use super::constraint::Asked;
use super::error;
use super::logprobs::Reporter;
use super::mark::{self, Mark, of_fingerprint, same_numerics};
use super::usage::Sums;
use crate::failure::{self, Failure, from_field, invalid, not_built};
use crate::models::Model;
use crate::question::Question;
use crate::random;

const SEED: HeaderName = HeaderName::from_static("x-paceline-seed");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Set to 1, the answer says which parts of the text were accepted drafts.
const DRAFT_FLAGS: HeaderName = HeaderName::from_static("x-paceline-draft-flags");

/// How long the client waits, in milliseconds. (gRPC has `grpc-timeout` for that.)
const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// One answer, or the answers to the prompts of one request.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) model: Arc<Model>,
    /// In the answer's objects; that of the first attempt when the client comes back.
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: u64,
    pub(super) seed: u64,
    prefix: &'static str,
    resumed: Option<Mark>,
    form: Option<Asked>,
    hidden: Vec<TokenId>,
}

/// Runs a request under a name of its own, drawn first, so that whatever fails can be found in the log.
pub(super) async fn named<F>(prefix: &str, answer: impl FnOnce(RequestId) -> F) -> Response
where
    F: Future<Output = Result<Response, Failure>>,
{
    let id =
        RequestId::new(&format!("{prefix}{}", uuid::Uuid::new_v4().simple())).map_err(|e| from_field(&e));
    let id = match id {
        Ok(id) => id,
        Err(failure) => return error::respond(failure),
    };
    let mut response = answer(id.clone()).await.unwrap_or_else(|failure| {
        failure::log(id.as_str(), &failure);
        error::respond(failure)
    });
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// When the request that begins now is over: as its header says, and no later than the server's own limit.
pub(super) fn deadline(api: &Api, headers: &HeaderMap) -> Result<Instant, Failure> {
    Ok(api.door.deadline(timeout(headers)?))
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers.get(&TIMEOUT) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()).filter(|ms| *ms > 0) {
        Some(ms) => Ok(Some(Duration::from_millis(ms))),
        None => Err(invalid(
            TIMEOUT.as_str(),
            format!("{TIMEOUT}: must be a whole number of milliseconds above 0, such as 30000"),
        )),
    }
}

pub(super) fn draft_flags(headers: &HeaderMap) -> bool {
    headers.get(&DRAFT_FLAGS).is_some_and(|v| v.as_bytes() == b"1")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// `stream_options`: whether the figures come as an event of their own.
pub(super) fn include_usage(options: Option<RawStreamOptions>, stream: bool) -> Result<bool, Failure> {
    let Some(options) = options else { return Ok(false) };
    if !stream {
        return Err(invalid("stream_options", "stream_options: only allowed when stream is true"));
    }
    for (name, set) in [
        ("continuous_usage_stats", options.continuous_usage_stats),
        ("include_obfuscation", options.include_obfuscation),
    ] {
        if set == Some(true) {
            let field = format!("stream_options.{name}");
            return Err(not_built(&field, format!("{field}: not built; leave it out or send false")));
        }
    }
    Ok(options.include_usage.unwrap_or(false))
}

impl Asking {
    /// Resolves the seed, which all prompts of a request share.
    pub(super) fn new(
        model: &Arc<Model>,
        question: &mut Question,
        id: &RequestId,
        prefix: &'static str,
        resumed: Option<Mark>,
        form: Option<Asked>,
    ) -> Result<Self, Failure> {
        let seed = match (&resumed, question.seed) {
            (Some(mark), _) => mark.answer.seed,
            (None, Some(seed)) => seed,
            (None, None) => random::seed()?,
        };
        question.seed = Some(seed);
        let (id, created) = match &resumed {
            Some(mark) => (format!("{prefix}{}", mark.answer.id), mark.answer.created),
            None => (id.to_string(), now()),
        };
        let mut hidden = question.stop.ids.clone();
        if !question.stop.ignore_eos {
            hidden.extend(model.text.stop_ids());
        }
        if question.stop.include_in_output {
            hidden.clear();
        }
        Ok(Self { model: Arc::clone(model), id, created, seed, prefix, resumed, form, hidden })
    }

    /// Names the field of the constraint as the client wrote it: who compiles it does not know.
    pub(super) fn spelled<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|failure| {
            let theirs = failure.field.as_deref();
            match &self.form {
                Some(form) if theirs == Some(form.constraint.field()) || theirs == Some("constraint") => {
                    // Worker and compiler may both have named it.
                    let theirs = format!("{}: ", failure.field.unwrap_or_default());
                    let why = failure.message.trim_start_matches(theirs.as_str());
                    let message = format!("{}: {why}", form.field);
                    Failure { field: Some(form.field.into()), message, ..failure }
                }
                _ => failure,
            }
        })
    }

    pub(super) fn reporter(&self) -> Reporter {
        Reporter::new(Arc::clone(&self.model), self.hidden.clone())
    }

    pub(super) fn sums(&self, prompts: usize, n: u32) -> Sums {
        Sums::new(prompts, n, self.seed)
    }

    /// The mark that the events of a stream carry, and what the client has. `request`: the digest of
    /// the body.
    pub(super) fn mark(
        &mut self,
        request: u64,
        fingerprint: &str,
    ) -> Result<(mark::Answer, Option<Mark>), Failure> {
        same_numerics(self.resumed.as_ref(), fingerprint)?;
        let answer = mark::Answer {
            request,
            fingerprint: of_fingerprint(fingerprint),
            crossed: false,
            created: self.created,
            id: self.id.strip_prefix(self.prefix).unwrap_or(&self.id).to_owned(),
            seed: self.seed,
        };
        Ok((answer, self.resumed.take()))
    }

    /// Puts the seed into the headers.
    pub(super) fn sign(&self, mut response: Response) -> Response {
        response.headers_mut().insert(SEED, HeaderValue::from(self.seed));
        response
    }
}

/// Unix seconds; 0 with a clock before 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_clients() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(of("250"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(of("18446744073709551615"), Ok(Some(Duration::from_millis(u64::MAX))));
        for bad in ["", "0", "-1", "+1", "1.5", "1s", " 1", "18446744073709551616"] {
            assert_eq!(of(bad).unwrap_err().field.as_deref(), Some("x-request-timeout-ms"), "{bad:?}");
        }
    }
}

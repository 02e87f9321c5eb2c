//! The body of a POST: bytes within a bound and a time, then a JSON object whose every field is known.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use super::fields::Table;
use crate::failure::{self, Failure, Reason, invalid};

/// For a body to arrive; a client that sends it more slowly holds a place for nothing.
const BODY: Duration = Duration::from_secs(30);

/// The whole body, if it says that it is JSON and is at most `most` bytes.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    most: usize,
    deadline: Instant,
) -> Result<Bytes, Failure> {
    json_only(headers)?;
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
    let due = Instant::now() + BODY;
    match timeout_at(deadline.min(due), Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(failure::new(Reason::InvalidField, format!("the body could not be read: {e}"))),
        Err(_) if deadline < due => {
            Err(failure::new(Reason::Deadline, "the deadline passed before the body had arrived"))
        }
        Err(_) => Err(failure::new(Reason::SlowClient, format!("the body did not arrive within {BODY:?}"))),
    }
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

/// A body's fields, each of which its table knows: those that are honoured, without `null`s. The tree
/// can be several times the body; it lives only while the request is read.
pub(super) fn fields(body: &[u8], table: &Table) -> Result<Value, Failure> {
    let mut object = object(body)?;
    // `null` asks for nothing.
    object.retain(|_, value| !value.is_null());
    table.check(&object)?;
    object.retain(|name, _| table.honours(name));
    Ok(Value::Object(object))
}

/// A part of the fields; the error names the path of what does not fit.
pub(super) fn typed<'a, T: Deserialize<'a>>(fields: &'a Value) -> Result<T, Failure> {
    within(fields, "")
}

/// As [`typed`] for what stands at `prefix` of the body.
pub(super) fn within<'a, T: Deserialize<'a>>(value: &'a Value, prefix: &str) -> Result<T, Failure> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        let path = match (path.as_str(), prefix) {
            ("." | "?", "") => return failure::new(Reason::InvalidField, inner.to_string()),
            ("." | "?", prefix) => prefix.to_owned(),
            (path, "") => path.to_owned(),
            (path, prefix) if path.starts_with('[') => format!("{prefix}{path}"),
            (path, prefix) => format!("{prefix}.{path}"),
        };
        let path = shown(&path);
        invalid(&path, format!("{path}: {inner}"))
    })
}

pub(super) fn missing(field: &str, what: &str) -> Failure {
    invalid(field, format!("{field}: is missing; {what}"))
}

/// What a client wrote, as short as a person needs to find it: it can be as long as the body.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Failure> {
    let wrong = |why: String| failure::new(Reason::InvalidField, why);
    let text = std::str::from_utf8(body)
        .map_err(|e| wrong(format!("the body is not UTF-8: invalid byte at offset {}", e.valid_up_to())))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("the body is not a JSON object".into())),
        Err(e) => Err(wrong(format!("the body is not valid JSON: {e}"))),
    }
}

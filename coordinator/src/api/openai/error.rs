//! Failures as OpenAI spells them: `{"error": {message, type, param, code}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::failure::{Failure, Reason};

#[derive(Debug, Serialize)]
pub(crate) struct Body {
    error: Error,
}

#[derive(Debug, Serialize)]
struct Error {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: &'static str,
}

impl Body {
    pub(crate) fn new(failure: Failure) -> Self {
        Self {
            error: Error {
                r#type: failure.reason.openai_type(),
                code: failure.reason.openai_code(),
                message: failure.message,
                param: failure.field,
            },
        }
    }
}

/// The whole answer, for failures that are known before the first byte was sent.
pub(crate) fn respond(failure: Failure) -> Response {
    let status = StatusCode::from_u16(failure.reason.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let retry_after = failure.retry_after;
    // The rest of the body is still to come: without the word a client would send its next request behind
    // it and lose both.
    let unread = matches!(failure.reason, Reason::TooLarge | Reason::SlowClient);
    let mut response = (status, Json(Body::new(failure))).into_response();
    if let Some(after) = retry_after {
        // Whole seconds, rounded up: 0 would mean at once.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if unread {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request that reaches no route or the wrong method of one; these statuses are HTTP's own, so
/// they stand in no table of reasons.
pub(crate) fn no_route(status: StatusCode, message: String) -> Response {
    let error = Error {
        message,
        r#type: "invalid_request_error",
        param: None,
        code: match status {
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::NOT_IMPLEMENTED => "not_implemented",
            _ => "unknown_url",
        },
    };
    (status, Json(Body { error })).into_response()
}

//! Why something failed, in one table: reason, gRPC code, HTTP status, OpenAI type and code.
//!
//! On the wire a failure is a `google.rpc.Status` with `ErrorInfo{reason, domain "paceline"}`, a
//! `BadRequest` violation when a field is at fault and `RetryInfo` when trying again makes sense.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::bounds::{MAX_MESSAGE_BYTES, cut};

/// `ErrorInfo.domain` of our errors.
pub const DOMAIN: &str = "paceline";

/// Why a request, a stream or a pairing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field's value cannot be served.
    InvalidField,
    /// The field asks for something that is planned and not there yet.
    NotBuilt,
    /// The worker's texts are approximate and the request wants the model's own.
    ApproximateOnly,
    /// Nobody serves that model.
    ModelNotFound,
    /// Prompt (and output) do not fit the model's context.
    ContextLengthExceeded,
    /// More bytes or tokens than one message may hold.
    TooLarge,
    /// No or a wrong credential.
    Unauthenticated,
    /// The bounded queue is full; worth another try after `retry_after`.
    Overloaded,
    /// Nobody who serves the model takes work now.
    NoWorker,
    /// The process is leaving.
    Draining,
    /// The client read too slowly.
    SlowClient,
    /// The deadline passed.
    Deadline,
    /// The client cancelled.
    Cancelled,
    /// Drafter and worker have different vocabularies.
    VocabMismatch,
    /// The two sides have no protocol version in common.
    ProtocolMismatch,
    /// The message is for another life of this node.
    StaleIncarnation,
    /// A fault of ours.
    Internal,
}

impl Reason {
    /// Every reason, in the order of the table.
    pub const ALL: [Self; 17] = [
        Self::InvalidField,
        Self::NotBuilt,
        Self::ApproximateOnly,
        Self::ModelNotFound,
        Self::ContextLengthExceeded,
        Self::TooLarge,
        Self::Unauthenticated,
        Self::Overloaded,
        Self::NoWorker,
        Self::Draining,
        Self::SlowClient,
        Self::Deadline,
        Self::Cancelled,
        Self::VocabMismatch,
        Self::ProtocolMismatch,
        Self::StaleIncarnation,
        Self::Internal,
    ];

    /// The table. 499 is what servers log for a client that left; pairing failures never reach an
    /// HTTP client, and would be our fault if they did.
    #[rustfmt::skip]
    const fn row(self) -> (&'static str, Code, u16, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidField => ("INVALID_FIELD", Code::InvalidArgument, 400, REQUEST, "invalid_value"),
            Self::NotBuilt => ("NOT_BUILT", Code::InvalidArgument, 400, REQUEST, "unsupported_parameter"),
            Self::ApproximateOnly =>
                ("APPROXIMATE_ONLY", Code::FailedPrecondition, 400, REQUEST, "approximate_only"),
            Self::ModelNotFound => ("MODEL_NOT_FOUND", Code::NotFound, 404, REQUEST, "model_not_found"),
            Self::ContextLengthExceeded =>
                ("CONTEXT_LENGTH_EXCEEDED", Code::InvalidArgument, 400, REQUEST, "context_length_exceeded"),
            Self::TooLarge => ("TOO_LARGE", Code::InvalidArgument, 413, REQUEST, "request_too_large"),
            Self::Unauthenticated =>
                ("UNAUTHENTICATED", Code::Unauthenticated, 401, "authentication_error", "invalid_api_key"),
            Self::Overloaded =>
                ("OVERLOADED", Code::ResourceExhausted, 429, "rate_limit_error", "rate_limit_exceeded"),
            Self::NoWorker => ("NO_WORKER", Code::Unavailable, 503, SERVER, "no_worker"),
            Self::Draining => ("DRAINING", Code::Unavailable, 503, SERVER, "draining"),
            Self::SlowClient => ("SLOW_CLIENT", Code::ResourceExhausted, 408, REQUEST, "slow_client"),
            Self::Deadline => ("DEADLINE", Code::DeadlineExceeded, 504, SERVER, "deadline_exceeded"),
            Self::Cancelled => ("CANCELLED", Code::Cancelled, 499, REQUEST, "cancelled"),
            Self::VocabMismatch => ("VOCAB_MISMATCH", Code::FailedPrecondition, 500, SERVER, "vocab_mismatch"),
            Self::ProtocolMismatch =>
                ("PROTOCOL_MISMATCH", Code::FailedPrecondition, 500, SERVER, "protocol_mismatch"),
            Self::StaleIncarnation =>
                ("STALE_INCARNATION", Code::FailedPrecondition, 500, SERVER, "stale_incarnation"),
            Self::Internal => ("INTERNAL", Code::Internal, 500, SERVER, "internal_error"),
        }
    }

    /// The name in `ErrorInfo.reason`.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    pub const fn grpc(self) -> Code {
        self.row().1
    }

    pub const fn http(self) -> u16 {
        self.row().2
    }

    /// `error.type` of an OpenAI error body.
    pub const fn openai_type(self) -> &'static str {
        self.row().3
    }

    /// `error.code` of an OpenAI error body.
    pub const fn openai_code(self) -> &'static str {
        self.row().4
    }

    /// The reason of that name, if this version knows it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == name)
    }

    /// For a status that carries no reason of ours: from a proxy, from tonic, from a newer version.
    fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument => Self::InvalidField,
            Code::Unimplemented => Self::NotBuilt,
            // tonic's decoder, for a message above its byte limit.
            Code::OutOfRange => Self::TooLarge,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::ResourceExhausted => Self::Overloaded,
            Code::Unavailable => Self::NoWorker,
            Code::DeadlineExceeded => Self::Deadline,
            Code::Cancelled => Self::Cancelled,
            _ => Self::Internal,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A failure as one process tells another, and as the APIs tell the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub reason: Reason,
    /// For people: what, where, what to do.
    pub message: String,
    /// The field at fault, as the API spells it.
    pub field: Option<String>,
    /// When another try makes sense.
    pub retry_after: Option<Duration>,
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        status(failure.reason, &failure.message, failure.field.as_deref(), failure.retry_after)
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        parse(status)
    }
}

/// A status that carries the reason and what belongs to it. Message and field are cut to
/// [`MAX_MESSAGE_BYTES`]: they travel in headers.
pub fn status(reason: Reason, message: &str, field: Option<&str>, retry_after: Option<Duration>) -> Status {
    let message = cut(message, MAX_MESSAGE_BYTES);
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, []);
    if let Some(field) = field {
        details.add_bad_request_violation(cut(field, MAX_MESSAGE_BYTES / 4), message);
    }
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(reason.grpc(), message, details)
}

/// Reads a status back. One without our details gets the reason nearest to its code, and details
/// that do not decode count as absent.
pub fn parse(status: &Status) -> Failure {
    let details = status.get_error_details();
    let reason = details
        .error_info()
        .filter(|info| info.domain == DOMAIN)
        .and_then(|info| Reason::from_name(&info.reason))
        .unwrap_or_else(|| Reason::from_code(status.code()));
    let field = details.bad_request().and_then(|b| b.field_violations.first()).map(|v| v.field.clone());
    Failure {
        reason,
        message: status.message().to_owned(),
        field: field.filter(|f| !f.is_empty()),
        retry_after: details.retry_info().and_then(|r| r.retry_delay),
    }
}

#[cfg(test)]
mod tests;

//! Refusals and breakdowns in the words of `proto::reason`, one constructor for each cause.

use std::time::Duration;

use request::InvalidField;

pub(crate) use proto::reason::{Failure, Reason};

/// A field whose value cannot be served; `field` is its path as the caller wrote it.
pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Failure {
    new(Reason::InvalidField, message).at(field)
}

/// A field that asks for what Paceline does not do yet.
pub(crate) fn not_built(field: impl Into<String>, message: impl Into<String>) -> Failure {
    new(Reason::NotBuilt, message).at(field)
}

pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Failure {
    Failure { reason, message: message.into(), field: None, retry_after: None }
}

/// Worth asking again after a while.
pub(crate) fn later(reason: Reason, message: impl Into<String>, after: Duration) -> Failure {
    Failure { reason, message: message.into(), field: None, retry_after: Some(after) }
}

/// A value out of range; our field names are the APIs' names.
pub(crate) fn from_field(error: &InvalidField) -> Failure {
    let reason = if error.not_built { Reason::NotBuilt } else { Reason::InvalidField };
    new(reason, error.to_string()).at(error.field)
}

/// What a client is told goes to the log, too, when it is not the client's own doing; and is counted.
pub(crate) fn log(request: &str, failure: &Failure) {
    crate::observe::not_answered(failure.reason);
    if failure.reason.http() >= 500 {
        tracing::warn!(request, reason = %failure.reason, why = %failure, "not answered");
    } else {
        tracing::debug!(request, reason = %failure.reason, why = %failure, "not answered");
    }
}

trait At {
    fn at(self, field: impl Into<String>) -> Self;
}

impl At for Failure {
    fn at(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }
}

use std::borrow::Cow;

use request::InvalidField;
use tonic::Status;

use crate::reason::{Failure, Reason};

/// A field of a message that cannot be taken, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct WireError {
    /// Mostly [`Reason::InvalidField`], [`Reason::NotBuilt`] or [`Reason::TooLarge`].
    pub reason: Reason,
    pub field: &'static str,
    pub why: Cow<'static, str>,
}

impl WireError {
    pub fn new(reason: Reason, field: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, field, why: why.into() }
    }

    pub(crate) fn invalid(field: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Reason::InvalidField, field, why)
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::invalid(field, "is missing")
    }

    pub(crate) fn not_built(field: &'static str) -> Self {
        Self::new(Reason::NotBuilt, field, "is not built yet; leave it out")
    }

    /// An enum value that this version does not know.
    pub(crate) fn unknown(field: &'static str, value: i32) -> Self {
        Self::invalid(field, format!("value {value} is not known to this version"))
    }
}

impl From<InvalidField> for WireError {
    fn from(error: InvalidField) -> Self {
        let reason = if error.not_built { Reason::NotBuilt } else { Reason::InvalidField };
        Self::new(reason, error.field, error.why)
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self {
            reason: error.reason,
            message: error.to_string(),
            field: Some(error.field.to_owned()),
            retry_after: None,
        }
    }
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        Failure::from(error).into()
    }
}

/// Refuses more than `most` of something.
pub(crate) fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), WireError> {
    if count > most {
        return Err(WireError::new(
            Reason::TooLarge,
            field,
            format!("has {count}; at most {most} are taken"),
        ));
    }
    Ok(())
}

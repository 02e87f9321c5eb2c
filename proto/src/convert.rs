//! From prost types to ours and back.
//!
//! Towards us every conversion is a check: sizes against [`bounds`](crate::bounds), numbers against
//! their ranges, what is not built yet against its neutral value. Away from us nothing can fail.
//! Frames of the draft stream are in [`frame`](crate::frame).

mod answer;
mod asked;
pub(crate) mod constraint;
mod node;
mod outcome;
mod pages;
mod placed;
pub(crate) mod sampling;
mod speculation;

pub use answer::Answer;
pub use asked::{Asked, Prediction, Prompt};
pub(crate) use node::incarnation;
pub use node::{Listed, heartbeat_interval, member, node_state, role, vocab_hash};
pub use outcome::finish;
pub use pages::{PrefillAsked, PrefillSaid, UnitSealed};
pub use placed::{Candidate, Placed};
pub use speculation::{quality, rule};

use request::{Request, TokenId};

use crate::WireError;
use crate::error::at_most;

pub(crate) fn tokens(field: &'static str, ids: Vec<u32>, most: usize) -> Result<Vec<TokenId>, WireError> {
    at_most(field, ids.len(), most)?;
    Ok(ids.into_iter().map(TokenId).collect())
}

/// How many alternatives are reported per token.
pub(crate) fn logprobs(field: &'static str, asked: Option<u32>) -> Result<Option<u8>, WireError> {
    let Some(asked) = asked else { return Ok(None) };
    match u8::try_from(asked) {
        Ok(top) if top <= Request::MOST_LOGPROBS => Ok(Some(top)),
        _ => Err(WireError::invalid(
            field,
            format!("{asked} alternatives; at most {} are reported", Request::MOST_LOGPROBS),
        )),
    }
}

/// Microseconds for the wire; what does not fit is as long as the field can say (71 minutes).
pub(crate) fn micros(time: std::time::Duration) -> u32 {
    time.as_micros().try_into().unwrap_or(u32::MAX)
}

/// Milliseconds for the wire; what does not fit is as long as the field can say (49 days).
pub(crate) fn millis(time: std::time::Duration) -> u32 {
    time.as_millis().try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests;

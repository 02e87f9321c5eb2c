//! The words of a request: tokens, parameters, limits, how it ended.
//!
//! Every other crate speaks in these types; this one depends on nothing of ours. Values that come
//! from outside are checked by `validate` here, once, and the error names the field.
//!
//! Not here: text (`text`), the wire (`proto`), what a parameter does to logits (`sampling`).
//! Start at [`Request`].
#![forbid(unsafe_code)]

mod id;
mod limits;
mod outcome;
mod sampling;
mod speculation;
mod token;

pub use id::RequestId;
pub use limits::Limits;
pub use outcome::{Finish, SpeculationStats, Usage};
pub use sampling::{Sampling, SamplingParams};
pub use speculation::{Quality, Rule, Speculation, Strategy};
pub use token::{TokenId, Tokens};

/// One choice of one request, as the engine sees it: everything that decides its text.
///
/// The text is a function of (numerics fingerprint, `prompt`, `committed`, `sampling`, `limits`);
/// `speculation` changes how fast it comes, never what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub id: RequestId,
    /// How often this request was placed before; tells replays apart in logs.
    pub attempt: u32,
    pub prompt: Vec<TokenId>,
    /// Output that an earlier attempt already delivered. It counts as output everywhere: limits,
    /// stop ids, noise positions, usage.
    pub committed: Vec<TokenId>,
    pub sampling: Sampling,
    pub limits: Limits,
    pub quality: Quality,
    pub speculation: Speculation,
}

/// A field whose value cannot be served, and why; becomes INVALID_ARGUMENT / HTTP 400 with `param`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct InvalidField {
    pub field: &'static str,
    pub why: String,
    /// The value is a fair one; serving it is not built yet.
    pub not_built: bool,
}

impl InvalidField {
    pub fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self { field, why: why.into(), not_built: false }
    }

    /// A value that a later version will serve; `why` says what to use until then.
    pub fn not_built(field: &'static str, why: impl Into<String>) -> Self {
        Self { not_built: true, ..Self::new(field, why) }
    }
}

impl Request {
    /// Checks everything that can be checked without the model; the model's own limits (vocabulary,
    /// context) are checked by the engine that admits it.
    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.prompt.is_empty() {
            return Err(InvalidField::new("prompt", "has no tokens; at least one is needed"));
        }
        self.sampling.params.validate()?;
        self.limits.validate()?;
        self.speculation.validate()?;
        if self.committed.len() > self.limits.max_tokens as usize {
            return Err(InvalidField::new(
                "committed",
                format!(
                    "{} tokens were already delivered and max_tokens is {}",
                    self.committed.len(),
                    self.limits.max_tokens
                ),
            ));
        }
        Ok(())
    }

    /// How the answer ended, when `committed` is already all of it: a replay has nothing to generate.
    pub fn finished(&self) -> Option<Finish> {
        if self.committed.last().is_some_and(|last| self.limits.stop_ids.contains(last)) {
            Some(Finish::Stop)
        } else if self.committed.len() >= self.limits.max_tokens as usize {
            Some(Finish::Length)
        } else {
            None
        }
    }

    /// Prompt and delivered output: what the sequence knows when it starts.
    pub fn known(&self) -> Vec<TokenId> {
        [self.prompt.as_slice(), self.committed.as_slice()].concat()
    }
}

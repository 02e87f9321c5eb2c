//! The words of a request: tokens, parameters, limits, how it ended.
//!
//! Every other crate speaks in these types; this one depends on nothing of ours. Values that come
//! from outside are checked by `validate` here, once, and the error names the field.
//!
//! Not here: text (`text`), the wire (`proto`), what a parameter does to logits (`sampling`).
//! Start at [`Request`].
#![forbid(unsafe_code)]

mod adjust;
mod constraint;
mod id;
mod limits;
mod outcome;
mod sampling;
mod speculation;
mod token;

pub use adjust::{Adjustments, Penalties};
pub use constraint::Constraint;
pub use id::RequestId;
pub use limits::Limits;
pub use outcome::{Finish, SourceStats, SpeculationStats, TokenLogprobs, Usage};
pub use sampling::{Sampling, SamplingParams};
pub use speculation::{Del, Quality, Rapid, Retrieval, Rule, Source, Speculation, Strategy, Window};
pub use token::{TokenId, Tokens};

/// One choice of one request, as the engine sees it: everything that decides its text.
///
/// The text is a function of (numerics fingerprint, `prompt`, `committed`, `sampling`, `adjust`,
/// `constraint`, `limits`); the other fields change how fast it comes, never what it says. (The rule
/// `rejection` alone lets the drafter choose among texts of the same law.)
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
    pub adjust: Adjustments,
    pub constraint: Option<Constraint>,
    pub limits: Limits,
    /// Alternatives whose log-probability is reported with every token, at most
    /// [`Request::MOST_LOGPROBS`]; `None` reports nothing.
    pub logprobs: Option<u8>,
    pub quality: Quality,
    pub speculation: Speculation,
    /// Output that the caller guesses: an exact source of drafts, never more.
    pub prediction: Vec<TokenId>,
    /// Higher is served first.
    pub priority: i32,
    /// Prefix pages are shared only among requests with the same salt.
    pub cache_salt: String,
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
    pub const MOST_LOGPROBS: u8 = 20;
    const MOST_SALT: usize = 256;

    /// A first attempt with neutral values for everything else.
    pub fn new(id: RequestId, prompt: Vec<TokenId>, sampling: Sampling, limits: Limits) -> Self {
        Self {
            id,
            attempt: 0,
            prompt,
            committed: Vec::new(),
            sampling,
            adjust: Adjustments::default(),
            constraint: None,
            limits,
            logprobs: None,
            quality: Quality::default(),
            speculation: Speculation::default(),
            prediction: Vec::new(),
            priority: 0,
            cache_salt: String::new(),
        }
    }

    /// Checks everything that can be checked without the model; the model's own limits (vocabulary,
    /// context) are checked by the engine that admits it.
    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.prompt.is_empty() {
            return Err(InvalidField::new("prompt", "has no tokens; at least one is needed"));
        }
        self.sampling.params.validate()?;
        self.adjust.validate()?;
        if let Some(constraint) = &self.constraint {
            constraint.validate()?;
        }
        self.limits.validate()?;
        self.speculation.validate(&self.sampling.params)?;
        if self.quality == Quality::Exact && self.speculation.strategy.rapid().is_some() {
            let why = "rapid changes what an answer says; it is taken only with quality approximate";
            return Err(InvalidField::new("speculation.strategy", why));
        }
        if self.logprobs.is_some_and(|n| n > Self::MOST_LOGPROBS) {
            return Err(InvalidField::new(
                "top_logprobs",
                format!("at most {} alternatives are reported", Self::MOST_LOGPROBS),
            ));
        }
        if self.cache_salt.len() > Self::MOST_SALT {
            return Err(InvalidField::new(
                "cache_salt",
                format!("has {} bytes; at most {} are taken", self.cache_salt.len(), Self::MOST_SALT),
            ));
        }
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

use std::time::Duration;

use crate::{InvalidField, SamplingParams};

/// What the caller accepts: the target's exact text, or a lossy mode (RAPID, DuoAttention on the
/// target). A lossy mode is never switched on silently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quality {
    #[default]
    Exact,
    Approximate,
}

/// When a draft token counts as the target's own.
///
/// All four leave the target's distribution unchanged; they differ in what the drafter must do and
/// in how often drafts are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Drafter and target share the noise; accepted when both pick the same token
    /// (arXiv 2408.07978). The text of a seed does not depend on the drafter.
    #[default]
    Coupled,
    /// The drafter takes its argmax; accepted when the target picks the same token.
    Strict,
    /// As `Strict`, for requests at temperature 0.
    Greedy,
    /// Accepted with probability min(1, p/q), else redrawn from the residual (arXiv 2211.17192). The
    /// law is the target's; which text of that law a seed gives depends on the drafter. A drafter that
    /// sends no q is judged as under `Strict`.
    Rejection,
}

/// Where drafts come from and how the target waits for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The server's choice.
    #[default]
    Auto,
    /// Plain decoding.
    None,
    /// A drafter that runs ahead freely; the target verifies of what has arrived as much as pays (PEARL).
    Draft,
    /// The sequence waits for `k` drafts, at most `deadline`, before each step.
    Lockstep { k: u32, deadline: Duration },
    /// No drafter; what followed the same tokens before, in prompt and output.
    Ngram,
    /// No drafter; what most often followed the same tokens, in prompt, output and earlier answers.
    Suffix,
    /// No drafter; the tokens that were drawn last after each token, by whatever sequence.
    Recycle,
}

impl Strategy {
    /// Whether a drafter's drafts are of use to it.
    pub fn takes_drafter(self) -> bool {
        matches!(self, Self::Auto | Self::Draft | Self::Lockstep { .. })
    }

    /// The sources without a model that it may draw on.
    pub fn guesses(self) -> &'static [Source] {
        match self {
            Self::Auto => &[Source::Ngram, Source::Suffix, Source::Recycle],
            Self::Ngram => &[Source::Ngram],
            Self::Suffix => &[Source::Suffix],
            Self::Recycle => &[Source::Recycle],
            Self::None | Self::Draft | Self::Lockstep { .. } => &[],
        }
    }
}

/// Who proposes drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A draft model on a rank of its own.
    Drafter,
    /// The caller, by a prediction.
    Prediction,
    Ngram,
    Suffix,
    Recycle,
}

impl Source {
    pub const ALL: [Self; 5] = [Self::Drafter, Self::Prediction, Self::Ngram, Self::Suffix, Self::Recycle];

    /// As the strategy is called that drafts with it alone.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drafter => "draft",
            Self::Prediction => "prediction",
            Self::Ngram => "ngram",
            Self::Suffix => "suffix",
            Self::Recycle => "recycle",
        }
    }
}

/// How a request wants to be drafted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    pub strategy: Strategy,
    pub rule: Rule,
    /// Most draft tokens verified in one step, and at most the server's own limit; `None` leaves it to
    /// the server.
    pub max_draft: Option<u32>,
}

impl Speculation {
    /// Most draft tokens one step may verify for one sequence.
    pub const MAX_DRAFT: u32 = 64;

    /// `params`: those of the same request.
    pub fn validate(&self, params: &SamplingParams) -> Result<(), InvalidField> {
        if let Some(n) = self.max_draft
            && !(1..=Self::MAX_DRAFT).contains(&n)
        {
            return Err(InvalidField::new(
                "speculation.max_draft",
                format!("{n} is not between 1 and {}", Self::MAX_DRAFT),
            ));
        }
        if let Strategy::Lockstep { k, deadline } = self.strategy {
            if !(1..=Self::MAX_DRAFT).contains(&k) {
                return Err(InvalidField::new(
                    "speculation.lockstep.k",
                    format!("{k} is not between 1 and {}", Self::MAX_DRAFT),
                ));
            }
            if deadline.is_zero() || deadline > Duration::from_secs(10) {
                return Err(InvalidField::new(
                    "speculation.lockstep.deadline",
                    "must be above 0 and at most 10 s",
                ));
            }
        }
        if self.rule == Rule::Greedy && !params.is_greedy() {
            return Err(InvalidField::new(
                "speculation.rule",
                "greedy is for temperature 0; use coupled, strict or rejection to sample",
            ));
        }
        Ok(())
    }
}

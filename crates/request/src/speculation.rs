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

/// A target pulled towards a drafter that reads only what it retrieves of the prompt (RAPID, arXiv 2502.20330). It
/// changes what an answer says: for [`Quality::Approximate`] only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rapid {
    /// Drafts that a step waits for, as in lockstep.
    pub k: u32,
    pub deadline: Duration,
    /// How far the target is pulled, 0 to 100; 0: not at all, which is ordinary speculation. The paper has 5 to 50.
    pub eta: f32,
    /// Only tokens that the drafter finds this share as likely as its likeliest are pulled at, 0 to 1.
    pub plausible: f32,
    pub retrieval: Retrieval,
}

/// What a drafter reads of a long prompt: its beginning, the chunks that look most like its end, and its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieval {
    /// First tokens of the prompt that are always read: the template, instructions.
    pub head: u32,
    /// Last tokens of the prompt that are always read, and looked for in the rest: the question.
    pub question: u32,
    /// Tokens of a chunk.
    pub chunk: u32,
    /// Most tokens of chunks.
    pub budget: u32,
    /// Chunks that match less than this share of the best one's are left out, 0 to 1.
    pub threshold: f32,
}

impl Default for Retrieval {
    fn default() -> Self {
        Self { head: 64, question: 64, chunk: 128, budget: 4096, threshold: 0.0 }
    }
}

impl Default for Rapid {
    fn default() -> Self {
        Self {
            k: 10,
            deadline: Duration::from_secs(1),
            eta: 10.0,
            plausible: 0.1,
            retrieval: Retrieval::default(),
        }
    }
}

impl Rapid {
    /// Checks the values.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let Retrieval { question, chunk, budget, threshold, head } = self.retrieval;
        let within = |field, value: f32, most: f32| match (0.0..=most).contains(&value) {
            true => Ok(()),
            false => Err(InvalidField::new(field, format!("{value} is not between 0 and {most}"))),
        };
        within("speculation.rapid.eta", self.eta, 100.0)?;
        within("speculation.rapid.plausible", self.plausible, 1.0)?;
        within("speculation.rapid.threshold", threshold, 1.0)?;
        for (field, value, least, most) in [
            ("speculation.rapid.k", self.k, 1, Speculation::MAX_DRAFT),
            ("speculation.rapid.chunk", chunk, 8, 4096),
            ("speculation.rapid.budget", budget, 8, 1 << 20),
            ("speculation.rapid.question", question, 1, 1 << 16),
            ("speculation.rapid.head", head, 0, 1 << 16),
        ] {
            if !(least..=most).contains(&value) {
                return Err(InvalidField::new(field, format!("{value} is not between {least} and {most}")));
            }
        }
        if self.deadline.is_zero() || self.deadline > Duration::from_secs(10) {
            return Err(InvalidField::new("speculation.rapid.deadline", "must be above 0 and at most 10 s"));
        }
        Ok(())
    }
}

/// Where drafts come from and how the target waits for them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// As lockstep, and the target is pulled towards a drafter that reads what it retrieves of the prompt: lossy.
    Rapid(Rapid),
    /// No drafter; the model drafts with its own first layers. It pays with weights that were trained for it.
    Del(Del),
    /// No drafter; the model drafts over a window of its keys and verifies over all of them. It pays behind long texts.
    Window(Window),
}

/// Drafting over a window of the model's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First positions that drafts see.
    pub sink: u32,
    /// Last positions that they see.
    pub recent: u32,
    /// Drafts of a step; `None`: as many as pay.
    pub k: Option<u32>,
}

impl Default for Window {
    fn default() -> Self {
        Self { sink: 64, recent: 512, k: None }
    }
}

impl Window {
    fn validate(self) -> Result<(), InvalidField> {
        for (field, value, least, most) in [
            ("speculation.window.sink", self.sink, 0, 1 << 20),
            ("speculation.window.recent", self.recent, 1, 1 << 20),
            ("speculation.window.k", self.k.unwrap_or(1), 1, Del::MOST),
        ] {
            if !(least..=most).contains(&value) {
                return Err(InvalidField::new(field, format!("{value} is not between {least} and {most}")));
            }
        }
        Ok(())
    }
}

/// Drafting by the model's first layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Del {
    /// After how many layers, and how many drafts a step (LayerSkip, arXiv 2404.16710). `None`: both follow what was
    /// right lately (DEL, arXiv 2504.05598).
    pub fixed: Option<(u32, u32)>,
}

impl Del {
    /// Most drafts of a step.
    pub const MOST: u32 = 16;

    fn validate(self) -> Result<(), InvalidField> {
        let Some((exit, drafts)) = self.fixed else { return Ok(()) };
        for (field, value, most) in
            [("speculation.del.exit", exit, 1024), ("speculation.del.k", drafts, Self::MOST)]
        {
            if !(1..=most).contains(&value) {
                return Err(InvalidField::new(field, format!("{value} is not between 1 and {most}")));
            }
        }
        Ok(())
    }
}

impl Strategy {
    /// Whether a drafter's drafts are of use to it.
    pub fn takes_drafter(self) -> bool {
        matches!(self, Self::Auto | Self::Draft | Self::Lockstep { .. } | Self::Rapid(_))
    }

    /// Whether each step waits for drafts: for how many, and how long at most.
    pub fn waits(self) -> Option<(u32, Duration)> {
        match self {
            Self::Lockstep { k, deadline } | Self::Rapid(Rapid { k, deadline, .. }) => Some((k, deadline)),
            _ => None,
        }
    }

    /// Of a lossy one how the target is pulled.
    pub fn rapid(self) -> Option<Rapid> {
        if let Self::Rapid(rapid) = self { Some(rapid) } else { None }
    }

    /// The sources without a model that it may draw on.
    pub fn guesses(self) -> &'static [Source] {
        match self {
            Self::Auto => &[Source::Ngram, Source::Suffix, Source::Recycle],
            Self::Ngram => &[Source::Ngram],
            Self::Suffix => &[Source::Suffix],
            Self::Recycle => &[Source::Recycle],
            Self::None
            | Self::Draft
            | Self::Lockstep { .. }
            | Self::Rapid(_)
            | Self::Del(_)
            | Self::Window(_) => &[],
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
    /// The model's own first layers.
    Del,
    /// The model itself, over a window of its keys.
    Window,
}

impl Source {
    pub const ALL: [Self; 7] =
        [Self::Drafter, Self::Prediction, Self::Ngram, Self::Suffix, Self::Recycle, Self::Del, Self::Window];

    /// As the strategy is called that drafts with it alone.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drafter => "draft",
            Self::Prediction => "prediction",
            Self::Ngram => "ngram",
            Self::Suffix => "suffix",
            Self::Recycle => "recycle",
            Self::Del => "del",
            Self::Window => "window",
        }
    }
}

/// How a request wants to be drafted for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
        match self.strategy {
            Strategy::Rapid(rapid) => rapid.validate()?,
            Strategy::Del(del) => del.validate()?,
            Strategy::Window(window) => window.validate()?,
            _ => {}
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

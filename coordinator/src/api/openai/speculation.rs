//! The field `speculation`: how a request wants to be drafted for.

use std::time::Duration;

use request::{Del, Rapid, Retrieval, Rule, SamplingParams, Speculation, Strategy, Window};
use serde::Deserialize;

use crate::failure::{Failure, invalid};

/// How long one lockstep wait lasts at most when the request does not say.
const LOCKSTEP_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpeculation {
    strategy: Option<RawStrategy>,
    rule: Option<RawRule>,
    max_draft: Option<u32>,
    k: Option<u32>,
    deadline_ms: Option<u32>,
    eta: Option<f32>,
    plausible: Option<f32>,
    retrieval: Option<RawRetrieval>,
    exit: Option<u32>,
    sink: Option<u32>,
    recent: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetrieval {
    head: Option<u32>,
    question: Option<u32>,
    chunk: Option<u32>,
    budget: Option<u32>,
    threshold: Option<f32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawStrategy {
    Auto,
    None,
    /// Both names for a drafter that runs ahead freely.
    #[serde(alias = "pearl")]
    Draft,
    Lockstep,
    Ngram,
    Suffix,
    Recycle,
    Rapid,
    Del,
    Window,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawRule {
    Coupled,
    Greedy,
    Strict,
    Rejection,
}

impl RawSpeculation {
    /// What is left out is as usual.
    fn rapid(&self) -> Rapid {
        let usual = Rapid::default();
        let mut retrieval = Retrieval::default();
        if let Some(raw) = self.retrieval {
            retrieval = Retrieval {
                head: raw.head.unwrap_or(retrieval.head),
                question: raw.question.unwrap_or(retrieval.question),
                chunk: raw.chunk.unwrap_or(retrieval.chunk),
                budget: raw.budget.unwrap_or(retrieval.budget),
                threshold: raw.threshold.unwrap_or(retrieval.threshold),
            };
        }
        Rapid {
            k: self.k.unwrap_or(usual.k),
            deadline: self.deadline_ms.map_or(usual.deadline, |ms| Duration::from_millis(ms.into())),
            eta: self.eta.unwrap_or(usual.eta),
            plausible: self.plausible.unwrap_or(usual.plausible),
            retrieval,
        }
    }

    pub(super) fn check(self, params: &SamplingParams) -> Result<Speculation, Failure> {
        if self.exit.is_some() && !matches!(self.strategy, Some(RawStrategy::Del)) {
            return Err(invalid("speculation.exit", "speculation.exit: only allowed with strategy del"));
        }
        if !matches!(self.strategy, Some(RawStrategy::Window)) {
            for (field, set) in
                [("speculation.sink", self.sink.is_some()), ("speculation.recent", self.recent.is_some())]
            {
                if set {
                    return Err(invalid(field, format!("{field}: only allowed with strategy window")));
                }
            }
        } else if self.deadline_ms.is_some() {
            let field = "speculation.deadline_ms";
            return Err(invalid(field, format!("{field}: only allowed with strategy lockstep or rapid")));
        }
        if !matches!(self.strategy, Some(RawStrategy::Rapid)) {
            for (field, set) in [
                ("speculation.eta", self.eta.is_some()),
                ("speculation.plausible", self.plausible.is_some()),
                ("speculation.retrieval", self.retrieval.is_some()),
            ] {
                if set {
                    return Err(invalid(field, format!("{field}: only allowed with strategy rapid")));
                }
            }
        }
        let strategy = match self.strategy {
            Some(RawStrategy::Rapid) => Strategy::Rapid(self.rapid()),
            Some(RawStrategy::Del) => match (self.exit, self.k) {
                (None, None) => Strategy::Del(Del::default()),
                (Some(exit), Some(k)) => Strategy::Del(Del { fixed: Some((exit, k)) }),
                _ => {
                    let why = "speculation.exit: with strategy del set both exit and k, or neither";
                    return Err(invalid("speculation.exit", why));
                }
            },
            Some(RawStrategy::Window) => {
                let usual = Window::default();
                Strategy::Window(Window {
                    sink: self.sink.unwrap_or(usual.sink),
                    recent: self.recent.unwrap_or(usual.recent),
                    k: self.k,
                })
            }
            Some(RawStrategy::Lockstep) => {
                let k = self.k.ok_or_else(|| {
                    invalid(
                        "speculation.k",
                        "speculation.k: needed with strategy lockstep: how many drafts to wait for",
                    )
                })?;
                let deadline =
                    self.deadline_ms.map_or(LOCKSTEP_DEADLINE, |ms| Duration::from_millis(ms.into()));
                Strategy::Lockstep { k, deadline }
            }
            other => {
                for (field, value) in
                    [("speculation.k", self.k), ("speculation.deadline_ms", self.deadline_ms)]
                {
                    if value.is_some() {
                        return Err(invalid(
                            field,
                            format!("{field}: only allowed with strategy lockstep, rapid, del or window"),
                        ));
                    }
                }
                match other {
                    Some(RawStrategy::None) => Strategy::None,
                    Some(RawStrategy::Draft) => Strategy::Draft,
                    Some(RawStrategy::Ngram) => Strategy::Ngram,
                    Some(RawStrategy::Suffix) => Strategy::Suffix,
                    Some(RawStrategy::Recycle) => Strategy::Recycle,
                    _ => Strategy::Auto,
                }
            }
        };
        let rule = match self.rule {
            None | Some(RawRule::Coupled) => Rule::Coupled,
            Some(RawRule::Greedy) => Rule::Greedy,
            Some(RawRule::Strict) => Rule::Strict,
            Some(RawRule::Rejection) => Rule::Rejection,
        };
        let speculation = Speculation { strategy, rule, max_draft: self.max_draft };
        speculation.validate(params).map_err(|e| {
            let field = match e.field {
                "speculation.lockstep.k" => "speculation.k",
                "speculation.lockstep.deadline" | "speculation.rapid.deadline" => "speculation.deadline_ms",
                "speculation.rapid.k" | "speculation.del.k" | "speculation.window.k" => "speculation.k",
                "speculation.del.exit" => "speculation.exit",
                "speculation.window.sink" => "speculation.sink",
                "speculation.window.recent" => "speculation.recent",
                "speculation.rapid.eta" => "speculation.eta",
                "speculation.rapid.plausible" => "speculation.plausible",
                "speculation.rapid.head" => "speculation.retrieval.head",
                "speculation.rapid.question" => "speculation.retrieval.question",
                "speculation.rapid.chunk" => "speculation.retrieval.chunk",
                "speculation.rapid.budget" => "speculation.retrieval.budget",
                "speculation.rapid.threshold" => "speculation.retrieval.threshold",
                other => other,
            };
            invalid(field, format!("{field}: {}", e.why))
        })?;
        Ok(speculation)
    }
}

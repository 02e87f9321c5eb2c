use std::time::Duration;

use request::{Del, Quality, Rapid, Retrieval, Rule, Speculation, Strategy, Window};

use super::micros;
use crate::error::WireError;
use crate::v1;

impl From<Quality> for v1::Quality {
    fn from(quality: Quality) -> Self {
        match quality {
            Quality::Exact => Self::Exact,
            Quality::Approximate => Self::Approximate,
        }
    }
}

/// Reads a `Quality` field; unspecified is exact.
pub fn quality(value: i32) -> Result<Quality, WireError> {
    match v1::Quality::try_from(value) {
        Ok(v1::Quality::Unspecified | v1::Quality::Exact) => Ok(Quality::Exact),
        Ok(v1::Quality::Approximate) => Ok(Quality::Approximate),
        Err(_) => Err(WireError::unknown("quality", value)),
    }
}

impl From<Rule> for v1::Rule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Coupled => Self::Coupled,
            Rule::Strict => Self::Strict,
            Rule::Greedy => Self::Greedy,
            Rule::Rejection => Self::Rejection,
        }
    }
}

/// Reads a `Rule` field; unspecified is coupled. Whether the rule is built is
/// [`Speculation::validate`]'s to say.
pub fn rule(value: i32) -> Result<Rule, WireError> {
    match v1::Rule::try_from(value) {
        Ok(v1::Rule::Unspecified | v1::Rule::Coupled) => Ok(Rule::Coupled),
        Ok(v1::Rule::Strict) => Ok(Rule::Strict),
        Ok(v1::Rule::Greedy) => Ok(Rule::Greedy),
        Ok(v1::Rule::Rejection) => Ok(Rule::Rejection),
        Err(_) => Err(WireError::unknown("speculation.rule", value)),
    }
}

impl From<Speculation> for v1::Speculation {
    fn from(speculation: Speculation) -> Self {
        let rapid = speculation.strategy.rapid().map(v1::Rapid::from);
        let (strategy, lockstep) = match speculation.strategy {
            Strategy::Auto => (v1::Strategy::Auto, None),
            Strategy::None => (v1::Strategy::None, None),
            Strategy::Draft => (v1::Strategy::Draft, None),
            Strategy::Ngram => (v1::Strategy::Ngram, None),
            Strategy::Suffix => (v1::Strategy::Suffix, None),
            Strategy::Recycle => (v1::Strategy::Recycle, None),
            Strategy::Rapid(_) => (v1::Strategy::Rapid, None),
            Strategy::Del(_) => (v1::Strategy::Del, None),
            Strategy::Window(_) => (v1::Strategy::Window, None),
            Strategy::Lockstep { k, deadline } => {
                (v1::Strategy::Lockstep, Some(v1::Lockstep { k, deadline_us: micros(deadline) }))
            }
        };
        Self {
            strategy: strategy.into(),
            rule: v1::Rule::from(speculation.rule).into(),
            max_draft: speculation.max_draft,
            lockstep,
            rapid,
            exit: match speculation.strategy {
                Strategy::Del(Del { fixed }) => fixed.map(|(layers, k)| v1::Exit { layers, k }),
                _ => None,
            },
            window: match speculation.strategy {
                Strategy::Window(Window { sink, recent, k }) => {
                    Some(v1::Window { sink: Some(sink), recent: Some(recent), k })
                }
                _ => None,
            },
        }
    }
}

impl TryFrom<v1::Speculation> for Speculation {
    type Error = WireError;

    fn try_from(from: v1::Speculation) -> Result<Self, WireError> {
        use v1::Strategy as Wire;

        let strategy = Wire::try_from(from.strategy)
            .map_err(|_| WireError::unknown("speculation.strategy", from.strategy))?;
        if from.rapid.is_some() && strategy != Wire::Rapid {
            return Err(WireError::invalid(
                "speculation.rapid",
                "is set, but strategy is not rapid; set both or neither",
            ));
        }
        if from.exit.is_some() && strategy != Wire::Del {
            return Err(WireError::invalid("speculation.exit", "is set, but strategy is not del"));
        }
        if from.window.is_some() && strategy != Wire::Window {
            return Err(WireError::invalid("speculation.window", "is set, but strategy is not window"));
        }
        let strategy = match (strategy, from.lockstep) {
            (Wire::Lockstep, None) => return Err(WireError::missing("speculation.lockstep")),
            (Wire::Lockstep, Some(l)) => {
                Strategy::Lockstep { k: l.k, deadline: Duration::from_micros(l.deadline_us.into()) }
            }
            (_, Some(_)) => {
                return Err(WireError::invalid(
                    "speculation.lockstep",
                    "is set, but strategy is not lockstep; set both or neither",
                ));
            }
            (Wire::Unspecified | Wire::Auto, None) => Strategy::Auto,
            (Wire::None, None) => Strategy::None,
            (Wire::Draft, None) => Strategy::Draft,
            (Wire::Ngram, None) => Strategy::Ngram,
            (Wire::Suffix, None) => Strategy::Suffix,
            (Wire::Recycle, None) => Strategy::Recycle,
            (Wire::Del, None) => Strategy::Del(Del { fixed: from.exit.map(|exit| (exit.layers, exit.k)) }),
            (Wire::Window, None) => {
                let (window, usual) = (from.window.unwrap_or_default(), Window::default());
                Strategy::Window(Window {
                    sink: window.sink.unwrap_or(usual.sink),
                    recent: window.recent.unwrap_or(usual.recent),
                    k: window.k,
                })
            }
            (Wire::Rapid, None) => Strategy::Rapid(from.rapid.unwrap_or_default().into()),
        };
        let speculation = Self { strategy, rule: rule(from.rule)?, max_draft: from.max_draft };
        Ok(speculation)
    }
}

impl From<Rapid> for v1::Rapid {
    fn from(rapid: Rapid) -> Self {
        Self {
            k: Some(rapid.k),
            deadline_us: Some(micros(rapid.deadline)),
            eta: Some(rapid.eta),
            plausible: Some(rapid.plausible),
            retrieval: Some(rapid.retrieval.into()),
        }
    }
}

/// Whether the values are taken is [`Speculation::validate`]'s to say.
impl From<v1::Rapid> for Rapid {
    fn from(from: v1::Rapid) -> Self {
        let usual = Self::default();
        let deadline = |us: u32| Duration::from_micros(us.into());
        Self {
            k: from.k.unwrap_or(usual.k),
            deadline: from.deadline_us.map_or(usual.deadline, deadline),
            eta: from.eta.unwrap_or(usual.eta),
            plausible: from.plausible.unwrap_or(usual.plausible),
            retrieval: from.retrieval.unwrap_or_default().into(),
        }
    }
}

impl From<Retrieval> for v1::Retrieval {
    fn from(retrieval: Retrieval) -> Self {
        let Retrieval { head, question, chunk, budget, threshold } = retrieval;
        Self {
            head: Some(head),
            question: Some(question),
            chunk: Some(chunk),
            budget: Some(budget),
            threshold: Some(threshold),
        }
    }
}

impl From<v1::Retrieval> for Retrieval {
    fn from(from: v1::Retrieval) -> Self {
        let usual = Self::default();
        Self {
            head: from.head.unwrap_or(usual.head),
            question: from.question.unwrap_or(usual.question),
            chunk: from.chunk.unwrap_or(usual.chunk),
            budget: from.budget.unwrap_or(usual.budget),
            threshold: from.threshold.unwrap_or(usual.threshold),
        }
    }
}

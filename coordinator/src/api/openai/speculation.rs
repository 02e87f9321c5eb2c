//! The field `speculation`: how a request wants to be drafted for.

use std::time::Duration;

use request::{Rule, SamplingParams, Speculation, Strategy};
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
    pub(super) fn check(self, params: &SamplingParams) -> Result<Speculation, Failure> {
        let strategy = match self.strategy {
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
                        return Err(invalid(field, format!("{field}: only allowed with strategy lockstep")));
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
                "speculation.lockstep.deadline" => "speculation.deadline_ms",
                other => other,
            };
            invalid(field, format!("{field}: {}", e.why))
        })?;
        Ok(speculation)
    }
}

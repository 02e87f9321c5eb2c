use request::{Source, SpeculationStats, Usage};

/// What drafting did and what was found in the cache. Of the usage only what a worker alone knows.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) usage: Usage,
    pub(super) speculation: SpeculationStats,
}

impl Figures {
    /// One message of a worker: the tokens of one step.
    pub(super) fn step(&mut self, drafted: &[bool], verified: u32, predicted: bool, cached_tokens: u32) {
        let accepted = drafted.iter().filter(|d| **d).count().min(verified as usize);
        // Its message does not tell sources without a model from a drafter; its last word does.
        let source = if predicted { Source::Prediction } else { Source::Drafter };
        self.speculation.record(source, verified as usize, accepted);
        let usage = &mut self.usage;
        usage.cached_tokens = cached_tokens;
        if predicted {
            let accepted = u32::try_from(accepted).unwrap_or(verified);
            let sum = &mut usage.accepted_prediction_tokens;
            *sum = sum.saturating_add(accepted);
            let sum = &mut usage.rejected_prediction_tokens;
            *sum = sum.saturating_add(verified - accepted);
        }
    }

    /// Adds an attempt that is over. A later one finds in the cache what the first computed, so what
    /// the cache served is said by the `first`.
    pub(super) fn add(&mut self, attempt: Self, first: bool) {
        self.speculation.add(&attempt.speculation);
        let (sum, one) = (&mut self.usage, attempt.usage);
        if first {
            sum.cached_tokens = one.cached_tokens;
        }
        sum.accepted_prediction_tokens =
            sum.accepted_prediction_tokens.saturating_add(one.accepted_prediction_tokens);
        sum.rejected_prediction_tokens =
            sum.rejected_prediction_tokens.saturating_add(one.rejected_prediction_tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_add_up() {
        let mut sum = Figures::default();
        let mut lost = Figures::default();
        lost.step(&[true, true, false], 4, false, 10);
        lost.step(&[true, false], 3, true, 10);
        lost.step(&[false], 0, false, 10);
        sum.add(lost, true);
        let usage = Usage { cached_tokens: 99, accepted_prediction_tokens: 2, ..Usage::default() };
        let mut speculation = SpeculationStats::default();
        speculation.record(Source::Drafter, 4, 1);
        sum.add(Figures { usage, speculation }, false);
        assert_eq!(sum.usage.cached_tokens, 10, "the second found what the first computed");
        assert_eq!((sum.usage.accepted_prediction_tokens, sum.usage.rejected_prediction_tokens), (1 + 2, 2));
        let did = &sum.speculation;
        assert_eq!((did.drafts, did.draft_tokens, did.accepted_tokens, did.plain_steps), (3, 11, 4, 1));
        assert_eq!(did.histogram, [0, 2, 1]);
    }
}

use crate::{Source, TokenId};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was committed.
    Stop,
    /// `max_tokens` were committed.
    Length,
    /// The client left or cancelled.
    Cancelled,
    /// The client read too slowly for `slow_client_timeout`.
    SlowClient,
    /// The deadline passed.
    Deadline,
    /// The model failed in a step; the text so far is right, the rest is missing.
    Failed,
}

/// Tokens of one choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Output tokens, the `committed` ones of a replay included.
    pub completion_tokens: u32,
    /// Prompt tokens whose keys and values were still there from another request.
    pub cached_tokens: u32,
    /// Tokens of the caller's prediction that were verified and stood.
    pub accepted_prediction_tokens: u32,
    /// Tokens of the caller's prediction that were verified and did not.
    pub rejected_prediction_tokens: u32,
}

/// How likely the model found a token: natural logarithms, of the logits before adjustments,
/// constraint and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// What drafting did for one choice, in the field's definitions (vLLM).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeculationStats {
    /// Verification steps: steps that carried at least one draft token.
    pub drafts: u64,
    /// Draft tokens verified.
    pub draft_tokens: u64,
    /// Draft tokens accepted.
    pub accepted_tokens: u64,
    /// `histogram[n]`: verification steps in which exactly n draft tokens were accepted.
    pub histogram: Vec<u64>,
    /// Steps that committed tokens without a draft to verify.
    pub plain_steps: u64,
    /// Draft tokens that never reached a step (stale, gap, disagreement).
    pub dropped_tokens: u64,
    /// Committed tokens that were drawn from a law pulled towards a drafter's (RAPID).
    pub augmented_tokens: u64,
    /// Of each [`Source`], in the order of [`Source::ALL`]: the drafts, draft tokens and accepted tokens above.
    pub sources: [SourceStats; Source::ALL.len()],
}

/// What the drafts of one source did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    pub drafts: u64,
    pub draft_tokens: u64,
    pub accepted_tokens: u64,
}

impl SpeculationStats {
    /// Records one verification step.
    pub fn record(&mut self, source: Source, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.plain_steps += 1;
            return;
        }
        self.drafts += 1;
        self.draft_tokens += drafted as u64;
        self.accepted_tokens += accepted as u64;
        self.sources[source as usize].add(&SourceStats {
            drafts: 1,
            draft_tokens: drafted as u64,
            accepted_tokens: accepted as u64,
        });
        if self.histogram.len() <= accepted {
            self.histogram.resize(accepted + 1, 0);
        }
        self.histogram[accepted] += 1;
    }

    /// Accepted over verified draft tokens; `None` before the first.
    pub fn acceptance_rate(&self) -> Option<f64> {
        (self.draft_tokens > 0).then(|| self.accepted_tokens as f64 / self.draft_tokens as f64)
    }

    /// Tokens per verification step, the target's own token included; `None` before the first.
    pub fn mean_acceptance_length(&self) -> Option<f64> {
        (self.drafts > 0).then(|| 1.0 + self.accepted_tokens as f64 / self.drafts as f64)
    }

    /// What one source's drafts did.
    pub fn of(&self, source: Source) -> SourceStats {
        self.sources[source as usize]
    }

    /// The source that most accepted tokens came from; `None` when no draft was verified.
    pub fn main_source(&self) -> Option<Source> {
        let drafted = Source::ALL.into_iter().filter(|s| self.of(*s).drafts > 0);
        drafted.max_by_key(|s| (self.of(*s).accepted_tokens, self.of(*s).draft_tokens, std::cmp::Reverse(*s)))
    }

    /// Adds another choice's (or another attempt's) counts.
    pub fn add(&mut self, other: &Self) {
        self.drafts += other.drafts;
        self.draft_tokens += other.draft_tokens;
        self.accepted_tokens += other.accepted_tokens;
        self.plain_steps += other.plain_steps;
        self.dropped_tokens += other.dropped_tokens;
        self.augmented_tokens += other.augmented_tokens;
        if self.histogram.len() < other.histogram.len() {
            self.histogram.resize(other.histogram.len(), 0);
        }
        for (mine, theirs) in self.histogram.iter_mut().zip(&other.histogram) {
            *mine += theirs;
        }
        for (mine, theirs) in self.sources.iter_mut().zip(&other.sources) {
            mine.add(theirs);
        }
    }
}

impl SourceStats {
    fn add(&mut self, other: &Self) {
        self.drafts += other.drafts;
        self.draft_tokens += other.draft_tokens;
        self.accepted_tokens += other.accepted_tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculation_figures_follow_the_fields_definitions() {
        let mut stats = SpeculationStats::default();
        assert_eq!((stats.acceptance_rate(), stats.mean_acceptance_length()), (None, None));
        stats.record(Source::Drafter, 4, 4);
        stats.record(Source::Ngram, 4, 1);
        stats.record(Source::Drafter, 0, 0);
        assert_eq!(stats.acceptance_rate(), Some(5.0 / 8.0));
        assert_eq!(stats.mean_acceptance_length(), Some(3.5));
        assert_eq!(stats.histogram, [0, 1, 0, 0, 1]);
        assert_eq!(stats.plain_steps, 1);
        let ngram = SourceStats { drafts: 1, draft_tokens: 4, accepted_tokens: 1 };
        assert_eq!((stats.of(Source::Ngram), stats.of(Source::Suffix)), (ngram, SourceStats::default()));
        assert_eq!(stats.main_source(), Some(Source::Drafter));
        assert_eq!(SpeculationStats::default().main_source(), None);
        let mut both = stats.clone();
        both.add(&stats);
        assert_eq!((both.of(Source::Ngram).draft_tokens, both.draft_tokens), (8, 16));
    }
}

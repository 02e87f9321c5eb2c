//! What an answer cost: OpenAI's usage, vLLM's figures of speculation, and ours.

use std::collections::BTreeMap;

use request::{Source, SourceStats, SpeculationStats};
use serde::Serialize;

use crate::generate::{Ended, Totals};
use crate::text::Piece;

#[derive(Clone, Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Clone, Debug, Serialize)]
struct CompletionDetails {
    accepted_prediction_tokens: u32,
    rejected_prediction_tokens: u32,
    reasoning_tokens: u32,
}

impl From<request::Usage> for Usage {
    fn from(usage: request::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
            completion_tokens_details: CompletionDetails {
                accepted_prediction_tokens: usage.accepted_prediction_tokens,
                rejected_prediction_tokens: usage.rejected_prediction_tokens,
                reasoning_tokens: 0,
            },
        }
    }
}

/// Figures of all choices, of one prompt or of several.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    /// By prompt.
    totals: Vec<Totals>,
    /// Choices of each prompt.
    n: usize,
    /// Choices that have not ended.
    left: usize,
    /// Of the choices that ended, the one that speculation did most for.
    strategy: &'static str,
    most_drafts: u32,
    seed: u64,
}

impl Sums {
    pub(super) fn new(prompts: usize, n: u32, seed: u64) -> Self {
        let n = n as usize;
        let totals = vec![Totals::default(); prompts];
        Self { totals, n, left: prompts * n, strategy: "none", most_drafts: 0, seed }
    }

    /// Counts a choice in; whether it was the last.
    pub(super) fn add(&mut self, choice: usize, ended: &Ended) -> bool {
        if let Some(totals) = self.totals.get_mut(choice / self.n) {
            totals.add(ended);
        }
        if self.strategy == "none" {
            self.strategy = ended.strategy;
        }
        self.most_drafts = self.most_drafts.max(ended.most_drafts);
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    pub(super) fn usage(&self) -> Usage {
        self.tokens().into()
    }

    pub(super) fn tokens(&self) -> request::Usage {
        let mut sum = request::Usage::default();
        for request::Usage {
            prompt_tokens,
            completion_tokens,
            cached_tokens,
            accepted_prediction_tokens,
            rejected_prediction_tokens,
        } in self.totals.iter().map(|t| t.usage)
        {
            let add = |sum: &mut u32, more: u32| *sum = sum.saturating_add(more);
            add(&mut sum.prompt_tokens, prompt_tokens);
            add(&mut sum.completion_tokens, completion_tokens);
            add(&mut sum.cached_tokens, cached_tokens);
            add(&mut sum.accepted_prediction_tokens, accepted_prediction_tokens);
            add(&mut sum.rejected_prediction_tokens, rejected_prediction_tokens);
        }
        sum
    }

    pub(super) fn metrics(&self) -> Metrics {
        let mut stats = SpeculationStats::default();
        self.totals.iter().for_each(|totals| stats.add(&totals.speculation));
        let sources = Source::ALL.into_iter().map(|source| (source.name(), stats.of(source)));
        let sources = sources.filter(|(_, did)| did.drafts > 0).map(|(name, did)| {
            let SourceStats { drafts, draft_tokens, accepted_tokens } = did;
            let did = SourceFigures {
                num_spec_steps: drafts,
                num_accepted_draft_tokens: accepted_tokens,
                num_draft_tokens: draft_tokens,
            };
            (name, did)
        });
        let sources = sources.collect();
        Metrics {
            speculative_decoding: SpeculativeDecoding {
                mean_acceptance_length: stats.mean_acceptance_length(),
                draft_acceptance_rate: stats.acceptance_rate(),
                num_spec_steps: stats.drafts,
                num_accepted_draft_tokens: stats.accepted_tokens,
                num_draft_tokens: stats.draft_tokens,
                acceptance_histogram: stats.histogram,
                num_spec_tokens: self.most_drafts,
                augmented_tokens: stats.augmented_tokens,
                strategy: self.strategy,
                sources,
            },
        }
    }

    /// With the segments of the text when they were asked for.
    pub(super) fn ours(&self, segments: Option<Vec<Piece>>) -> Ours {
        Ours { seed: Some(self.seed), segments }
    }
}

/// vLLM's object of that name (its pull request 48915), plus our `strategy` and `sources`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Metrics {
    speculative_decoding: SpeculativeDecoding,
}

#[derive(Clone, Debug, Serialize)]
struct SpeculativeDecoding {
    /// Tokens per verification step, the target's own included; `null` when no step verified drafts.
    mean_acceptance_length: Option<f64>,
    draft_acceptance_rate: Option<f64>,
    /// Entry j: verification steps that accepted exactly j drafts.
    acceptance_histogram: Vec<u64>,
    num_spec_steps: u64,
    num_accepted_draft_tokens: u64,
    num_draft_tokens: u64,
    /// Most drafts one step could verify.
    num_spec_tokens: u32,
    /// Tokens of the text that were drawn from a law pulled towards a drafter's (strategy rapid).
    #[serde(skip_serializing_if = "is_zero")]
    augmented_tokens: u64,
    /// What served the request, or most of it: `none` when no draft was verified.
    strategy: &'static str,
    /// The same counts by where the drafts came from.
    sources: BTreeMap<&'static str, SourceFigures>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Clone, Debug, Serialize)]
struct SourceFigures {
    num_spec_steps: u64,
    num_accepted_draft_tokens: u64,
    num_draft_tokens: u64,
}

/// What OpenAI's objects have no place for.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ours {
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<Piece>>,
}

impl Ours {
    /// Which parts of the text were drafted; nothing to say when it was not asked.
    pub(super) fn segments(segments: Option<Vec<Piece>>) -> Option<Self> {
        segments.map(|segments| Self { seed: None, segments: Some(segments) })
    }
}

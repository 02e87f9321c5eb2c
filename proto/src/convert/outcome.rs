use request::{Finish, Request, Source, SourceStats, SpeculationStats, TokenId, TokenLogprobs, Usage};

use crate::bounds::MAX_DRAFT_TOKENS;
use crate::error::{WireError, at_most};
use crate::v1;

impl From<Finish> for v1::FinishReason {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Stop,
            Finish::Length => Self::Length,
            Finish::Cancelled => Self::Cancelled,
            Finish::SlowClient => Self::SlowClient,
            Finish::Deadline => Self::Deadline,
            Finish::Failed => Self::Failed,
        }
    }
}

/// Reads a `FinishReason` field. An unspecified one is refused: an answer that does not say why it
/// ended is not known to be complete.
pub fn finish(value: i32) -> Result<Finish, WireError> {
    match v1::FinishReason::try_from(value) {
        Ok(v1::FinishReason::Unspecified) => Err(WireError::missing("finish.reason")),
        Ok(v1::FinishReason::Stop) => Ok(Finish::Stop),
        Ok(v1::FinishReason::Length) => Ok(Finish::Length),
        Ok(v1::FinishReason::Cancelled) => Ok(Finish::Cancelled),
        Ok(v1::FinishReason::SlowClient) => Ok(Finish::SlowClient),
        Ok(v1::FinishReason::Deadline) => Ok(Finish::Deadline),
        Ok(v1::FinishReason::Failed) => Ok(Finish::Failed),
        Err(_) => Err(WireError::unknown("finish.reason", value)),
    }
}

impl From<Usage> for v1::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
            accepted_prediction_tokens: usage.accepted_prediction_tokens,
            rejected_prediction_tokens: usage.rejected_prediction_tokens,
        }
    }
}

impl From<v1::Usage> for Usage {
    fn from(usage: v1::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
            accepted_prediction_tokens: usage.accepted_prediction_tokens,
            rejected_prediction_tokens: usage.rejected_prediction_tokens,
        }
    }
}

impl From<TokenLogprobs> for v1::TokenLogprob {
    fn from(from: TokenLogprobs) -> Self {
        let top = from.top.into_iter().map(|(id, logprob)| v1::TopLogprob { id: id.0, logprob }).collect();
        Self { logprob: from.logprob, top }
    }
}

impl TryFrom<v1::TokenLogprob> for TokenLogprobs {
    type Error = WireError;

    fn try_from(from: v1::TokenLogprob) -> Result<Self, WireError> {
        at_most("logprobs.top", from.top.len(), Request::MOST_LOGPROBS.into())?;
        if from.logprob.is_nan() || from.top.iter().any(|t| t.logprob.is_nan()) {
            return Err(WireError::invalid("logprobs", "holds what is no number"));
        }
        let top = from.top.into_iter().map(|t| (TokenId(t.id), t.logprob)).collect();
        Ok(Self { logprob: from.logprob, top })
    }
}

impl From<Source> for v1::Source {
    fn from(source: Source) -> Self {
        match source {
            Source::Drafter => Self::Drafter,
            Source::Prediction => Self::Prediction,
            Source::Ngram => Self::Ngram,
            Source::Suffix => Self::Suffix,
            Source::Recycle => Self::Recycle,
            Source::Del => Self::Del,
            Source::Window => Self::Window,
        }
    }
}

fn source(value: i32) -> Result<Source, WireError> {
    match v1::Source::try_from(value) {
        Ok(v1::Source::Drafter) => Ok(Source::Drafter),
        Ok(v1::Source::Prediction) => Ok(Source::Prediction),
        Ok(v1::Source::Ngram) => Ok(Source::Ngram),
        Ok(v1::Source::Suffix) => Ok(Source::Suffix),
        Ok(v1::Source::Recycle) => Ok(Source::Recycle),
        Ok(v1::Source::Del) => Ok(Source::Del),
        Ok(v1::Source::Window) => Ok(Source::Window),
        Ok(v1::Source::Unspecified) => Err(WireError::missing("speculation.sources.source")),
        Err(_) => Err(WireError::unknown("speculation.sources.source", value)),
    }
}

/// Those that did something.
fn sources(stats: &SpeculationStats) -> Vec<v1::SourceStats> {
    let did = Source::ALL.into_iter().map(|source| (source, stats.of(source)));
    let did = did.filter(|(_, stats)| *stats != SourceStats::default());
    did.map(|(source, stats)| v1::SourceStats {
        source: v1::Source::from(source).into(),
        drafts: stats.drafts,
        draft_tokens: stats.draft_tokens,
        accepted_tokens: stats.accepted_tokens,
    })
    .collect()
}

impl From<SpeculationStats> for v1::SpeculationStats {
    fn from(stats: SpeculationStats) -> Self {
        Self {
            sources: sources(&stats),
            drafts: stats.drafts,
            draft_tokens: stats.draft_tokens,
            accepted_tokens: stats.accepted_tokens,
            histogram: stats.histogram,
            plain_steps: stats.plain_steps,
            dropped_tokens: stats.dropped_tokens,
            augmented_tokens: stats.augmented_tokens,
        }
    }
}

impl TryFrom<v1::SpeculationStats> for SpeculationStats {
    type Error = WireError;

    fn try_from(from: v1::SpeculationStats) -> Result<Self, WireError> {
        at_most("speculation.histogram", from.histogram.len(), MAX_DRAFT_TOKENS + 1)?;
        at_most("speculation.sources", from.sources.len(), Source::ALL.len())?;
        let mut sources = [SourceStats::default(); Source::ALL.len()];
        for one in from.sources {
            let place = &mut sources[source(one.source)? as usize];
            if *place != SourceStats::default() {
                return Err(WireError::invalid("speculation.sources", "names a source twice"));
            }
            *place = SourceStats {
                drafts: one.drafts,
                draft_tokens: one.draft_tokens,
                accepted_tokens: one.accepted_tokens,
            };
        }
        Ok(Self {
            sources,
            drafts: from.drafts,
            draft_tokens: from.draft_tokens,
            accepted_tokens: from.accepted_tokens,
            histogram: from.histogram,
            plain_steps: from.plain_steps,
            dropped_tokens: from.dropped_tokens,
            augmented_tokens: from.augmented_tokens,
        })
    }
}

use ::cluster::{Incarnation, NodeId};
use request::{Finish, SpeculationStats, TokenId, TokenLogprobs, Tokens as _, Usage};

use super::{finish, tokens};
use crate::bounds::MAX_CHUNK_TOKENS;
use crate::error::{WireError, at_most};
use crate::v1;
use crate::worker::{self, generate_response::Event};

/// One message of a worker's answer: `worker::GenerateResponse`. Accepted once, Tokens, Finish once.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Accepted {
        incarnation: Incarnation,
        /// Numerics fingerprint.
        fingerprint: String,
        /// The drafter that is asked first; `None`: plain decoding.
        drafter: Option<NodeId>,
    },
    Tokens {
        /// Output index of the first id, the `committed` tokens of the request included.
        index: u32,
        /// At least one.
        ids: Vec<TokenId>,
        /// One per id: whether it was an accepted draft.
        drafted: Vec<bool>,
        /// One per id when they were asked for, else empty.
        logprobs: Vec<TokenLogprobs>,
        /// Drafts verified in the step that committed them.
        verified: u32,
        /// Whether those were the caller's prediction.
        predicted: bool,
        /// Prompt tokens that the prefix cache served; the same in every message.
        cached_tokens: u32,
    },
    Finish {
        finish: Finish,
        usage: Usage,
        speculation: SpeculationStats,
    },
}

impl From<Answer> for worker::GenerateResponse {
    fn from(answer: Answer) -> Self {
        let event = match answer {
            Answer::Accepted { incarnation, fingerprint, drafter } => Event::Accepted(worker::Accepted {
                incarnation: incarnation.0,
                fingerprint,
                drafter: drafter.map(|d| d.as_str().to_owned()).unwrap_or_default(),
            }),
            Answer::Tokens { index, ids, drafted, logprobs, verified, predicted, cached_tokens } => {
                // All false is written as nothing.
                let drafted = if drafted.contains(&true) { drafted } else { Vec::new() };
                let logprobs = logprobs.into_iter().map(Into::into).collect();
                Event::Tokens(worker::Tokens {
                    index,
                    ids: ids.to_ids(),
                    drafted,
                    logprobs,
                    verified,
                    predicted,
                    cached_tokens,
                })
            }
            Answer::Finish { finish, usage, speculation } => Event::Finish(worker::Finish {
                reason: v1::FinishReason::from(finish).into(),
                usage: Some(usage.into()),
                speculation: Some(speculation.into()),
            }),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<worker::GenerateResponse> for Answer {
    type Error = WireError;

    fn try_from(from: worker::GenerateResponse) -> Result<Self, WireError> {
        match from.event.ok_or(WireError::missing("event"))? {
            Event::Accepted(accepted) => {
                at_most("accepted.fingerprint", accepted.fingerprint.len(), 128)?;
                let drafter = match accepted.drafter.as_str() {
                    "" => None,
                    id => Some(NodeId::new(id)?),
                };
                Ok(Self::Accepted {
                    incarnation: super::incarnation("accepted.incarnation", accepted.incarnation)?,
                    fingerprint: accepted.fingerprint,
                    drafter,
                })
            }
            Event::Tokens(run) => {
                let ids = tokens("tokens.ids", run.ids, MAX_CHUNK_TOKENS)?;
                if ids.is_empty() {
                    return Err(WireError::invalid("tokens.ids", "is empty"));
                }
                let drafted = if run.drafted.is_empty() { vec![false; ids.len()] } else { run.drafted };
                if drafted.len() != ids.len() {
                    return Err(WireError::invalid(
                        "tokens.drafted",
                        format!("has {} flags for {} ids", drafted.len(), ids.len()),
                    ));
                }
                if !run.logprobs.is_empty() && run.logprobs.len() != ids.len() {
                    return Err(WireError::invalid(
                        "tokens.logprobs",
                        format!("has {} entries for {} ids", run.logprobs.len(), ids.len()),
                    ));
                }
                let logprobs =
                    run.logprobs.into_iter().map(TokenLogprobs::try_from).collect::<Result<_, _>>()?;
                Ok(Self::Tokens {
                    index: run.index,
                    ids,
                    drafted,
                    logprobs,
                    verified: run.verified,
                    predicted: run.predicted,
                    cached_tokens: run.cached_tokens,
                })
            }
            Event::Finish(end) => Ok(Self::Finish {
                finish: finish(end.reason)?,
                usage: end.usage.ok_or(WireError::missing("finish.usage"))?.into(),
                speculation: end.speculation.unwrap_or_default().try_into()?,
            }),
        }
    }
}

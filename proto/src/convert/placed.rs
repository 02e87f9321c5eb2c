use ::cluster::{Endpoint, Incarnation, NodeId, NodeRecord};
use request::{Limits, Request, RequestId, Sampling, SamplingParams, Speculation, Tokens};

use super::{quality, tokens};
use crate::bounds::{MAX_DRAFTERS, MAX_KNOWN_TOKENS, MAX_STOP_IDS};
use crate::error::{WireError, at_most};
use crate::{v1, worker};

/// A request as a coordinator hands it to a worker: `worker::GenerateRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The model asked for; the worker refuses when it serves another.
    pub model: String,
    pub request: Request,
    /// Ranked, best first.
    pub drafters: Vec<Candidate>,
}

/// A drafter that a worker may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: NodeId,
    pub endpoint: Endpoint,
    pub incarnation: Incarnation,
}

impl From<&NodeRecord> for Candidate {
    fn from(record: &NodeRecord) -> Self {
        Self { id: record.id.clone(), endpoint: record.endpoint.clone(), incarnation: record.incarnation }
    }
}

impl From<Placed> for worker::GenerateRequest {
    fn from(placed: Placed) -> Self {
        let Placed { model, request, drafters } = placed;
        Self {
            request_id: request.id.as_str().to_owned(),
            attempt: request.attempt,
            model,
            prompt: request.prompt.to_ids(),
            committed: request.committed.to_ids(),
            sampling: Some(request.sampling.params.into()),
            seed: request.sampling.seed,
            choice: request.sampling.choice,
            limits: Some(worker::Limits {
                max_tokens: request.limits.max_tokens,
                stop_ids: request.limits.stop_ids.to_ids(),
            }),
            quality: v1::Quality::from(request.quality).into(),
            speculation: Some(request.speculation.into()),
            drafters: drafters.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<worker::GenerateRequest> for Placed {
    type Error = WireError;

    /// The request passed [`Request::validate`].
    fn try_from(from: worker::GenerateRequest) -> Result<Self, WireError> {
        if from.model.is_empty() {
            return Err(WireError::missing("model"));
        }
        at_most("model", from.model.len(), 256)?;
        at_most("drafters", from.drafters.len(), MAX_DRAFTERS)?;
        at_most("prompt", from.prompt.len() + from.committed.len(), MAX_KNOWN_TOKENS)?;
        let limits = from.limits.ok_or(WireError::missing("limits"))?;
        let request = Request {
            id: RequestId::new(&from.request_id)?,
            attempt: from.attempt,
            prompt: tokens("prompt", from.prompt, MAX_KNOWN_TOKENS)?,
            committed: tokens("committed", from.committed, MAX_KNOWN_TOKENS)?,
            sampling: Sampling {
                params: SamplingParams::try_from(from.sampling.unwrap_or_default())?,
                seed: from.seed,
                choice: from.choice,
            },
            limits: Limits {
                max_tokens: limits.max_tokens,
                stop_ids: tokens("stop_ids", limits.stop_ids, MAX_STOP_IDS)?,
            },
            quality: quality(from.quality)?,
            speculation: Speculation::try_from(from.speculation.unwrap_or_default())?,
        };
        request.validate()?;
        let drafters = from.drafters.into_iter().map(Candidate::try_from).collect::<Result<_, _>>()?;
        Ok(Self { model: from.model, request, drafters })
    }
}

impl From<Candidate> for worker::DrafterCandidate {
    fn from(candidate: Candidate) -> Self {
        Self {
            node_id: candidate.id.as_str().to_owned(),
            endpoint: candidate.endpoint.as_str().to_owned(),
            incarnation: candidate.incarnation.0,
        }
    }
}

impl TryFrom<worker::DrafterCandidate> for Candidate {
    type Error = WireError;

    fn try_from(from: worker::DrafterCandidate) -> Result<Self, WireError> {
        Ok(Self {
            id: NodeId::new(&from.node_id)?,
            endpoint: Endpoint::new(&from.endpoint)?,
            incarnation: super::incarnation("drafters.incarnation", from.incarnation)?,
        })
    }
}

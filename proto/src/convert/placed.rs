use ::cluster::{Endpoint, Incarnation, NodeId, NodeRecord};
use request::{Limits, Request, RequestId, Sampling, Speculation, Tokens};

use super::{constraint, quality, sampling, tokens};
use crate::bounds::{MAX_DRAFTERS, MAX_KNOWN_TOKENS, MAX_PREDICTION, MAX_STOP_IDS};
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
    /// Who computes the prompt; `None`: the worker itself.
    pub prefill: Option<Candidate>,
}

/// Another node that a worker may ask.
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
        let Placed { model, request, drafters, prefill } = placed;
        Self {
            request_id: request.id.as_str().to_owned(),
            attempt: request.attempt,
            model,
            prompt: request.prompt.to_ids(),
            committed: request.committed.to_ids(),
            sampling: Some(sampling::to_wire(request.sampling.params, &request.adjust)),
            seed: request.sampling.seed,
            choice: request.sampling.choice,
            limits: Some(worker::Limits {
                max_tokens: request.limits.max_tokens,
                stop_ids: request.limits.stop_ids.to_ids(),
                min_tokens: request.limits.min_tokens,
            }),
            quality: v1::Quality::from(request.quality).into(),
            speculation: Some(request.speculation.into()),
            drafters: drafters.into_iter().map(Into::into).collect(),
            constraint: request.constraint.map(constraint::to_placed),
            logprobs: request.logprobs.map(u32::from),
            prediction: request.prediction.to_ids(),
            priority: request.priority,
            cache_salt: request.cache_salt,
            prefill: prefill.map(Into::into),
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
        let (params, adjust) = sampling::from_wire(from.sampling)?;
        let limits = from.limits.ok_or(WireError::missing("limits"))?;
        let request = Request {
            id: RequestId::new(&from.request_id)?,
            attempt: from.attempt,
            prompt: tokens("prompt", from.prompt, MAX_KNOWN_TOKENS)?,
            committed: tokens("committed", from.committed, MAX_KNOWN_TOKENS)?,
            sampling: Sampling { params, seed: from.seed, choice: from.choice },
            adjust,
            constraint: constraint::from_placed(from.constraint)?,
            limits: Limits {
                max_tokens: limits.max_tokens,
                min_tokens: limits.min_tokens,
                stop_ids: tokens("stop_ids", limits.stop_ids, MAX_STOP_IDS)?,
            },
            logprobs: super::logprobs("logprobs", from.logprobs)?,
            quality: quality(from.quality)?,
            speculation: Speculation::try_from(from.speculation.unwrap_or_default())?,
            prediction: tokens("prediction", from.prediction, MAX_PREDICTION)?,
            priority: from.priority,
            cache_salt: from.cache_salt,
        };
        request.validate()?;
        let drafters = from.drafters.into_iter().map(Candidate::try_from).collect::<Result<_, _>>()?;
        let prefill = from.prefill.map(Candidate::try_from).transpose()?;
        Ok(Self { model: from.model, request, drafters, prefill })
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

impl From<Candidate> for worker::PrefillCandidate {
    fn from(candidate: Candidate) -> Self {
        Self {
            node_id: candidate.id.as_str().to_owned(),
            endpoint: candidate.endpoint.as_str().to_owned(),
            incarnation: candidate.incarnation.0,
        }
    }
}

impl TryFrom<worker::PrefillCandidate> for Candidate {
    type Error = WireError;

    fn try_from(from: worker::PrefillCandidate) -> Result<Self, WireError> {
        Ok(Self {
            id: NodeId::new(&from.node_id)?,
            endpoint: Endpoint::new(&from.endpoint)?,
            incarnation: super::incarnation("prefill.incarnation", from.incarnation)?,
        })
    }
}

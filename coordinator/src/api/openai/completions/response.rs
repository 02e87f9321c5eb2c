//! The shapes of answers: `text_completion`, whole and as chunks.

use ::request::Finish;
use serde::Serialize;

use super::super::asking::Asking;
use super::super::logprobs::Legacy;
use super::super::usage::{Metrics, Ours, Usage};
use crate::generate::{Ended, StopReason};

/// What all objects of one answer carry.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Head {
    id: String,
    object: &'static str,
    /// Unix seconds.
    created: u64,
    model: String,
    /// The worker's numerics fingerprint; a replay on a worker of other numerics changes it.
    pub(super) system_fingerprint: String,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Completion {
    #[serde(flatten)]
    pub(super) head: Head,
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Usage,
    pub(super) metrics: Metrics,
    pub(super) paceline: Ours,
}

/// A choice, or in a chunk what came of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Option<Legacy>,
    pub(super) finish_reason: Option<&'static str>,
    /// vLLM's: the stop string or token of the request that ended it.
    pub(super) stop_reason: Option<StopReason>,
}

/// One event of a stream; OpenAI gives it the same object name.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    #[serde(flatten)]
    pub(super) head: &'a Head,
    pub(super) choices: Vec<Choice>,
    /// `null` on all but the last when usage was asked for, absent otherwise (OpenAI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<Metrics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paceline: Option<Ours>,
}

impl Head {
    pub(super) fn new(asking: &Asking, system_fingerprint: String) -> Self {
        Self {
            id: asking.id.clone(),
            object: "text_completion",
            created: asking.created,
            model: asking.model.name.clone(),
            system_fingerprint,
        }
    }
}

pub(super) fn finish_reason(ended: &Ended) -> &'static str {
    if ended.finish == Finish::Length { "length" } else { "stop" }
}

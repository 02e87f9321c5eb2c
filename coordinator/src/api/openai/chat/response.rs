//! The shapes of answers: one JSON object, or chunks of a stream.

use ::request::Finish;
use serde::Serialize;

use super::super::asking::Asking;
use super::super::logprobs::Entry;
use super::super::speech::CallPart;
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

/// `chat.completion`: the whole answer.
#[derive(Debug, Serialize)]
pub(in super::super) struct Completion {
    #[serde(flatten)]
    pub(super) head: Head,
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Usage,
    pub(super) metrics: Metrics,
    pub(super) paceline: Ours,
}

#[derive(Debug, Serialize)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) message: Message,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: &'static str,
    /// vLLM's: the stop string or token of the request that ended it.
    pub(super) stop_reason: Option<StopReason>,
}

#[derive(Debug, Serialize)]
pub(super) struct Message {
    pub(super) role: &'static str,
    /// `null` when there are calls and nothing else.
    pub(super) content: Option<String>,
    pub(super) refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Serialize)]
pub(super) struct ToolCall {
    pub(super) id: String,
    pub(super) r#type: &'static str,
    pub(super) function: Function,
}

#[derive(Debug, Serialize)]
pub(super) struct Function {
    pub(super) name: String,
    /// JSON as the model wrote it.
    pub(super) arguments: String,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Logprobs {
    pub(super) content: Vec<Entry>,
    pub(super) refusal: Option<()>,
}

/// `chat.completion.chunk`: one event of a stream.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    #[serde(flatten)]
    pub(super) head: &'a Head,
    pub(super) choices: Vec<Delta>,
    /// `null` on all but the last when usage was asked for, absent otherwise (OpenAI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<Metrics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paceline: Option<Ours>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Delta {
    pub(super) index: usize,
    pub(super) delta: Said,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stop_reason: Option<StopReason>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<CallDelta>,
}

#[derive(Debug, Serialize)]
pub(super) struct CallDelta {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Debug, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Head {
    pub(super) fn new(asking: &Asking, system_fingerprint: String) -> Self {
        Self {
            id: asking.id.clone(),
            object: "chat.completion",
            created: asking.created,
            model: asking.model.name.clone(),
            system_fingerprint,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn of_chunks(self) -> Self {
        Self { object: "chat.completion.chunk", ..self }
    }
}

impl From<CallPart> for CallDelta {
    fn from(part: CallPart) -> Self {
        let CallPart { index, begins, arguments } = part;
        let r#type = begins.is_some().then_some("function");
        let (id, name) = begins.unzip();
        Self { index, id, r#type, function: FunctionDelta { name, arguments } }
    }
}

pub(super) fn finish_reason(ended: &Ended, called: bool) -> &'static str {
    match ended.finish {
        Finish::Length => "length",
        _ if called => "tool_calls",
        _ => "stop",
    }
}

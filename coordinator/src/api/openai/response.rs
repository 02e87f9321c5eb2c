//! The shapes of answers: one JSON object, or chunks of a stream.

use request::Finish;
use serde::Serialize;

use crate::generate::Ended;
use crate::text::Piece;

/// What all objects of one answer carry.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Head {
    pub(super) id: String,
    object: &'static str,
    /// Unix seconds.
    created: u64,
    model: String,
    /// The worker's numerics fingerprint; a replay on a worker of other numerics changes it.
    pub(super) system_fingerprint: String,
}

impl Head {
    pub(super) fn new(id: String, created: u64, model: String, system_fingerprint: String) -> Self {
        Self { id, object: "chat.completion", created, model, system_fingerprint }
    }

    pub(super) fn of_chunks(self) -> Self {
        Self { object: "chat.completion.chunk", ..self }
    }
}

/// `chat.completion`: the whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Completion {
    #[serde(flatten)]
    head: Head,
    choices: [Choice; 1],
    usage: Usage,
    metrics: Metrics,
    paceline: Ours,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

impl Completion {
    pub(super) fn new(head: Head, content: String, segments: Option<Vec<Piece>>, ended: &Ended) -> Self {
        Self {
            head,
            choices: [Choice {
                index: 0,
                message: Message { role: "assistant", content, refusal: None },
                logprobs: None,
                finish_reason: finish_reason(ended),
            }],
            usage: Usage::of(ended),
            metrics: Metrics::of(ended),
            paceline: Ours { seed: Some(ended.seed), segments },
        }
    }
}

/// `chat.completion.chunk`: one event of a stream.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<Delta>,
    /// `null` on all but the last when usage was asked for, absent otherwise (OpenAI).
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Metrics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paceline: Option<Ours>,
}

#[derive(Debug, Serialize)]
struct Delta {
    index: u32,
    delta: Said,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl<'a> Chunk<'a> {
    /// The first chunk: who speaks.
    pub(super) fn role(head: &'a Head, with_usage: bool) -> Self {
        let said = Said { role: Some("assistant"), content: Some(String::new()) };
        Self::said(head, with_usage, said, None)
    }

    /// `segments` only when the client asked to see which parts were drafted.
    pub(super) fn content(
        head: &'a Head,
        with_usage: bool,
        text: String,
        segments: Option<Vec<Piece>>,
    ) -> Self {
        let mut chunk = Self::said(head, with_usage, Said { role: None, content: Some(text) }, None);
        chunk.paceline = segments.map(|s| Ours { seed: None, segments: Some(s) });
        chunk
    }

    /// Why it ended; carries the figures unless a usage chunk follows.
    pub(super) fn finish(head: &'a Head, with_usage: bool, ended: &Ended) -> Self {
        let chunk = Self::said(head, with_usage, Said::default(), Some(finish_reason(ended)));
        if with_usage { chunk } else { chunk.with_figures(ended) }
    }

    /// The chunk without choices that `include_usage` asks for.
    pub(super) fn usage(head: &'a Head, ended: &Ended) -> Self {
        Self { head, choices: Vec::new(), usage: Some(Some(Usage::of(ended))), metrics: None, paceline: None }
            .with_figures(ended)
    }

    fn said(head: &'a Head, with_usage: bool, delta: Said, finish_reason: Option<&'static str>) -> Self {
        Self {
            head,
            choices: vec![Delta { index: 0, delta, logprobs: None, finish_reason }],
            usage: with_usage.then_some(None),
            metrics: None,
            paceline: None,
        }
    }

    fn with_figures(mut self, ended: &Ended) -> Self {
        self.metrics = Some(Metrics::of(ended));
        self.paceline = Some(Ours { seed: Some(ended.seed), segments: None });
        self
    }
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
}

impl Usage {
    fn of(ended: &Ended) -> Self {
        let request::Usage { prompt_tokens, completion_tokens, .. } = ended.usage;
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: u64::from(prompt_tokens) + u64::from(completion_tokens),
        }
    }
}

/// vLLM's object of that name (its pull request 48915), plus our `strategy`.
#[derive(Debug, Serialize)]
struct Metrics {
    speculative_decoding: SpeculativeDecoding,
}

#[derive(Debug, Serialize)]
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
    /// What served the request: `none` when no drafter took part.
    strategy: &'static str,
}

impl Metrics {
    fn of(ended: &Ended) -> Self {
        let stats = &ended.speculation;
        Self {
            speculative_decoding: SpeculativeDecoding {
                mean_acceptance_length: stats.mean_acceptance_length(),
                draft_acceptance_rate: stats.acceptance_rate(),
                acceptance_histogram: stats.histogram.clone(),
                num_spec_steps: stats.drafts,
                num_accepted_draft_tokens: stats.accepted_tokens,
                num_draft_tokens: stats.draft_tokens,
                num_spec_tokens: ended.most_drafts,
                strategy: ended.strategy,
            },
        }
    }
}

/// What OpenAI's objects have no place for.
#[derive(Debug, Serialize)]
struct Ours {
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<Piece>>,
}

fn finish_reason(ended: &Ended) -> &'static str {
    if ended.finish == Finish::Length { "length" } else { "stop" }
}

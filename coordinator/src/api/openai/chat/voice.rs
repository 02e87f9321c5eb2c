//! Events of an answer to chunks, or to the whole.

use ::request::TokenId;
use futures::StreamExt;

use super::super::events::{Choices, Part, Voice, json};
use super::super::logprobs::Reporter;
use super::super::speech::{self, Reading, Speech};
use super::super::usage::{Ours, Sums};
use super::response::{
    Choice, Chunk, Completion, Delta, Function, Head, Logprobs, Message, Said, ToolCall, finish_reason,
};
use crate::failure::{self, Failure, Reason};
use crate::generate::{Ended, Event};
use crate::text::{Piece, append};

/// All choices of one answer as they are read.
#[derive(Debug)]
pub(super) struct Speaking {
    head: Head,
    choices: Vec<Speech>,
    /// `None`: no log-probabilities were asked for.
    reporter: Option<Reporter>,
    /// Whether to say which parts were drafted.
    flags: bool,
}

/// The same as chunks.
#[derive(Debug)]
pub(super) struct Streamed {
    speaking: Speaking,
    with_usage: bool,
}

/// What came of a choice.
#[derive(Debug, Default)]
struct Heard {
    content: String,
    calls: Vec<ToolCall>,
    logprobs: Logprobs,
    pieces: Vec<Piece>,
}

impl Speaking {
    pub(super) fn new(
        head: Head,
        n: u32,
        reading: Option<&Reading>,
        reporter: Option<Reporter>,
        flags: bool,
    ) -> Self {
        let choices = (0..n).map(|choice| Speech::new(reading, head.id(), choice)).collect();
        Self { head, choices, reporter, flags }
    }

    pub(super) fn streamed(self, with_usage: bool) -> Streamed {
        Streamed { speaking: Self { head: self.head.of_chunks(), ..self }, with_usage }
    }

    /// Reads to the end.
    pub(super) async fn whole(mut self, mut events: Choices, mut sums: Sums) -> Result<Completion, Failure> {
        let mut heard: Vec<Heard> = self.choices.iter().map(|_| Heard::default()).collect();
        let mut done: Vec<Choice> = Vec::new();
        while let Some((index, event)) = events.next().await {
            let (Some(heard), Some(speech)) = (heard.get_mut(index), self.choices.get_mut(index)) else {
                continue;
            };
            match event? {
                Event::Crossed { fingerprint } => self.head.system_fingerprint = fingerprint,
                Event::Tokens(out) => {
                    heard.take(speech.hear(&out.text()));
                    if let Some(reporter) = &self.reporter {
                        heard.logprobs.content.extend(reporter.chat(&out.ids, &out.logprobs));
                    }
                    for piece in out.pieces {
                        append(&piece.text, piece.drafted, &mut heard.pieces);
                    }
                }
                Event::Ended(ended) => {
                    heard.take(speech.finish());
                    let Heard { content, calls, logprobs, pieces } = std::mem::take(heard);
                    let content = (calls.is_empty() || !content.is_empty()).then_some(content);
                    let message = Message { role: "assistant", content, refusal: None, tool_calls: calls };
                    done.push(Choice {
                        index,
                        message,
                        logprobs: self.reporter.is_some().then_some(logprobs),
                        finish_reason: finish_reason(&ended, speech.called()),
                        stop_reason: ended.stop_reason.clone(),
                    });
                    if sums.add(index, &ended) {
                        done.sort_unstable_by_key(|choice| choice.index);
                        let paceline = sums.ours(self.flags.then_some(pieces));
                        let (usage, metrics) = (sums.usage(), sums.metrics());
                        return Ok(Completion { head: self.head, choices: done, usage, metrics, paceline });
                    }
                }
            }
        }
        Err(failure::new(Reason::Internal, "the answer ended without saying why"))
    }
}

impl Streamed {
    fn chunk(&self, delta: Delta) -> Chunk<'_> {
        Chunk {
            head: &self.speaking.head,
            choices: vec![delta],
            usage: self.with_usage.then_some(None),
            metrics: None,
            paceline: None,
        }
    }
}

impl Voice for Streamed {
    fn crossed(&mut self, fingerprint: String) {
        self.speaking.head.system_fingerprint = fingerprint;
    }

    /// Who speaks.
    fn open(&mut self, choice: usize) -> Option<String> {
        let delta = Said { role: Some("assistant"), content: Some(String::new()), ..Said::default() };
        Some(json(&self.chunk(Delta { index: choice, delta, ..Delta::default() })))
    }

    fn skip(&mut self, choice: usize, _: &[TokenId], text: &str) {
        if let Some(speech) = self.speaking.choices.get_mut(choice) {
            speech.hear(text);
        }
    }

    fn say(&mut self, choice: usize, part: Part) -> Option<String> {
        let said = self.speaking.choices.get_mut(choice)?.hear(&part.text);
        let logprobs = self.speaking.reporter.as_ref().map(|r| r.chat(&part.ids, &part.logprobs));
        let logprobs = logprobs.filter(|content| !content.is_empty());
        if said.is_empty() && logprobs.is_none() {
            return None;
        }
        let logprobs = logprobs.map(|content| Logprobs { content, refusal: None });
        let mut chunk = self.chunk(Delta { index: choice, delta: said.into(), logprobs, ..Delta::default() });
        chunk.paceline = Ours::segments(self.speaking.flags.then_some(part.pieces));
        Some(json(&chunk))
    }

    /// Why it ended, with what the end settles; the last carries the figures unless a chunk of them
    /// follows.
    fn end(&mut self, choice: usize, ended: &Ended, sums: Option<&Sums>) -> String {
        let (said, called) = match self.speaking.choices.get_mut(choice) {
            Some(speech) => (speech.finish(), speech.called()),
            None => Default::default(),
        };
        let mut chunk = self.chunk(Delta {
            index: choice,
            delta: said.into(),
            logprobs: None,
            finish_reason: Some(finish_reason(ended, called)),
            stop_reason: ended.stop_reason.clone(),
        });
        if let Some(sums) = sums.filter(|_| !self.with_usage) {
            (chunk.metrics, chunk.paceline) = (Some(sums.metrics()), Some(sums.ours(None)));
        }
        json(&chunk)
    }

    /// The chunk without choices that `include_usage` asks for.
    fn figures(&mut self, sums: &Sums) -> Option<String> {
        let chunk = Chunk {
            head: &self.speaking.head,
            choices: Vec::new(),
            usage: Some(Some(sums.usage())),
            metrics: Some(sums.metrics()),
            paceline: Some(sums.ours(None)),
        };
        self.with_usage.then(|| json(&chunk))
    }
}

impl Heard {
    fn take(&mut self, said: speech::Said) {
        self.content.push_str(&said.content);
        for part in said.calls {
            if let Some((id, name)) = part.begins {
                let function = Function { name, arguments: String::new() };
                self.calls.push(ToolCall { id, r#type: "function", function });
            }
            if let Some(call) = self.calls.last_mut() {
                call.function.arguments.push_str(&part.arguments);
            }
        }
    }
}

impl From<speech::Said> for Said {
    fn from(said: speech::Said) -> Self {
        let speech::Said { content, calls } = said;
        Self {
            role: None,
            content: (!content.is_empty()).then_some(content),
            tool_calls: calls.into_iter().map(Into::into).collect(),
        }
    }
}

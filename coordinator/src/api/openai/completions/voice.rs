//! Events of an answer to chunks, or to the whole.

use ::request::TokenId;
use futures::StreamExt;

use super::super::events::{Choices, Part, Voice, json};
use super::super::logprobs::{Legacy, Reporter};
use super::super::usage::{Ours, Sums};
use super::response::{Choice, Chunk, Completion, Head, finish_reason};
use crate::failure::{self, Failure, Reason};
use crate::generate::{Ended, Event};
use crate::text::{Piece, append};

/// All choices of one answer as they are read.
#[derive(Debug)]
pub(super) struct Speaking {
    head: Head,
    /// Characters of each choice that have log-probabilities: where the next token begins.
    offsets: Vec<usize>,
    /// Choices of a prompt.
    n: u32,
    /// With `echo`, the prompts' texts.
    before: Option<Vec<String>>,
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
    text: String,
    logprobs: Legacy,
    pieces: Vec<Piece>,
}

impl Speaking {
    pub(super) fn new(
        head: Head,
        count: usize,
        n: u32,
        before: Option<Vec<String>>,
        reporter: Option<Reporter>,
        flags: bool,
    ) -> Self {
        Self { head, offsets: vec![0; count], n, before, reporter, flags }
    }

    pub(super) fn streamed(self, with_usage: bool) -> Streamed {
        Streamed { speaking: self, with_usage }
    }

    /// Reads to the end.
    pub(super) async fn whole(mut self, mut events: Choices, mut sums: Sums) -> Result<Completion, Failure> {
        let mut heard: Vec<Heard> = (0..self.offsets.len())
            .map(|choice| Heard { text: self.echo(choice).unwrap_or_default().into(), ..Heard::default() })
            .collect();
        let mut done: Vec<Choice> = Vec::new();
        while let Some((index, event)) = events.next().await {
            let Some(heard) = heard.get_mut(index) else { continue };
            match event? {
                Event::Crossed { fingerprint } => self.head.system_fingerprint = fingerprint,
                Event::Tokens(out) => {
                    heard.text.push_str(&out.text());
                    if let Some(logprobs) = self.logprobs(index, &out.ids, &out.logprobs) {
                        heard.logprobs.append(logprobs);
                    }
                    for piece in out.pieces {
                        append(&piece.text, piece.drafted, &mut heard.pieces);
                    }
                }
                Event::Ended(ended) => {
                    let Heard { text, logprobs, pieces } = std::mem::take(heard);
                    done.push(Choice {
                        index,
                        text,
                        logprobs: self.reporter.is_some().then_some(logprobs),
                        finish_reason: Some(finish_reason(&ended)),
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

    fn echo(&self, choice: usize) -> Option<&str> {
        let prompts = self.before.as_ref()?;
        prompts.get(choice / self.n as usize).map(String::as_str)
    }

    fn logprobs(
        &mut self,
        choice: usize,
        ids: &[TokenId],
        logprobs: &[::request::TokenLogprobs],
    ) -> Option<Legacy> {
        let offset = self.offsets.get_mut(choice)?;
        let legacy = self.reporter.as_ref()?.legacy(ids, logprobs, offset);
        (!legacy.is_empty()).then_some(legacy)
    }
}

impl Streamed {
    fn chunk(&self, choice: Choice) -> Chunk<'_> {
        Chunk {
            head: &self.speaking.head,
            choices: vec![choice],
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

    /// The prompt, with `echo`.
    fn open(&mut self, choice: usize) -> Option<String> {
        let text = self.speaking.echo(choice)?.to_owned();
        Some(json(&self.chunk(Choice { index: choice, text, ..Choice::default() })))
    }

    fn skip(&mut self, choice: usize, ids: &[TokenId], _: &str) {
        if let (Some(reporter), Some(offset)) =
            (&self.speaking.reporter, self.speaking.offsets.get_mut(choice))
        {
            *offset += reporter.characters(ids);
        }
    }

    fn say(&mut self, choice: usize, part: Part) -> Option<String> {
        let logprobs = self.speaking.logprobs(choice, &part.ids, &part.logprobs);
        if part.text.is_empty() && logprobs.is_none() {
            return None;
        }
        let mut chunk = self.chunk(Choice { index: choice, text: part.text, logprobs, ..Choice::default() });
        chunk.paceline = Ours::segments(self.speaking.flags.then_some(part.pieces));
        Some(json(&chunk))
    }

    fn end(&mut self, choice: usize, ended: &Ended, sums: Option<&Sums>) -> String {
        let mut chunk = self.chunk(Choice {
            index: choice,
            finish_reason: Some(finish_reason(ended)),
            stop_reason: ended.stop_reason.clone(),
            ..Choice::default()
        });
        if let Some(sums) = sums.filter(|_| !self.with_usage) {
            (chunk.metrics, chunk.paceline) = (Some(sums.metrics()), Some(sums.ours(None)));
        }
        json(&chunk)
    }

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

//! A streamed answer of chat or legacy completions as server-sent events, resumable at every one.
//!
//! What the events say is a [`Voice`]'s; here are their order, their ids and what a client that comes
//! back has already.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt, select_all};
use request::{TokenId, TokenLogprobs};

use super::error::Body;
use super::mark::{self, Mark, Place};
use super::usage::Sums;
use crate::failure::{self, Failure, Reason, invalid};
use crate::generate::{Answers, Ended, Event, Pump, TokensOut};
use crate::text::Piece;

/// Proxies close a silent connection after a minute or less; prefill or a replay can take as long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Asks nginx not to collect the events.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The events of all choices of all prompts; a choice's number is prompt * n + i.
pub(super) type Choices = BoxStream<'static, (usize, Result<Event, Failure>)>;

/// One API's objects, as JSON texts.
pub(super) trait Voice: Send + 'static {
    /// What follows has other numerics.
    fn crossed(&mut self, fingerprint: String);
    /// A choice's first event, if it has one before its text.
    fn open(&mut self, choice: usize) -> Option<String>;
    /// What the client has already.
    fn skip(&mut self, choice: usize, ids: &[TokenId], text: &str);
    /// What came; `None` when it gives nothing to say yet.
    fn say(&mut self, choice: usize, part: Part) -> Option<String>;
    /// A choice's last event; `sums` with the last choice of all.
    fn end(&mut self, choice: usize, ended: &Ended, sums: Option<&Sums>) -> String;
    /// The event of figures behind all choices, if one was asked for.
    fn figures(&mut self, sums: &Sums) -> Option<String>;
}

/// Output of one choice that the client does not have.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) text: String,
    pub(super) pieces: Vec<Piece>,
    pub(super) ids: Vec<TokenId>,
    /// One per id when they were asked for.
    pub(super) logprobs: Vec<TokenLogprobs>,
}

/// The choices of several prompts, `n` each, pulled by whoever reads.
pub(super) fn direct(answers: Vec<Answers>, n: u32) -> Choices {
    merged(answers, n, |answers, first| {
        let next = move |mut answers: Answers| async move {
            let event = answers.next().await?;
            Some((numbered(event, first), answers))
        };
        stream::unfold(answers, next).boxed()
    })
}

/// As [`direct`], by tasks that end even when nobody reads.
pub(super) fn pumped(answers: Vec<Answers>, n: u32, slow_client: Duration) -> Choices {
    merged(answers, n, |answers, first| {
        let next = move |mut pump: Pump| async move {
            let event = pump.next().await?;
            Some((numbered(event, first), pump))
        };
        stream::unfold(Pump::new(answers, slow_client), next).boxed()
    })
}

fn merged(answers: Vec<Answers>, n: u32, of: impl Fn(Answers, usize) -> Choices) -> Choices {
    let each = answers.into_iter().enumerate().map(|(prompt, answers)| of(answers, prompt * n as usize));
    select_all(each).boxed()
}

fn numbered(event: Result<(u32, Event), Failure>, first: usize) -> (usize, Result<Event, Failure>) {
    match event {
        Ok((choice, event)) => (first + choice as usize, Ok(event)),
        Err(failure) => (first, Err(failure)),
    }
}

/// The whole response. `resumed`: what the client has of an answer with the same mark.
pub(super) fn respond(
    voice: impl Voice,
    choices: Choices,
    sums: Sums,
    answer: mark::Answer,
    count: usize,
    resumed: Option<Mark>,
) -> Response {
    let mark = Mark { answer, places: vec![Place::default(); count], figures: false };
    let has = resumed.unwrap_or(Mark { answer: mark.answer.clone(), ..mark.clone() });
    let events = Events { voice, choices: Some(choices), sums, mark, has, ready: VecDeque::new() };
    sse(stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((event, events))
    }))
}

/// A response of these events.
pub(super) fn sse(events: impl stream::Stream<Item = sse::Event> + Send + 'static) -> Response {
    let events = events.map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert(UNBUFFERED, HeaderValue::from_static("no"));
    response
}

struct Events<V> {
    voice: V,
    /// Dropped with the last event, so that a kept-alive connection holds nothing.
    choices: Option<Choices>,
    sums: Sums,
    /// How far the answer has come.
    mark: Mark,
    /// How far the client has it; stays.
    has: Mark,
    /// What one event of the answer gave, at most four.
    ready: VecDeque<sse::Event>,
}

impl<V: Voice> Events<V> {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let event = self.choices.as_mut()?.next().await;
            let told = match event {
                Some((choice, Ok(event))) => self.take(choice, event),
                Some((_, Err(failure))) => Err(failure),
                None => Err(failure::new(Reason::Internal, "the answer ended without saying why")),
            };
            if let Err(failure) = told {
                self.fail(failure);
            }
        }
    }

    fn take(&mut self, choice: usize, event: Event) -> Result<(), Failure> {
        let has = self.has.places.get(choice).copied().unwrap_or_default();
        match event {
            Event::Crossed { fingerprint } => {
                let behind = |(now, has): (&Place, &Place)| now.bytes < has.bytes || now.tokens < has.tokens;
                if self.mark.places.iter().zip(&self.has.places).any(behind) {
                    return Err(failure::new(
                        Reason::NoWorker,
                        "the worker that generated the answer again was lost, and none of its numerics is left; \
                         start over without Last-Event-ID",
                    ));
                }
                self.mark.answer.crossed = true;
                self.voice.crossed(fingerprint);
            }
            Event::Tokens(out) => {
                self.open(choice, has);
                let part = self.left_of(choice, out, has)?;
                if !(part.text.is_empty() && part.ids.is_empty())
                    && let Some(json) = self.voice.say(choice, part)
                {
                    self.send(json);
                }
            }
            Event::Ended(ended) => {
                self.open(choice, has);
                let place = self.place(choice);
                if place.bytes < has.bytes || place.tokens < has.tokens {
                    return Err(failure::new(
                        Reason::Internal,
                        "generated again, the answer is shorter than what was delivered; start over without \
                         Last-Event-ID",
                    ));
                }
                place.ended = true;
                let last = self.sums.add(choice, &ended);
                let json = self.voice.end(choice, &ended, last.then_some(&self.sums));
                if !has.ended {
                    self.send(json);
                }
                if last {
                    self.finish();
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, choice: usize, has: Place) {
        let place = self.place(choice);
        if !std::mem::replace(&mut place.opened, true)
            && let Some(json) = self.voice.open(choice)
            && !has.opened
        {
            self.send(json);
        }
    }

    /// Takes away what the client has.
    fn left_of(&mut self, choice: usize, out: TokensOut, has: Place) -> Result<Part, Failure> {
        let place = self.place(choice);
        let mut text = out.text();
        let least = |has: u64, at: u64, most: usize| {
            usize::try_from(has.saturating_sub(at)).unwrap_or(usize::MAX).min(most)
        };
        let bytes = least(has.bytes, place.bytes, text.len());
        let tokens = least(has.tokens, place.tokens, out.ids.len());
        place.bytes += text.len() as u64;
        place.tokens += out.ids.len() as u64;
        let TokensOut { mut ids, mut logprobs, mut pieces, .. } = out;
        if bytes > 0 || tokens > 0 {
            if !text.is_char_boundary(bytes) {
                return Err(invalid("Last-Event-ID", "Last-Event-ID: names a place within a character"));
            }
            let rest = text.split_off(bytes);
            let new_ids = ids.split_off(tokens);
            self.voice.skip(choice, &ids, &text);
            (text, ids) = (rest, new_ids);
            logprobs.drain(..tokens.min(logprobs.len()));
            cut(&mut pieces, bytes);
        }
        Ok(Part { text, pieces, ids, logprobs })
    }

    fn place(&mut self, choice: usize) -> &mut Place {
        // The choices were counted when they were placed; a number beyond is not.
        let most = self.mark.places.len().saturating_sub(1);
        &mut self.mark.places[choice.min(most)]
    }

    fn finish(&mut self) {
        if let Some(json) = self.voice.figures(&self.sums) {
            self.mark.figures = true;
            if !self.has.figures {
                self.send(json);
            }
        }
        self.send("[DONE]".into());
        self.choices = None;
    }

    /// The last event. Without `[DONE]` the answer is known to be incomplete.
    fn fail(&mut self, failure: Failure) {
        tracing::warn!(request = self.mark.answer.id, reason = %failure.reason, why = %failure, "answer broken off");
        self.send(json(&Body::new(failure)));
        self.choices = None;
    }

    fn send(&mut self, data: String) {
        self.ready.push_back(sse::Event::default().id(self.mark.to_string()).data(data));
    }
}

/// Our shapes have string keys and finite numbers, so this cannot fail; if it did, the client would see
/// an event that is no JSON.
pub(super) fn json(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

/// Takes the first bytes of a text away.
fn cut(pieces: &mut Vec<Piece>, mut bytes: usize) {
    pieces.retain_mut(|piece| {
        let most = bytes.min(piece.text.len());
        bytes -= most;
        piece.text.drain(..most);
        !piece.text.is_empty()
    });
}

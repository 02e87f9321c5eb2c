//! An answer as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Serialize;

use super::error::Body;
use super::response::{Chunk, Head};
use crate::failure::{self, Failure, Reason};
use crate::generate::{Answers, Event, Pump};

/// Proxies close a silent connection after a minute or less; prefill or a replay can take as long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Asks nginx not to collect the events.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) fn respond(
    answer: Answers,
    slow_client: Duration,
    head: Head,
    with_usage: bool,
    flags: bool,
) -> Response {
    let head = head.of_chunks();
    let mut ready = VecDeque::new();
    ready.push_back(json(&Chunk::role(&head, with_usage)));
    let chunks = Chunks { answer: Some(Pump::new(answer, slow_client)), head, with_usage, flags, ready };
    let events = stream::unfold(chunks, |mut chunks| async {
        let event = chunks.next().await?;
        Some((Ok::<_, Infallible>(event), chunks))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert(UNBUFFERED, HeaderValue::from_static("no"));
    response
}

struct Chunks {
    /// Dropped with the last event, so that a kept-alive connection holds nothing.
    answer: Option<Pump>,
    head: Head,
    with_usage: bool,
    flags: bool,
    /// What one event of the answer gave, at most three.
    ready: VecDeque<sse::Event>,
}

impl Chunks {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.answer.as_mut()?.next().await {
                Some(Ok((_, event))) => self.say(event),
                Some(Err(failure)) => self.fail(failure),
                None => self.fail(failure::new(Reason::Internal, "the answer ended without saying why")),
            }
        }
    }

    fn say(&mut self, event: Event) {
        match event {
            Event::Crossed { fingerprint } => self.head.system_fingerprint = fingerprint,
            Event::Tokens(tokens) if tokens.pieces.is_empty() => {}
            Event::Tokens(tokens) => {
                let text = tokens.text();
                let segments = self.flags.then_some(tokens.pieces);
                self.ready.push_back(json(&Chunk::content(&self.head, self.with_usage, text, segments)));
            }
            Event::Ended(ended) => {
                self.ready.push_back(json(&Chunk::finish(&self.head, self.with_usage, &ended)));
                if self.with_usage {
                    self.ready.push_back(json(&Chunk::usage(&self.head, &ended)));
                }
                self.ready.push_back(sse::Event::default().data("[DONE]"));
                self.answer = None;
            }
        }
    }

    /// The last event. Without `[DONE]` the answer is known to be incomplete.
    fn fail(&mut self, failure: Failure) {
        tracing::warn!(request = self.head.id, reason = %failure.reason, why = %failure, "answer broken off");
        self.ready.push_back(json(&Body::new(failure)));
        self.answer = None;
    }
}

fn json(body: &impl Serialize) -> sse::Event {
    // Our shapes have string keys and finite numbers, so this cannot fail; if it did, the client would
    // see an answer without [DONE].
    sse::Event::default().json_data(body).unwrap_or_else(|_| sse::Event::default().comment("unserialisable"))
}

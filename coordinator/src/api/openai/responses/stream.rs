//! A response as server-sent events.

use std::collections::VecDeque;

use ::request::Finish;
use axum::response::Response;
use axum::response::sse;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::super::error::Body;
use super::super::events::{self, Choices};
use super::super::usage::Sums;
use super::output::Output;
use crate::failure::{self, Failure, Reason};
use crate::generate::Event;

struct Events {
    output: Output,
    /// Dropped with the last event, so that a kept-alive connection holds nothing.
    choices: Option<Choices>,
    sums: Sums,
    /// Numbered as they are sent.
    ready: VecDeque<Value>,
    number: u64,
}

pub(super) fn respond(output: Output, choices: Choices, sums: Sums) -> Response {
    let first = ["response.created", "response.in_progress"];
    let ready = first.map(|kind| json!({"type": kind, "response": output.object.in_progress()})).into();
    let events = Events { output, choices: Some(choices), sums, ready, number: 0 };
    events::sse(stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((event, events))
    }))
}

impl Events {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(self.number(event));
            }
            match self.choices.as_mut()?.next().await {
                Some((choice, Ok(event))) => self.take(choice, event),
                Some((_, Err(failure))) => self.fail(failure),
                None => self.fail(failure::new(Reason::Internal, "the answer ended without saying why")),
            }
        }
    }

    fn take(&mut self, choice: usize, event: Event) {
        let mut told = Vec::new();
        match event {
            Event::Crossed { fingerprint } => self.output.object.crossed(fingerprint),
            Event::Tokens(out) => self.output.take(&out, &mut told),
            Event::Ended(ended) => {
                self.sums.add(choice, &ended);
                self.output.end(&ended, &mut told);
                let items = std::mem::take(&mut self.output.items);
                let response = self.output.object.ended(&ended, &self.sums, items);
                let kind = match ended.finish {
                    Finish::Length => "response.incomplete",
                    _ => "response.completed",
                };
                told.push(json!({"type": kind, "response": response}));
                self.choices = None;
            }
        }
        self.ready.extend(told);
    }

    /// The last event. Without `response.completed` or `response.incomplete` the answer is known to be
    /// broken off.
    fn fail(&mut self, failure: Failure) {
        let id = self.output.object.id();
        tracing::warn!(request = id, reason = %failure.reason, why = %failure, "answer broken off");
        let (code, message, param) =
            (failure.reason.openai_code(), failure.message.clone(), failure.field.clone());
        let mut event = json!({"type": "error", "code": code, "message": message, "param": param});
        // As the other paths say it, too: SDKs raise on it.
        if let (Value::Object(event), Ok(Value::Object(body))) =
            (&mut event, serde_json::to_value(Body::new(failure)))
        {
            event.extend(body);
        }
        self.ready.push_back(event);
        self.choices = None;
    }

    fn number(&mut self, mut event: Value) -> sse::Event {
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        if let Value::Object(fields) = &mut event {
            fields.insert("sequence_number".into(), self.number.into());
        }
        self.number += 1;
        sse::Event::default().event(kind).data(event.to_string())
    }
}

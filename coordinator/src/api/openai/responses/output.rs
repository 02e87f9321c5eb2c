//! Text and calls to output items, and the events that tell of them.

use ::request::Finish;
use serde_json::{Value, json};

use super::super::logprobs::{Entry, Reporter};
use super::super::speech::{CallPart, Said, Speech};
use super::object::Object;
use crate::generate::{Ended, TokensOut};

/// The items of one answer as they come. Events are objects without their number.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) object: Object,
    /// Complete items.
    pub(super) items: Vec<Value>,
    speech: Speech,
    /// `None`: no log-probabilities were asked for.
    reporter: Option<Reporter>,
    /// Log-probabilities of tokens whose text is held back, while no message is open that could have them.
    waiting: Vec<Entry>,
    open: Option<Item>,
}

/// The item that is being written.
#[derive(Debug)]
enum Item {
    Message { text: String, logprobs: Vec<Entry> },
    Call { index: u32, call_id: String, name: String, arguments: String },
}

impl Output {
    pub(super) fn new(object: Object, speech: Speech, reporter: Option<Reporter>) -> Self {
        Self { object, items: Vec::new(), speech, reporter, waiting: Vec::new(), open: None }
    }

    pub(super) fn take(&mut self, out: &TokensOut, events: &mut Vec<Value>) {
        let said = self.speech.hear(&out.text());
        let entries = self.reporter.as_ref().map(|r| r.chat(&out.ids, &out.logprobs)).unwrap_or_default();
        self.say(said, entries, events);
    }

    /// What the end settles; every item is complete then, and there is one at least.
    pub(super) fn end(&mut self, ended: &Ended, events: &mut Vec<Value>) {
        let said = self.speech.finish();
        self.say(said, Vec::new(), events);
        if self.open.is_none() && self.items.is_empty() {
            self.open_message(events);
            self.say(Said::default(), Vec::new(), events);
        }
        let status = if ended.finish == Finish::Length { "incomplete" } else { "completed" };
        self.close(status, events);
    }

    fn say(&mut self, said: Said, entries: Vec<Entry>, events: &mut Vec<Value>) {
        let speaking = matches!(self.open, Some(Item::Message { .. }));
        self.waiting.extend(entries);
        if !said.content.is_empty() || (speaking && !self.waiting.is_empty()) {
            if !speaking {
                self.close("completed", events);
                self.open_message(events);
            }
            let entries = std::mem::take(&mut self.waiting);
            let event = json!({
                "type": "response.output_text.delta", "item_id": self.item_id(), "output_index": self.items.len(),
                "content_index": 0, "delta": said.content, "logprobs": entries,
            });
            if let Some(Item::Message { text, logprobs }) = &mut self.open {
                text.push_str(&said.content);
                logprobs.extend(entries);
            }
            events.push(event);
        }
        for part in said.calls {
            self.call(part, events);
        }
    }

    fn call(&mut self, part: CallPart, events: &mut Vec<Value>) {
        if let Some((call_id, name)) = part.begins {
            self.close("completed", events);
            // They are the call's, which has no place for them.
            self.waiting.clear();
            self.open = Some(Item::Call { index: part.index, call_id, name, arguments: String::new() });
            events.push(json!({
                "type": "response.output_item.added", "output_index": self.items.len(),
                "item": self.item("in_progress"),
            }));
        }
        if part.arguments.is_empty() {
            return;
        }
        if let Some(Item::Call { index, arguments, .. }) = &mut self.open
            && *index == part.index
        {
            arguments.push_str(&part.arguments);
            events.push(json!({
                "type": "response.function_call_arguments.delta", "item_id": self.item_id(),
                "output_index": self.items.len(), "delta": part.arguments,
            }));
        }
    }

    fn open_message(&mut self, events: &mut Vec<Value>) {
        self.open = Some(Item::Message { text: String::new(), logprobs: Vec::new() });
        let (id, index) = (self.item_id(), self.items.len());
        let item =
            json!({"type": "message", "id": id, "status": "in_progress", "role": "assistant", "content": []});
        events.push(json!({"type": "response.output_item.added", "output_index": index, "item": item}));
        events.push(json!({
            "type": "response.content_part.added", "item_id": id, "output_index": index, "content_index": 0,
            "part": part("", &[]),
        }));
    }

    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let (id, index, item) = (self.item_id(), self.items.len(), self.item(status));
        match self.open.take() {
            None => return,
            Some(Item::Message { text, logprobs }) => {
                events.push(json!({
                    "type": "response.output_text.done", "item_id": id, "output_index": index, "content_index": 0,
                    "text": text, "logprobs": logprobs,
                }));
                events.push(json!({
                    "type": "response.content_part.done", "item_id": id, "output_index": index, "content_index": 0,
                    "part": part(&text, &logprobs),
                }));
            }
            Some(Item::Call { arguments, name, .. }) => events.push(json!({
                "type": "response.function_call_arguments.done", "item_id": id, "output_index": index, "name": name,
                "arguments": arguments,
            })),
        }
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
        self.items.push(item);
    }

    fn item_id(&self) -> String {
        let kind = if matches!(self.open, Some(Item::Call { .. })) { "fc" } else { "msg" };
        let answer = self.object.id().rsplit('_').next().unwrap_or_default();
        format!("{kind}_{answer}{:02}", self.items.len())
    }

    fn item(&self, status: &str) -> Value {
        let id = self.item_id();
        match &self.open {
            None => Value::Null,
            Some(Item::Message { text, logprobs }) => json!({
                "type": "message", "id": id, "status": status, "role": "assistant",
                "content": [part(text, logprobs)],
            }),
            Some(Item::Call { call_id, name, arguments, .. }) => json!({
                "type": "function_call", "id": id, "status": status, "call_id": call_id, "name": name,
                "arguments": arguments,
            }),
        }
    }
}

fn part(text: &str, logprobs: &[Entry]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

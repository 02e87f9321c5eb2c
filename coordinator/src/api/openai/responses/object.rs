//! The response object: what was asked, and what came of it.

use ::request::Finish;
use serde_json::{Value, json};

use super::super::asking::Asking;
use super::super::usage::Sums;
use crate::generate::Ended;

/// What the object repeats of the request.
#[derive(Debug)]
pub(super) struct Echoed {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: f64,
    pub(super) top_p: f64,
    pub(super) top_logprobs: u8,
    pub(super) format: Value,
    pub(super) tools: Value,
    pub(super) tool_choice: Value,
}

#[derive(Debug)]
pub(super) struct Object {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    echoed: Echoed,
}

impl Object {
    pub(super) fn new(asking: &Asking, fingerprint: String, echoed: Echoed) -> Self {
        Self {
            id: asking.id.clone(),
            created: asking.created,
            model: asking.model.name.clone(),
            fingerprint,
            echoed,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn crossed(&mut self, fingerprint: String) {
        self.fingerprint = fingerprint;
    }

    pub(super) fn in_progress(&self) -> Value {
        self.with("in_progress", Value::Null, Vec::new(), Value::Null)
    }

    /// With the figures, and ours beside them.
    pub(super) fn ended(&self, ended: &Ended, sums: &Sums, items: Vec<Value>) -> Value {
        let usage = sums.tokens();
        let usage = json!({
            "input_tokens": usage.prompt_tokens,
            // Nothing is billed for writing to the cache.
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        });
        let (status, details) = match ended.finish {
            Finish::Length => ("incomplete", json!({"reason": "max_output_tokens"})),
            _ => ("completed", Value::Null),
        };
        let mut object = self.with(status, details, items, usage);
        if let Value::Object(fields) = &mut object {
            fields.insert("metrics".into(), json!(sums.metrics()));
            fields.insert("paceline".into(), json!(sums.ours(None)));
        }
        object
    }

    fn with(&self, status: &str, incomplete_details: Value, items: Vec<Value>, usage: Value) -> Value {
        let Echoed {
            instructions,
            max_output_tokens,
            parallel_tool_calls,
            temperature,
            top_p,
            top_logprobs,
            format,
            tools,
            tool_choice,
        } = &self.echoed;
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete_details,
            "instructions": instructions,
            "max_output_tokens": max_output_tokens,
            "model": self.model,
            "output": items,
            "parallel_tool_calls": parallel_tool_calls,
            "previous_response_id": null,
            "store": false,
            "temperature": temperature,
            "text": {"format": format},
            "tool_choice": tool_choice,
            "tools": tools,
            "top_p": top_p,
            "top_logprobs": top_logprobs,
            "truncation": "disabled",
            "usage": usage,
            "metadata": {},
            "system_fingerprint": self.fingerprint,
        })
    }
}

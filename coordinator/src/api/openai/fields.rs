//! What becomes of every top-level field of a chat completion request, as data: the parser and
//! `docs/openai-api.md` read the same three tables.

use serde_json::Value;

/// Fields that decide the answer.
pub(crate) const HONOURED: &[(&str, &str)] = &[
    ("model", "a name or alias from /v1/models"),
    ("messages", "roles system, developer (as system), user, assistant; content is a string or text parts"),
    (
        "max_completion_tokens",
        "most output tokens; default: what the context leaves, at most the server's default_max_tokens",
    ),
    ("max_tokens", "the older name of max_completion_tokens; both may be sent when they agree"),
    ("temperature", "0, or 0.01 to 2; default 1"),
    ("top_p", "above 0, at most 1; default 1"),
    ("top_k", "0 or -1 keeps all; default 0 (not OpenAI's)"),
    ("min_p", "0 to 1; default 0 (not OpenAI's)"),
    ("seed", "any 64-bit integer; drawn when absent and returned in x-paceline-seed"),
    ("stream", "true: server-sent events"),
    ("stream_options", "include_usage; only with stream"),
    ("n", "1"),
    (
        "speculation",
        "strategy auto, none, draft or lockstep; max_draft; k and deadline_ms with lockstep (not OpenAI's)",
    ),
];

/// Fields that are taken and change nothing.
pub(crate) const NO_EFFECT: &[(&str, &str)] = &[
    ("user", "nothing is kept per user"),
    ("safety_identifier", "nothing is kept per user"),
    ("metadata", "answers are not stored"),
    ("store", "answers are not stored"),
    ("service_tier", "there is one tier"),
    ("prompt_cache_key", "no prompt is kept for another request yet"),
    ("prompt_cache_retention", "no prompt is kept for another request yet"),
    ("parallel_tool_calls", "without tools there is nothing to call"),
];

/// Fields of OpenAI and vLLM, and one of ours, that are not built yet: refused unless neutral.
pub(crate) const NOT_BUILT: &[(&str, Neutral)] = &[
    ("tools", Neutral::Empty),
    ("tool_choice", Neutral::Words(&["none", "auto"])),
    ("functions", Neutral::Empty),
    ("function_call", Neutral::Words(&["none", "auto"])),
    ("response_format", Neutral::TextFormat),
    ("stop", Neutral::Empty),
    ("stop_token_ids", Neutral::Empty),
    ("ignore_eos", Neutral::False),
    ("min_tokens", Neutral::Number(0)),
    ("logprobs", Neutral::False),
    ("top_logprobs", Neutral::Number(0)),
    ("logit_bias", Neutral::Empty),
    ("presence_penalty", Neutral::Number(0)),
    ("frequency_penalty", Neutral::Number(0)),
    ("repetition_penalty", Neutral::Number(1)),
    ("audio", Neutral::Null),
    ("modalities", Neutral::TextOnly),
    ("prediction", Neutral::Null),
    ("reasoning_effort", Neutral::Words(&["none"])),
    ("verbosity", Neutral::Words(&["medium"])),
    ("web_search_options", Neutral::Null),
    ("moderation", Neutral::Null),
    // Ours: whether lossy modes may be used.
    ("quality", Neutral::Words(&["exact"])),
];

/// Values of a field that ask for nothing; `null` always is one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Neutral {
    Null,
    /// `[]` or `{}`.
    Empty,
    False,
    Number(u32),
    Words(&'static [&'static str]),
    /// `["text"]`.
    TextOnly,
    /// `{"type": "text"}`.
    TextFormat,
}

impl Neutral {
    pub(crate) fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Empty, Value::Array(a)) => a.is_empty(),
            (Self::Empty, Value::Object(o)) => o.is_empty(),
            (Self::False, Value::Bool(b)) => !b,
            (Self::Number(n), Value::Number(v)) => v.as_f64() == Some(f64::from(n)),
            (Self::Words(words), Value::String(s)) => words.contains(&s.as_str()),
            (Self::TextOnly, Value::Array(a)) => a.len() == 1 && a[0] == "text",
            (Self::TextFormat, Value::Object(o)) => {
                o.len() == 1 && o.get("type").is_some_and(|t| t == "text")
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Neutral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Empty => f.write_str("null, [] or {}"),
            Self::False => f.write_str("null or false"),
            Self::Number(n) => write!(f, "null or {n}"),
            Self::Words(words) => {
                f.write_str("null")?;
                words.iter().try_for_each(|w| write!(f, " or \"{w}\""))
            }
            Self::TextOnly => f.write_str("null or [\"text\"]"),
            Self::TextFormat => f.write_str("null or {\"type\": \"text\"}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn neutral_values() {
        for (neutral, good, bad) in [
            (Neutral::Null, vec![json!(null)], vec![json!(0), json!(false), json!([])]),
            (Neutral::Empty, vec![json!([]), json!({})], vec![json!([1]), json!("")]),
            (Neutral::False, vec![json!(false)], vec![json!(true), json!(0)]),
            (Neutral::Number(0), vec![json!(0), json!(0.0), json!(-0.0)], vec![json!(0.1), json!("0")]),
            (Neutral::Words(&["none"]), vec![json!("none")], vec![json!("auto"), json!({})]),
            (Neutral::TextOnly, vec![json!(["text"])], vec![json!(["text", "audio"]), json!([])]),
            (Neutral::TextFormat, vec![json!({"type": "text"})], vec![json!({"type": "json_object"})]),
        ] {
            assert!(neutral.holds(&Value::Null));
            assert!(good.iter().all(|v| neutral.holds(v)), "{neutral:?}");
            assert!(!bad.iter().any(|v| neutral.holds(v)), "{neutral:?}");
        }
    }

    #[test]
    fn a_field_stands_in_one_table() {
        let mut names: Vec<_> = HONOURED.iter().chain(NO_EFFECT).map(|(name, _)| *name).collect();
        names.extend(NOT_BUILT.iter().map(|(name, _)| *name));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    /// The document holds exactly these rows, so it cannot promise what the parser does not do.
    #[test]
    fn the_document_lists_the_tables() {
        let document = include_str!("../../../../docs/openai-api.md");
        let notes = HONOURED.iter().chain(NO_EFFECT).map(|(name, note)| (*name, (*note).to_string()));
        let neutral = NOT_BUILT.iter().map(|(name, neutral)| (*name, neutral.to_string()));
        let rows: Vec<_> =
            notes.chain(neutral).map(|(name, note)| format!("| `{name}` | {note} |")).collect();
        for row in &rows {
            assert!(document.lines().any(|l| l == row), "docs/openai-api.md lacks the row:\n{row}");
        }
        let listed = document.lines().filter(|l| l.starts_with("| `")).count();
        assert_eq!(listed, rows.len(), "docs/openai-api.md lists a field that no table has");
    }
}

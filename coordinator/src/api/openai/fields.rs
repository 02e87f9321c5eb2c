//! What becomes of every top-level field of a request, as data: the parsers and
//! `docs/openai-api.md` read the same tables.

use serde_json::{Map, Value};

use super::body::shown;
use crate::failure::{Failure, invalid, not_built};

mod chat;
mod completions;
mod responses;
mod tokens;

pub(super) use chat::CHAT;
pub(super) use completions::COMPLETIONS;
pub(super) use responses::RESPONSES;
pub(super) use tokens::{DETOKENIZE, TOKENIZE};

/// The fields of one path.
#[derive(Debug)]
pub(super) struct Table {
    /// As the document's heading has it.
    #[cfg_attr(not(test), expect(dead_code, reason = "the test that reads the document"))]
    pub(super) path: &'static str,
    /// Fields that decide the answer, and what is taken. Several lists, because paths share some.
    pub(super) honoured: &'static [&'static [(&'static str, &'static str)]],
    /// Fields that are taken and change nothing, and why.
    pub(super) no_effect: &'static [&'static [(&'static str, &'static str)]],
    /// Fields of OpenAI and vLLM that are refused unless neutral, and what to do instead.
    pub(super) refused: &'static [&'static [(&'static str, Neutral, &'static str)]],
}

/// What chat and legacy completions share: how tokens are drawn and when they end.
const SAMPLING: &[(&str, &str)] = &[
    ("temperature", "0, or 0.01 to 2; default 1"),
    ("top_p", "above 0, at most 1; default 1"),
    ("top_k", "0 or -1 keeps all; default 0 (vLLM's)"),
    ("min_p", "0 to 1; default 0 (vLLM's)"),
    ("typical_p", "above 0, at most 1; default 1 (arXiv 2202.00666)"),
    ("presence_penalty", "-2 to 2; default 0"),
    ("frequency_penalty", "-2 to 2; default 0"),
    ("repetition_penalty", "0.01 to 10; default 1 (vLLM's)"),
    ("logit_bias", "an object of token ids to -100 to 100, at most 1024"),
    ("seed", "any 64-bit integer; drawn when absent and returned in x-paceline-seed"),
    ("n", "1 to 128 choices; each has noise of its own"),
    ("stop", "a string or up to 16 (OpenAI takes 4) of at most 1024 bytes; not shown in the text"),
    ("stop_token_ids", "a list of token ids that end the answer beside the model's own (vLLM's)"),
    ("include_stop_str_in_output", "true shows what stopped the answer (vLLM's)"),
    ("ignore_eos", "true: the model's own stop tokens end nothing (vLLM's)"),
    ("min_tokens", "nothing ends the answer before so many tokens (vLLM's)"),
    ("structured_outputs", "one of json, json_object, regex, choice, grammar (vLLM's; the grammar is Lark)"),
    ("stream", "true: server-sent events"),
    ("stream_options", "include_usage; only with stream"),
    ("priority", "a 32-bit integer, higher is served first (in vLLM lower); default 0"),
    ("cache_salt", "prefix pages are shared only among requests of one salt, at most 256 bytes (vLLM's)"),
    (
        "quality",
        "exact (default), or approximate: a worker with a head map may answer, and speculation.strategy rapid is taken \
         (not OpenAI's)",
    ),
    (
        "speculation",
        "strategy auto, none, draft (or pearl), lockstep, ngram, suffix, recycle, del, window or rapid; rule coupled, \
         greedy, strict or rejection; max_draft; k and deadline_ms with lockstep and rapid; exit and k with del; sink, \
         recent and k with window; eta, plausible and retrieval (head, question, chunk, budget, threshold) with rapid \
         (not OpenAI's)",
    ),
];

const NOTHING_KEPT: &[(&str, &str)] = &[
    ("user", "nothing is kept per user"),
    ("safety_identifier", "nothing is kept per user"),
    ("metadata", "answers are not stored"),
    ("store", "answers are not stored"),
    ("service_tier", "there is one tier"),
    ("prompt_cache_key", "prefixes are found by their tokens; cache_salt separates tenants"),
    ("prompt_cache_retention", "the prefix cache keeps what fits, the latest used first"),
    ("prompt_cache_options", "the prefix cache keeps what fits, the latest used first"),
];

/// vLLM's fields beyond OpenAI's.
const VLLM: &[(&str, Neutral, &str)] = &[
    ("skip_special_tokens", Neutral::True, "-"),
    ("spaces_between_special_tokens", Neutral::True, "-"),
    ("truncate_prompt_tokens", Neutral::Null, "shorten the prompt"),
    ("prompt_logprobs", Neutral::Null, "-"),
    ("allowed_token_ids", Neutral::Empty, "structured_outputs"),
    ("bad_words", Neutral::Empty, "logit_bias"),
    ("use_beam_search", Neutral::False, "n"),
    ("length_penalty", Neutral::Number(1), "-"),
    ("guided_json", Neutral::Null, "structured_outputs.json"),
    ("guided_regex", Neutral::Null, "structured_outputs.regex"),
    ("guided_choice", Neutral::Null, "structured_outputs.choice"),
    ("guided_grammar", Neutral::Null, "structured_outputs.grammar"),
    ("return_token_ids", Neutral::False, "/tokenize"),
    ("return_tokens_as_token_ids", Neutral::False, "/tokenize"),
];

/// Values of a field that ask for nothing; `null` always is one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
    Null,
    /// `[]` or `{}`.
    Empty,
    True,
    False,
    Number(u32),
    Words(&'static [&'static str]),
    /// `["text"]`.
    TextOnly,
}

impl Table {
    pub(super) fn honours(&self, name: &str) -> bool {
        known(self.honoured, name)
    }

    /// Refuses the first field that is unknown, or known and not neutral.
    pub(super) fn check(&self, object: &Map<String, Value>) -> Result<(), Failure> {
        for (name, value) in object {
            if self.honours(name) || known(self.no_effect, name) {
                continue;
            }
            match self.refused.iter().copied().flatten().find(|(n, ..)| n == name) {
                Some((_, neutral, _)) if neutral.holds(value) => {}
                Some((_, neutral, instead)) => {
                    let instead =
                        if *instead == "-" { String::new() } else { format!("; instead: {instead}") };
                    return Err(not_built(
                        name,
                        format!(
                            "{name}: not built; leave it out or send its neutral value ({neutral}){instead}"
                        ),
                    ));
                }
                None => {
                    let name = shown(name);
                    return Err(invalid(
                        &name,
                        format!("{name}: unknown field; docs/openai-api.md lists the fields that are taken"),
                    ));
                }
            }
        }
        Ok(())
    }
}

fn known(lists: &[&[(&str, &str)]], name: &str) -> bool {
    lists.iter().copied().flatten().any(|(n, _)| *n == name)
}

impl Neutral {
    pub(super) fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Empty, Value::Array(a)) => a.is_empty(),
            (Self::Empty, Value::Object(o)) => o.is_empty(),
            (Self::True, Value::Bool(b)) => *b,
            (Self::False, Value::Bool(b)) => !b,
            (Self::Number(n), Value::Number(v)) => v.as_f64() == Some(f64::from(n)),
            (Self::Words(words), Value::String(s)) => words.contains(&s.as_str()),
            (Self::TextOnly, Value::Array(a)) => a.len() == 1 && a[0] == "text",
            _ => false,
        }
    }
}

impl std::fmt::Display for Neutral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Empty => f.write_str("null, [] or {}"),
            Self::True => f.write_str("null or true"),
            Self::False => f.write_str("null or false"),
            Self::Number(n) => write!(f, "null or {n}"),
            Self::Words(words) => {
                f.write_str("null")?;
                words.iter().try_for_each(|w| write!(f, " or \"{w}\""))
            }
            Self::TextOnly => f.write_str("null or [\"text\"]"),
        }
    }
}

#[cfg(test)]
mod tests;

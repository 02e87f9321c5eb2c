//! A legacy completion request from bytes.

use ::request::{Request, TokenId};
use proto::bounds::MAX_CHOICES;
use serde::Deserialize;
use serde_json::Value;

use super::super::asking::{RawStreamOptions, include_usage};
use super::super::body::{fields, missing, typed, within};
use super::super::constraint::Asked;
use super::super::fields::COMPLETIONS;
use super::super::logprobs::bytes;
use super::super::sampling::RawSampling;
use crate::failure::{Failure, invalid, not_built};
use crate::models::Model;
use crate::question::{Prompt, Question};

/// Output of requests that do not say how long, as at OpenAI.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// The honoured fields, checked.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    /// What all prompts share; its own is empty.
    pub(super) question: Question,
    pub(super) prompts: Vec<Prompt>,
    pub(super) suffix: Option<String>,
    pub(super) echo: bool,
    pub(super) form: Option<Asked>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    prompt: Option<Value>,
    suffix: Option<String>,
    max_tokens: Option<u32>,
    logprobs: Option<u8>,
    echo: Option<bool>,
    best_of: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<RawStreamOptions>,
}

impl CompletionRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let fields = fields(body, &COMPLETIONS)?;
        let raw: Raw = typed(&fields)?;
        let mut sampling = RawSampling::read(&fields)?;
        let model = raw.model.ok_or_else(|| missing("model", "name one of /v1/models"))?;
        let prompt = raw.prompt.ok_or_else(|| missing("prompt", "send a string or token ids"))?;
        let prompts = prompts(&prompt)?;
        let form = sampling.structured_outputs.take().map(|raw| raw.check()).transpose()?.flatten();
        let mut question = Question::new(model, Prompt::Tokens(Vec::new()));
        sampling.apply(&mut question)?;
        if prompts.len() > (MAX_CHOICES / question.n) as usize {
            return Err(invalid(
                "prompt",
                format!(
                    "prompt: {} prompts with n {} are more than {MAX_CHOICES} choices; send fewer at once",
                    prompts.len(),
                    question.n
                ),
            ));
        }
        if raw.best_of.is_some_and(|best| best != 1 && best != u64::from(question.n)) {
            return Err(not_built("best_of", "best_of: not built; send 1, or the same as n"));
        }
        question.max_tokens = match raw.max_tokens {
            Some(0) => return Err(invalid("max_tokens", "max_tokens: must be at least 1")),
            asked => Some(asked.unwrap_or(DEFAULT_MAX_TOKENS)),
        };
        let echo = raw.echo.unwrap_or(false);
        if raw.logprobs.is_some_and(|n| n > Request::MOST_LOGPROBS) {
            let why = format!("logprobs: at most {} alternatives are reported", Request::MOST_LOGPROBS);
            return Err(invalid("logprobs", why));
        }
        if echo && raw.logprobs.is_some() {
            return Err(not_built(
                "logprobs",
                "logprobs: not built together with echo: the prompt's tokens have none; leave one out",
            ));
        }
        question.logprobs = raw.logprobs;
        let stream = raw.stream.unwrap_or(false);
        let include_usage = include_usage(raw.stream_options, stream)?;
        Ok(Self { question, prompts, suffix: raw.suffix, echo, form, stream, include_usage })
    }
}

/// A string, ids, or a list of either.
fn prompts(prompt: &Value) -> Result<Vec<Prompt>, Failure> {
    const AT: &str = "prompt";
    let wrong = |at: &str| {
        invalid(
            at,
            format!("{at}: must be a string, a list of strings, a list of token ids or a list of such lists"),
        )
    };
    let ids = |value: &Value, at: &str| -> Result<Prompt, Failure> {
        let ids: Vec<u32> = within(value, at)?;
        if ids.is_empty() {
            return Err(invalid(at, format!("{at}: is empty; send at least one token")));
        }
        Ok(Prompt::Tokens(ids.into_iter().map(TokenId).collect()))
    };
    let text = |text: &str, at: &str| {
        if text.is_empty() {
            return Err(invalid(at, format!("{at}: is empty; send at least one character")));
        }
        Ok(Prompt::Text(text.to_owned()))
    };
    match prompt {
        Value::String(s) => Ok(vec![text(s, AT)?]),
        Value::Array(list) => match list.first() {
            None => Err(invalid(AT, "prompt: is empty; send at least one")),
            Some(Value::Number(_)) => Ok(vec![ids(prompt, AT)?]),
            Some(Value::String(_) | Value::Array(_)) => list
                .iter()
                .enumerate()
                .map(|(i, one)| match one {
                    Value::String(s) => text(s, &format!("prompt[{i}]")),
                    Value::Array(_) => ids(one, &format!("prompt[{i}]")),
                    _ => Err(wrong(&format!("prompt[{i}]"))),
                })
                .collect(),
            Some(_) => Err(wrong("prompt[0]")),
        },
        _ => Err(wrong(AT)),
    }
}

/// The prompt as text, for `echo`.
pub(super) fn text(prompt: &Prompt, model: &Model) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(ids) => {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| bytes(model, *id)).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Prompt::Chat(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::Reason;

    fn parse(fields: Value) -> Result<CompletionRequest, Failure> {
        let mut body = json!({"model": "m", "prompt": "hi"});
        if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
            body.extend(fields);
        }
        CompletionRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn prompts_of_every_form() {
        let tokens = |ids: &[u32]| Prompt::Tokens(ids.iter().copied().map(TokenId).collect());
        let text = |text: &str| Prompt::Text(text.into());
        for (prompt, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![tokens(&[1, 2])]),
            (json!([[1, 2], [3]]), vec![tokens(&[1, 2]), tokens(&[3])]),
            (json!(["a", [3]]), vec![text("a"), tokens(&[3])]),
        ] {
            assert_eq!(parse(json!({"prompt": prompt})).unwrap().prompts, expected);
        }
    }

    #[test]
    fn defaults_are_openais() {
        let CompletionRequest { question, suffix, echo, form, stream, include_usage, .. } =
            parse(json!({})).unwrap();
        assert_eq!((question.max_tokens, question.n, question.logprobs), (Some(16), 1, None));
        assert_eq!((suffix, form), (None, None));
        assert!(!(echo || stream || include_usage));
    }

    #[test]
    fn bad_values_name_their_field() {
        use Reason::{InvalidField, NotBuilt};
        for (fields, field, reason) in [
            (json!({"model": null}), "model", InvalidField),
            (json!({"prompt": null}), "prompt", InvalidField),
            (json!({"prompt": ""}), "prompt", InvalidField),
            (json!({"prompt": []}), "prompt", InvalidField),
            (json!({"prompt": {}}), "prompt", InvalidField),
            (json!({"prompt": [[]]}), "prompt[0]", InvalidField),
            (json!({"prompt": [1, -1]}), "prompt[1]", InvalidField),
            (json!({"prompt": [1, "a"]}), "prompt[1]", InvalidField),
            (json!({"prompt": ["a", 1]}), "prompt[1]", InvalidField),
            (json!({"prompt": [["a"]]}), "prompt[0][0]", InvalidField),
            (json!({"prompt": ["a", "b"], "n": 65}), "prompt", InvalidField),
            (json!({"max_tokens": 0}), "max_tokens", InvalidField),
            (json!({"best_of": 3, "n": 2}), "best_of", NotBuilt),
            (json!({"logprobs": 21}), "logprobs", InvalidField),
            (json!({"logprobs": true}), "logprobs", InvalidField),
            (json!({"logprobs": 1, "echo": true}), "logprobs", NotBuilt),
            (json!({"messages": []}), "messages", InvalidField),
            (json!({"response_format": {"type": "json_object"}}), "response_format", NotBuilt),
            (json!({"stream_options": {}}), "stream_options", InvalidField),
        ] {
            let failure = parse(fields.clone()).unwrap_err();
            assert_eq!(
                (failure.field.as_deref(), failure.reason),
                (Some(field), reason),
                "{fields}: {failure}"
            );
        }
        assert!(parse(json!({"best_of": 2, "n": 2})).is_ok());
        assert!(parse(json!({"best_of": 1, "n": 2, "echo": true, "suffix": "x"})).is_ok());
    }
}

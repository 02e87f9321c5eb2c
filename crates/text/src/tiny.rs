//! A small model file for tests: all bytes, some merges, the usual control tokens.

use gguf::write::Writer;
use gguf::{Array, Header, Value};

use crate::byte_level::alphabet;

/// What the file says; tests change a field before [`Tiny::header`].
pub(crate) struct Tiny {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
    pub(crate) keys: Vec<(&'static str, Value)>,
}

impl Tiny {
    /// 0 to 255: bytes; then `he`, `ll`, `hell`, `hello`, ` w`; then the specials, from 261.
    pub(crate) fn new() -> Self {
        let mut tiny = Self {
            tokens: alphabet().map(|(_, c)| c.to_string()).collect(),
            types: vec![1; 256],
            merges: Vec::new(),
            keys: vec![
                ("tokenizer.ggml.model", Value::Str("gpt2".into())),
                ("tokenizer.ggml.pre", Value::Str("qwen2".into())),
                ("tokenizer.ggml.bos_token_id", Value::U32(261)),
                ("tokenizer.ggml.eos_token_id", Value::U32(263)),
            ],
        };
        for (a, b) in [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")] {
            tiny.merges.push(format!("{a} {b}"));
            tiny.add(&format!("{a}{b}"), 1);
        }
        for (token, kind) in
            [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool_call>", 4)]
        {
            tiny.add(token, kind);
        }
        tiny
    }

    pub(crate) fn add(&mut self, token: &str, kind: i32) {
        self.tokens.push(token.into());
        self.types.push(kind);
    }

    /// Sets a key, or takes it away.
    pub(crate) fn set(mut self, key: &'static str, value: Option<Value>) -> Self {
        self.keys.retain(|(k, _)| *k != key);
        self.keys.extend(value.map(|value| (key, value)));
        self
    }

    pub(crate) fn header(&self) -> Header {
        let array = |strings: &[String]| Value::Array(Array::Str(strings.to_vec()));
        let writer = Writer::new()
            .key("tokenizer.ggml.tokens", array(&self.tokens))
            .key("tokenizer.ggml.token_type", Value::Array(Array::I32(self.types.clone())))
            .key("tokenizer.ggml.merges", array(&self.merges));
        let file = self.keys.iter().fold(writer, |w, (key, value)| w.key(key, value.clone())).finish();
        Header::read(file.as_slice(), file.len() as u64).unwrap()
    }
}

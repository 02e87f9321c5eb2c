//! A model file of bytes: token i is byte i; 256 and on are control tokens.

use std::path::PathBuf;
use std::sync::OnceLock;

use gguf::write::Writer;
use gguf::{Array, Header, Value};
use request::TokenId;

pub(crate) const IM_END: u32 = 258;

/// One file a test process, in the temporary folder of the build.
pub(crate) fn path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let write = || {
        let name = format!("bytes-{}.gguf", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, bytes()).unwrap();
        path
    };
    PATH.get_or_init(write).clone()
}

pub(crate) fn vocab_hash() -> [u8; 32] {
    let file = bytes();
    let header = Header::read(file.as_slice(), file.len() as u64).unwrap();
    text::Tokenizer::from_gguf(&header).unwrap().vocab_hash()
}

/// The tokens of a text, one a byte.
pub(crate) fn tokens(text: &str) -> Vec<TokenId> {
    text.bytes().map(|b| TokenId(b.into())).collect()
}

fn bytes() -> Vec<u8> {
    // GPT-2's alphabet: printable bytes are themselves, the others are numbered from U+0100.
    let mut next = '\u{100}'..;
    let mut names: Vec<String> = (0..=255u8)
        .map(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b),
            _ => next.next().unwrap(),
        })
        .map(String::from)
        .collect();
    names.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from));
    let kinds = (0..names.len()).map(|i| if i < 256 { 1 } else { 3 }).collect();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {{ '<|im_start|>assistant\n' }}";
    Writer::new()
        .key("tokenizer.ggml.model", Value::Str("gpt2".into()))
        .key("tokenizer.ggml.pre", Value::Str("qwen2".into()))
        .key("tokenizer.ggml.tokens", Value::Array(Array::Str(names)))
        .key("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)))
        .key("tokenizer.ggml.merges", Value::Array(Array::Str(Vec::new())))
        .key("tokenizer.ggml.eos_token_id", Value::U32(IM_END))
        .key("tokenizer.chat_template", Value::Str(template.into()))
        .finish()
}

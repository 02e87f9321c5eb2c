//! A model file for a coordinator of toys: token i is byte i, and three control tokens follow.

use std::path::{Path, PathBuf};

use cluster::VocabHash;
use gguf::write::Writer;
use gguf::{Array, Value};

/// Tokens of the file's vocabulary.
pub(crate) const BYTES: u32 = 259;

/// Writes the file into `folder`; its path, and what nodes say of their vocabulary.
pub(crate) fn byte_model(folder: &Path) -> (PathBuf, VocabHash) {
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
    let kinds = (0..BYTES).map(|i| if i < 256 { 1 } else { 3 }).collect();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {{ '<|im_start|>assistant\n' }}";
    let file = Writer::new()
        .key("tokenizer.ggml.model", Value::Str("gpt2".into()))
        .key("tokenizer.ggml.pre", Value::Str("qwen2".into()))
        .key("tokenizer.ggml.tokens", Value::Array(Array::Str(names)))
        .key("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)))
        .key("tokenizer.ggml.merges", Value::Array(Array::Str(Vec::new())))
        .key("tokenizer.ggml.eos_token_id", Value::U32(BYTES - 1))
        .key("tokenizer.chat_template", Value::Str(template.into()))
        .finish();
    let path = folder.join("bytes.gguf");
    std::fs::write(&path, file).unwrap();
    let header = gguf::Header::open(&path).unwrap();
    let hash = VocabHash(text::Tokenizer::from_gguf(&header).unwrap().vocab_hash());
    (path, hash)
}

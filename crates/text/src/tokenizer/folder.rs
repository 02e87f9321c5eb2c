//! The tokenizer that a folder's `tokenizer.json` describes.

use serde_json::{Map, Value};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::{Cutting, Parts, Tokenizer};
use crate::folder::{Folder, FolderError};
use crate::vocabulary::TokenKind;
use crate::{TokenizerError, Vocabulary};

const FILE: &str = "tokenizer.json";

/// Ids without a token, most; a larger hole is a mistake.
const MOST_HOLES: usize = 1 << 16;

/// Normalizers that change text in a way of Unicode, as byte-level models use them.
const NORMALIZERS: [&str; 5] = ["NFC", "NFD", "NFKC", "NFKD", "Sequence"];

impl Tokenizer {
    pub(crate) fn from_folder(folder: &Folder) -> Result<Self, TokenizerError> {
        let json = folder.object(FILE)?.ok_or(FolderError::Missing { file: FILE })?;
        let model = object(json.get("model"), "model")?;
        refuse_other_models(model)?;
        let vocabulary = vocabulary(model, json.get("added_tokens"))?;
        let cutting = Cutting {
            normalizer: normalizer(json.get("normalizer"))?,
            pre: pre_tokenizer(json.get("pre_tokenizer"))?,
            merges: merges(model)?,
            ignore_merges: model.get("ignore_merges").and_then(Value::as_bool).unwrap_or(false),
        };
        let specials = folder.specials(&vocabulary)?;
        let first = first_special(json.get("post_processor"));
        let bos_text = specials.bos.and_then(|bos| vocabulary.token(bos));
        let add_bos = specials.add_bos.unwrap_or(first.is_some() && first == bos_text);
        if add_bos && specials.bos.is_none() {
            return Err(
                bad("add_bos_token is true in tokenizer_config.json, but no file names bos_token").into()
            );
        }
        let (bos, eos, stop_ids) = (specials.bos, specials.eos, specials.stop_ids);
        Self::assemble(Parts { vocabulary, cutting, bos, eos, add_bos, stop_ids }, FILE)
    }
}

fn refuse_other_models(model: &Map<String, Value>) -> Result<(), TokenizerError> {
    let refuse = |key: &str, found: &Value| {
        Err(TokenizerError::Unsupported {
            key: FILE,
            found: format!(
                "a model whose {key} is {}",
                found.as_str().map_or_else(|| found.to_string(), str::to_owned)
            ),
            supported: "byte-level BPE".to_owned(),
        })
    };
    match model.get("type") {
        None => {}
        Some(kind) if kind.as_str() == Some("BPE") => {}
        Some(kind) => return refuse("type", kind),
    }
    for key in ["byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        let off = |v: &Value| v.is_null() || v == &Value::Bool(false) || v.as_str() == Some("");
        if let Some(found) = model.get(key).filter(|value| !off(value)) {
            return refuse(key, found);
        }
    }
    Ok(())
}

/// The tokens in id order. A hole is filled as llama.cpp's converter does, so that a folder and the GGUF
/// file of the same model have equal vocabularies.
fn vocabulary(model: &Map<String, Value>, added: Option<&Value>) -> Result<Vocabulary, TokenizerError> {
    let mut all: Vec<(usize, &str, TokenKind)> = Vec::new();
    for (token, id) in object(model.get("vocab"), "model.vocab")? {
        all.push((index(id)?, token, TokenKind::Normal));
    }
    let added = match added {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(added)) => added,
        Some(_) => return Err(bad("added_tokens is not a list").into()),
    };
    for token in added {
        let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
        let content = token.get("content").and_then(Value::as_str);
        let (Some(content), Some(id)) = (content, token.get("id")) else {
            return Err(bad("an added token has no content or no id").into());
        };
        if let Some(key) = ["single_word", "lstrip", "rstrip"].into_iter().find(|key| flag(key)) {
            return Err(TokenizerError::Unsupported {
                key: FILE,
                found: format!("{key} of the added token {content:?}"),
                supported: "added tokens that are found as they are written".to_owned(),
            });
        }
        // llama.cpp's converter takes the looks for it too: Qwen's <|fim_prefix|> is not marked special.
        let kind = match flag("special") || looks_special(content) {
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        };
        all.push((index(id)?, content, kind));
    }
    let len = all.iter().map(|(id, ..)| id + 1).max().ok_or_else(|| bad("has no tokens"))?;
    if len > all.len() + MOST_HOLES {
        return Err(bad(format!("has {} tokens and ids up to {}", all.len(), len - 1)).into());
    }
    let mut slots: Vec<Option<(&str, TokenKind)>> = vec![None; len];
    // Later ones win: an added token is often in the vocabulary too.
    for (id, token, kind) in all {
        match slots.get_mut(id) {
            Some(slot) if slot.is_none_or(|(before, was)| before == token && was == TokenKind::Normal) => {
                *slot = Some((token, kind));
            }
            _ => return Err(bad(format!("has two tokens of id {id}, one of them {token:?}")).into()),
        }
    }
    let (tokens, kinds) = slots
        .into_iter()
        .enumerate()
        .map(|(id, slot)| match slot {
            Some((token, kind)) => (token.to_owned(), kind),
            None => (format!("[PAD{id}]"), TokenKind::Unused),
        })
        .unzip();
    Ok(Vocabulary::new(tokens, kinds))
}

fn index(id: &Value) -> Result<usize, FolderError> {
    let id32 = id.as_u64().and_then(|id| u32::try_from(id).ok());
    id32.map(|id| id as usize).ok_or_else(|| bad(format!("has the id {id}, which is no 32-bit number")))
}

fn looks_special(token: &str) -> bool {
    ["<pad>", "<mask>"].contains(&token)
        || [("<|", "|>"), ("<｜", "｜>")].iter().any(|(a, b)| token.starts_with(a) && token.ends_with(b))
}

/// `"a b"`, or `["a", "b"]` in newer files.
fn merges(model: &Map<String, Value>) -> Result<Vec<(String, String)>, FolderError> {
    let Some(Value::Array(merges)) = model.get("merges") else {
        return Err(bad("model.merges is not a list"));
    };
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(two) => match two.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    merges
        .iter()
        .enumerate()
        .map(|(i, merge)| pair(merge).ok_or_else(|| bad(format!("merge {i}, {merge}, is not two tokens"))))
        .collect()
}

fn normalizer(value: Option<&Value>) -> Result<Option<NormalizerWrapper>, TokenizerError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let mut kinds = vec![value];
    if let Some(Value::Array(parts)) = value.get("normalizers") {
        kinds.extend(parts);
    }
    for kind in kinds {
        let kind = kind.get("type").and_then(Value::as_str).unwrap_or_default();
        if !NORMALIZERS.contains(&kind) {
            return Err(TokenizerError::Unsupported {
                key: FILE,
                found: format!("normalizer {kind}"),
                supported: NORMALIZERS.join(", "),
            });
        }
    }
    serde_json::from_value(value.clone())
        .map(Some)
        .map_err(|error| bad(format!("normalizer: {error}")).into())
}

/// The way words are cut; it must end in the byte-level alphabet, which the way back to text relies on.
fn pre_tokenizer(value: Option<&Value>) -> Result<PreTokenizerWrapper, TokenizerError> {
    let value = value.unwrap_or(&Value::Null);
    let last = match value.get("pretokenizers") {
        Some(Value::Array(steps)) => steps.last().unwrap_or(value),
        _ => value,
    };
    let kind = last.get("type").and_then(Value::as_str);
    if kind != Some("ByteLevel") {
        return Err(TokenizerError::Unsupported {
            key: FILE,
            found: format!("a pre_tokenizer that ends in {}", kind.unwrap_or("nothing")),
            supported: "ByteLevel".to_owned(),
        });
    }
    serde_json::from_value(value.clone()).map_err(|error| bad(format!("pre_tokenizer: {error}")).into())
}

/// The special token that the post-processor puts before a single text.
fn first_special(post_processor: Option<&Value>) -> Option<&str> {
    let value = post_processor?;
    if let Some(Value::Array(steps)) = value.get("processors") {
        return steps.iter().find_map(|step| first_special(Some(step)));
    }
    value.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str()
}

fn object<'a>(value: Option<&'a Value>, what: &str) -> Result<&'a Map<String, Value>, FolderError> {
    value.and_then(Value::as_object).ok_or_else(|| bad(format!("{what} is not an object")))
}

fn bad(why: impl Into<String>) -> FolderError {
    FolderError::Content { file: FILE, why: why.into() }
}

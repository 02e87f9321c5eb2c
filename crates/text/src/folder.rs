//! A Hugging Face folder: the files with its tokenizer, its template and its special tokens.

use std::io;
use std::path::{Path, PathBuf};

use gguf::Header;
use request::TokenId;
use serde_json::{Map, Value};

use crate::{ChatTemplate, TemplateError, Tokenizer, TokenizerError, Vocabulary};

/// Why a file of a folder was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("reading {file}: {source}")]
    Io { file: &'static str, source: io::Error },
    #[error(
        "{file} is missing in the folder; a model needs it (SentencePiece models without one are not built: \
         use a model with a tokenizer.json)"
    )]
    Missing { file: &'static str },
    #[error("{file} has {bytes} bytes, more than the {most} that are read")]
    TooLarge { file: &'static str, bytes: u64, most: u64 },
    #[error("{file}: {why}")]
    Content { file: &'static str, why: String },
}

/// The largest tokenizer.json in use has 33 MB.
const MOST_BYTES: u64 = 256 << 20;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

impl Tokenizer {
    /// The tokenizer of a model: a `.gguf` file or a folder.
    pub fn open(path: &Path) -> Result<Self, TokenizerError> {
        if path.is_dir() {
            Self::from_folder(&Folder::new(path))
        } else {
            Self::from_gguf(&Header::open(path)?)
        }
    }
}

impl ChatTemplate {
    /// The chat template of a model: a `.gguf` file or a folder.
    pub fn open(path: &Path) -> Result<Self, TemplateError> {
        if path.is_dir() {
            Self::from_folder(&Folder::new(path))
        } else {
            Self::from_gguf(&Header::open(path)?)
        }
    }

    fn from_folder(folder: &Folder) -> Result<Self, TemplateError> {
        let config = folder.object(TOKENIZER_CONFIG)?.unwrap_or_default();
        let source = match folder.text("chat_template.jinja")? {
            Some(source) => source,
            None => {
                let file = "chat_template.json";
                let own = folder.object(file)?.and_then(|keys| keys.get("chat_template").cloned());
                own.as_ref()
                    .or(config.get("chat_template"))
                    .and_then(default_template)
                    .ok_or(TemplateError::Missing)?
                    .to_owned()
            }
        };
        let token = |key| special_token(&config, key).map(str::to_owned);
        Self::new(&source, token("bos_token"), token("eos_token"))
    }
}

/// The template itself, or the one named `default` of several.
fn default_template(value: &Value) -> Option<&str> {
    match value {
        Value::String(source) => Some(source),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str()),
        _ => None,
    }
}

/// `bos_token` and its like: a string, or an object that has it as `content`.
fn special_token<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A folder whose files are read one by one.
pub(crate) struct Folder {
    path: PathBuf,
}

/// What the configuration files say of special tokens.
pub(crate) struct Specials {
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Option<TokenId>,
    pub(crate) add_bos: Option<bool>,
    /// Tokens that end an answer.
    pub(crate) stop_ids: Vec<TokenId>,
}

impl Folder {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The special tokens, all of them in `vocabulary`.
    pub(crate) fn specials(&self, vocabulary: &Vocabulary) -> Result<Specials, FolderError> {
        let config = self.object(TOKENIZER_CONFIG)?.unwrap_or_default();
        let by_text = |key| -> Result<Option<TokenId>, FolderError> {
            let Some(token) = special_token(&config, key) else { return Ok(None) };
            let found = vocabulary.iter().find(|(_, text, _)| *text == token).map(|(id, ..)| id);
            found.map(Some).ok_or_else(|| FolderError::Content {
                file: TOKENIZER_CONFIG,
                why: format!("{key} is {token:?}, which is not in the vocabulary"),
            })
        };
        let mut specials = Specials {
            bos: by_text("bos_token")?,
            eos: by_text("eos_token")?,
            add_bos: config.get("add_bos_token").and_then(Value::as_bool),
            stop_ids: Vec::new(),
        };
        for file in ["generation_config.json", "config.json"] {
            let Some(config) = self.object(file)? else { continue };
            specials.stop_ids.extend(ids(file, &config, "eos_token_id", vocabulary)?);
            let bos = ids(file, &config, "bos_token_id", vocabulary)?;
            specials.bos = specials.bos.or(bos.first().copied());
        }
        specials.stop_ids.extend(specials.eos);
        specials.eos = specials.eos.or(specials.stop_ids.first().copied());
        Ok(specials)
    }

    /// A JSON object; `None` when the file is not there.
    pub(crate) fn object(&self, file: &'static str) -> Result<Option<Map<String, Value>>, FolderError> {
        let Some(text) = self.text(file)? else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(Value::Object(keys)) => Ok(Some(keys)),
            Ok(_) => Err(FolderError::Content { file, why: "is not an object".to_owned() }),
            Err(error) => Err(FolderError::Content { file, why: error.to_string() }),
        }
    }

    /// A file's text; `None` when it is not there.
    fn text(&self, file: &'static str) -> Result<Option<String>, FolderError> {
        let path = self.path.join(file);
        let bytes = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FolderError::Io { file, source }),
        };
        if bytes > MOST_BYTES {
            return Err(FolderError::TooLarge { file, bytes, most: MOST_BYTES });
        }
        std::fs::read_to_string(path).map(Some).map_err(|source| FolderError::Io { file, source })
    }
}

/// A key that holds an id, several, or none.
fn ids(
    file: &'static str,
    config: &Map<String, Value>,
    key: &str,
    vocabulary: &Vocabulary,
) -> Result<Vec<TokenId>, FolderError> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
        id.filter(|id| vocabulary.token(*id).is_some()).ok_or_else(|| FolderError::Content {
            file,
            why: format!("{key} is {value}, which is not the id of a token"),
        })
    };
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests;

//! `paceline models show`: what a GGUF file or a folder says of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gguf::{Header, Metadata};
use indicatif::DecimalBytes;
use serde::Serialize;
use text::{ChatTemplate, Tokenizer};

use super::source::Source;
use super::store::{Record, Store};

/// The fields of `--json`. Numbers a file does not give are `null`.
#[derive(Debug, Serialize)]
struct Description {
    name: String,
    path: PathBuf,
    file_bytes: u64,
    /// Where it came from, when it was pulled.
    record: Option<Record>,
    /// The model's own title.
    title: Option<String>,
    architecture: String,
    /// Weights, all tensors together.
    parameters: u64,
    layers: Option<u32>,
    hidden: Option<u32>,
    heads: Option<u32>,
    kv_heads: Option<u32>,
    feed_forward: Option<u32>,
    context: Option<u32>,
    /// Positions that `--context` may ask for.
    longest: Option<u32>,
    /// Positions that a token looks back on; `null`: all.
    window: Option<u32>,
    vocabulary: Option<usize>,
    tokenizer: Option<String>,
    chat_template: bool,
    /// Whether this version of Paceline loads its weights and its tokenizer.
    supported: bool,
    /// Why not.
    unsupported: Option<String>,
    /// Tensor type to how many tensors and bytes are stored in it.
    tensors: BTreeMap<&'static str, Tensors>,
}

#[derive(Debug, Default, Serialize)]
struct Tensors {
    count: u64,
    bytes: u64,
}

/// The description as lines, or as JSON. Nothing is fetched.
pub(super) fn render(open: impl FnOnce() -> Result<Store>, source: &Source, json: bool) -> Result<String> {
    let (name, path, record) = locate(open, source)?;
    let description = describe(name, &path, record).with_context(|| path.display().to_string())?;
    if json {
        return Ok(serde_json::to_string_pretty(&description)? + "\n");
    }
    Ok(description.lines().into_iter().map(|(what, value)| format!("{what:<14}{value}\n")).collect())
}

fn locate(
    open: impl FnOnce() -> Result<Store>,
    source: &Source,
) -> Result<(String, PathBuf, Option<Record>)> {
    let known = match source {
        Source::Path(path) => {
            super::existing(path)?;
            return Ok((path.display().to_string(), path.clone(), None));
        }
        Source::Name(name) => name,
        Source::Hub { .. } => {
            bail!("show reads models that are here: run `paceline models pull` first, then name the model")
        }
    };
    let store = open()?;
    match store.find(known)? {
        Some(model) => Ok((known.to_string(), model.path, model.record)),
        None => bail!(
            "{known} is not in {}; `paceline models list` shows what is, `paceline models pull {known}` fetches it",
            store.dir().display()
        ),
    }
}

fn describe(name: String, path: &Path, record: Option<Record>) -> Result<Description> {
    if path.is_dir() { describe_folder(name, path, record) } else { describe_file(name, path, record) }
}

/// What the readers of weights and of the tokenizer say: the same two that a worker calls.
fn describe_folder(name: String, path: &Path, record: Option<Record>) -> Result<Description> {
    let (model, text) = (model::Description::read(path), Tokenizer::open(path));
    let unsupported =
        model.as_ref().err().map(ToString::to_string).or(text.as_ref().err().map(ToString::to_string));
    let number = |get: fn(&model::Description) -> u32| model.as_ref().ok().map(get);
    let mut tensors: BTreeMap<&'static str, Tensors> = BTreeMap::new();
    for t in model.iter().flat_map(|m| &m.tensors) {
        tensors.insert(t.kind, Tensors { count: t.tensors, bytes: t.bytes });
    }
    Ok(Description {
        name,
        path: path.to_owned(),
        file_bytes: super::store::folder_bytes(path)?,
        record,
        title: None,
        architecture: model.as_ref().map_or("not known", |m| m.architecture).to_owned(),
        parameters: model.as_ref().map_or(0, |m| m.parameters),
        layers: number(|m| m.layers),
        hidden: number(|m| m.hidden),
        heads: number(|m| m.heads),
        kv_heads: number(|m| m.kv_heads),
        feed_forward: number(|m| m.feed_forward),
        context: number(|m| m.context),
        longest: number(|m| m.longest),
        window: model.as_ref().ok().and_then(|m| m.window),
        vocabulary: text.as_ref().ok().map(|t| t.vocab_len() as usize),
        tokenizer: text.is_ok().then(|| "tokenizer.json".to_owned()),
        chat_template: ChatTemplate::open(path).is_ok(),
        supported: unsupported.is_none(),
        unsupported,
        tensors,
    })
}

fn describe_file(name: String, path: &Path, record: Option<Record>) -> Result<Description> {
    let file_bytes = path.metadata()?.len();
    let header = Header::open(path)?;
    model::refuse_split(&header.metadata)?;
    // The same two readers that a worker calls.
    let text = Tokenizer::from_gguf(&header).map(drop);
    let Header { metadata, tensors, .. } = header;
    let architecture = metadata.str("general.architecture")?.to_owned();
    let number = |key: &str| metadata.optional(&format!("{architecture}.{key}"), Metadata::u32);
    let model = model::Description::read(path);
    let (longest, window) = model.as_ref().map_or((None, None), |m| (Some(m.longest), m.window));
    let unsupported = model.err().map(|e| e.to_string()).or(text.err().map(|e| e.to_string()));
    let mut kinds: BTreeMap<&'static str, Tensors> = BTreeMap::new();
    for tensor in &tensors {
        let kind = kinds.entry(tensor.kind.name()).or_default();
        kind.count += 1;
        kind.bytes = kind.bytes.saturating_add(tensor.bytes());
    }
    Ok(Description {
        name,
        path: path.to_owned(),
        file_bytes,
        record,
        title: metadata.optional("general.name", Metadata::str)?.map(str::to_owned),
        parameters: tensors.iter().fold(0, |n, t| n.saturating_add(t.elements())),
        layers: number("block_count")?,
        hidden: number("embedding_length")?,
        heads: number("attention.head_count")?,
        kv_heads: number("attention.head_count_kv")?,
        feed_forward: number("feed_forward_length")?,
        context: number("context_length")?,
        longest,
        window,
        vocabulary: metadata.optional("tokenizer.ggml.tokens", Metadata::strs)?.map(<[String]>::len),
        tokenizer: tokenizer_name(&metadata)?,
        chat_template: metadata.get("tokenizer.chat_template").is_some(),
        supported: unsupported.is_none(),
        unsupported,
        tensors: kinds,
        architecture,
    })
}

/// Model and pre-tokenizer, as the file names them.
fn tokenizer_name(metadata: &Metadata) -> Result<Option<String>, gguf::Error> {
    let model = metadata.optional("tokenizer.ggml.model", Metadata::str)?;
    let pre = metadata.optional("tokenizer.ggml.pre", Metadata::str)?;
    Ok(model.map(|model| pre.map_or(model.to_owned(), |pre| format!("{model} ({pre})"))))
}

impl Description {
    /// What a person reads; unknown numbers are left out.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("name", self.name.clone())];
        let mut add = |what, value: Option<String>| lines.extend(value.map(|v| (what, v)));
        add("title", self.title.clone());
        add(if self.path.is_dir() { "folder" } else { "file" }, Some(self.path.display().to_string()));
        add("size", Some(DecimalBytes(self.file_bytes).to_string()));
        add("source", self.record.as_ref().map(|r| r.source.clone()));
        add("pulled", self.record.as_ref().map(|r| r.date.clone()));
        add("sha-256", self.record.as_ref().map(|r| r.sha256.clone()));
        add("architecture", Some(self.architecture.clone()));
        add("parameters", Some(format!("{:.2} billion", self.parameters as f64 / 1e9)));
        add("layers", self.layers.map(|n| n.to_string()));
        add("hidden", self.hidden.map(|n| n.to_string()));
        add("heads", self.heads.map(|n| format!("{n}, key-value {}", self.kv_heads.unwrap_or(n))));
        add("feed-forward", self.feed_forward.map(|n| n.to_string()));
        let reach = self.longest.filter(|n| self.context.is_some_and(|own| own < *n));
        let reach = reach.map_or(String::new(), |n| format!(", with RoPE scaling up to {n}"));
        add("context", self.context.map(|n| format!("{n} tokens{reach}")));
        add("window", self.window.map(|n| format!("{n} tokens")));
        add("vocabulary", self.vocabulary.map(|n| format!("{n} tokens")));
        add("tokenizer", self.tokenizer.clone());
        add("chat template", Some(if self.chat_template { "yes" } else { "none" }.to_owned()));
        let runs = self.unsupported.as_ref().map_or("yes".to_owned(), |why| format!("no: {why}"));
        add("runs here", Some(runs));
        for (kind, Tensors { count, bytes }) in &self.tensors {
            let size = DecimalBytes(*bytes).to_string();
            lines.push(("tensors", format!("{kind:<6}{count:>5}  {size:>10}")));
        }
        lines
    }
}

#[cfg(test)]
mod tests;

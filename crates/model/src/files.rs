//! A model on disk: a GGUF file, or a Hugging Face folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use gguf::{Header, Metadata};
use serde_json::Value;

use crate::LoadError;
use crate::arch::{Architecture, Config, Decoder, Parameters};
use crate::early::Early;
use crate::weights::Weights;

/// A model that was read as far as its shape: nothing of the matrices is in memory yet.
pub(crate) struct Opened {
    pub(crate) architecture: &'static Architecture,
    pub(crate) parameters: Parameters,
    pub(crate) weights: Weights,
    /// Of a folder nothing is said.
    pub(crate) early: Early,
    /// The model's own title.
    pub(crate) name: Option<String>,
    /// Of all files with weights.
    pub(crate) file_bytes: u64,
}

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files of a folder that decide which text an answer has, besides the weights.
const TEXT: [&str; 8] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// A JSON file of a folder is read whole; larger ones are no configuration.
const MOST_JSON: u64 = 64 << 20;

impl Opened {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() { Self::folder(path) } else { Self::gguf(path) }
    }

    /// Takes the weights; refuses a model that has more or less than its architecture needs.
    pub(crate) fn decoder(mut self) -> Result<(&'static Architecture, Parameters, Decoder), LoadError> {
        let decoder = Decoder::take(&mut self.weights, self.architecture, &mut self.parameters)?;
        self.weights.finish()?;
        Ok((self.architecture, self.parameters, decoder))
    }

    fn gguf(path: &Path) -> Result<Self, LoadError> {
        let header = Header::open(path)?;
        let (architecture, parameters) = Architecture::of_header(&header)?;
        Ok(Self {
            early: Early::read(&header.metadata, parameters.layers, parameters.vocab)?,
            architecture,
            parameters,
            weights: Weights::of_gguf(path, &header, architecture.name)?,
            name: header.metadata.optional("general.name", Metadata::str)?.map(str::to_owned),
            file_bytes: size(path)?,
        })
    }

    fn folder(path: &Path) -> Result<Self, LoadError> {
        let (architecture, parameters) = Config::parse(&read(path, CONFIG)?)?.read()?;
        let shards = Shards::of(path)?;
        let mut file_bytes = 0u64;
        for (_, path) in &shards.files {
            file_bytes = file_bytes.saturating_add(size(path)?);
        }
        let weights = Weights::of_safetensors(&shards.files, shards.index.as_ref(), architecture.name)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self { architecture, parameters, weights, early: Early::default(), name, file_bytes })
    }
}

/// All files that decide what a model says, in a fixed order, each with the name it goes by.
pub(crate) fn deciding(path: &Path) -> Result<Vec<(String, PathBuf)>, LoadError> {
    if !path.is_dir() {
        return Ok(vec![(String::new(), path.to_owned())]);
    }
    let mut files: Vec<(String, PathBuf)> =
        TEXT.iter().map(|name| ((*name).to_owned(), path.join(name))).filter(|(_, p)| p.is_file()).collect();
    files.extend(Shards::of(path)?.files);
    Ok(files)
}

/// The files with a folder's weights.
struct Shards {
    /// By name, in order of the names.
    files: Vec<(String, PathBuf)>,
    /// Which file a tensor lies in, when there are several.
    index: Option<BTreeMap<String, String>>,
}

impl Shards {
    fn of(folder: &Path) -> Result<Self, LoadError> {
        if folder.join(SINGLE).is_file() {
            return Ok(Self { files: vec![(SINGLE.to_owned(), folder.join(SINGLE))], index: None });
        }
        if !folder.join(INDEX).is_file() {
            return Err(LoadError::NoWeights);
        }
        let bad = |why: &str| LoadError::Json { file: INDEX, why: why.to_owned() };
        let index: Value =
            serde_json::from_slice(&read(folder, INDEX)?).map_err(|error| bad(&error.to_string()))?;
        let entries = index.get("weight_map").and_then(Value::as_object);
        let mut map = BTreeMap::new();
        for (tensor, file) in entries.ok_or_else(|| bad("has no object weight_map"))? {
            // A plain name: an index must not lead out of its folder.
            let plain = |file: &&str| !file.contains(['/', '\\']) && file.ends_with(".safetensors");
            let file = file.as_str().filter(plain);
            let file = file.ok_or_else(|| bad("weight_map names something that is no .safetensors file"))?;
            map.insert(tensor.clone(), file.to_owned());
        }
        let names: BTreeSet<&String> = map.values().collect();
        let files = names.into_iter().map(|name| (name.clone(), folder.join(name))).collect();
        Ok(Self { files, index: Some(map) })
    }
}

fn read(folder: &Path, name: &'static str) -> Result<Vec<u8>, LoadError> {
    let path = folder.join(name);
    let io = |source| LoadError::Io { what: format!("reading {name}"), source };
    let bytes = std::fs::metadata(&path).map_err(io)?.len();
    if bytes > MOST_JSON {
        let why = format!("has {bytes} bytes, more than {MOST_JSON}");
        return Err(LoadError::Json { file: name, why });
    }
    std::fs::read(&path).map_err(io)
}

fn size(path: &Path) -> Result<u64, LoadError> {
    let what = || format!("asking for the size of {}", path.display());
    let meta = std::fs::metadata(path).map_err(|source| LoadError::Io { what: what(), source })?;
    if !meta.is_file() {
        return Err(LoadError::Io { what: what(), source: io::ErrorKind::NotFound.into() });
    }
    Ok(meta.len())
}

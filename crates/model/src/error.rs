use std::io;

/// Why a model was not loaded. Messages do not repeat the path; whoever chose the file names it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Header(#[from] gguf::Error),
    #[error("architecture {found:?} is not supported; supported: {supported}")]
    UnknownArchitecture { found: String, supported: String },
    #[error(
        "the folder has neither model.safetensors nor model.safetensors.index.json; give a folder with both \
         config.json and weights, or the path of a .gguf file"
    )]
    NoWeights,
    #[error("{file}: {why}; download the file again")]
    Json { file: &'static str, why: String },
    #[error("{file} {why}; download the file again")]
    BadSafetensors { file: String, why: String },
    #[error("key {key:?} is missing; the model cannot be computed without it")]
    MissingKey { key: String },
    #[error("key {key:?} is {found}: {why}")]
    BadParameter { key: String, found: String, why: String },
    #[error("key {key:?} is {found}: {what} is not built yet; use a model without it")]
    NotBuilt { key: String, found: String, what: &'static str },
    #[error(
        "it is one of the {files} files of a split GGUF; split GGUF files are not built yet: merge them, or use a model in one file"
    )]
    Split { files: u64 },
    #[error("tensor {name:?} is missing; this is not a complete {architecture} model")]
    MissingTensor { name: String, architecture: &'static str },
    #[error("tensor {name:?} has dimensions {found:?}, expected {expected:?} from the model's metadata")]
    WrongShape { name: String, expected: Vec<u64>, found: Vec<u64> },
    #[error("tensor {name:?} has type {kind}, which has no kernel; supported: {supported}")]
    UnsupportedTensor { name: String, kind: &'static str, supported: &'static str },
    #[error("tensor {name:?} holds a value that is not finite; download the file again")]
    NotFinite { name: String },
    #[error(
        "tensor {name:?} is not part of the {architecture} models built so far; ignoring it would give wrong answers"
    )]
    UnexpectedTensor { name: String, architecture: &'static str },
    #[error("tensor {name:?} lies outside the file, which changed while it was opened")]
    OutsideFile { name: String },
    #[error("option {option}: {why}")]
    BadOption { option: &'static str, why: String },
    #[error("no memory for {bytes} bytes of KV cache ({source}); lower the number of pages")]
    Memory { bytes: usize, source: io::Error },
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::CudaError),
    #[error("the worker group did not start: {0}")]
    Group(String),
    #[error("the compute threads did not start: {0}")]
    Threads(String),
}

use std::io;

/// Why a file's header was not taken, or a metadata key not found in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading at byte {at}: {source}")]
    Io { at: u64, source: io::Error },
    #[error(
        "not a GGUF file: it starts with {found:02x?} instead of \"GGUF\"; give the path of a .gguf file"
    )]
    NotGguf { found: [u8; 4] },
    #[error(
        "a big-endian GGUF file; only little-endian is read: convert it with gguf-py's gguf_convert_endian"
    )]
    BigEndian,
    #[error("GGUF version {found} is not read, only 2 and 3 are: use a file converted by a newer llama.cpp")]
    UnknownVersion { found: u32 },
    #[error("the file ends within {what} (at byte {at}): it is incomplete; {AGAIN}")]
    Truncated { what: String, at: u64 },
    #[error("{what} claims {claimed} {unit} at byte {at}, but only {remaining} bytes follow; {AGAIN}")]
    TooLong { what: String, claimed: u64, unit: &'static str, at: u64, remaining: u64 },
    #[error("{what} at byte {at} is not valid UTF-8; {AGAIN}")]
    BadString { what: String, at: u64 },
    #[error("metadata key {key:?} has the unknown value type {found}; {AGAIN}")]
    UnknownValueType { key: String, found: u32 },
    #[error("metadata key {key:?} is an array of arrays, which is not read; no supported model needs one")]
    NestedArray { key: String },
    #[error("metadata key {key:?} has the boolean {found}, neither 0 nor 1; {AGAIN}")]
    BadBool { key: String, found: u8 },
    #[error("metadata key {key:?} appears twice; {AGAIN}")]
    DuplicateKey { key: String },
    #[error("general.alignment is {found}, not a power of two; {AGAIN}")]
    BadAlignment { found: u32 },
    #[error("tensor {name:?} has the type number {found}, which this version does not know ({why})")]
    UnknownTensorKind { name: String, found: u32, why: &'static str },
    #[error("tensor {name:?} {why}; {AGAIN}")]
    BadTensor { name: String, why: String },
    #[error("tensor {name:?} ends at byte {end} of a file of {file_len}: it is incomplete; {AGAIN}")]
    TensorBeyondFile { name: String, end: u64, file_len: u64 },
    #[error(
        "metadata key {key:?} is missing; use a GGUF file that llama.cpp's converter wrote for this model"
    )]
    MissingKey { key: String },
    #[error("metadata key {key:?} should be {expected} and is {found}")]
    WrongType { key: String, expected: &'static str, found: String },
}

const AGAIN: &str = "download the file again (`paceline models pull`)";

//! The header of a GGUF file: metadata, and where each tensor lies. Checked, nothing mapped.
//!
//! Everything a header claims is held against the length of the file before it is believed: after
//! [`Header::open`] every tensor lies inside the file, on its alignment, in whole blocks, under a
//! name of its own. The reader allocates in proportion to the bytes it has read, never to a claim.
//!
//! Not here: tensor data (`model` maps the file), what a metadata key means (`model`, `text`).
//! Errors do not repeat the path; the caller that chose the file names it.
//! Start at [`Header`]. Format: the GGUF specification in ggml's `docs/gguf.md`, versions 2 and 3,
//! little-endian.
#![forbid(unsafe_code)]

mod error;
mod header;
mod kind;
mod metadata;
mod source;
mod tensor;
#[cfg(feature = "testing")]
pub mod write;

pub use error::Error;
pub use header::Header;
pub use kind::TensorKind;
pub use metadata::{Array, Metadata, Value};
pub use tensor::TensorInfo;

//! The front door and the map.
//!
//! Takes requests over HTTP (OpenAI) and gRPC (`paceline.v1`), turns text to tokens, places them on
//! workers, turns tokens to text, and goes on elsewhere when a worker is lost. Holds the registry that
//! workers and drafters join.
//!
//! Not here: the token loop (a coordinator sees committed tokens only), weights (it reads a model
//! file's header, for the tokenizer), storage (an answer lives in its stream; nothing survives this
//! process).
//!
//! Start at [`Coordinator::start`]; a request's walk is `api`, then `frontdoor`, then `generate`.
#![forbid(unsafe_code)]

mod admission;
mod api;
mod config;
mod failure;
mod frontdoor;
mod generate;
mod models;
mod observe;
mod question;
mod random;
mod router;
mod serve;
mod start;
mod text;

pub use config::{Config, ModelConfig};
pub use models::ModelFileError;
pub use start::{Coordinator, Running, StartError};
pub use text::TextError;

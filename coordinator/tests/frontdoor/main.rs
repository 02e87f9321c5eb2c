//! The whole coordinator over real sockets, with scripted workers.
//!
//! A scripted worker is a "target" whose output is fixed: token i of the answer is byte i of a text.
//! So the expected answer is known whatever is refused, lost or replayed on the way.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod choices;
mod cluster;
mod errors;
mod grpc;
mod leaving;
mod model_file;
mod openai;
mod replays;
mod stops;

//! One binary for all proofs, so that the workspace is linked once.
#![allow(clippy::unwrap_used, unreachable_pub, missing_debug_implementations)]

mod arch;
mod cluster;
mod real;
mod support;

//! The engine's proof on the toy model, in one binary: exactness under a bad link, the sampling law,
//! and what happens around the step.
#![allow(missing_debug_implementations, unreachable_pub, clippy::unwrap_used)]

mod exactness;
mod hand_over;
mod lanes;
mod law;
mod link;
mod matrix;
mod rapid;
mod replay;
mod share_cores;
mod share_gpu;
mod steered;

//! Time without waiting for it: target, drafter and link on a virtual clock.
#![allow(missing_debug_implementations, unreachable_pub, clippy::unwrap_used)]

mod auto;
mod measured;
mod pearl;
mod simulator;

//! A cluster on real weights: coordinator, worker and drafter in this process, asked over HTTP.

mod exactness;
mod groups;
mod hand_over;
/// The engine's own tests drive toys with it; here it joins two engines of real weights.
#[path = "../../crates/engine/tests/engine/link.rs"]
#[allow(dead_code, reason = "what only toys need")]
mod link;
mod load;
mod matrix;
mod model;
mod rapid;
mod spill;
mod strategies;

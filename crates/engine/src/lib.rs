//! One rank's loop: plan, submit, collect, commit.
#![forbid(unsafe_code)]

mod model;

pub use model::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};

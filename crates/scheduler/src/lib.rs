//! Which tokens run in this step.
#![forbid(unsafe_code)]

mod step;

pub use step::{AdapterId, Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

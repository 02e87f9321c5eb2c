//! Drafters as a worker sees them: links that carry the sessions of many sequences, and for each
//! sequence somebody who keeps one attached.
//!
//! Everything here may fail or stall without harm: a sequence without a drafter decodes plainly.

mod attend;
mod link;
mod link_error;
mod order;
mod outgoing;
mod pool;
mod port;
mod round_trip;

pub(crate) use attend::{Attendance, attend};
pub(crate) use link::Me;
pub(crate) use pool::Links;
pub(crate) use port::Port;
pub(crate) use rank::Pace;

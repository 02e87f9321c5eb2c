//! Prompts that one worker computes for another: hand-off of KV pages as a remote prefix-cache fill.
//!
//! ```text
//! decode worker                                     prefill worker
//!   fetch --Prefill(tokens)-- gRPC --------------->  serve -> engine: chunk, chunk, ...
//!         <--Opened, Sealed(units), Done-----------          |  behind each chunk
//!         <--units, in that order-- fabric link ---          v  pages as bytes
//!   engine: pages held for the sequence -> it starts with a hit
//! ```
//!
//! Every unit (page, layer, class) is checked against its descriptor, which came by another way: token of the transfer,
//! generation of the storage, place in the order, size, checksum. The first thing that is wrong ends the transfer, and is counted
//! by its reason; the longest run that was right until then is a hit, the rest is computed here. Nothing of it can change a text.
//!
//! `serve` is the side that computes, `fetch` the side that answers. Which requests are split is said by `cluster::Split`.

mod config;
mod fetch;
mod figures;
mod serve;

pub use config::PagesConfig;
pub(crate) use fetch::{Fetch, fetch};
pub(crate) use figures::{Fault, Figures};
pub(crate) use serve::{Parcels, Prefills, accept};

/// Kinds of messages on a link.
const HELLO: u32 = 1;
/// A [`transport::PageUnit`] and its bytes.
pub const UNIT: u32 = 2;

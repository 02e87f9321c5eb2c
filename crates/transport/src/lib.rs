//! Bytes between ranks: the data plane.
//!
//! A [`Fabric`] opens and accepts [`Link`]s; a link carries messages to one other rank and back: ordered,
//! each with two checksums (frame), each call with a deadline. Two fabrics are here: [`tcp`] between
//! processes, and [`local`] within one, with seeded faults for tests.
//!
//! Two things ride on it. *Hand-off* of KV pages: each message is one [`PageUnit`] (page, layer, class),
//! whose checksum and generation are those of the storage it was read from, so that a fault anywhere
//! between two storages is seen. *Collectives* of a worker group: small messages, on the ranks' own
//! threads; hence blocking calls, and no runtime.
//!
//! Not here: what pages mean and who may have them (`worker::pages`), NCCL (`model`, whose buffers it
//! moves), control messages (`proto`). Start at [`Link`].
#![forbid(unsafe_code)]

mod checksum;
mod fabric;
mod frame;
pub mod local;
pub mod tcp;
mod unit;

pub use checksum::checksum;
pub use fabric::{Closer, Fabric, FabricError, Link};
pub use frame::{Damage, Head, MOST_BYTES};
pub use unit::{PageUnit, UNIT_BYTES};

//! The wire: protobuf packages, their conversions into our types, and the table of error reasons.
//!
//! The only crate that knows both prost types and ours. Whatever arrives is converted here, once;
//! inside a process only checked types travel. A field of a feature that is not built yet is refused
//! by its name ([`Reason::NotBuilt`](reason::Reason::NotBuilt)), never ignored.
//!
//! Not here: servers and clients (`daemon`, the processes), text, retries.
//!
//! Start at the `.proto` files under `paceline/`, then [`convert`], [`frame`] and [`reason`].
#![forbid(unsafe_code)]

pub mod bounds;
pub mod convert;
mod error;
pub mod frame;
pub mod reason;
mod timeout;

pub use convert::{
    Answer, Asked, Candidate, Listed, Placed, Prediction, PrefillAsked, PrefillSaid, Prompt, UnitSealed,
};
pub use error::WireError;
pub use timeout::timeout;

/// What tonic-prost-build wrote, in the nesting that its cross-package paths expect.
#[allow(missing_debug_implementations, unreachable_pub, unused_qualifications, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use generated::paceline::cluster::v1 as cluster;
pub use generated::paceline::draft::v1 as draft;
pub use generated::paceline::pages::v1 as pages;
pub use generated::paceline::v1;
pub use generated::paceline::worker::v1 as worker;

/// Descriptors of all packages, for `tonic-reflection`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/paceline.binpb"));

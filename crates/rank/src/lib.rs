//! A rank as a part of a process: what `worker` and `drafter` have in common.
//!
//! [`Rank::start`] puts an engine on its thread, binds the gRPC port and says what the node is;
//! [`Rank::serve`] hands services, membership and the engine's end to the process's task owner.
//!
//! Not here: what is served on the port (the two processes), which model (`make` builds it).
#![forbid(unsafe_code)]

mod config;
mod constraints;
mod device;
mod group;
mod observe;
mod pace;
mod spill;
mod start;

pub use config::Config;
pub use constraints::{Constraints, NoConstraint};
pub use device::{Device, Dtype, KvDtype, NoDevice, Weights};
pub use group::Group;
pub use pace::Pace;
pub use spill::Spill;
pub use start::{Identity, Rank, StartError, fresh_incarnation};

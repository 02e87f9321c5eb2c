//! What every process does, whatever it serves: configuration, listening, health, joining, shutdown.
//!
//! A process's `main` reads as: [`config::load`], `telemetry::init`, its own parts, [`grpc::Server`]
//! and [`admin`], [`join`] (nodes) or [`registry`] (coordinators), and last [`Tasks::run`], which waits for
//! the signal, drains and stops.
//!
//! Not here: what a request is and where it goes (`coordinator`), tokens (`worker`, `drafter`), who is
//! there as a rule (`cluster`: this crate only brings it messages and time). No TLS yet: listeners
//! stay on loopback unless told otherwise ([`listen`]).
#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod grpc;
pub mod join;
pub mod listen;
mod merge_queue;
mod readiness;
pub mod registry;
mod shutdown;
mod tasks;
#[cfg(test)]
mod testing;

pub use merge_queue::MergeQueue;
pub use readiness::{Gate, Readiness};
pub use shutdown::Shutdown;
pub use tasks::{Deadlines, Ended, Tasks};

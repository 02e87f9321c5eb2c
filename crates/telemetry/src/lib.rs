//! Logs, metrics and traces: set up once at a process's edge, used everywhere by name.
//!
//! Everyone says `tracing` for log lines and spans and [`meters()`] for numbers; this is the only crate
//! that names an exporter. Metrics are kept once and told twice: as Prometheus text, which the admin
//! port serves, and by OTLP, when an endpoint is configured. Spans go by OTLP only.
//!
//! What it promises to the rest: recording never waits and never fails. Finished spans wait in a queue
//! of 2,048; full, further ones are dropped and counted by the SDK. Metrics are sums in memory, with at
//! most 2,000 label sets each. A collector that is slow or gone costs the data, nothing else.
//!
//! Not here: what is worth recording (the processes; pure crates return facts), and no prompt or answer
//! text, ever: no metric label and no span attribute carries any.
//!
//! Start at [`init`]; the list of all metrics is `catalogue.rs`, and `docs/metrics.md` is held equal to it.
#![forbid(unsafe_code)]

mod catalogue;
mod config;
mod instrument;
mod log;
mod meters;
mod start;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;

pub use catalogue::{CATALOGUE, Instruments, Kind, Metric, table};
pub use config::{Config, Invalid};
pub use instrument::{Counter, Gauge, Histogram, Label, Labels, UpDownCounter};
pub use log::{Format, Log};
pub use meters::{Meters, meters};
pub use start::{Guard, InitError, Service, init};

//! Which tokens run in this step.
//!
//! A sequence has tokens that are *known* and positions that are *computed*; a plan moves the second
//! toward the first within a token budget (SARATHI, arXiv 2403.02310). There are no phases: chunked
//! prefill, prefix hits, decode and draft verification are the same rows with different numbers, and
//! the drafter runs the same scheduler with a limit that moves ([`Scheduler::rewrite`]).
//!
//! Everybody has a place in one order: higher priority first, then earlier arrival. A plan asks three
//! questions, each in a file of its own:
//!
//! * `admit`: who leaves the queue (head-of-line rule), and how much of it the prefix cache serves;
//! * `budget`: how many rows each may have: decodes and their drafts first, so that a long prompt
//!   never stalls them, then prompts partly computed, then new ones;
//! * `preempt`: who gets pages for these rows, and who gives way when there are none.
//!
//! Pages that another rank computed come in by `handed`.
//!
//! Not here: tensors (`model`), whether drafts are right (`speculation`), clocks. Start at
//! [`Scheduler::plan`] and [`Scheduler::commit`].
#![forbid(unsafe_code)]

mod admit;
mod budget;
mod config;
mod drafts;
mod facts;
mod handed;
mod plan;
mod policy;
mod preempt;
mod schedule;
mod sequence;
mod step;

pub use config::{Config, Refused};
pub use facts::{Counters, PagesFacts};
pub use plan::{Admitted, Ahead, Plan, Slice};
pub use policy::Policy;
pub use schedule::Scheduler;
pub use sequence::{NewSequence, SequenceId};
pub use step::{AdapterId, Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

//! Which tokens run in this step.
//!
//! A sequence has tokens that are *known* and positions that are *computed*; a plan moves the second
//! toward the first within a token budget (SARATHI, arXiv 2403.02310). There are no phases: chunked
//! prefill, decode and draft verification are the same rows with different numbers, and the drafter
//! runs the same scheduler with a limit that moves ([`Scheduler::rewrite`]).
//!
//! Order within the budget: sequences that only lack their last position (decodes) first, so that a
//! long prompt never stalls them; then prompts partly computed; then new ones, first come first
//! served: a request that does not fit yet holds back those behind it.
//!
//! Not here: tensors (`model`), whether drafts are right (`speculation`), clocks. Start at
//! [`Scheduler::plan`] and [`Scheduler::commit`].
#![forbid(unsafe_code)]

mod facts;
mod plan;
mod schedule;
mod sequence;
mod step;

pub use facts::{Counters, PagesFacts};
pub use plan::{Admitted, Ahead, Plan, Slice};
pub use schedule::{Config, Refused, Scheduler};
pub use sequence::{NewSequence, SequenceId};
pub use step::{AdapterId, Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

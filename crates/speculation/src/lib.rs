//! Drafts and their judgement: pure rules, no model, no clock, no wire.
//!
//! *Drafts are hints.* The target's side ([`Tail`]) takes whatever arrived that fits what is
//! committed, [`verify`] judges it against the target's own picks, and everything else is dropped
//! and counted. The drafter's side ([`Session`]) runs ahead of the last commit it knows and rewrites
//! its tail where a commit disagrees: PEARL (arXiv 2408.11850) without its two modes, because a
//! plain step *is* pre-verify and a step with arrived drafts *is* post-verify.
//!
//! Both sides name what lies before a frame by a [`PrefixHashes`] value, so lost, late, doubled or
//! reordered frames are harmless.
//!
//! How much to draft and to verify is decided from measurements ([`StepCost`], [`Acceptance`],
//! [`window`]); a caller's guess of the output is one more source of drafts ([`Prediction`]).
//!
//! Not here: who computes drafts (`engine`), the draws that a rule asks for (`sampling`), trees and
//! n-gram drafts (issue 5). Start at [`Tail`] and [`Session`], then [`verify`].
#![forbid(unsafe_code)]

mod adapt;
mod pearl;
mod prediction;
mod prefix;
mod tail;
mod verify;

pub use adapt::{Acceptance, StepCost};
pub use pearl::{Reaction, Session, Timing, window};
pub use prediction::Prediction;
pub use prefix::PrefixHashes;
pub use tail::{Drafts, Dropped, Drops, Tail};
pub use verify::{Verdict, verify};

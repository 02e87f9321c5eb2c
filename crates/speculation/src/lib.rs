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
//! Drafts come from a drafter, from a caller's guess of the output ([`Prediction`]), or from what was said
//! before ([`propose`]: n-grams, suffixes, recycled tokens). Which of them a step verifies, and how many, is
//! decided from measurements: [`choose`], with [`StepCost`] and [`Beliefs`]; how far ahead a drafter runs by
//! [`window`]; whether one on the target's own GPU runs ahead at all by [`Ways`].
//!
//! What a source says may fork ([`Tree`]): a back end that takes trees verifies several guesses for one place in one step.
//!
//! For answers that need not be exact a drafter may read only what [`Documents`] retrieves of a long prompt.
//!
//! Where a model drafts with its own first layers, [`Exits`] says after how many, and how many drafts; where it drafts over a
//! window of its keys, [`WindowCost`] says how many.
//!
//! Not here: who computes drafts (`engine`), the draws that a rule asks for (`sampling`).
//! Start at [`Tail`] and [`Session`], then [`verify`], then [`choose`].
#![forbid(unsafe_code)]

mod acceptance;
mod ask;
mod belief;
mod choose;
mod cost;
mod del;
mod guess;
mod history;
mod over_window;
mod pearl;
mod prediction;
mod prefix;
mod recycle;
mod retrieval;
mod shadow;
mod tail;
mod tree;
mod verify;
mod ways;

pub use acceptance::Acceptance;
pub use ask::{Wait, ask};
pub use belief::{Beliefs, Sureness};
pub use choose::{Beside, Offer, choose, expect};
pub use cost::StepCost;
pub use del::{Exits, Round, Said, Stop};
pub use guess::{Asked, Library, Proposal, propose};
pub use history::History;
pub use over_window::WindowCost;
pub use pearl::{Reaction, Session, Timing, window};
pub use prediction::Prediction;
pub use prefix::PrefixHashes;
pub use recycle::Recycle;
pub use retrieval::{Chunks, Documents};
pub use shadow::Shadows;
pub use tail::{Drafts, Dropped, Drops, Tail};
pub use tree::{NoTree, Path, Tree};
pub use verify::{Verdict, verify};
pub use ways::{Way, Ways};

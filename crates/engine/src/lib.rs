//! One rank's loop: plan, submit, collect, commit.
//!
//! [`Engine::step`] is the whole sentence; [`EngineThread`] runs it on the one OS thread that owns
//! the scheduler, the pages and the model of a rank, so there is no lock on the way. Commands come in
//! by one bounded inbox ([`Command`]); what happens to a sequence goes out by its own [`Outlet`].
//!
//! The drafter's rank runs the same engine: a *draft lane* is a sequence whose limit follows the
//! target's commits and whose tail may be rewritten; a *target lane* verifies the drafts that have
//! arrived when a step is planned. Both are steered alike: bias, penalties, a [`Constraint`].
//!
//! Not here: arithmetic ([`Model`] is the seam, [`ToyModel`] its twin, [`Replay`] a recorded model's words
//! over another one's arithmetic), the network (`worker`,
//! `drafter`), clocks (time comes in as an argument). Start at [`Engine::step`].
#![forbid(unsafe_code)]

mod arrival;
mod calibrate;
mod command;
mod constraint;
mod draft_lane;
mod drafting;
mod facts;
mod foresight;
mod lane;
mod model;
mod open;
mod outcome;
mod pacing;
mod paged_tokens;
mod prefill_lane;
mod prefixes;
mod replay;
mod self_draft;
mod steering;
mod step;
mod target_lane;
mod thread;
mod tier;
mod toy;
mod turnover;
mod turns;

pub use arrival::{PageIn, PageRefused};
pub use command::{Command, CommitFrame, DraftOpen, Drafter, TargetOpen};
pub use constraint::Constraint;
pub use draft_lane::{DraftClosed, DraftEvent, DraftOutlet};
pub use facts::{Facts, Undrafted};
pub use lane::{Ended, Outlet, Room};
pub use model::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};
pub use open::Refusal;
pub use prefill_lane::{
    PAGES_AT_ONCE, PageOut, PrefillEvent, PrefillOpen, PrefillOutlet, pages_to_hand_over,
};
pub use prefixes::PrefixChange;
pub use replay::{Recorded, Replay, ReplayError, Side, Trace};
pub use self_draft::{Layered, SaidBy, SelfDraft};
pub use speculation::Way;
pub use step::{Engine, Outcome, Settings};
pub use target_lane::{TargetEvent, TargetOutlet};
pub use thread::{Clock, EngineThread, Inbox, InboxFull, Observed, Observer};
pub use tier::{Came, Fetch, Put, Tier, TierFacts};
pub use toy::{ToyModel, toy_logits};

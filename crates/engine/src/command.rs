use std::time::Duration;

use request::{Adjustments, Limits, Request, Rule, Sampling, Strategy, TokenId};
use scheduler::SequenceId;
use speculation::Drafts;

use crate::{Constraint, DraftOutlet, PageIn, PrefillOpen, Refusal, TargetOutlet};

/// What the shell around an engine may ask of it. Sequence ids are given by the shell.
pub enum Command {
    /// Generate an answer.
    Target(Box<TargetOpen>),
    /// Draft for a sequence that a target elsewhere decodes.
    Draft(Box<DraftOpen>),
    /// Compute a prompt for another rank and give out its pages.
    Prefill(Box<PrefillOpen>),
    /// Hold a page that another rank computed, for a sequence to come.
    Page(Box<PageIn>),
    /// End a sequence of any kind, silently: who cancels knows. Of one that never came, what was held for it is given up.
    Cancel(SequenceId),
    /// To a target lane: drafts arrived.
    Drafts(SequenceId, Drafts),
    /// To a target lane: its drafter came or went; without one, lockstep does not wait.
    Drafter(SequenceId, Drafter),
    /// To a target lane: draft for it in another way from now on. The text does not change.
    Strategy { sequence: SequenceId, strategy: Strategy },
    /// To a target lane: tell the drafter again everything from `have` on.
    Resync { sequence: SequenceId, have: u32 },
    /// To a draft lane: the target committed tokens.
    Commit(SequenceId, CommitFrame),
    /// To a draft lane: how far past the last commit it may run.
    Window { sequence: SequenceId, window: u32 },
}

/// How a target lane is drafted for by somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafter {
    /// By nobody.
    #[default]
    Gone,
    /// By one that runs ahead while the target computes.
    Ahead,
    /// By one that computes on the target's own device: under `auto` it drafts while the lane waits for it, as far as
    /// that pays, and not beside the target's steps, which would both be slower.
    InTurn {
        /// Several lanes wait, all at once, as on a GPU more rows cost little. On cores only a lane that is alone waits.
        together: bool,
    },
    /// By one on the target's own GPU: under `auto` in turn, together, or ahead, as was measured to be faster.
    AsMeasured,
}

/// A request and where its answer goes.
pub struct TargetOpen {
    pub sequence: SequenceId,
    pub request: Request,
    /// `request.constraint`, compiled and at its beginning.
    pub constraint: Option<Box<dyn Constraint>>,
    /// When the answer is of no use any more, on the engine's clock.
    pub deadline: Option<Duration>,
    pub outlet: Box<dyn TargetOutlet>,
    /// Called once: whether the engine took it.
    pub admitted: Box<dyn FnOnce(Result<(), Refusal>) + Send>,
}

/// A session to draft for.
pub struct DraftOpen {
    pub sequence: SequenceId,
    pub prompt: Vec<TokenId>,
    /// What it reads instead of the prompt (retrieval). It then gives the law of its drafts under every rule.
    pub retrieved: Option<Vec<TokenId>>,
    /// Output so far.
    pub committed: Vec<TokenId>,
    /// Most tokens the target sequence will ever have.
    pub longest: u32,
    /// The target's own.
    pub sampling: Sampling,
    pub adjust: Adjustments,
    /// The target's, compiled and at its beginning; without it drafts are merely worse.
    pub constraint: Option<Box<dyn Constraint>>,
    pub rule: Rule,
    /// Nothing is drafted after a stop token; `max_tokens` is the target's business.
    pub limits: Limits,
    pub window: u32,
    pub cache_salt: String,
    pub outlet: Box<dyn DraftOutlet>,
    pub admitted: Box<dyn FnOnce(Result<(), Refusal>) + Send>,
}

/// Tokens that a target committed, as its drafter hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitFrame {
    /// Length of the sequence before `ids`.
    pub at: u32,
    /// Names the tokens before `at`.
    pub prefix_hash: u64,
    pub ids: Vec<TokenId>,
}

impl Command {
    /// Whether losing it costs speed only.
    pub fn is_hint(&self) -> bool {
        match self {
            Self::Target(_) | Self::Draft(_) | Self::Prefill(_) | Self::Page(_) | Self::Cancel(_) => false,
            Self::Drafts(..)
            | Self::Drafter(..)
            | Self::Strategy { .. }
            | Self::Resync { .. }
            | Self::Commit(..)
            | Self::Window { .. } => true,
        }
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Target(open) => write!(f, "Target({:?})", open.sequence),
            Self::Draft(open) => write!(f, "Draft({:?})", open.sequence),
            Self::Prefill(open) => write!(f, "Prefill({:?})", open.sequence),
            Self::Page(page) => write!(f, "Page({:?}, {})", page.sequence, page.index),
            Self::Cancel(sequence) => write!(f, "Cancel({sequence:?})"),
            Self::Drafts(sequence, drafts) => write!(f, "Drafts({sequence:?}, {drafts:?})"),
            Self::Drafter(sequence, drafter) => write!(f, "Drafter({sequence:?}, {drafter:?})"),
            Self::Strategy { sequence, strategy } => write!(f, "Strategy({sequence:?}, {strategy:?})"),
            Self::Resync { sequence, have } => write!(f, "Resync({sequence:?}, {have})"),
            Self::Commit(sequence, frame) => write!(f, "Commit({sequence:?}, {frame:?})"),
            Self::Window { sequence, window } => write!(f, "Window({sequence:?}, {window})"),
        }
    }
}

impl std::fmt::Debug for TargetOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetOpen").field("request", &self.request).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DraftOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DraftOpen").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

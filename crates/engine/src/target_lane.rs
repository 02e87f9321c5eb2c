//! A sequence whose text is the answer.

use std::time::Duration;

use request::{Finish, Request, SpeculationStats, Strategy, TokenId, Usage};
use scheduler::Ahead;
use speculation::{Drafts, Dropped, Tail, verify};

use crate::{CommitFrame, Ended, Outlet, Room};

/// What a target sequence tells its shell.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetEvent {
    /// It left the queue: its prompt is being computed. From here a drafter is of use.
    Started,
    /// Tokens were committed. `drafted[i]`: the token stood in an accepted draft.
    Committed {
        frame: CommitFrame,
        drafted: Vec<bool>,
    },
    /// The drafter asked for commits again; nothing new for the reader.
    Again(CommitFrame),
    Ended(Ended),
}

/// The shell's side of a target sequence.
pub trait TargetOutlet: Outlet<TargetEvent> {}
impl<T: Outlet<TargetEvent>> TargetOutlet for T {}

/// A target sequence in the engine, beside what the scheduler knows of it.
pub(crate) struct TargetLane {
    pub(crate) request: Request,
    pub(crate) outlet: Box<dyn TargetOutlet>,
    pub(crate) tail: Tail,
    pub(crate) stats: SpeculationStats,
    /// A drafter is attached: lockstep may wait for it.
    pub(crate) drafter: bool,
    /// Since when it waits for drafts (lockstep).
    parked: Option<Duration>,
    /// The drafter missed the deadline: no more waiting until it is heard of again.
    late: bool,
    /// A draft broke the model's arithmetic: no more drafts for this sequence.
    distrusted: bool,
    /// Its first rows were planned.
    started: bool,
    /// Since when its reader has no room.
    blocked: Option<Duration>,
    output: u32,
}

/// What to do with a target lane in the step being planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Plan,
    /// Leave it out; look again at this time, or when something arrives.
    Hold {
        until: Option<Duration>,
    },
    End(Finish),
}

impl TargetLane {
    pub(crate) fn new(
        request: Request,
        outlet: Box<dyn TargetOutlet>,
        vocab_size: u32,
        longest_tail: usize,
    ) -> Self {
        Self {
            tail: Tail::new(&request.known(), vocab_size, longest_tail),
            output: request.committed.len() as u32,
            request,
            outlet,
            stats: SpeculationStats::default(),
            drafter: false,
            parked: None,
            late: false,
            distrusted: false,
            started: false,
            blocked: None,
        }
    }

    /// Most drafts to verify in one step.
    pub(crate) fn max_draft(&self, server: u32) -> usize {
        match self.request.speculation.strategy {
            _ if self.distrusted => 0,
            Strategy::None => 0,
            Strategy::Lockstep { k, .. } => self.request.speculation.max_draft.unwrap_or(k).min(k) as usize,
            Strategy::Auto | Strategy::Draft => {
                self.request.speculation.max_draft.unwrap_or(server).min(server) as usize
            }
        }
    }

    pub(crate) fn drafts(&self, server: u32) -> &[TokenId] {
        let pending = self.tail.pending();
        &pending[..pending.len().min(self.max_draft(server))]
    }

    /// Decides whether it may run now. `decoding`: its prompt is computed, so drafts would help.
    pub(crate) fn readiness(&mut self, now: Duration, decoding: bool, slow_client: Duration) -> Readiness {
        match self.outlet.room() {
            Room::Gone => return Readiness::End(Finish::Cancelled),
            Room::Full => {
                let until = *self.blocked.get_or_insert(now) + slow_client;
                return if now >= until {
                    Readiness::End(Finish::SlowClient)
                } else {
                    Readiness::Hold { until: Some(until) }
                };
            }
            Room::Free => self.blocked = None,
        }
        let Strategy::Lockstep { k, deadline } = self.request.speculation.strategy else {
            return Readiness::Plan;
        };
        let room = self.request.limits.max_tokens.saturating_sub(self.output + 1);
        let wanted = self.max_draft(k).min(room as usize);
        let waits = self.drafter && !self.late && decoding && self.output > 0;
        let pending = self.tail.pending();
        // The drafter goes no further than a token after which the answer would end.
        let complete = pending.len() >= wanted
            || pending.last().is_some_and(|t| self.request.limits.stop_ids.contains(t));
        if !waits || complete {
            self.parked = None;
            return Readiness::Plan;
        }
        let until = *self.parked.get_or_insert(now) + deadline;
        if now >= until {
            (self.parked, self.late) = (None, true);
            return Readiness::Plan;
        }
        Readiness::Hold { until: Some(until) }
    }

    pub(crate) fn offer(&mut self, committed: &[TokenId], drafts: &Drafts) -> Result<usize, Dropped> {
        let taken = self.tail.offer(committed, drafts);
        let fresh = drafts.ids.len() as u64;
        match taken {
            Ok(taken) => {
                // Only a draft that is of use counts as a sign of life.
                self.late &= taken == 0;
                Ok(taken)
            }
            // A frame repeats the whole unconfirmed tail, so an old one costs nothing new.
            Err(Dropped::Late) => Err(Dropped::Late),
            Err(reason) => {
                self.stats.dropped_tokens += fresh;
                Err(reason)
            }
        }
    }

    /// Judges the picks of a verification or plain step and delivers what is committed. Returns
    /// the accepted drafts, the tokens to commit and, if the answer is complete, how.
    pub(crate) fn judge(
        &mut self,
        at: u32,
        drafts: &[TokenId],
        picks: &[TokenId],
    ) -> (u32, Vec<TokenId>, Option<Finish>) {
        let Ok(verdict) = verify(self.request.speculation.rule, drafts, picks) else {
            debug_assert!(false, "rules that are not built are refused at admission");
            return (0, Vec::new(), Some(Finish::Failed));
        };
        let mut tokens = verdict.tokens;
        let limits = &self.request.limits;
        tokens.truncate((limits.max_tokens - self.output) as usize);
        let stop = tokens.iter().position(|t| limits.stop_ids.contains(t));
        if let Some(stop) = stop {
            tokens.truncate(stop + 1);
        }
        self.stats.record(drafts.len(), verdict.accepted);
        self.output += tokens.len() as u32;
        let finish = match stop {
            Some(_) => Some(Finish::Stop),
            None if self.output >= limits.max_tokens => Some(Finish::Length),
            None => None,
        };
        let frame = CommitFrame { at, prefix_hash: self.tail.committed_hash(), ids: tokens.clone() };
        self.stats.dropped_tokens +=
            self.tail.commit(&tokens).saturating_sub(drafts.len() - verdict.accepted) as u64;
        let drafted = (0..tokens.len()).map(|i| i < verdict.accepted).collect();
        self.outlet.deliver(TargetEvent::Committed { frame, drafted });
        (verdict.accepted as u32, tokens, finish)
    }

    /// Repeats commits from `have` on for a drafter that lost some.
    pub(crate) fn again(&mut self, committed: &[TokenId], have: u32) {
        let Some(ids) = committed.get(have as usize..).filter(|ids| !ids.is_empty()) else { return };
        let Some(prefix_hash) = self.tail.hash_at(have) else { return };
        if self.outlet.room() == Room::Free {
            self.outlet.deliver(TargetEvent::Again(CommitFrame { at: have, prefix_hash, ids: ids.to_vec() }));
        }
    }

    /// Its first rows are in the step that is being executed.
    pub(crate) fn start(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.outlet.deliver(TargetEvent::Started);
        }
    }

    /// A draft made the logits not finite, which plain decoding would never have seen: it and all later
    /// ones are dropped, the sequence goes on without.
    pub(crate) fn distrust(&mut self) {
        self.distrusted = true;
        self.stats.dropped_tokens += self.tail.clear() as u64;
    }

    pub(crate) fn end(mut self, finish: Finish) {
        let usage = Usage { prompt_tokens: self.request.prompt.len() as u32, completion_tokens: self.output };
        self.outlet.deliver(TargetEvent::Ended(Ended { finish, usage, speculation: self.stats }));
    }

    pub(crate) fn ahead(&self, server: u32) -> Ahead<'_> {
        Ahead::Go(self.drafts(server))
    }
}

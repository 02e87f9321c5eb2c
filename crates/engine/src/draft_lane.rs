//! A sequence that runs ahead of a target elsewhere.

use std::collections::VecDeque;

use request::{Rule, Sampling, SamplingParams, TokenId};
use sampling::{Distribution, Draw, Drawn, Edit, How};
use speculation::{Drafts, Reaction, Session};

use crate::steering::Steering;
use crate::{CommitFrame, Outlet};

/// What a draft sequence tells its shell.
#[derive(Clone, Debug, PartialEq)]
pub enum DraftEvent {
    /// The whole unconfirmed tail.
    Drafts(Drafts),
    /// A commit is missing.
    Resync { have: u32 },
    /// The session ended here.
    Closed(DraftClosed),
}

/// Why a draft sequence ended on the drafter's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DraftClosed {
    /// The committed tokens are not those it was opened with.
    Diverged,
    /// A commit goes beyond the length that it was opened for.
    TooLong,
    /// A commit names a token outside the vocabulary.
    Vocabulary,
    /// The draft model failed.
    Failed,
}

/// The shell's side of a draft sequence.
pub trait DraftOutlet: Outlet<DraftEvent> {}
impl<T: Outlet<DraftEvent>> DraftOutlet for T {}

/// A draft sequence in the engine, beside what the scheduler knows of it.
pub(crate) struct DraftLane {
    pub(crate) session: Session,
    pub(crate) outlet: Box<dyn DraftOutlet>,
    pub(crate) stop_ids: Vec<TokenId>,
    /// Most tokens the sequence may ever have.
    pub(crate) longest: u32,
    /// The target's.
    pub(crate) sampling: Sampling,
    pub(crate) rule: Rule,
    /// The target is pulled towards it, so it gives the law of its drafts under every rule.
    pub(crate) told: bool,
    /// Follows committed output and tail.
    pub(crate) steering: Steering,
    /// What the last tokens of the tail were drawn from, in order (rejection rule).
    pub(crate) laws: VecDeque<Distribution>,
}

impl DraftLane {
    /// Whether its tail ends in a token after which the target would stop.
    pub(crate) fn stopped(&self, known: &[TokenId]) -> bool {
        known.last().is_some_and(|t| {
            known.len() as u32 > self.session.own(self.session.committed()) && self.stop_ids.contains(t)
        })
    }

    /// How its next token is drawn.
    pub(crate) fn draw(&mut self) -> Draw {
        let edit = match self.steering.edits(&[]) {
            Ok(edits) => edits.into_iter().next().unwrap_or_default(),
            Err(_) => {
                self.steering.unconstrain();
                Edit::default()
            }
        };
        let (params, how) = match self.rule {
            Rule::Coupled => (self.sampling.params, How::Pick),
            // Its most likely token: the target's draw is then most likely to equal it.
            Rule::Strict | Rule::Greedy => (SamplingParams::GREEDY, How::Pick),
            Rule::Rejection => (self.sampling.params, How::Top),
        };
        let greedy = self.sampling.params.is_greedy();
        let how = match how {
            // At temperature 0 target and drafter are compared as they are at 1.
            _ if self.told && greedy => How::Told { law: SamplingParams::at(1.0) },
            How::Pick if self.told => How::Told { law: self.sampling.params },
            how => how,
        };
        let ahead = self.session.skipped();
        Draw { sampling: Sampling { params, ..self.sampling }, edit, how, ahead, logprobs: None }
    }

    pub(crate) fn drafted(&mut self, known: &[TokenId], drawn: Drawn) {
        self.session.drafted(drawn.token);
        if self.steering.push(&[drawn.token]).is_err() {
            self.steering.unconstrain();
        }
        self.laws.extend(drawn.q.map(|q| *q));
        if let Some(mut frame) = self.session.frame(known) {
            if self.laws.len() == frame.ids.len() {
                frame.q = self.laws.iter().cloned().collect();
            }
            self.outlet.deliver(DraftEvent::Drafts(frame));
        }
    }

    pub(crate) fn commit(&mut self, known: &[TokenId], frame: &CommitFrame) -> Reaction {
        let reaction = self.session.commit(known, frame.at, frame.prefix_hash, &frame.ids);
        match &reaction {
            Reaction::Resync { have } => self.outlet.deliver(DraftEvent::Resync { have: *have }),
            Reaction::Diverged => self.outlet.deliver(DraftEvent::Closed(DraftClosed::Diverged)),
            Reaction::Agreed => {
                let committed = self.session.own(self.session.committed());
                let tail = known.len().saturating_sub(committed as usize);
                self.laws.drain(..self.laws.len().saturating_sub(tail));
            }
            Reaction::Rewrite { at, ids } => {
                self.laws.clear();
                self.steering.pop(&known[self.session.own(*at) as usize..]);
                // The target committed what this constraint does not allow: it is not the target's.
                if self.steering.push(ids).is_err() {
                    self.steering.unconstrain();
                }
            }
            Reaction::Known => {}
        }
        reaction
    }
}

//! A sequence whose text is the answer.

mod by_itself;
mod proposing;
mod readiness;
mod window;

pub(crate) use proposing::{Crowd, Server};
pub(crate) use readiness::Readiness;

use std::time::Duration;

use request::{
    Finish, InvalidField, Request, Rule, Source, SpeculationStats, Strategy, TokenId, TokenLogprobs, Usage,
};
use sampling::{Draw, Drawn, How, Rapid};
use scheduler::Ahead;
use speculation::{Beliefs, Drafts, Dropped, History, Prediction, Shadows, Tail, Tree};

use crate::drafting::Drafting;
use crate::steering::Steering;
use crate::{CommitFrame, Constraint, Drafter, Ended, Outlet, Room};

/// What a target sequence tells its shell.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetEvent {
    /// It left the queue: its prompt is being computed. From here a drafter is of use.
    Started {
        /// Prompt positions that the prefix cache served.
        cached: u32,
    },
    /// Tokens were committed.
    Committed {
        frame: CommitFrame,
        /// One per token: it stood in an accepted draft.
        drafted: Vec<bool>,
        /// One per token when they were asked for, else empty.
        logprobs: Vec<TokenLogprobs>,
        /// Drafts that were verified in the step.
        verified: u32,
        /// Who proposed those.
        source: Source,
    },
    /// So far past what is committed the drafter is to go, from now on.
    Ask {
        /// `None`: as far as who drafts finds right.
        window: Option<u32>,
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
    /// While one is attached, lockstep may wait for it.
    pub(crate) drafter: Drafter,
    pub(crate) deadline: Option<Duration>,
    /// How right each source is here.
    beliefs: Beliefs,
    /// What each source would have said.
    shadows: Shadows,
    /// Prompt and output, for sources that look for what came before.
    own: Option<History>,
    /// Most tokens that the sequence may have.
    longest: u32,
    steering: Steering,
    prediction: Option<Prediction>,
    /// The drafts to verify in the step being planned, and where they came from.
    proposed: Tree,
    source: Source,
    /// Of the draws for them, those from a pulled law.
    pulled: Vec<bool>,
    by_itself: by_itself::ByItself,
    /// Rounds that could have drafted over a window.
    rounds: u32,
    /// Tokens a second that were expected of what was proposed.
    promised: f64,
    usage: Usage,
    /// Since when it waits for drafts.
    parked: Option<Duration>,
    /// Drafts that it waits for, of a drafter on the same device; decided when so many tokens were known.
    awaited: u32,
    decided: usize,
    /// What the drafter was asked for last.
    window: Option<u32>,
    /// The drafter missed the deadline: no more waiting until it is heard of again.
    late: bool,
    /// A draft broke the model's arithmetic: no more drafts for this sequence.
    distrusted: bool,
    /// It left the queue once.
    started: bool,
    /// Since when its reader has no room.
    blocked: Option<Duration>,
}

/// What a step committed for one sequence.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) accepted: u32,
    /// The last accepted draft.
    pub(crate) leaf: Option<u32>,
    pub(crate) tokens: Vec<TokenId>,
    /// The answer is complete.
    pub(crate) finish: Option<Finish>,
}

impl TargetLane {
    /// What a drafter on the same device is opened with.
    const FIRST_WINDOW: u32 = 1;

    pub(crate) fn new(
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
        deadline: Option<Duration>,
        outlet: Box<dyn TargetOutlet>,
        vocab_size: u32,
        longest_tail: usize,
    ) -> Result<Self, (InvalidField, Box<dyn TargetOutlet>)> {
        let steering = Steering::new(
            &request.adjust,
            constraint,
            request.limits.clone(),
            &request.prompt,
            &request.committed,
        );
        let steering = match steering {
            Ok(steering) => steering,
            Err(invalid) => return Err((invalid, outlet)),
        };
        let guess: Vec<TokenId> =
            request.prediction.iter().copied().take_while(|id| id.0 < vocab_size).collect();
        let longest = (request.prompt.len() as u32).saturating_add(request.limits.max_tokens);
        Ok(Self {
            longest,
            beliefs: Beliefs::of_a_sequence(),
            shadows: Shadows::default(),
            own: None,
            tail: Tail::new(&request.known(), vocab_size, longest_tail),
            steering,
            prediction: (!guess.is_empty()).then(|| Prediction::new(guess, &request.committed)),
            proposed: Tree::default(),
            source: Source::Drafter,
            pulled: Vec::new(),
            by_itself: Default::default(),
            rounds: 0,
            promised: 0.0,
            usage: Usage {
                prompt_tokens: request.prompt.len() as u32,
                completion_tokens: request.committed.len() as u32,
                ..Usage::default()
            },
            request,
            outlet,
            stats: SpeculationStats::default(),
            drafter: Drafter::Gone,
            deadline,
            parked: None,
            awaited: 0,
            decided: 0,
            window: Some(Self::FIRST_WINDOW),
            late: false,
            distrusted: false,
            started: false,
            blocked: None,
        })
    }

    /// Whether the output of earlier attempts is a whole answer already, as its constraint has it.
    pub(crate) fn ended(&self) -> bool {
        self.steering.ended()
    }

    /// Whether the request wants drafts at all.
    pub(crate) fn drafts_wanted(&self) -> bool {
        !self.distrusted && self.request.speculation.strategy != Strategy::None
    }

    /// Whether it wants a drafter's.
    pub(crate) fn drafter_wanted(&self) -> bool {
        self.drafts_wanted() && self.request.speculation.strategy.takes_drafter()
    }

    /// From here on it is drafted for in another way.
    pub(crate) fn redirect(&mut self, strategy: Strategy) {
        self.request.speculation.strategy = strategy;
        (self.parked, self.late) = (None, false);
    }

    /// What [`Self::propose`] chose.
    pub(crate) fn proposed(&self) -> Ahead<'_> {
        match self.proposed.is_chain() {
            true => Ahead::Go(self.proposed.ids()),
            false => Ahead::Tree(self.proposed.ids(), self.proposed.parents()),
        }
    }

    /// Draws for the rows after its last known token and after each of the first `drafts` proposed ones.
    /// `Err`: the constraint cannot go on; the answer ends.
    pub(crate) fn draws(&mut self, drafts: usize) -> Result<Vec<Draw>, String> {
        let edits = match self.proposed.is_chain() {
            true => self.steering.edits(&self.proposed.ids()[..drafts])?,
            // Each row has the history of its own path.
            false => {
                let mut edits = self.steering.edits(&[])?;
                for draft in 0..drafts as u32 {
                    edits.extend(self.steering.edits(&self.proposed.path(draft))?.pop());
                }
                edits
            }
        };
        // The pending draft behind those verified is judged as well: one that was left out for what it is (the
        // constraint cuts it) was drawn with the noise that a pick would use, and would bend its law.
        let pending = self.tail.pending();
        let (rejects, rapid) =
            (self.request.speculation.rule == Rule::Rejection, self.request.speculation.strategy.rapid());
        let how = |depth: usize| match (self.source, pending.get(depth), self.tail.law(depth)) {
            (Source::Drafter, Some(draft), Some(q)) => match rapid {
                Some(rapid) => How::Pulled {
                    q: q.clone(),
                    rapid: Rapid { eta: rapid.eta.into(), plausible: rapid.plausible.into() },
                    draft: rejects.then_some(*draft),
                },
                None if rejects => How::Judge { draft: *draft, q: q.clone() },
                None => How::Pick,
            },
            _ => How::Pick,
        };
        let (sampling, logprobs) = (self.request.sampling, self.request.logprobs);
        let draw = |(depth, edit)| Draw { sampling, edit, how: how(depth), ahead: 0, logprobs };
        let draws: Vec<Draw> = edits.into_iter().enumerate().map(draw).collect();
        self.pulled.clear();
        // Without a pull the law is the target's own.
        self.pulled
            .extend(draws.iter().map(|d| matches!(&d.how, How::Pulled { rapid, .. } if rapid.eta > 0.0)));
        Ok(draws)
    }

    /// A drafter came or went.
    pub(crate) fn drafted_by(&mut self, drafter: Drafter) {
        self.drafter = drafter;
        if drafter == Drafter::Gone {
            self.stats.dropped_tokens += self.tail.clear() as u64;
        } else {
            // Nothing was asked of this one yet.
            (self.awaited, self.decided, self.parked) = (0, 0, None);
            self.window = Some(Self::FIRST_WINDOW);
        }
    }

    pub(crate) fn offer(&mut self, committed: &[TokenId], drafts: &Drafts) -> Result<usize, Dropped> {
        let taken = self.tail.offer(committed, drafts);
        let fresh = drafts.ids.len() as u64;
        match taken {
            Ok(taken) => {
                // Only a draft that is of use counts as a sign of life.
                self.late &= taken == 0;
                // The word that it is attached may have been lost on its way in.
                if self.drafter == Drafter::Gone {
                    self.drafted_by(Drafter::Ahead);
                }
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

    /// Judges the draws of a verification or plain step and delivers what is committed. `known`: prompt
    /// and output before it; `drafts`: how many of the proposed ones were in the step.
    pub(crate) fn judge(
        &mut self,
        known: &[TokenId],
        drafts: usize,
        drawn: Vec<Drawn>,
        drafting: &mut Drafting,
    ) -> Judged {
        let picks: Vec<TokenId> = drawn.iter().map(|d| d.token).collect();
        self.proposed.truncate(drafts);
        let verdict = self.proposed.verify(&picks);
        let (accepted, leaf) = (verdict.accepted.len(), verdict.accepted.last().copied());
        // The rows of the path: after the last known token, and after each accepted draft.
        let path: Vec<usize> =
            std::iter::once(0).chain(verdict.accepted.iter().map(|draft| *draft as usize + 1)).collect();
        let mut tokens = verdict.tokens;
        let limits = self.request.limits.clone();
        tokens.truncate((limits.max_tokens - self.usage.completion_tokens) as usize);
        let mut stop = tokens.iter().position(|t| limits.stop_ids.contains(t));
        if let Some(stop) = stop {
            tokens.truncate(stop + 1);
        }
        let mut failed = false;
        if let Err(last) = self.steering.push(&tokens) {
            // Its constraint has no word after this one, a stop token of the model that the request does
            // not stop at: nothing could follow. Or the constraint failed at it.
            stop = tokens.iter().position(|t| *t == last).or(stop);
            tokens.truncate(stop.map_or(tokens.len(), |at| at + 1));
            failed = self.steering.edits(&[]).is_err();
        }
        self.count(drafts, accepted);
        let pulled = path.iter().take(tokens.len()).filter(|row| self.pulled.get(**row) == Some(&true));
        self.stats.augmented_tokens += pulled.count() as u64;
        self.learn(known.last().copied(), drafts, &picks, &tokens, drafting);
        self.usage.completion_tokens += tokens.len() as u32;
        let finish = match stop {
            _ if failed => Some(Finish::Failed),
            Some(_) => Some(Finish::Stop),
            None if self.usage.completion_tokens >= limits.max_tokens => Some(Finish::Length),
            None => None,
        };
        let frame = CommitFrame {
            at: known.len() as u32,
            prefix_hash: self.tail.committed_hash(),
            ids: tokens.clone(),
        };
        let rejected = if self.source == Source::Drafter { drafts - accepted } else { 0 };
        self.stats.dropped_tokens += self.tail.commit(&tokens).saturating_sub(rejected) as u64;
        if let Some(prediction) = &mut self.prediction {
            let output = [&known[self.request.prompt.len()..], tokens.as_slice()].concat();
            prediction.commit(&output, tokens.len());
        }
        let drafted = (0..tokens.len()).map(|i| i < accepted).collect();
        let mut drawn: Vec<Option<Drawn>> = drawn.into_iter().map(Some).collect();
        let reached = path.into_iter().take(tokens.len()).filter_map(|row| drawn.get_mut(row)?.take());
        let logprobs = reached.filter_map(|d| d.logprobs.map(|l| *l)).collect();
        let (verified, source) = (drafts as u32, self.source);
        self.outlet.deliver(TargetEvent::Committed { frame, drafted, logprobs, verified, source });
        Judged { accepted: accepted as u32, leaf, tokens, finish }
    }

    fn count(&mut self, drafts: usize, accepted: usize) {
        self.stats.record(self.source, drafts, accepted);
        if self.source == Source::Prediction {
            self.usage.accepted_prediction_tokens += accepted as u32;
            self.usage.rejected_prediction_tokens += (drafts - accepted) as u32;
        }
    }

    /// Repeats commits from `have` on for a drafter that lost some.
    pub(crate) fn again(&mut self, committed: &[TokenId], have: u32) {
        let Some(ids) = committed.get(have as usize..).filter(|ids| !ids.is_empty()) else { return };
        let Some(prefix_hash) = self.tail.hash_at(have) else { return };
        if self.outlet.room() == Room::Free {
            self.outlet.deliver(TargetEvent::Again(CommitFrame { at: have, prefix_hash, ids: ids.to_vec() }));
        }
    }

    /// It left the queue; `cached` positions need not be computed.
    pub(crate) fn start(&mut self, cached: u32) {
        if !std::mem::replace(&mut self.started, true) {
            self.usage.cached_tokens = cached.min(self.usage.prompt_tokens);
            self.outlet.deliver(TargetEvent::Started { cached: self.usage.cached_tokens });
        }
    }

    /// A draft made the logits not finite, which plain decoding would never have seen: it and all later
    /// ones are dropped, the sequence goes on without.
    pub(crate) fn distrust(&mut self) {
        self.distrusted = true;
        self.stats.dropped_tokens += self.tail.clear() as u64;
    }

    pub(crate) fn end(mut self, finish: Finish) {
        self.outlet.deliver(TargetEvent::Ended(Ended { finish, usage: self.usage, speculation: self.stats }));
    }
}

//! Which drafts a target sequence verifies in the step being planned.

use request::{Rule, Source, Strategy, TokenId};
use speculation::{Asked, Beside, History, Offer, Proposal, Shadows, Tree, Way, ask, expect, propose};

use super::{TargetEvent, TargetLane};
use crate::drafting::Drafting;
use crate::{Drafter, Room};

/// What the rank allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    /// Most drafts of a step.
    pub(crate) max_draft: u32,
    /// Its model takes trees.
    pub(crate) trees: bool,
}

/// Who decodes beside a sequence, as far as it matters for a drafter on the target's device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    /// Nothing else runs.
    pub(crate) alone: bool,
    /// Sequences whose drafter computes on the target's GPU.
    pub(crate) together: u32,
    /// What those drafters do while the target computes, if nobody said.
    pub(crate) way: Way,
}

impl TargetLane {
    /// Most drafts that one step may verify; `server` is the server's own limit.
    pub(super) fn max_draft(&self, server: u32) -> usize {
        let asked = self.request.speculation.max_draft;
        match self.request.speculation.strategy.waits() {
            _ if !self.drafts_wanted() => 0,
            Some((k, _)) => asked.unwrap_or(k).min(k) as usize,
            None => asked.unwrap_or(server).min(server) as usize,
        }
    }

    /// Chooses among what is there. `known`: prompt and output; `beside`: what else the step carries. A lockstep
    /// and a prediction are the caller's own wish: they are verified at any acceptance.
    pub(crate) fn propose(
        &mut self,
        known: &[TokenId],
        server: Server,
        beside: Beside,
        drafting: &mut Drafting,
    ) {
        self.propose_nothing();
        let most = self.max_draft(server.max_draft);
        if most == 0 {
            return;
        }
        let strategy = self.request.speculation.strategy;
        let pending = self.tail.pending();
        let asked = self.request.speculation.max_draft.unwrap_or(server.max_draft);
        let most_guessed = asked.min(server.max_draft) as usize;
        let guessed = self.prediction.as_ref().map(|p| p.propose(most_guessed)).unwrap_or_default();
        if pending.is_empty() && !guessed.is_empty() {
            self.source = Source::Prediction;
            self.proposed = Tree::chain(guessed.to_vec());
        } else if strategy.waits().is_some() {
            self.proposed = Tree::chain(pending[..pending.len().min(most)].to_vec());
        } else {
            let found = self.found(known, most, server.trees, drafting);
            let offers: Vec<Offer<'_>> =
                found.iter().map(|(source, proposal)| Offer { source: *source, proposal }).collect();
            let (promised, chosen) =
                expect(&offers, most, &drafting.cost, &drafting.beliefs, &self.beliefs, beside);
            self.promised = promised;
            if let Some((index, k)) = chosen {
                let (source, proposal) = &found[index];
                self.source = *source;
                self.proposed = proposal.first(k).drafts;
            }
        }
        // What is drafted under a constraint is a chain.
        if self.proposed.is_chain() {
            let allowed = self.steering.allowed(self.proposed.ids());
            self.proposed.truncate(allowed);
        }
    }

    /// With a drafter on the same device: decides for how many of its drafts the next step waits, and tells it. Once for
    /// each state of the text.
    pub(crate) fn ask(&mut self, known: &[TokenId], server: Server, crowd: Crowd, drafting: &mut Drafting) {
        let alike = match self.drafter {
            _ if self.request.speculation.strategy != Strategy::Auto => return,
            Drafter::Gone | Drafter::Ahead => return,
            Drafter::AsMeasured if crowd.way == Way::Ahead => {
                (self.awaited, self.decided, self.parked) = (0, 0, None);
                return self.tell(None);
            }
            Drafter::InTurn { together: false } => crowd.alone.then_some(0),
            Drafter::InTurn { together: true } | Drafter::AsMeasured => {
                Some(crowd.together.saturating_sub(1))
            }
        };
        if self.decided == known.len() {
            return;
        }
        self.decided = known.len();
        let most = self.max_draft(server.max_draft);
        let predicted = self.prediction.as_ref().is_some_and(|p| !p.propose(1).is_empty());
        self.awaited = 0;
        if let Some(alike) = alike.filter(|_| most > 0 && !predicted && !self.late) {
            let found = self.guessed(known, most, server.trees, drafting);
            let offers: Vec<Offer<'_>> =
                found.iter().map(|(source, proposal)| Offer { source: *source, proposal }).collect();
            let beside = Beside { alike, ..Beside::default() };
            let Drafting { cost, beliefs, wait, .. } = drafting;
            let (otherwise, _) = expect(&offers, most, cost, beliefs, &self.beliefs, beside);
            self.awaited = ask((most as u32, alike), otherwise, wait, cost, beliefs, &self.beliefs);
        }
        // One that was late is heard of again by what it drafts.
        self.tell(Some(if self.late { Self::FIRST_WINDOW } else { self.awaited }));
    }

    /// Tells the drafter how far to go, if that is new.
    fn tell(&mut self, window: Option<u32>) {
        if window != self.window && self.outlet.room() == Room::Free {
            self.window = window;
            self.outlet.deliver(TargetEvent::Ask { window });
        }
    }

    /// Whether `auto` has a drafter on the target's own GPU.
    pub(crate) fn on_our_gpu(&self) -> bool {
        let ours = matches!(self.drafter, Drafter::InTurn { together: true } | Drafter::AsMeasured);
        ours && self.request.speculation.strategy == Strategy::Auto
    }

    /// Whether in turn or ahead is a matter of measurement.
    pub(crate) fn is_measured(&self) -> bool {
        self.drafter == Drafter::AsMeasured && self.on_our_gpu()
    }

    /// Whether it waits for drafts of a drafter on the same device.
    pub(crate) fn waits_in_turn(&self) -> bool {
        self.awaited > 0 && self.parked.is_some()
    }

    /// Nothing is verified in the step being planned.
    pub(crate) fn propose_nothing(&mut self) {
        self.source = Source::Drafter;
        self.proposed.clear();
    }

    /// What every source of the strategy has to say. It is also what the source will be judged by, when the
    /// last of its words were judged.
    fn found(
        &mut self,
        known: &[TokenId],
        most: usize,
        trees: bool,
        drafting: &mut Drafting,
    ) -> Vec<(Source, Proposal)> {
        let mut found = Vec::new();
        let strategy = self.request.speculation.strategy;
        if strategy.takes_drafter() {
            found.push((Source::Drafter, Proposal::chain(self.tail.pending().to_vec(), 0)));
        }
        found.extend(self.guessed(known, most, trees, drafting));
        for (source, proposal) in &found {
            self.shadows.cast(*source, proposal);
        }
        found
    }

    /// What the sources without a model have to say.
    fn guessed(
        &mut self,
        known: &[TokenId],
        most: usize,
        trees: bool,
        drafting: &mut Drafting,
    ) -> Vec<(Source, Proposal)> {
        let mut found = Vec::new();
        let guesses = self.guesses();
        if !guesses.is_empty() {
            let own = self.own.get_or_insert_with(|| History::new(self.longest));
            own.extend(&known[own.len().min(known.len())..]);
            let (library, rank) = drafting.library(&self.request.cache_salt);
            let beliefs = &self.beliefs;
            let chance = |source, sureness, depth| beliefs.rate_within(rank, source, sureness, depth);
            // What a constraint forbids is found out along a chain.
            let forks = trees && self.request.constraint.is_none();
            let asked =
                Asked { most: most.max(Shadows::LONGEST), forks: if forks { Some(&chance) } else { None } };
            found
                .extend(guesses.iter().map(|source| (*source, propose(*source, own, library, known, asked))));
        }
        found
    }

    /// Under the rejection rule a drafter's draft is drawn with the noise of its place, so whether it is judged
    /// must not depend on what it is: no other source may step in.
    fn guesses(&self) -> &'static [Source] {
        let request::Speculation { strategy, rule, .. } = self.request.speculation;
        if rule == Rule::Rejection && strategy.takes_drafter() { &[] } else { strategy.guesses() }
    }

    /// The target drew `picks` after the last known token and after each of `drafts`, and `committed` of it
    /// became text.
    pub(super) fn learn(
        &mut self,
        last: Option<TokenId>,
        drafts: usize,
        picks: &[TokenId],
        committed: &[TokenId],
        drafting: &mut Drafting,
    ) {
        if !self.drafts_wanted() {
            return;
        }
        self.shadows.judge(committed, &mut [&mut drafting.beliefs, &mut self.beliefs]);
        if self.guesses().contains(&Source::Recycle) {
            let recycle = &mut drafting.library(&self.request.cache_salt).0.recycle;
            let rows = last.into_iter().chain(self.proposed.ids()[..drafts].iter().copied());
            // From the last row to the first: of one token twice, what was drawn for the text counts.
            let rows: Vec<_> = rows.zip(picks).collect();
            rows.into_iter().rev().for_each(|(token, pick)| recycle.observe(token, *pick));
        }
    }

    /// The answer is over; `output` is all of it.
    pub(crate) fn leave(&self, output: &[TokenId], drafting: &mut Drafting) {
        if self.guesses().contains(&Source::Suffix) && !output.is_empty() {
            drafting.library(&self.request.cache_salt).0.keep(output);
        }
    }
}

//! Which drafts a target sequence verifies in the step being planned.

use request::{Rule, Source, Strategy, TokenId};
use speculation::{Beside, History, Offer, Proposal, Shadows, choose, propose};

use super::TargetLane;
use crate::drafting::Drafting;

impl TargetLane {
    /// Most drafts that one step may verify; `server` is the server's own limit.
    pub(super) fn max_draft(&self, server: u32) -> usize {
        let asked = self.request.speculation.max_draft;
        match self.request.speculation.strategy {
            _ if !self.drafts_wanted() => 0,
            Strategy::Lockstep { k, .. } => asked.unwrap_or(k).min(k) as usize,
            _ => asked.unwrap_or(server).min(server) as usize,
        }
    }

    /// Chooses among what is there. `known`: prompt and output; `beside`: what else the step carries. A lockstep
    /// and a prediction are the caller's own wish: they are verified at any acceptance.
    pub(crate) fn propose(
        &mut self,
        known: &[TokenId],
        server: u32,
        beside: Beside,
        drafting: &mut Drafting,
    ) {
        self.propose_nothing();
        let most = self.max_draft(server);
        if most == 0 {
            return;
        }
        let strategy = self.request.speculation.strategy;
        let pending = self.tail.pending();
        let most_guessed = self.request.speculation.max_draft.unwrap_or(server).min(server) as usize;
        let guessed = self.prediction.as_ref().map(|p| p.propose(most_guessed)).unwrap_or_default();
        if pending.is_empty() && !guessed.is_empty() {
            self.source = Source::Prediction;
            self.proposed.extend_from_slice(guessed);
        } else if matches!(strategy, Strategy::Lockstep { .. }) {
            self.proposed.extend_from_slice(&pending[..pending.len().min(most)]);
        } else {
            let found = self.found(known, most, drafting);
            let offers: Vec<Offer> = found
                .iter()
                .map(|(source, p)| Offer { source: *source, sureness: p.sureness, drafts: p.ids.len() })
                .collect();
            let chosen = choose(&offers, most, &drafting.cost, &drafting.beliefs, &self.beliefs, beside);
            if let Some((index, k)) = chosen {
                let (source, proposal) = &found[index];
                self.source = *source;
                self.proposed.extend_from_slice(&proposal.ids[..k]);
            }
        }
        let allowed = self.steering.allowed(&self.proposed);
        self.proposed.truncate(allowed);
    }

    /// Nothing is verified in the step being planned.
    pub(crate) fn propose_nothing(&mut self) {
        self.source = Source::Drafter;
        self.proposed.clear();
    }

    /// What every source of the strategy has to say. It is also what the source will be judged by, when the
    /// last of its words were judged.
    fn found(&mut self, known: &[TokenId], most: usize, drafting: &mut Drafting) -> Vec<(Source, Proposal)> {
        let mut found = Vec::new();
        let strategy = self.request.speculation.strategy;
        if strategy.takes_drafter() {
            found.push((Source::Drafter, Proposal { ids: self.tail.pending().to_vec(), sureness: 0 }));
        }
        let guesses = self.guesses();
        if !guesses.is_empty() {
            let own = self.own.get_or_insert_with(|| History::new(self.longest));
            own.extend(&known[own.len().min(known.len())..]);
            let library = drafting.library(&self.request.cache_salt);
            let depth = most.max(Shadows::LONGEST);
            found
                .extend(guesses.iter().map(|source| (*source, propose(*source, own, library, known, depth))));
        }
        for (source, proposal) in &found {
            self.shadows.cast(*source, proposal.sureness, &proposal.ids);
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
            let recycle = &mut drafting.library(&self.request.cache_salt).recycle;
            let rows = last.into_iter().chain(self.proposed[..drafts].iter().copied());
            // From the last row to the first: of one token twice, what was drawn for the text counts.
            let rows: Vec<_> = rows.zip(picks).collect();
            rows.into_iter().rev().for_each(|(token, pick)| recycle.observe(token, *pick));
        }
    }

    /// The answer is over; `output` is all of it.
    pub(crate) fn leave(&self, output: &[TokenId], drafting: &mut Drafting) {
        if self.guesses().contains(&Source::Suffix) && !output.is_empty() {
            drafting.library(&self.request.cache_salt).keep(output);
        }
    }
}

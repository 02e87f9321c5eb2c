//! How often the drafts of a source are right.

use request::Source;

/// How sure a source is of a proposal, from 0; what it means is the source's own business.
pub type Sureness = u8;

/// Places of a chain that are told apart; later ones count as the last.
const DEPTHS: usize = 8;
const SURENESSES: usize = 8;

/// For each source, sureness and place in the chain: the chance that a draft is right when all before it are.
///
/// A draft is judged by the text that comes, whether it was verified or not: what a source would have
/// proposed is laid beside it. So a source that is not used is known as well as one that is, and no
/// step is spent on trying.
#[derive(Clone, Debug, PartialEq)]
pub struct Beliefs {
    cells: Vec<Cell>,
    /// Weight of the past at each judgement.
    memory: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    right: f64,
    judged: f64,
}

impl Default for Beliefs {
    fn default() -> Self {
        Self::new(0.99)
    }
}

impl Beliefs {
    /// Judgements that what a rank believes counts for in a sequence's own estimate.
    const PRIOR: f64 = 4.0;

    fn new(memory: f64) -> Self {
        let mut cells = Vec::with_capacity(Source::ALL.len() * SURENESSES * DEPTHS);
        for source in Source::ALL {
            for sureness in 0..SURENESSES {
                let rate = first_belief(source, sureness);
                cells.extend([Cell { right: rate * Self::PRIOR, judged: Self::PRIOR }; DEPTHS]);
            }
        }
        Self { cells, memory }
    }

    /// Of one sequence: nothing is known yet; it forgets sooner than a rank.
    pub fn of_a_sequence() -> Self {
        let cells = vec![Cell { right: 0.0, judged: 0.0 }; Source::ALL.len() * SURENESSES * DEPTHS];
        Self { cells, memory: 0.95 }
    }

    fn index(source: Source, sureness: Sureness, depth: usize) -> usize {
        (source as usize * SURENESSES + usize::from(sureness).min(SURENESSES - 1)) * DEPTHS
            + depth.min(DEPTHS - 1)
    }

    /// A draft at `depth` of a chain was judged; all before it were right.
    pub fn record(&mut self, source: Source, sureness: Sureness, depth: usize, right: bool) {
        let memory = self.memory;
        let cell = &mut self.cells[Self::index(source, sureness, depth)];
        cell.right = cell.right * memory + f64::from(u8::from(right));
        cell.judged = cell.judged * memory + 1.0;
    }

    /// What a rank believes of a draft.
    pub fn rate(&self, source: Source, sureness: Sureness, depth: usize) -> f64 {
        let cell = self.cells[Self::index(source, sureness, depth)];
        (cell.right / cell.judged).clamp(0.01, 0.99)
    }

    /// What a sequence believes, given what its rank does.
    pub fn rate_within(&self, rank: &Self, source: Source, sureness: Sureness, depth: usize) -> f64 {
        let cell = self.cells[Self::index(source, sureness, depth)];
        let prior = rank.rate(source, sureness, depth);
        ((cell.right + Self::PRIOR * prior) / (cell.judged + Self::PRIOR)).clamp(0.01, 0.99)
    }
}

/// Before anything was seen.
fn first_belief(source: Source, sureness: usize) -> f64 {
    match source {
        // A mild belief in a new drafter: six of eight.
        Source::Drafter | Source::Prediction | Source::Del => 0.75,
        // The target's own words, but for what it does not see.
        Source::Window => 0.85,
        // The longer the match, the likelier it goes on.
        // From 4 on: what the same places say less often.
        Source::Ngram | Source::Suffix => [0.3, 0.5, 0.7, 0.85, 0.15, 0.15, 0.15, 0.1][sureness],
        // By place among the followers, the latest first.
        Source::Recycle => [0.25, 0.12, 0.08, 0.06, 0.04, 0.03, 0.03, 0.03][sureness],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_what_was_judged_and_places_are_told_apart() {
        let mut rank = Beliefs::default();
        assert_eq!(rank.rate(Source::Drafter, 0, 3), 0.75);
        for i in 0..600 {
            rank.record(Source::Drafter, 0, 0, i % 10 < 9);
            rank.record(Source::Drafter, 0, 1, i % 10 < 3);
        }
        assert!((rank.rate(Source::Drafter, 0, 0) - 0.9).abs() < 0.05);
        assert!((rank.rate(Source::Drafter, 0, 1) - 0.3).abs() < 0.06);
        assert_eq!(rank.rate(Source::Drafter, 0, 2), 0.75);
        assert_eq!(rank.rate(Source::Ngram, 0, 0), 0.3, "others are others");
        assert_eq!(rank.rate(Source::Ngram, 7, 0), rank.rate(Source::Ngram, 200, 0));
        assert_eq!(rank.rate(Source::Drafter, 0, 7), rank.rate(Source::Drafter, 0, 70));
        // A constant stream of one judgement a step comes to 1 / (1 - memory).
        let cell = rank.cells[Beliefs::index(Source::Drafter, 0, 0)];
        assert!((cell.judged - 100.0).abs() < 1.0, "{}", cell.judged);
    }

    #[test]
    fn a_sequence_begins_with_its_ranks_belief_and_has_its_own_soon() {
        let rank = Beliefs::default();
        let mut own = Beliefs::of_a_sequence();
        let rate = |own: &Beliefs| own.rate_within(&rank, Source::Suffix, 1, 0);
        assert_eq!(rate(&own), 0.5);
        for _ in 0..30 {
            own.record(Source::Suffix, 1, 0, true);
        }
        assert!(rate(&own) > 0.85, "{}", rate(&own));
        for _ in 0..60 {
            own.record(Source::Suffix, 1, 0, false);
        }
        assert!(rate(&own) < 0.2, "{}", rate(&own));
    }
}

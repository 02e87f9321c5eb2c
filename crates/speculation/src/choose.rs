//! Which drafts to verify in a step, and how many: the most tokens a second that can be expected.

use request::Source;

use crate::{Beliefs, Proposal, StepCost};

/// Drafts that could be verified, all or the first few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer<'a> {
    pub source: Source,
    pub proposal: &'a Proposal,
}

/// What else the step carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Rows of other sequences.
    pub rows: u32,
    /// Tokens that those bring.
    pub tokens: u32,
    /// Sequences besides that do what this one does.
    pub alike: u32,
}

/// What the estimates must promise beyond plain decoding: below it, it is their error.
const GAIN: f64 = 1.02;
/// Without a table of costs: a draft that is reached in fewer than one of twenty cases is left out.
const RARE: f64 = 0.05;

/// The offer to take and how many of its drafts; `None`: plain decoding is best. `own`: what the sequence
/// believes. See [`expect`].
pub fn choose(
    offers: &[Offer<'_>],
    most: usize,
    cost: &StepCost,
    rank: &Beliefs,
    own: &Beliefs,
    beside: Beside,
) -> Option<(usize, usize)> {
    expect(offers, most, cost, rank, own, beside).1
}

/// The tokens a second that can be expected, and the offer that they come from with how many of its drafts.
///
/// For every offer and every number k it expects `tokens + 1 + sum of the chances` in the time of
/// `rows + 1 + k` rows (`1 + k` and their tokens once more for each sequence that is alike) and takes the best (vLLM's dynamic length, algorithms.md 14.4, over several sources). The chance
/// of a draft is that of its parent times what is believed of its sureness and depth, so trees are priced by rows as
/// chains are.
/// Drafts that are there cost nothing more: they came from elsewhere, or from a look into a table.
pub fn expect(
    offers: &[Offer<'_>],
    most: usize,
    cost: &StepCost,
    rank: &Beliefs,
    own: &Beliefs,
    beside: Beside,
) -> (f64, Option<(usize, usize)>) {
    let alike = beside.alike.saturating_add(1);
    let rows = |k: u32| beside.rows.saturating_add(alike.saturating_mul(1 + k));
    let plain = f64::from(beside.tokens) + f64::from(alike);
    let base = cost.seconds(rows(0));
    let mut best = (base.map_or(plain, |seconds| plain / seconds) * GAIN, None);
    for (index, offer) in offers.iter().enumerate() {
        let Proposal { drafts, sureness } = offer.proposal;
        // By draft: its chance, and its depth.
        let mut reached: Vec<(f64, usize)> = Vec::with_capacity(drafts.len().min(most));
        let mut tokens = plain;
        for k in 1..=drafts.len().min(most) {
            let before = drafts.parents()[k - 1].map_or((1.0, 0), |parent| reached[parent as usize]);
            let chance = before.0 * own.rate_within(rank, offer.source, sureness[k - 1], before.1);
            reached.push((chance, before.1 + 1));
            tokens += f64::from(alike) * chance;
            let speed = match cost.seconds(rows(k as u32)) {
                Some(seconds) => tokens / seconds,
                None if chance < RARE => break,
                None => tokens,
            };
            if speed > best.0 {
                best = (speed, Some((index, k)));
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use request::TokenId;

    use super::*;
    use crate::Tree;

    fn cost(start: f64, row: f64) -> StepCost {
        let mut cost = StepCost::default();
        for rows in [1, 2, 5, 9, 17, 60] {
            cost.record(rows, Duration::from_secs_f64(start + row * f64::from(rows)));
        }
        cost
    }

    fn accepting(source: Source, rate: f64) -> Beliefs {
        let mut own = Beliefs::of_a_sequence();
        for depth in 0..8 {
            let mut right = 0.0;
            for _ in 0..400 {
                right += rate;
                own.record(source, 0, depth, right >= 1.0);
                right -= f64::from(u8::from(right >= 1.0));
            }
        }
        own
    }

    fn chain(drafts: u32) -> Proposal {
        Proposal::chain((0..drafts).map(TokenId).collect(), 0)
    }

    /// Brute force over every k is the judge.
    #[test]
    fn the_number_of_drafts_is_the_best_one() {
        let rank = Beliefs::default();
        for (start, row) in [(0.02, 0.0001), (0.02, 0.005), (0.02, 0.02), (0.001, 0.01)] {
            for rate in [0.3, 0.6, 0.9] {
                let own = accepting(Source::Drafter, rate);
                let chance = |k: u32| {
                    (0..k).map(|i| own.rate_within(&rank, Source::Drafter, 0, i as usize)).product::<f64>()
                };
                let speed = |k: u32| (0..=k).map(chance).sum::<f64>() / (start + row * f64::from(k + 1));
                let best = (0..=16).max_by(|a, b| speed(*a).total_cmp(&speed(*b))).unwrap();
                let offers = [Offer { source: Source::Drafter, proposal: &chain(16) }];
                let chosen = choose(&offers, 16, &cost(start, row), &rank, &own, Beside::default());
                let chosen = chosen.map_or(0, |(_, k)| k as u32);
                let floor = speed(best) / if chosen == 0 { GAIN } else { 1.0 };
                assert!(speed(chosen) >= 0.999 * floor, "{start} {row} {rate}: {chosen}, best {best}");
            }
        }
    }

    #[test]
    fn the_better_source_is_taken_and_plain_decoding_when_none_pays() {
        let rank = Beliefs::default();
        let mut own = accepting(Source::Drafter, 0.9);
        for depth in 0..8 {
            (0..200).for_each(|_| own.record(Source::Recycle, 0, depth, false));
        }
        let (cheap, dear) = (cost(0.02, 0.001), cost(0.001, 0.02));
        let eight = chain(8);
        let offers = [Source::Recycle, Source::Drafter].map(|source| Offer { source, proposal: &eight });
        let take =
            |offers: &[Offer<'_>], cost: &StepCost| choose(offers, 8, cost, &rank, &own, Beside::default());
        assert_eq!(take(&offers, &cheap), Some((1, 8)));
        assert_eq!(take(&offers[..1], &cheap), None, "never right");
        // Even a draft that is nearly sure is not worth as much as a step.
        assert_eq!(take(&offers, &dear), None);
        assert_eq!(take(&[], &cheap), None);
        assert_eq!(take(&[Offer { source: Source::Drafter, proposal: &chain(0) }], &cheap), None);
        assert_eq!(choose(&offers, 3, &cheap, &rank, &own, Beside::default()), Some((1, 3)));
    }

    #[test]
    fn a_full_batch_verifies_less_and_without_figures_what_is_likely_is() {
        let rank = Beliefs::default();
        let (cost, own) = (cost(0.02, 0.002), accepting(Source::Drafter, 0.8));
        let sixteen = chain(16);
        let offers = [Offer { source: Source::Drafter, proposal: &sixteen }];
        let take = |beside| choose(&offers, 16, &cost, &rank, &own, beside).map_or(0, |(_, k)| k);
        let (alone, crowded) = (take(Beside::default()), take(Beside { rows: 40, tokens: 40, alike: 0 }));
        assert!(crowded < alone, "{crowded} {alone}");
        let unknown = StepCost::default();
        let take = |own: &Beliefs| choose(&offers, 7, &unknown, &rank, own, Beside::default());
        assert_eq!(take(&accepting(Source::Drafter, 0.9)), Some((0, 7)));
        assert_eq!(take(&accepting(Source::Drafter, 0.1)), Some((0, 1)), "hardly one is reached");
    }

    /// A second sibling is worth its row where it is likelier than the next draft of the chain.
    #[test]
    fn trees_are_priced_by_rows() {
        let (rank, cost) = (Beliefs::default(), cost(0.02, 0.002));
        let drafts = Tree::new([5, 6, 7].map(TokenId).to_vec(), vec![None, None, Some(0)]).unwrap();
        let forked = Proposal { drafts, sureness: vec![0, 1, 0] };
        let chain = chain(3);
        let offers = [
            Offer { source: Source::Drafter, proposal: &chain },
            Offer { source: Source::Recycle, proposal: &forked },
        ];
        let mut own = Beliefs::of_a_sequence();
        for i in 0..400 {
            // The first follower is right in half of the cases, the second in the other half.
            own.record(Source::Recycle, 0, 0, i % 2 == 0);
            own.record(Source::Recycle, 1, 0, i % 2 == 1);
            own.record(Source::Recycle, 0, 1, false);
            own.record(Source::Drafter, 0, 0, i % 2 == 0);
            own.record(Source::Drafter, 0, 1, i % 2 == 0);
        }
        assert_eq!(choose(&offers, 8, &cost, &rank, &own, Beside::default()), Some((1, 2)));
        assert_eq!(choose(&offers[..1], 8, &cost, &rank, &own, Beside::default()).map(|(at, _)| at), Some(0));
    }
}

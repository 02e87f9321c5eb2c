//! The chooser against coins: it finds what pays, and leaves it when it stops paying.

use std::time::Duration;

use request::{Source, TokenId};
use speculation::{Beliefs, Beside, Offer, Proposal, Shadows, StepCost, choose};

use crate::simulator::{Dice, Pair, Ran, run};

/// Sources by how often a draft of theirs is right, and how often they have anything to say.
type Sources<'a> = &'a [(Source, f64, f64)];

/// What steps take, in seconds: a start, a row, and a stair every four rows.
fn takes(rows: u32) -> f64 {
    0.02 + 0.002 * f64::from(rows) + 0.004 * f64::from((rows - 1) / 4)
}

struct Sequence {
    cost: StepCost,
    rank: Beliefs,
    own: Beliefs,
    shadows: Shadows,
    dice: Dice,
    /// Of one source every length that it was given, instead of choosing.
    fixed: Option<(Source, usize)>,
}

impl Sequence {
    fn new(fixed: Option<(Source, usize)>) -> Self {
        let mut cost = StepCost::default();
        for rows in [1, 2, 3, 5, 8, 9] {
            cost.record(rows, Duration::from_secs_f64(takes(rows)));
        }
        let (rank, own) = (Beliefs::default(), Beliefs::of_a_sequence());
        Self { cost, rank, own, shadows: Shadows::default(), dice: Dice(17), fixed }
    }

    /// Tokens a second over so many tokens.
    fn speed(&mut self, sources: Sources<'_>, tokens: usize, scale: f64) -> f64 {
        const DEPTH: usize = 8;
        let (mut done, mut time) = (0, 0.0);
        // The text is 0 0 0 ...; a wrong draft is 1, and everything after it.
        while done < tokens {
            let mut found: Vec<(Source, Proposal)> = Vec::new();
            for (source, right, present) in sources {
                if self.dice.unit() < *present {
                    let wrong = (0..DEPTH).position(|_| self.dice.unit() >= *right).unwrap_or(DEPTH);
                    let ids = (0..DEPTH).map(|i| TokenId(u32::from(i >= wrong))).collect();
                    found.push((*source, Proposal::chain(ids, 0)));
                }
            }
            for (source, proposal) in &found {
                self.shadows.cast(*source, proposal);
            }
            let offers: Vec<Offer<'_>> =
                found.iter().map(|(source, proposal)| Offer { source: *source, proposal }).collect();
            let chosen = match self.fixed {
                None => choose(&offers, DEPTH, &self.cost, &self.rank, &self.own, Beside::default()),
                Some((source, k)) => {
                    offers.iter().position(|o| o.source == source).map(|at| (at, k)).filter(|(_, k)| *k > 0)
                }
            };
            let (k, accepted) = chosen.map_or((0, 0), |(index, k)| {
                (k, found[index].1.drafts.ids()[..k].iter().take_while(|id| id.0 == 0).count())
            });
            let seconds = scale * takes(1 + k as u32) * (0.95 + 0.1 * self.dice.unit());
            self.cost.record(1 + k as u32, Duration::from_secs_f64(seconds));
            let text = vec![TokenId(0); accepted + 1];
            self.shadows.judge(&text, &mut [&mut self.rank, &mut self.own]);
            time += seconds;
            done += accepted + 1;
        }
        done as f64 / time
    }
}

const TOKENS: usize = 4_000;

fn plain() -> f64 {
    Sequence::new(Some((Source::Drafter, 0))).speed(&[], TOKENS, 1.0)
}

#[test]
fn auto_is_never_worse_than_plain_and_close_to_the_best_fixed_choice() {
    use Source::{Drafter, Ngram, Recycle, Suffix};
    let cases: &[(&str, Sources<'_>)] = &[
        ("nothing is ever right", &[(Drafter, 0.0, 1.0), (Ngram, 0.0, 1.0), (Recycle, 0.0, 1.0)]),
        ("hardly worth it", &[(Drafter, 0.1, 1.0), (Recycle, 0.08, 1.0)]),
        ("a good drafter", &[(Drafter, 0.9, 1.0), (Recycle, 0.2, 1.0)]),
        ("a drafter that is often away", &[(Drafter, 0.95, 0.3), (Suffix, 0.7, 1.0), (Recycle, 0.2, 1.0)]),
        ("a copied text", &[(Drafter, 0.7, 1.0), (Ngram, 0.97, 0.9), (Recycle, 0.5, 1.0)]),
        ("a middling source", &[(Suffix, 0.5, 0.8)]),
        ("no source", &[]),
    ];
    let plain = plain();
    for (name, sources) in cases {
        let auto = Sequence::new(None).speed(sources, TOKENS, 1.0);
        let fixed = sources.iter().flat_map(|(source, ..)| (1..=8).map(|k| (*source, k)));
        let best = fixed.map(|f| Sequence::new(Some(f)).speed(sources, TOKENS, 1.0)).fold(plain, f64::max);
        assert!(auto >= 0.97 * plain, "{name}: {auto:.1}, plain {plain:.1}");
        assert!(auto >= 0.95 * best, "{name}: {auto:.1}, the best fixed choice {best:.1}");
    }
}

/// A source that goes bad is left, and taken again when it is good again; no step is spent on finding out.
#[test]
fn auto_follows_what_changes() {
    let good: Sources<'_> = &[(Source::Drafter, 0.9, 1.0)];
    let bad: Sources<'_> = &[(Source::Drafter, 0.02, 1.0)];
    let plain = plain();
    let mut sequence = Sequence::new(None);
    let first = sequence.speed(good, TOKENS, 1.0);
    let worse = sequence.speed(bad, TOKENS, 1.0);
    let again = sequence.speed(good, TOKENS, 1.0);
    assert!(first > 1.8 * plain, "{first:.1} {plain:.1}");
    assert!(worse > 0.97 * plain, "{worse:.1} {plain:.1}");
    assert!(again > 0.97 * first, "{again:.1} {first:.1}");
}

/// A machine that becomes slower for all sizes alike is no reason to choose otherwise.
#[test]
fn a_slower_machine_changes_nothing_but_the_speed() {
    let sources: Sources<'_> = &[(Source::Drafter, 0.85, 1.0)];
    let mut sequence = Sequence::new(None);
    let before = sequence.speed(sources, TOKENS, 1.0);
    let after = sequence.speed(sources, TOKENS, 3.0);
    assert!((before / after / 3.0 - 1.0).abs() < 0.05, "{before:.1} {after:.1}");
}

/// A drafter on a machine of its own, behind a longer and longer way, and rows that cost more and more: what reaches the
/// target and pays is verified; where that stops, `auto` decodes plainly, and who verifies whatever comes loses.
#[test]
fn auto_leaves_a_drafter_that_stops_paying() {
    let pair = |acceptance, round_trip, row, auto| Pair {
        target_step: 80_000,
        draft_step: 30_000,
        round_trip,
        acceptance,
        window: 12,
        most: 8,
        row,
        auto,
    };
    let runs = |acceptance, round_trip, row| {
        let both = [pair(acceptance, round_trip, row, false), pair(acceptance, round_trip, row, true)];
        both.map(|pair| {
            let ran: Ran = run(&pair, 6_000, &mut Dice(5));
            (ran.speed_up(&pair), ran.verified as f64 / ran.tokens as f64)
        })
    };
    for round_trip in [1_000, 5_000] {
        let [(all, _), (auto, verified)] = runs(0.65, round_trip, 16_000);
        assert!(
            auto > 1.2 && auto > 0.97 * all && verified > 0.3,
            "{round_trip}: {auto:.2} {all:.2} {verified:.2}"
        );
    }
    // Its drafts come when the text has gone on.
    let [_, (auto, verified)] = runs(0.65, 1_500_000, 16_000);
    assert!(auto > 0.97 && verified < 0.02, "{auto:.3} {verified:.3}");
    // Its drafts come, and are worth less than their rows, which cost a step each.
    for round_trip in [1_000, 20_000] {
        let [(all, _), (auto, verified)] = runs(0.4, round_trip, 80_000);
        let what = format!("{round_trip}: {auto:.3} {all:.2} {verified:.3}");
        assert!(auto > 0.97 && all < 0.85 && verified < 0.05, "{what}");
    }
}

//! A drafter that runs freely is as fast as PEARL's formula says.

use std::time::Duration;

use speculation::{Acceptance, Timing, window};

use crate::simulator::{Dice, Pair, Ran, run};

const STEP: u64 = 10_000;

fn pair(c: u64, acceptance: f64, round_trip: u64, window: u32) -> Pair {
    let (target_step, draft_step) = (STEP, STEP / c);
    Pair { target_step, draft_step, round_trip, acceptance, window, most: 64, row: 0, auto: false }
}

/// Tokens a round of PEARL with windows of g (algorithms.md 1.4).
fn formula(a: f64, g: i32) -> f64 {
    let fails = 1.0 - a.powi(g);
    fails / ((1.0 - a) * (1.0 + a - a.powi(g)))
}

fn long(pair: &Pair) -> Ran {
    run(pair, 60_000, &mut Dice(3))
}

#[test]
fn a_free_running_drafter_reaches_pearls_formula() {
    for c in [3, 5, 8] {
        for a in [0.3, 0.6, 0.8, 0.9] {
            let pair = pair(c, a, 0, 4 * c as u32 + 2);
            let (found, expected) = (long(&pair).speed_up(&pair), formula(a, c as i32));
            assert!(
                (found / expected - 1.0).abs() < 0.02,
                "c {c}, a {a}: {found:.3}, the formula {expected:.3}"
            );
        }
    }
}

/// With a window of one round the gain falls from 3.1 to 2.5: the drafter waits for commits.
#[test]
fn a_window_of_one_round_is_too_small() {
    let (wide, narrow) = (pair(5, 0.9, 0, 22), pair(5, 0.9, 0, 5));
    let (wide, narrow) = (long(&wide).speed_up(&wide), long(&narrow).speed_up(&narrow));
    assert!(wide > 3.0 && narrow < 2.7, "{wide:.2} {narrow:.2}");
}

/// The window rule covers the way there and back: what it gives is what any larger one gives.
#[test]
fn the_window_rule_covers_the_round_trip() {
    let mut sure = Acceptance::default();
    (0..2000).for_each(|i| sure.record(1, usize::from(i % 10 != 0)));
    for round_trip in [0, STEP / 2, 2 * STEP, 5 * STEP] {
        let ruled = window(
            Timing {
                target_step: Duration::from_micros(STEP),
                draft_step: Duration::from_micros(STEP / 5),
                round_trip: Duration::from_micros(round_trip),
            },
            &sure,
            64,
        );
        let (ruled, most) = (pair(5, 0.9, round_trip, ruled), pair(5, 0.9, round_trip, 64));
        let (ruled, most) = (long(&ruled).speed_up(&ruled), long(&most).speed_up(&most));
        assert!(ruled > 0.97 * most, "round trip {round_trip}: {ruled:.3} of {most:.3}");
    }
}

/// Never slower than plain decoding, whatever the drafter and the link are like; a step is never late.
#[test]
fn drafts_never_hold_the_target_up() {
    for (c, a, round_trip) in [(1, 0.0, 0), (5, 0.0, 3 * STEP), (5, 0.9, 50 * STEP), (20, 0.5, 100)] {
        let pair = pair(c, a, round_trip, 30);
        let ran = long(&pair);
        assert_eq!(ran.time, ran.steps * STEP);
        assert!(ran.speed_up(&pair) >= 0.999, "c {c}, a {a}, round trip {round_trip}");
        assert_eq!(ran.rolled_back > 0, a < 1.0);
    }
}

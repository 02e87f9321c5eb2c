//! What the simulator says of a link, against what was measured over one (docs/benchmarks.md, *PEARL on cores of
//! their own*).

use std::time::Duration;

use speculation::{Acceptance, Timing, window};

use crate::simulator::{Dice, Pair, run};

/// Of a run without a delay on the day before: a step of the target (coder-1.5b on one core, with 3 to 4 drafts), a draft
/// (coder-0.5b on the other), drafts accepted of those verified.
const TARGET_STEP: u64 = 113_200;
const DRAFT_STEP: u64 = 29_800;
const ACCEPTED: f64 = 261.0 / 263.0;
/// Round trip in microseconds, and tokens a second.
const MEASURED: [(u64, f64); 4] = [(0, 31.72), (1_000, 31.06), (5_000, 31.03), (20_000, 30.23)];

fn simulated(round_trip: u64) -> f64 {
    let mut acceptance = Acceptance::default();
    (0..2000).for_each(|i| acceptance.record(1, usize::from(i % 100 != 0)));
    let timing = Timing {
        target_step: Duration::from_micros(TARGET_STEP),
        draft_step: Duration::from_micros(DRAFT_STEP),
        round_trip: Duration::from_micros(round_trip),
    };
    let pair = Pair {
        target_step: TARGET_STEP,
        draft_step: DRAFT_STEP,
        round_trip,
        acceptance: ACCEPTED,
        window: window(timing, &acceptance, 64),
        most: 8,
        row: 0,
        auto: false,
    };
    let ran = run(&pair, 20_000, &mut Dice(11));
    ran.tokens as f64 / (ran.time as f64 / 1e6)
}

#[test]
fn a_longer_way_costs_what_the_simulator_says() {
    let (here, at_once) = (MEASURED[0].1, simulated(0));
    for (round_trip, tokens_per_s) in MEASURED {
        let simulated = simulated(round_trip);
        println!("{round_trip} us: measured {tokens_per_s:.1} tokens/s, simulated {simulated:.1}");
        assert!((tokens_per_s / simulated - 1.0).abs() < 0.1, "{round_trip}: {simulated:.1}");
        let (lost, expected) = (tokens_per_s / here, simulated / at_once);
        assert!((lost / expected - 1.0).abs() < 0.1, "{round_trip}: {lost:.3}, simulated {expected:.3}");
    }
    // The way is short beside a step, and here it shows no loss; it does where it is not.
    assert!(simulated(600_000) < 0.93 * at_once, "{:.1}", simulated(600_000));
}

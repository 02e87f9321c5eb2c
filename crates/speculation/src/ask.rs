//! Drafts that have to be waited for: a drafter that computes on the target's own cores or GPU.
//!
//! There drafting ahead is not free: it takes the time of the step that it runs beside. So the drafter works while
//! the target waits for it, and only when that is expected to pay (the target and the drafter in turn,
//! arXiv 2211.17192; how many drafts, as in [`expect`](crate::expect)).

use std::time::Duration;

use request::Source;

use crate::{Beliefs, StepCost};

/// What waiting for drafts costs, measured where they were waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wait {
    /// Seconds a draft; `None`: never tried.
    seconds: Option<f64>,
}

impl Wait {
    /// Of a plain step, before anything was measured: low, so that it is tried.
    const FIRST: f64 = 0.3;
    /// Weight of a new wait.
    const NEW: f64 = 0.1;
    /// What it loses at each decision against it, so that it is tried again after some thousand of them.
    const FORGET: f64 = 0.9995;
    /// A wait that takes more than so many times what it should was disturbed, and counts as so much.
    const DISTURBED: f64 = 3.0;

    /// `drafts` were waited for.
    pub fn record(&mut self, drafts: u32, time: Duration) {
        let each = time.as_secs_f64() / f64::from(drafts.max(1));
        self.seconds = Some(match self.seconds {
            Some(old) => old + Self::NEW * (each.min(old * Self::DISTURBED) - old),
            None => each,
        });
    }

    /// For `drafts` of them, beside plain steps of `step` seconds.
    pub fn expected(&self, drafts: u32, step: f64) -> f64 {
        self.seconds.unwrap_or(step * Self::FIRST) * f64::from(drafts)
    }

    fn forget(&mut self) {
        self.seconds = self.seconds.map(|seconds| seconds * Self::FORGET);
    }
}

/// How many drafts to wait for before the next step of a sequence, at most `most`; 0: what is there does better. `alike`:
/// sequences besides that wait for as many, at once. `otherwise`: the tokens a second that are expected without. `own`: what
/// the sequence believes.
pub fn ask(
    (most, alike): (u32, u32),
    otherwise: f64,
    wait: &mut Wait,
    cost: &StepCost,
    rank: &Beliefs,
    own: &Beliefs,
) -> u32 {
    // Without a table of costs nothing can be compared; it is there before the first request.
    let Some(step) = cost.seconds(1) else { return 0 };
    let (mut best, mut tokens, mut chance) = ((otherwise, 0), 1.0, 1.0);
    let sequences = alike.saturating_add(1);
    for k in 1..=most {
        chance *= own.rate_within(rank, Source::Drafter, 0, k as usize - 1);
        tokens += chance;
        let Some(seconds) = cost.seconds(sequences.saturating_mul(k + 1)) else { break };
        let speed = f64::from(sequences) * tokens / (wait.expected(k, step) + seconds);
        if speed > best.0 {
            best = (speed, k);
        }
    }
    if best.1 == 0 {
        wait.forget();
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost() -> StepCost {
        let mut cost = StepCost::default();
        for rows in [1, 2, 5, 9, 17] {
            cost.record(rows, Duration::from_secs_f64(0.05 + 0.002 * f64::from(rows)));
        }
        cost
    }

    fn believed(rate: f64) -> Beliefs {
        let mut own = Beliefs::of_a_sequence();
        for depth in 0..8 {
            let mut right = 0.0;
            for _ in 0..400 {
                right += rate;
                own.record(Source::Drafter, 0, depth, right >= 1.0);
                right -= f64::from(u8::from(right >= 1.0));
            }
        }
        own
    }

    fn wait(milliseconds: f64) -> Wait {
        Wait { seconds: Some(milliseconds / 1e3) }
    }

    /// Brute force is the judge.
    #[test]
    fn as_many_are_waited_for_as_pay() {
        let (cost, rank) = (cost(), Beliefs::default());
        let plain = 1.0 / cost.seconds(1).unwrap();
        for (rate, each) in [(0.95, 10.0), (0.95, 30.0), (0.7, 10.0), (0.7, 45.0), (0.2, 10.0), (0.2, 60.0)] {
            let own = believed(rate);
            let chance = |k: u32| {
                (0..k).map(|i| own.rate_within(&rank, Source::Drafter, 0, i as usize)).product::<f64>()
            };
            let speed = |k: u32| {
                (0..=k).map(chance).sum::<f64>() / (f64::from(k) * each / 1e3 + cost.seconds(k + 1).unwrap())
            };
            let best = (0..=8).max_by(|a, b| speed(*a).total_cmp(&speed(*b))).unwrap();
            let asked = ask((8, 0), plain, &mut wait(each), &cost, &rank, &own);
            assert!((speed(asked) - speed(best)).abs() < 1e-9, "{rate} {each}: {asked}, best {best}");
        }
        let own = believed(0.95);
        assert!(ask((8, 0), plain, &mut wait(10.0), &cost, &rank, &own) > 3);
        assert_eq!(ask((8, 0), 1e6, &mut wait(10.0), &cost, &rank, &own), 0, "something else does better");
        assert_eq!(ask((0, 0), plain, &mut wait(10.0), &cost, &rank, &own), 0);
        assert_eq!(
            ask((8, 0), plain, &mut wait(10.0), &StepCost::default(), &rank, &own),
            0,
            "nothing is known"
        );
    }

    #[test]
    fn what_does_not_pay_is_tried_again_after_a_long_time() {
        let (cost, rank, own) = (cost(), Beliefs::default(), believed(0.9));
        let plain = 1.0 / cost.seconds(1).unwrap();
        let mut wait = wait(80.0);
        let refused =
            (0..10_000).take_while(|_| ask((8, 0), plain, &mut wait, &cost, &rank, &own) == 0).count();
        assert!((200..5000).contains(&refused), "{refused}");
    }

    #[test]
    fn waits_are_measured() {
        let mut wait = Wait::default();
        assert!(wait.expected(2, 0.1) > 0.0);
        wait.record(4, Duration::from_millis(80));
        assert!((wait.expected(3, 0.1) - 0.06).abs() < 1e-9);
        wait.record(4, Duration::from_secs(80));
        assert!(wait.expected(1, 0.1) < 0.025, "one disturbed wait is no reason");
    }
}

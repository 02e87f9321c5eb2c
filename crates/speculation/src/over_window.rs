//! A model that drafts for itself over a window of its keys: all layers, but each head sees only the first positions and
//! the last ones (StreamingLLM's window, arXiv 2309.17453; drafting so: TriForce, arXiv 2404.11912, MagicDec, arXiv 2408.11049).
//!
//! A draft costs what a step of a short text does, and the step that verifies reads all keys once for all of its rows. So it
//! pays where keys cost much of a step: behind long texts. What drafts cost is measured, here and in [`StepCost`].

use std::time::Duration;

use crate::StepCost;

/// What a draft over a window takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowCost {
    /// Seconds; `None`: never measured.
    draft: Option<f64>,
}

impl WindowCost {
    /// Weight of a new round.
    const WEIGHT: f64 = 0.1;
    /// Drafting has to promise so much more than plain decoding; below it, it is the estimates' error.
    const GAIN: f64 = 1.02;

    /// A draft took so long.
    pub fn measured(&mut self, draft: Duration) {
        self.draft = Some(draft.as_secs_f64()).filter(|seconds| *seconds > 0.0);
    }

    /// The number of drafts of a sequence that runs alone with the most tokens a second, up to `most`, and what it
    /// promises; `None`: plain decoding is no slower, or what things cost is not known. `chance`: by place in the chain,
    /// that a draft is right when those before it are.
    pub fn plan(&self, most: u32, cost: &StepCost, chance: impl Fn(usize) -> f64) -> Option<(u32, f64)> {
        let (draft, plain) = (self.draft?, cost.seconds(1)?);
        let (mut best, mut tokens, mut reached) = ((0, Self::GAIN / plain), 1.0, 1.0);
        for k in 1..=most {
            reached *= chance(k as usize - 1);
            tokens += reached;
            let speed = tokens / (f64::from(k) * draft + cost.seconds(k + 1)?);
            if speed > best.1 {
                best = (k, speed);
            }
        }
        Some(best).filter(|(k, _)| *k > 0)
    }

    /// A step of `rows` and the drafts before it took `time` together: each took its share, as was expected.
    pub fn took(&mut self, drafts: u32, rows: u32, time: Duration, cost: &mut StepCost) {
        let (Some(draft), Some(step)) = (&mut self.draft, cost.seconds(rows)) else { return };
        // A disturbed round counts as one that took twice as long.
        let expected = f64::from(drafts) * *draft + step;
        let ratio = (time.as_secs_f64() / expected).clamp(0.5, 2.0);
        *draft *= 1.0 + Self::WEIGHT * (ratio - 1.0);
        cost.record(rows, Duration::from_secs_f64(step * ratio));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(start: f64, row: f64) -> StepCost {
        let mut cost = StepCost::default();
        for rows in [1, 2, 5, 9, 17] {
            cost.record(rows, Duration::from_secs_f64(start + row * f64::from(rows)));
        }
        cost
    }

    proptest! {
        #[test]
        fn the_plan_equals_brute_force(
            start in 0.001..0.5f64, row in 0.0..0.05f64, draft in 0.001..0.2f64, rate in 0.05..0.99f64, most in 0u32..16,
        ) {
            let (cost, mut window) = (cost(start, row), WindowCost::default());
            window.measured(Duration::from_secs_f64(draft));
            let speed = |k: u32| {
                let tokens: f64 = (0..=k).map(|i| rate.powi(i as i32)).sum();
                tokens / (f64::from(k) * draft + cost.seconds(k + 1).unwrap())
            };
            let best = (1..=most).map(speed).fold(0.0, f64::max);
            match window.plan(most, &cost, |_| rate) {
                Some((k, promised)) => {
                    prop_assert!((promised / best - 1.0).abs() < 1e-6 && (speed(k) / best - 1.0).abs() < 1e-6);
                    prop_assert!(promised > 1.02 * speed(0) * (1.0 - 1e-6));
                }
                None => prop_assert!(best <= 1.02 * speed(0) * (1.0 + 1e-6)),
            }
        }
    }

    #[test]
    fn it_pays_behind_long_texts_and_not_behind_short_ones() {
        let mut window = WindowCost::default();
        assert_eq!(window.plan(8, &cost(0.2, 0.01), |_| 0.9), None, "nothing is known of drafts");
        window.measured(Duration::from_millis(50));
        assert_eq!(window.plan(8, &StepCost::default(), |_| 0.9), None, "nor of steps");
        assert_eq!(window.plan(8, &cost(0.05, 0.005), |_| 0.9), None, "a step costs what a draft does");
        let long = cost(0.25, 0.02);
        assert!(window.plan(8, &long, |_| 0.9).unwrap().0 >= 3);
        assert_eq!(window.plan(8, &long, |_| 0.1), None, "never right");
    }

    #[test]
    fn rounds_that_take_longer_make_both_dearer() {
        let (mut window, mut cost) = (WindowCost::default(), cost(0.2, 0.01));
        window.measured(Duration::from_millis(50));
        let before = cost.seconds(5).unwrap();
        for _ in 0..200 {
            window.took(4, 5, Duration::from_secs_f64(2.0 * (0.2 + before)), &mut cost);
        }
        let (draft, step) = (window.draft.unwrap(), cost.seconds(5).unwrap());
        let together = (4.0 * draft + step) / (2.0 * (0.2 + before));
        assert!((together - 1.0).abs() < 0.05, "{together}");
        assert!(draft > 0.06 && step > 1.2 * before, "{draft} {step}");
    }
}

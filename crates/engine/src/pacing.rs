use std::time::Duration;

/// Keeps steps short enough for the pace that running answers are promised: the largest budget whose step takes no longer.
///
/// A step is taken to cost so much and so much more a row; both are fitted to the latest steps of all kinds. The table that
/// chooses drafts (`speculation::StepCost`) would not do: a budget that was too long once is not tried again, and a table says of
/// what is not tried what it said before.
#[derive(Debug)]
pub(crate) struct Pacing {
    /// Longest time of a step while somebody decodes.
    target: Option<Duration>,
    /// The configured budget.
    most: u32,
    /// Budgets are multiples of it.
    tile: u32,
    /// Of the latest steps, older ones counting less: weight, rows, seconds, rows squared, rows times seconds.
    sums: [f64; 5],
}

/// What a step's weight is a step later.
const FADE: f64 = 0.95;
/// A step that takes so many times what it should was disturbed; it counts as one that took so long.
const DISTURBED: f64 = 2.0;

impl Pacing {
    pub(crate) fn new(target: Option<Duration>, most: u32, tile: u32) -> Self {
        Self { target, most, tile: tile.clamp(1, most.max(1)), sums: [0.0; 5] }
    }

    /// A step of `rows` took `time`.
    pub(crate) fn record(&mut self, rows: u32, time: Duration) {
        let (x, mut t) = (f64::from(rows), time.as_secs_f64());
        if self.target.is_none() || rows == 0 || t <= 0.0 {
            return;
        }
        if let Some((step, row)) = self.fit() {
            t = t.min(DISTURBED * (step + row * x));
        }
        for (sum, new) in self.sums.iter_mut().zip([1.0, x, t, x * x, x * t]) {
            *sum = *sum * FADE + new;
        }
    }

    /// Rows of the next step, in which so many sequences decode. At least a tile: a prompt must move, however
    /// slow the machine is.
    pub(crate) fn budget(&self, decodes: u32) -> u32 {
        let (Some(target), Some((step, row))) = (self.target.filter(|_| decodes > 0), self.fit()) else {
            // Nobody waits for a token, or the first steps are still to tell.
            return self.most;
        };
        let rows = (target.as_secs_f64() - step) / row;
        if rows >= f64::from(self.most) {
            return self.most;
        }
        ((rows.max(0.0) as u32) / self.tile * self.tile).max(self.tile)
    }

    /// Seconds of a step, and of each of its rows (above 0).
    fn fit(&self) -> Option<(f64, f64)> {
        let [n, x, t, xx, xt] = self.sums;
        if n <= 0.0 {
            return None;
        }
        let (x, t) = (x / n, t / n);
        let (spread, both) = (xx / n - x * x, xt / n - x * t);
        // Steps of one size tell nothing of others, and a step never costs less than nothing: then it is all
        // in the rows, which makes larger steps look dear and smaller ones cheap; trying them tells.
        let row = if spread > (0.05 * x).powi(2) { both / spread } else { t / x };
        let row = if row > 0.0 && t > row * x { row } else { t / x };
        Some((t - row * x, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    /// A machine whose step takes 5 ms and half a millisecond a row.
    fn step(rows: u32, slower: f64) -> Duration {
        ms((5.0 + 0.5 * f64::from(rows)) * slower)
    }

    #[test]
    fn without_a_target_or_without_decodes_the_budget_is_whole() {
        let mut pacing = Pacing::new(None, 128, 8);
        for rows in [1, 128] {
            pacing.record(rows, step(rows, 1.0));
        }
        assert_eq!(pacing.budget(4), 128);
        let pacing = Pacing::new(Some(ms(1.0)), 128, 8);
        assert_eq!((pacing.budget(0), pacing.budget(1)), (128, 128), "nobody waits; nothing is known");
    }

    #[test]
    fn the_budget_is_the_largest_whose_step_keeps_the_pace() {
        for (target, budget) in [(100.0, 128), (45.5, 80), (9.0, 8), (1.0, 8)] {
            let mut pacing = Pacing::new(Some(ms(target)), 128, 8);
            for rows in [1, 8, 128] {
                pacing.record(rows, step(rows, 1.0));
            }
            assert_eq!(pacing.budget(3), budget, "{target} ms");
        }
    }

    /// Only steps of one size so far: larger ones are reached all the same.
    #[test]
    fn a_budget_that_was_low_by_chance_grows() {
        let mut pacing = Pacing::new(Some(ms(45.5)), 128, 8);
        let mut rows = 8;
        for _ in 0..100 {
            pacing.record(rows, step(rows, 1.0));
            rows = pacing.budget(1);
        }
        assert_eq!(rows, 80);
    }

    #[test]
    fn one_disturbed_step_is_no_reason() {
        let mut pacing = Pacing::new(Some(ms(45.5)), 128, 8);
        for _ in 0..20 {
            for rows in [2, 80] {
                pacing.record(rows, step(rows, 1.0));
            }
        }
        pacing.record(80, ms(5000.0));
        assert!(pacing.budget(1) >= 64, "{}", pacing.budget(1));
    }

    /// Contexts grow, or another process takes half the machine: the budget follows, down and up again.
    #[test]
    fn the_budget_follows_the_machine() {
        let mut pacing = Pacing::new(Some(ms(45.5)), 128, 8);
        let settle = |pacing: &mut Pacing, slower: f64| {
            for _ in 0..200 {
                let rows = pacing.budget(2);
                pacing.record(rows, step(rows, slower));
                pacing.record(2, step(2, slower));
            }
            pacing.budget(2)
        };
        assert_eq!(settle(&mut pacing, 1.0), 80);
        let slow = settle(&mut pacing, 2.0);
        assert!((24..=40).contains(&slow), "{slow}: of 45.5 ms, 10 for the step and 1 a row");
        let again = settle(&mut pacing, 1.0);
        assert!((72..=88).contains(&again), "{again}");
    }
}

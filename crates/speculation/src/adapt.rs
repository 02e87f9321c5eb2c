//! How many drafts are worth verifying, and how far ahead a drafter should run: from what was measured.
//!
//! Nothing here changes a text; it changes what a step costs and what it may bring.

use std::time::Duration;

/// How often the drafts of one sequence are accepted: a running estimate of the chance that a draft
/// stands when all before it stood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Acceptance {
    accepted: f64,
    judged: f64,
}

impl Default for Acceptance {
    /// A mild belief in a new drafter: six of eight.
    fn default() -> Self {
        Self { accepted: 6.0, judged: 8.0 }
    }
}

impl Acceptance {
    /// Weight of the past when a draft is judged: about the last fifty count.
    const MEMORY: f64 = 0.98;

    /// One verification step: `drafted` tokens of which the first `accepted` stood.
    pub fn record(&mut self, drafted: usize, accepted: usize) {
        // Drafts behind the first wrong one were not judged.
        for stood in (0..drafted.min(accepted + 1)).map(|i| i < accepted) {
            self.accepted = self.accepted * Self::MEMORY + f64::from(u8::from(stood));
            self.judged = self.judged * Self::MEMORY + 1.0;
        }
    }

    /// Above 0 and below 1.
    pub fn rate(&self) -> f64 {
        (self.accepted / self.judged).clamp(0.01, 0.99)
    }

    /// The depth beyond which a draft is reached in fewer than one of twenty cases: further ahead a
    /// drafter works for nothing.
    pub fn useful_depth(&self) -> u32 {
        (0.05f64.ln() / self.rate().ln()).ceil().max(1.0) as u32
    }
}

/// What a step of n rows takes: time = start + n * row, fitted to recent steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    weight: f64,
    rows: f64,
    time: f64,
    rows_squared: f64,
    rows_time: f64,
    /// Start and row in seconds, when recent steps of different sizes told them last.
    line: Option<(f64, f64)>,
}

impl StepCost {
    /// Weight of the past at each step.
    const MEMORY: f64 = 0.98;

    pub fn record(&mut self, rows: u32, time: Duration) {
        let (n, t) = (f64::from(rows), time.as_secs_f64());
        for (sum, new) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, n),
            (&mut self.time, t),
            (&mut self.rows_squared, n * n),
            (&mut self.rows_time, n * t),
        ] {
            *sum = *sum * Self::MEMORY + new;
        }
        self.line = self.fit().or(self.line);
    }

    /// `None` while recent steps have one size.
    fn fit(&self) -> Option<(f64, f64)> {
        let spread = self.rows_squared * self.weight - self.rows * self.rows;
        if self.weight < 4.0 || spread < 0.05 * self.weight * self.weight {
            return None;
        }
        let row = (self.rows_time * self.weight - self.rows * self.time) / spread;
        let start = (self.time - row * self.rows) / self.weight;
        // Noise can turn the line; a row that costs nothing or a step that starts for nothing is noise.
        (row > 0.0 && start > 0.0).then_some((start, row))
    }

    /// Drafts worth verifying for one sequence when the step has `others` rows of other sequences that
    /// bring `tokens` tokens: the next one is taken while the chance to reach and accept it, per time it
    /// adds, is at least what the step brings per time without it. While the cost is not known: what is
    /// likely to be reached.
    pub fn drafts(&self, acceptance: &Acceptance, others: u32, tokens: u32, most: u32) -> u32 {
        let Some((start, row)) = self.line else { return most.min(acceptance.useful_depth()) };
        let rate = acceptance.rate();
        let (mut time, mut brings) = (start + row * f64::from(others + 1), f64::from(tokens) + 1.0);
        let mut chance = 1.0;
        for k in 0..most {
            chance *= rate;
            if chance * time < row * brings {
                return k;
            }
            (time, brings) = (time + row, brings + chance);
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(start: f64, row: f64) -> StepCost {
        let mut cost = StepCost::default();
        for rows in [1, 2, 5, 1, 9, 1, 3, 4] {
            cost.record(rows, Duration::from_secs_f64(start + row * f64::from(rows)));
        }
        cost
    }

    fn accepting(accepted: usize) -> Acceptance {
        let mut acceptance = Acceptance::default();
        for i in 0..200 {
            acceptance.record(1, usize::from(i % 10 < accepted));
        }
        acceptance
    }

    #[test]
    fn acceptance_is_learned_from_what_was_judged() {
        assert!((accepting(9).rate() - 0.9).abs() < 0.05);
        assert!((accepting(3).rate() - 0.3).abs() < 0.05);
        // Four drafted, one accepted: two were judged.
        let mut a = Acceptance { accepted: 0.0, judged: 0.0 };
        a.record(4, 1);
        assert!((a.judged - 1.98).abs() < 1e-9);
        assert!((1..=3).contains(&accepting(3).useful_depth()), "{}", accepting(3).useful_depth());
        assert!(accepting(9).useful_depth() > 20);
    }

    /// Brute force over k at batch 1 is the judge: the best expected tokens per time.
    #[test]
    fn the_number_of_drafts_is_the_best_one() {
        for (start, row) in [(0.02, 0.0001), (0.02, 0.005), (0.02, 0.02), (0.001, 0.01)] {
            for acceptance in [accepting(3), accepting(6), accepting(9)] {
                let a = acceptance.rate();
                let speed = |k: u32| {
                    let brings: f64 = (0..=k).map(|i| a.powi(i as i32)).sum();
                    brings / (start + row * f64::from(k + 1))
                };
                let best = (0..=16).max_by(|x, y| speed(*x).total_cmp(&speed(*y))).unwrap_or(0);
                let chosen = cost(start, row).drafts(&acceptance, 0, 0, 16);
                assert!(speed(chosen) >= 0.999 * speed(best), "{start} {row} {a}: {chosen}, best {best}");
            }
        }
    }

    #[test]
    fn a_full_batch_verifies_less_and_without_figures_the_limit_holds() {
        let cost = cost(0.02, 0.002);
        let alone = cost.drafts(&accepting(8), 0, 0, 16);
        let crowded = cost.drafts(&accepting(8), 40, 40, 16);
        assert!(crowded < alone, "{crowded} {alone}");
        assert_eq!(StepCost::default().drafts(&accepting(9), 0, 0, 7), 7);
        assert_eq!(StepCost::default().drafts(&accepting(1), 0, 0, 7), 2, "hardly one is reached");
        let mut same = StepCost::default();
        for _ in 0..50 {
            same.record(1, Duration::from_millis(3));
        }
        assert_eq!(same.drafts(&accepting(9), 0, 0, 7), 7, "one size tells no line");
        let mut known = cost;
        for _ in 0..500 {
            known.record(5, Duration::from_millis(30));
        }
        assert_eq!(known.drafts(&accepting(8), 40, 40, 16), crowded, "what was learned stays");
    }
}

//! What a step costs by its rows: a table, measured at the start and refreshed by every step.

use std::time::Duration;

/// Rows -> time. Between and beyond the sizes that were seen it goes straight on. What all sizes share, a
/// longer context or a busier machine, is followed by one factor, so that sizes which are rarely tried do
/// not stay as dear, or as cheap, as they were when they were tried last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Seconds of a step of i + 1 rows when the factor is 1; `None`: never seen.
    shape: Vec<Option<f64>>,
    /// What the latest steps took, by what the table says they take.
    factor: f64,
    /// Sizes that were seen.
    sizes: u32,
}

impl StepCost {
    /// Larger steps are told apart by nobody.
    const MOST_ROWS: u32 = 256;
    /// Weight of a new step for the factor, and for its own size.
    const FACTOR: f64 = 0.1;
    const SIZE: f64 = 0.05;
    /// A step that takes twice as long as it should was disturbed; it counts as one that took so long.
    const DISTURBED: f64 = 2.0;

    /// A step of `rows` took `time`. Steps that compute a prompt are none of its business: a row of a long
    /// chunk costs otherwise than one more row beside a decode.
    pub fn record(&mut self, rows: u32, time: Duration) {
        let (size, time) = (rows as usize, time.as_secs_f64());
        if rows == 0 || rows > Self::MOST_ROWS || time <= 0.0 {
            return;
        }
        if self.shape.len() < size {
            self.shape.resize(size, None);
        }
        if self.factor <= 0.0 {
            self.factor = 1.0;
        }
        match &mut self.shape[size - 1] {
            Some(shape) => {
                let limits = (1.0 / Self::DISTURBED, Self::DISTURBED);
                let ratio = (time / (*shape * self.factor)).clamp(limits.0, limits.1);
                *shape *= 1.0 + Self::SIZE * (ratio - 1.0);
                self.factor *= 1.0 + Self::FACTOR * (ratio - 1.0);
            }
            new => {
                *new = Some(time / self.factor);
                self.sizes += 1;
            }
        }
    }

    /// Seconds of a step of `rows`; `None` while fewer than two sizes were seen. More rows never take less.
    pub fn seconds(&self, rows: u32) -> Option<f64> {
        if self.sizes < 2 || rows == 0 {
            return None;
        }
        let known = || self.shape.iter().enumerate().filter_map(|(i, s)| Some((i as f64 + 1.0, (*s)?)));
        let at = f64::from(rows);
        let below = known().filter(|(n, _)| *n <= at).fold(None::<(f64, f64)>, |best, (n, s)| {
            // What is cheaper with more rows is noise.
            Some((n, best.map_or(s, |(_, least)| s.max(least))))
        });
        let above = known().find(|(n, _)| *n > at);
        let shape = match (below, above) {
            (Some((n, s)), Some((m, t))) => s + (t.max(s) - s) * (at - n) / (m - n),
            // Straight down, but no less than rows would take that all cost alike.
            (None, Some((m, t))) => (t - self.slope() * (m - at)).max(t * at / m),
            (Some((n, s)), None) => s + self.slope() * (at - n),
            (None, None) => return None,
        };
        Some(shape * self.factor)
    }

    /// Of a row outside of the sizes that were seen: the mean from the smallest size to the largest.
    fn slope(&self) -> f64 {
        let mut known = self.shape.iter().enumerate().filter_map(|(i, s)| Some((i as f64, (*s)?)));
        match (known.next(), known.next_back()) {
            (Some((n, s)), Some((m, t))) => ((t - s) / (m - n)).max(0.0),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    fn near(cost: &StepCost, rows: u32, ms: f64) -> bool {
        let found = cost.seconds(rows).unwrap() * 1e3;
        (found - ms).abs() < 0.05 * ms
    }

    #[test]
    fn sizes_between_and_beyond_lie_on_the_line() {
        let mut cost = StepCost::default();
        assert_eq!(cost.seconds(1), None);
        cost.record(2, ms(12.0));
        cost.record(0, ms(1.0));
        cost.record(2, ms(0.0));
        assert_eq!(cost.seconds(2), None, "one size tells nothing of others");
        cost.record(6, ms(20.0));
        for (rows, time) in [(1, 10.0), (2, 12.0), (4, 16.0), (6, 20.0), (8, 24.0)] {
            assert!(near(&cost, rows, time), "{rows}: {:?}", cost.seconds(rows));
        }
        // Steps come in fours: a staircase is a staircase.
        cost.record(5, ms(20.0));
        cost.record(4, ms(13.0));
        assert!(near(&cost, 4, 13.0) && near(&cost, 5, 20.0) && near(&cost, 6, 20.0));
        assert_eq!(cost.seconds(0), None);
    }

    #[test]
    fn more_rows_never_take_less() {
        let mut cost = StepCost::default();
        for (rows, time) in [(1, 10.0), (2, 30.0), (3, 11.0), (9, 12.0)] {
            cost.record(rows, ms(time));
        }
        let times: Vec<f64> = (1..40).map(|n| cost.seconds(n).unwrap()).collect();
        assert!(times.windows(2).all(|w| w[0] <= w[1]), "{times:?}");
    }

    /// A longer context makes plain steps slower; sizes that are not tried meanwhile follow.
    #[test]
    fn sizes_that_are_not_tried_follow_the_others() {
        let mut cost = StepCost::default();
        for (rows, time) in [(1, 10.0), (5, 15.0)] {
            cost.record(rows, ms(time));
        }
        for _ in 0..200 {
            cost.record(1, ms(20.0));
        }
        assert!(near(&cost, 1, 20.0), "{:?}", cost.seconds(1));
        let five = cost.seconds(5).unwrap() * 1e3;
        assert!((20.0..32.0).contains(&five), "{five}");
    }

    #[test]
    fn one_disturbed_step_is_no_reason() {
        let mut cost = StepCost::default();
        for (rows, time) in [(1, 10.0), (5, 15.0), (1, 3000.0), (5, 15.0), (1, 10.0)] {
            cost.record(rows, ms(time));
        }
        assert!(cost.seconds(1).unwrap() < 0.012, "{:?}", cost.seconds(1));
    }
}

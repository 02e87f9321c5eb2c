use std::time::Duration;

/// How fast places come free while all are taken: what a new sequence has to wait for.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    last: Option<Duration>,
    /// Recent mean time from one end to the next.
    interval: Option<Duration>,
}

impl Turnover {
    /// A sequence ended and gave its place back. `wanted`: another waited for it; only then the time
    /// since the last end says something.
    pub(crate) fn ended(&mut self, now: Duration, wanted: bool) {
        if let (Some(last), true) = (self.last, wanted) {
            let new = now.saturating_sub(last);
            self.interval = Some(self.interval.map_or(new, |old| old - old / 8 + new / 8));
        }
        self.last = Some(now);
    }

    /// The wait of a sequence with `before` others ahead of it. Zero while nothing was measured: the
    /// length of the queue bounds it then.
    pub(crate) fn wait(&self, before: usize, now: Duration) -> Duration {
        let Some(interval) = self.interval else { return Duration::ZERO };
        let places = u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1);
        // The first place is the nearer the longer ago the last one came free.
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last)).min(interval);
        interval.saturating_mul(places).saturating_sub(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_places_times_the_interval() {
        let s = Duration::from_secs;
        let mut turnover = Turnover::default();
        assert_eq!(turnover.wait(100, s(0)), s(0), "nothing is known yet");
        turnover.ended(s(10), false);
        turnover.ended(s(40), false);
        assert_eq!(turnover.wait(3, s(40)), s(0), "nobody waited for these");
        turnover.ended(s(42), true);
        turnover.ended(s(44), true);
        assert_eq!(turnover.wait(0, s(44)), s(2));
        assert_eq!(turnover.wait(4, s(44)), s(10));
        assert_eq!(turnover.wait(4, s(45)), s(9));
        assert_eq!(turnover.wait(0, s(90)), s(0), "overdue");
    }
}

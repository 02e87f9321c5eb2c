use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A recent mean of durations, written by one thread and read by others.
#[derive(Debug, Default)]
pub struct Pace(AtomicU64);

impl Pace {
    /// Adds a measurement with a weight of one eighth.
    pub fn record(&self, time: Duration) {
        let new = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let old = self.0.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.0.store(mean, Ordering::Relaxed);
    }

    /// Zero before the first measurement.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_slowly() {
        let pace = Pace::default();
        assert_eq!(pace.mean(), Duration::ZERO);
        pace.record(Duration::from_millis(80));
        assert_eq!(pace.mean(), Duration::from_millis(80));
        pace.record(Duration::from_millis(160));
        assert_eq!(pace.mean(), Duration::from_millis(90));
    }
}

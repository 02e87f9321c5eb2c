//! When requests of an open loop are due.

use std::time::Duration;

use clap::ValueEnum;

/// The gaps between requests that are sent without waiting for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// Exponential gaps: independent users, bursts included
    Poisson,
    /// Equal gaps
    Constant,
}

/// Due times since the start of a run, rising, the first at 0. The same seed gives the same times.
#[derive(Clone, Debug)]
pub struct Due {
    arrival: Arrival,
    rate: f64,
    random: fastrand::Rng,
    sent: u64,
    last: f64,
}

impl Due {
    /// `rate`: requests a second, above 0.
    pub fn new(arrival: Arrival, rate: f64, seed: u64) -> Self {
        Self { arrival, rate, random: fastrand::Rng::with_seed(seed), sent: 0, last: 0.0 }
    }
}

impl Iterator for Due {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.sent > 0 {
            self.last = match self.arrival {
                // 1 - u lies in (0, 1], so the logarithm is finite.
                Arrival::Poisson => self.last - (1.0 - self.random.f64()).ln() / self.rate,
                // From the count, not by adding: no drift.
                Arrival::Constant => self.sent as f64 / self.rate,
            };
        }
        self.sent += 1;
        Duration::try_from_secs_f64(self.last).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_gaps_do_not_drift() {
        let due: Vec<_> = Due::new(Arrival::Constant, 8.0, 0).take(81).collect();
        assert_eq!(
            (due[0], due[1], due[80]),
            (Duration::ZERO, Duration::from_millis(125), Duration::from_secs(10))
        );
    }

    #[test]
    fn poisson_gaps_have_the_rate_and_the_spread_of_an_exponential() {
        let (rate, count) = (50.0, 20_000);
        let due: Vec<f64> =
            Due::new(Arrival::Poisson, rate, 7).take(count + 1).map(|d| d.as_secs_f64()).collect();
        let gaps: Vec<f64> = due.windows(2).map(|w| w[1] - w[0]).collect();
        let mean = gaps.iter().sum::<f64>() / count as f64;
        let std = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / count as f64).sqrt();
        let long = gaps.iter().filter(|g| **g > 2.0 / rate).count() as f64 / count as f64;
        // Standard error of the mean is 0.7 %; bounds are five of them.
        assert!((mean * rate - 1.0).abs() < 0.035, "{mean}");
        assert!((std * rate - 1.0).abs() < 0.07, "{std}");
        assert!((long - (-2.0f64).exp()).abs() < 0.012, "{long}");
    }

    #[test]
    fn a_seed_names_the_times() {
        let take = |seed| Due::new(Arrival::Poisson, 3.0, seed).take(50).collect::<Vec<_>>();
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }
}

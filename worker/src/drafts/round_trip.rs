use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

/// Measurements that count; so many are made when a link begins.
const KEPT: usize = 5;
/// How long all of them may take: a long way is known well enough by one.
const AT_FIRST: Duration = Duration::from_millis(200);
/// Another one is made after so long.
const FRESH: Duration = Duration::from_secs(5);
/// Nothing that takes longer is waited for.
const LONGEST: Duration = Duration::from_secs(1);

/// How long the way to a drafter and back is: the median of the latest measurements. One that met a busy moment does
/// not count for much.
#[derive(Debug)]
pub(super) struct RoundTrip(Mutex<VecDeque<Duration>>);

impl RoundTrip {
    /// Never ends. The link is in use meanwhile: were it waited for, short answers over a long way would end before.
    pub(super) async fn keep_fresh(&self, channel: &Channel) {
        let probing = async {
            for _ in 1..KEPT {
                if let Some(time) = daemon::grpc::round_trip(channel.clone(), AT_FIRST).await {
                    self.record(time);
                }
            }
        };
        let _ = timeout(AT_FIRST, probing).await;
        loop {
            sleep(FRESH).await;
            self.record(daemon::grpc::round_trip(channel.clone(), LONGEST).await.unwrap_or(LONGEST));
        }
    }

    /// `first`: what the hellos took.
    pub(super) fn new(first: Duration) -> Self {
        Self(Mutex::new([first].into()))
    }

    fn record(&self, time: Duration) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == KEPT {
            latest.pop_front();
        }
        latest.push_back(time);
    }

    /// Of an even number, the smaller one in the middle.
    pub(super) fn median(&self) -> Duration {
        let mut sorted = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sorted.make_contiguous().sort_unstable();
        // It is never empty.
        sorted.get((sorted.len() - 1) / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_latest_and_no_outlier_moves_it() {
        let ms = Duration::from_millis;
        let way = RoundTrip::new(ms(40));
        assert_eq!(way.median(), ms(40));
        for (new, expected) in
            [(2, 2), (3, 3), (900, 3), (4, 4), (4, 4), (50, 4), (50, 50), (50, 50), (2, 50), (2, 50), (2, 2)]
        {
            way.record(ms(new));
            assert_eq!(way.median(), ms(expected), "after {new}");
        }
    }
}

//! How many requests are under way at once, and whether new ones are taken at all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::failure::{self, Failure, Reason};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A bound without a queue: when it is full, the caller is told so at once. Waiting happens at the
/// workers, which know how long it takes.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    most: u32,
    under_way: TaskTracker,
}

/// The right to be under way; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _slot: OwnedSemaphorePermit,
    _under_way: TaskTrackerToken,
}

impl Admission {
    pub(crate) fn new(most: u32) -> Self {
        Self { slots: Arc::new(Semaphore::new(most as usize)), most, under_way: TaskTracker::new() }
    }

    pub(crate) fn admit(&self) -> Result<Permit, Failure> {
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => Ok(Permit { _slot: slot, _under_way: self.under_way.token() }),
            Err(TryAcquireError::NoPermits) => Err(failure::later(
                Reason::Overloaded,
                format!(
                    "{} requests are under way, the most this coordinator takes; try again shortly",
                    self.most
                ),
                RETRY_AFTER,
            )),
            Err(TryAcquireError::Closed) => Err(failure::later(
                Reason::Draining,
                "this coordinator is shutting down; send the request to another one or try again shortly",
                RETRY_AFTER,
            )),
        }
    }

    /// From now on nothing is admitted.
    pub(crate) fn close(&self) {
        self.slots.close();
        self.under_way.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.slots.is_closed()
    }

    /// Resolves once it is closed and nothing is under way.
    pub(crate) async fn idle(&self) {
        self.under_way.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn full_says_when_to_come_back_and_closed_drains() {
        let admission = Admission::new(1);
        let permit = admission.admit().unwrap();
        let full = admission.admit().unwrap_err();
        assert_eq!((full.reason, full.retry_after), (Reason::Overloaded, Some(RETRY_AFTER)));
        drop(permit);
        let permit = admission.admit().unwrap();
        admission.close();
        assert_eq!(admission.admit().unwrap_err().reason, Reason::Draining);
        let idle = || tokio::time::timeout(Duration::from_secs(1), admission.idle());
        assert!(idle().await.is_err(), "one request is under way");
        drop(permit);
        assert!(idle().await.is_ok());
    }
}

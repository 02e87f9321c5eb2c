//! How many requests are under way at once, and whether new ones are taken at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::failure::{self, Failure, Reason, invalid};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A bound without a queue: when it is full, the caller is told so at once. Waiting happens at the
/// workers, which know how long it takes.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    most: u32,
    under_way: TaskTracker,
}

/// The right to be under way; given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Permit(Arc<Held>);

#[derive(Debug)]
struct Held {
    admission: Admission,
    slots: Mutex<OwnedSemaphorePermit>,
    _under_way: TaskTrackerToken,
}

impl Admission {
    pub(crate) fn new(most: u32) -> Self {
        Self { slots: Arc::new(Semaphore::new(most as usize)), most, under_way: TaskTracker::new() }
    }

    pub(crate) fn admit(&self) -> Result<Permit, Failure> {
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => {
                telemetry::meters().requests_in_flight.add(1, &[]);
                Ok(Permit(Arc::new(Held {
                    admission: self.clone(),
                    slots: Mutex::new(slot),
                    _under_way: self.under_way.token(),
                })))
            }
            Err(TryAcquireError::NoPermits) => Err(self.full()),
            Err(TryAcquireError::Closed) => Err(failure::later(
                Reason::Draining,
                "this coordinator is shutting down; send the request to another one or try again shortly",
                RETRY_AFTER,
            )),
        }
    }

    fn full(&self) -> Failure {
        failure::later(
            Reason::Overloaded,
            format!(
                "{} requests are under way, the most this coordinator takes; try again shortly",
                self.most
            ),
            RETRY_AFTER,
        )
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

impl Drop for Held {
    fn drop(&mut self) {
        telemetry::meters().requests_in_flight.add(-1, &[]);
    }
}

impl Permit {
    /// Counts for `choices` from now on: each is a stream of its own. Never for fewer than before, and
    /// not refused by a shutdown that came meanwhile.
    pub(crate) fn widen(&self, choices: u32) -> Result<(), Failure> {
        let admission = &self.0.admission;
        if choices > admission.most {
            return Err(invalid(
                "n",
                format!(
                    "n: {choices} choices are more than this coordinator takes at once ({})",
                    admission.most
                ),
            ));
        }
        let mut held = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let more = choices.saturating_sub(held.num_permits().try_into().unwrap_or(u32::MAX));
        match Arc::clone(&admission.slots).try_acquire_many_owned(more) {
            Ok(slots) => held.merge(slots),
            Err(TryAcquireError::NoPermits) => return Err(admission.full()),
            Err(TryAcquireError::Closed) => {}
        }
        Ok(())
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

    #[test]
    fn choices_count_one_by_one() {
        let admission = Admission::new(4);
        let (a, b) = (admission.admit().unwrap(), admission.admit().unwrap());
        assert_eq!(a.widen(5).unwrap_err().field.as_deref(), Some("n"));
        assert_eq!(a.widen(4).unwrap_err().reason, Reason::Overloaded);
        a.widen(3).unwrap();
        a.widen(2).unwrap();
        assert_eq!(admission.admit().unwrap_err().reason, Reason::Overloaded);
        let clone = a.clone();
        drop(a);
        assert!(admission.admit().is_err(), "a clone holds it");
        drop((b, clone));
        assert_eq!(admission.slots.available_permits(), 4);
    }
}

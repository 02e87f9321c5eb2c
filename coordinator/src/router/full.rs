use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::{Incarnation, NodeId, NodeRecord, View};
use tokio::time::Instant;

/// For how long one refusal of a full worker stands for the next requests. What a full worker has
/// queued lasts longer, so it does not fall idle meanwhile. Then one request asks it again, and until
/// that is answered the refusal stands for the others once more: under a flood a full worker is asked
/// twenty times a second, not for every request.
const STANDS: Duration = Duration::from_millis(50);

/// Workers that just said they are full. Holds members of the map only.
#[derive(Debug, Default)]
pub(super) struct Full(Mutex<HashMap<NodeId, Refusal>>);

#[derive(Debug)]
struct Refusal {
    of: Incarnation,
    at: Instant,
    retry_after: Duration,
    /// Of the request that was refused: a more urgent one may be taken.
    priority: i32,
}

impl Full {
    pub(super) fn refused(
        &self,
        worker: &NodeRecord,
        retry_after: Duration,
        priority: i32,
        now: Instant,
        view: &View,
    ) {
        let mut refusals = self.refusals();
        refusals.retain(|id, _| view.get(id).is_some());
        let refusal = Refusal { of: worker.incarnation, at: now, retry_after, priority };
        refusals.insert(worker.id.clone(), refusal);
    }

    /// Somebody asks a worker: the others wait for what it says, if it was full the last time.
    pub(super) fn asked(&self, worker: &NodeId, now: Instant) {
        if let Some(refusal) = self.refusals().get_mut(worker) {
            refusal.at = now;
        }
    }

    /// It took a request.
    pub(super) fn admitted(&self, worker: &NodeId) {
        self.refusals().remove(worker);
    }

    /// When to ask a worker again, if its refusal of another request stands for this one.
    pub(super) fn stands(&self, worker: &NodeRecord, priority: i32, now: Instant) -> Option<Duration> {
        let refusals = self.refusals();
        let refusal = refusals.get(&worker.id).filter(|r| r.of == worker.incarnation)?;
        let age = now.saturating_duration_since(refusal.at);
        let stands = age < STANDS && priority <= refusal.priority;
        stands.then(|| refusal.retry_after.saturating_sub(age))
    }

    fn refusals(&self) -> MutexGuard<'_, HashMap<NodeId, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{member, view};
    use super::*;

    #[test]
    fn a_refusal_stands_for_a_moment_and_for_the_less_urgent() {
        let (full, begun) = (Full::default(), Instant::now());
        let worker = member("w", Duration::ZERO).record;
        let retry = Duration::from_secs(3);
        full.refused(&worker, retry, 1, begun, &view([member("w", Duration::ZERO)]));
        let at = |ms, priority| full.stands(&worker, priority, begun + Duration::from_millis(ms));
        assert_eq!(at(10, 0), Some(Duration::from_millis(2990)));
        assert_eq!(at(10, 1), Some(Duration::from_millis(2990)));
        assert_eq!(at(10, 2), None, "more urgent");
        assert_eq!(at(50, 0), None, "over");
        full.asked(&worker.id, begun + Duration::from_millis(50));
        assert_eq!(at(60, 0), Some(Duration::from_millis(2990)), "one asks");
        assert_eq!(at(100, 0), None, "and was not answered");
        let again = NodeRecord { incarnation: Incarnation(2), ..(*worker).clone() };
        assert_eq!(full.stands(&again, 0, begun), None, "another life");
        let other = member("v", Duration::ZERO);
        full.refused(&other.record, retry, 0, begun, &view([other.clone()]));
        assert_eq!(full.refusals().len(), 1, "who left the map is forgotten");
        full.admitted(&other.record.id);
        assert!(full.refusals().is_empty());
    }
}

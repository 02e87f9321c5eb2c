use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::{NodeId, View};

/// Requests of this coordinator at each node. Holds only nodes with at least one.
///
/// A node's heartbeat counts them, too: what matters beside its figure is what changed since. (One that
/// was placed while a heartbeat was on its way is missed until the next.)
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<HashMap<NodeId, Count>>);

#[derive(Debug, Default)]
struct Count {
    now: u32,
    /// When the last heartbeat was heard, and how many there were then.
    heard: Duration,
    reported: u32,
}

/// One unit of [`InFlight`].
#[derive(Debug)]
pub(crate) struct Counted {
    id: NodeId,
    of: Arc<InFlight>,
}

impl InFlight {
    /// What each node has beyond the load in `view`.
    pub(super) fn since_heartbeat(&self, view: &View) -> HashMap<NodeId, u32> {
        let mut counts = self.counts();
        let fresh = counts.iter_mut().map(|(id, count)| {
            count.hear(view, id);
            (id.clone(), count.now.saturating_sub(count.reported))
        });
        fresh.collect()
    }

    pub(super) fn count(self: &Arc<Self>, id: &NodeId, view: &View) -> Counted {
        let mut counts = self.counts();
        let count = counts.entry(id.clone()).or_default();
        count.hear(view, id);
        count.now += 1;
        Counted { id: id.clone(), of: Arc::clone(self) }
    }

    /// Plain counts stay right whatever panicked while it held them.
    fn counts(&self) -> MutexGuard<'_, HashMap<NodeId, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    fn hear(&mut self, view: &View, id: &NodeId) {
        if let Some(member) = view.get(id)
            && member.heard != self.heard
        {
            self.heard = member.heard;
            self.reported = self.now;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
        if let Some(count) = counts.get_mut(&self.id) {
            count.now -= 1;
            if count.now == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{member, view};
    use super::*;

    #[test]
    fn a_heartbeat_takes_over_what_it_counted() {
        let in_flight = Arc::new(InFlight::default());
        let at = |seconds| view([member("w", Duration::from_secs(seconds))]);
        let id = NodeId::new("w").unwrap();
        let fresh = |view: &View| in_flight.since_heartbeat(view).get(&id).copied().unwrap_or(0);
        let first = in_flight.count(&id, &at(1));
        let second = in_flight.count(&id, &at(1));
        assert_eq!(fresh(&at(1)), 2);
        assert_eq!(fresh(&at(2)), 0, "the heartbeat says 2");
        let third = in_flight.count(&id, &at(2));
        assert_eq!(fresh(&at(2)), 1);
        // The heartbeat's figure still holds it: one more than there are would be counted otherwise.
        drop(first);
        assert_eq!(fresh(&at(2)), 0);
        drop((second, third));
        assert!(in_flight.counts().is_empty());
    }
}

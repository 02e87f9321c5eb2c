use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Incarnation, NodeId};

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn names(names: &[u64]) -> Vec<PrefixName> {
    names.iter().copied().map(PrefixName).collect()
}

/// A coordinator that is told everything over a wire that loses some.
struct Listener {
    index: PrefixIndex,
    cursor: PrefixCursor,
}

impl Listener {
    fn new() -> Self {
        Self { index: PrefixIndex::new(1 << 20), cursor: PrefixCursor::default() }
    }

    /// The next message, lost or not; whether there was one.
    fn hear(&mut self, log: &PrefixLog, lost: bool) -> bool {
        let Some(update) = self.cursor.next(log) else { return false };
        assert!(update.stored.len() + update.removed.len() <= PrefixUpdate::MOST);
        if !lost && self.index.apply(&id("w"), Incarnation(1), &update).is_err() {
            self.cursor.reset();
        }
        true
    }

    fn has(&self, name: u64) -> bool {
        self.index.hits(&names(&[name])).contains_key(&id("w"))
    }
}

#[derive(Clone, Debug)]
enum Event {
    Stored(u64),
    Removed(u64),
    Cleared,
    /// Messages to both listeners; the first loses its.
    Told {
        lost: bool,
    },
    Reset,
    /// The worker is thought to be gone.
    Forgotten,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0u64..40).prop_map(Event::Stored),
        5 => (0u64..40).prop_map(Event::Removed),
        1 => Just(Event::Cleared),
        6 => prop::bool::weighted(0.2).prop_map(|lost| Event::Told { lost }),
        1 => Just(Event::Reset),
        1 => Just(Event::Forgotten),
    ];
    prop::collection::vec(event, 0..120)
}

proptest! {
    /// Whatever was lost, forgotten or told twice: once there is nothing more to tell, the index is what a set would be.
    #[test]
    fn the_index_is_what_the_cache_is(events in events(), bound in 1usize..50, recent in 1usize..12) {
        let (mut log, mut naive) = (PrefixLog::new(bound, recent), BTreeSet::new());
        let mut listeners = [Listener::new(), Listener::new()];
        for event in events {
            match event {
                Event::Stored(name) => {
                    if naive.len() < bound {
                        naive.insert(name);
                    }
                    log.record(PageChange::Stored(PrefixName(name)));
                }
                Event::Removed(name) => {
                    naive.remove(&name);
                    log.record(PageChange::Removed(PrefixName(name)));
                }
                Event::Cleared => {
                    naive.clear();
                    log.record(PageChange::Cleared);
                }
                Event::Told { lost } => {
                    listeners[0].hear(&log, lost);
                    listeners[1].hear(&log, false);
                }
                Event::Reset => listeners[0].cursor.reset(),
                Event::Forgotten => listeners[0].index.forget(&id("w")),
            }
        }
        // A last change finds every gap.
        log.record(PageChange::Removed(PrefixName(0)));
        log.record(PageChange::Stored(PrefixName(99)));
        naive.remove(&0);
        if naive.len() < bound {
            naive.insert(99);
        } else {
            listeners[0].cursor.reset();
        }
        for listener in &mut listeners {
            for _ in 0..10 {
                listener.hear(&log, false);
            }
            prop_assert!(!listener.hear(&log, false), "nothing is left to tell");
            for name in 0..100 {
                prop_assert_eq!(listener.has(name), naive.contains(&name), "{}", name);
            }
            prop_assert_eq!(listener.index.len(), naive.len());
        }
    }
}

#[test]
fn a_large_cache_is_told_in_pieces_and_what_happens_meanwhile_behind_them() {
    let mut log = PrefixLog::default();
    for name in 0..10_000 {
        log.record(PageChange::Stored(PrefixName(name)));
    }
    let mut listener = Listener::new();
    assert!(listener.hear(&log, false));
    log.record(PageChange::Removed(PrefixName(9_999)));
    log.record(PageChange::Stored(PrefixName(10_000)));
    let mut messages = 1;
    while listener.hear(&log, false) {
        messages += 1;
    }
    assert_eq!((messages, listener.index.len()), (4, 10_000));
    assert!(listener.has(10_000) && !listener.has(9_999));
}

#[test]
fn a_gap_drops_the_worker_until_it_told_all() {
    let mut index = PrefixIndex::new(100);
    let w = id("w");
    let update = |number, reset, stored: &[u64]| PrefixUpdate {
        number,
        reset,
        stored: names(stored),
        removed: Vec::new(),
    };
    let one = Incarnation(1);
    assert_eq!(index.apply(&w, one, &update(5, false, &[1])), Err(PrefixGap { number: 5 }), "unknown");
    assert_eq!(index.apply(&w, one, &update(0, true, &[1, 2])), Ok(0));
    assert_eq!(index.apply(&w, one, &update(1, false, &[3])), Ok(0));
    assert_eq!(index.hits(&names(&[1, 2, 3, 4])), [(w.clone(), 3)].into());
    assert_eq!(index.apply(&w, one, &update(3, false, &[4])), Err(PrefixGap { number: 3 }));
    assert!(index.is_empty());
    assert_eq!(index.apply(&w, one, &update(4, true, &[1])), Ok(0));
    assert_eq!(index.apply(&w, Incarnation(2), &update(5, false, &[2])), Err(PrefixGap { number: 5 }));
    assert!(index.is_empty(), "another life");
}

#[test]
fn the_index_is_bounded_and_a_hit_is_a_run_from_the_start() {
    let mut index = PrefixIndex::new(4);
    let update = |stored: &[u64]| PrefixUpdate { reset: true, stored: names(stored), ..Default::default() };
    assert_eq!(index.apply(&id("a"), Incarnation(1), &update(&[1, 3])), Ok(0));
    assert_eq!(index.apply(&id("b"), Incarnation(1), &update(&[1, 2, 3])), Ok(1), "one had no room");
    assert_eq!(index.len(), 4);
    let hits: BTreeMap<NodeId, u32> = index.hits(&names(&[1, 2, 3])).into_iter().collect();
    assert_eq!(hits, [(id("a"), 1), (id("b"), 2)].into(), "a hole ends a run");
    index.forget(&id("a"));
    assert_eq!(index.hits(&names(&[3])), [].into());
    assert_eq!(index.len(), 2);
}

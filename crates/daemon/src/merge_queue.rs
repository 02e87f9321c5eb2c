use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A queue with one entry a key: what was not taken yet is merged with, so a slow taker sees fewer,
/// newer entries and a giver never waits.
///
/// Used towards a peer that may be slow: one entry a session, in the order in which sessions first
/// had something to say. Keys are the peer's to choose, so their number has a bound too: beyond it the
/// queue closes, and with it the stream to a peer that does not read.
#[derive(Debug)]
pub struct MergeQueue<K, V> {
    state: Mutex<State<K, V>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
    closed: bool,
    most: usize,
}

impl<K: Copy + Eq + Hash, V: Default> MergeQueue<K, V> {
    /// A queue of at most `most` entries.
    pub fn new(most: usize) -> Self {
        let state = State { entries: HashMap::new(), order: VecDeque::new(), closed: false, most };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    /// Changes the entry of `key`, which is empty when nothing waits. Ignored after `close`.
    pub fn update(&self, key: K, change: impl FnOnce(&mut V)) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if !state.entries.contains_key(&key) {
            if state.entries.len() >= state.most {
                drop(state);
                return self.close();
            }
            state.order.push_back(key);
        }
        change(state.entries.entry(key).or_default());
        drop(state);
        self.wake.notify_one();
    }

    /// Takes the oldest entry; waits while there is none; `None` once closed. One taker at a time.
    pub async fn next(&self) -> Option<(K, V)> {
        loop {
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if let Some(key) = state.order.pop_front() {
                    let value = state.entries.remove(&key).unwrap_or_default();
                    return Some((key, value));
                }
            }
            self.wake.notified().await;
        }
    }

    /// Drops what waits and ends the taker.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.entries.clear();
        state.order.clear();
        drop(state);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        // Nothing panics while it is held; a poisoned queue is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_merge_and_keep_their_turn() {
        let queue = MergeQueue::<u64, Vec<u32>>::new(8);
        queue.update(7, |v| v.push(1));
        queue.update(8, |v| v.push(2));
        queue.update(7, |v| v.push(3));
        assert_eq!(queue.next().await, Some((7, vec![1, 3])));
        queue.update(7, |v| v.push(4));
        assert_eq!(queue.next().await, Some((8, vec![2])));
        assert_eq!(queue.next().await, Some((7, vec![4])));
        queue.update(9, |v| v.push(5));
        queue.close();
        queue.update(9, |v| v.push(6));
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test]
    async fn too_many_keys_close_it() {
        let queue = MergeQueue::<u64, u32>::new(2);
        for key in [1, 2, 1, 2] {
            queue.update(key, |v| *v += 1);
        }
        assert_eq!(queue.next().await, Some((1, 2)));
        queue.update(3, |v| *v = 1);
        queue.update(4, |v| *v = 1);
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test]
    async fn a_waiting_taker_is_woken() {
        let queue = std::sync::Arc::new(MergeQueue::<u64, u32>::new(8));
        let taker = tokio::spawn({
            let queue = queue.clone();
            async move { (queue.next().await, queue.next().await) }
        });
        tokio::task::yield_now().await;
        queue.update(1, |v| *v = 5);
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(taker.await.unwrap(), (Some((1, 5)), None));
    }
}

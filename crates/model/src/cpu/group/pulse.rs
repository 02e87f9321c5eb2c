//! Signs of life between rank 0 and a follower, on a link of their own.
//!
//! A rank that computes reads no messages, and how long it computes depends on model, chunk and processor: silence on the
//! link of the steps says nothing. So a thread beside it sends beats, which say how far its computing has come. The other
//! end is given up when nothing is heard of it for `within` (stopped, or out of reach), or when it comes no further for so
//! long while this rank waits for it (stuck). Giving up closes the link of the steps: whoever waits there is told at once.
//!
//! Missed beats are counted, not time: after the whole machine slept nobody is blamed for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use transport::{Closer, FabricError, Head, Link};

use super::BEAT;

/// Says how far a rank's computing has come: another number whenever it came further.
pub(in super::super) type Sight = Box<dyn Fn() -> u64 + Send + Sync>;

/// A rank's sight of itself, once it has something to compute with.
#[derive(Clone, Default)]
pub(super) struct Own(Arc<OnceLock<Sight>>);

impl Own {
    /// Once: a rank loads one model.
    pub(super) fn set(&self, sight: Sight) {
        let _ = self.0.set(sight);
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Own").field(&self.0.get().map(|sight| sight())).finish()
    }
}

/// Beats in `within`.
const BEATS: u32 = 6;
/// For what has arrived.
const LOOK: Duration = Duration::from_millis(1);

/// One end.
#[derive(Debug)]
pub(super) struct Pulse {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// This rank waits for the other one.
    waits: AtomicBool,
    stop: AtomicBool,
    lost: OnceLock<String>,
}

impl Pulse {
    /// Beats over `link`, of which `token` is the group's; `steps` closes the link that is given up.
    pub(super) fn start(
        link: Box<dyn Link>,
        token: u64,
        within: Duration,
        steps: Closer,
        own: Own,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let beating = Beating { link, token, within, own, shared: shared.clone() };
        let thread = std::thread::Builder::new().name("group-pulse".to_owned());
        let thread = thread.spawn(move || beating.run(&steps))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Until this is said again, this rank waits for the other one, or does not.
    pub(super) fn waits(&self, waits: bool) {
        self.shared.waits.store(waits, Ordering::Relaxed);
    }

    /// Why the other end was given up, if it was.
    pub(super) fn lost(&self) -> Option<&str> {
        self.shared.lost.get().map(String::as_str)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It catches nothing and panics nowhere; it ends within a beat.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Beating {
    link: Box<dyn Link>,
    token: u64,
    within: Duration,
    own: Own,
    shared: Arc<Shared>,
}

impl Beating {
    fn run(mut self, close: &Closer) {
        let (mut silent, mut still, mut last) = (0, 0, None);
        let beat = self.within / BEATS;
        for count in 0.. {
            // While there is nothing to compute with, being there is all that can be asked.
            let far = self.own.0.get().map_or(count, |far| far());
            // What is wrong with the link shows when it is read.
            let _ = self.link.send(Head { kind: BEAT, token: self.token, item: far }, &[], beat);
            let since = Instant::now();
            while let Some(left) = beat.checked_sub(since.elapsed()) {
                if self.shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::park_timeout(left);
            }
            let Ok(heard) = self.heard() else {
                // The other rank ended: its link of the steps says the same.
                return close();
            };
            silent = if heard.is_none() { silent + 1 } else { 0 };
            let waited = self.shared.waits.load(Ordering::Relaxed);
            still = if waited && (heard.is_none() || heard == last) { still + 1 } else { 0 };
            last = heard.or(last);
            let what = match (silent >= BEATS, still >= BEATS) {
                (true, _) => "gave no sign of life",
                (_, true) => "came no further",
                _ => continue,
            };
            let _ = self.shared.lost.set(format!("it {what} for {:?}", self.within));
            return close();
        }
    }

    /// The latest beat that arrived. `Err`: no more will.
    fn heard(&mut self) -> Result<Option<u64>, ()> {
        let (mut heard, mut payload) = (None, Vec::new());
        loop {
            match self.link.recv(&mut payload, LOOK) {
                Ok(Head { kind: BEAT, token, item }) if token == self.token => heard = Some(item),
                Err(FabricError::Deadline { .. }) => return Ok(heard),
                Ok(_) | Err(_) => return Err(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use transport::Fabric as _;
    use transport::local::Network;

    use super::*;

    const WITHIN: Duration = Duration::from_millis(300);

    /// Both ends of the steps' link and of the signs of life; the second rank comes as far as the number says.
    struct Pair {
        network: Network,
        steps: Box<dyn Link>,
        _theirs: Box<dyn Link>,
        ours: Pulse,
        _other: Pulse,
        far: Arc<AtomicU64>,
    }

    fn pair() -> Pair {
        let network = Network::new();
        let (first, second) = (network.fabric("rank-0"), network.fabric("rank-1"));
        let link = || {
            let theirs = second.connect("rank-0", WITHIN).unwrap();
            (first.accept(WITHIN).unwrap(), theirs)
        };
        let ((steps, theirs), (here, there)) = (link(), link());
        let far = Arc::new(AtomicU64::new(0));
        let (own, other) = (Own::default(), Own::default());
        let counted = far.clone();
        other.set(Box::new(move || counted.load(Ordering::Relaxed)));
        let ours = Pulse::start(here, 7, WITHIN, steps.closer().unwrap(), own).unwrap();
        let other = Pulse::start(there, 7, WITHIN, theirs.closer().unwrap(), other).unwrap();
        Pair { network, steps, _theirs: theirs, ours, _other: other, far }
    }

    /// How waiting for a message that never comes ends, and after how long.
    fn wait(pair: &mut Pair, most: Duration) -> (FabricError, Duration) {
        let start = Instant::now();
        let error = pair.steps.recv(&mut Vec::new(), most).unwrap_err();
        (error, start.elapsed())
    }

    #[test]
    fn a_rank_that_is_slow_or_idle_is_waited_for() {
        let mut pair = pair();
        // Not waited for: it may stand still.
        let (error, _) = wait(&mut pair, 4 * WITHIN);
        assert!(matches!(error, FabricError::Deadline { .. }), "{error}");
        // Waited for, and at work.
        pair.ours.waits(true);
        let (stop, far) = (Arc::new(AtomicBool::new(false)), pair.far.clone());
        let working = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    far.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(WITHIN / 4);
                }
            }
        });
        let (error, _) = wait(&mut pair, 4 * WITHIN);
        assert!(matches!(error, FabricError::Deadline { .. }), "{error}");
        assert_eq!(pair.ours.lost(), None);
        stop.store(true, Ordering::Relaxed);
        working.join().unwrap();
    }

    #[test]
    fn a_rank_that_is_stuck_or_silent_is_given_up() {
        for (silent, why) in [(false, "came no further"), (true, "no sign of life")] {
            let mut pair = pair();
            if silent {
                pair.network.hang("rank-1");
            } else {
                pair.ours.waits(true);
            }
            let (error, took) = wait(&mut pair, 20 * WITHIN);
            assert_eq!(error, FabricError::Closed, "{why}");
            assert!(took < 3 * WITHIN, "{took:?}");
            assert!(pair.ours.lost().unwrap().contains(why), "{:?}", pair.ours.lost());
        }
    }

    #[test]
    fn a_rank_that_ends_is_not_blamed() {
        let mut pair = pair();
        pair.network.kill("rank-1");
        let (error, took) = wait(&mut pair, 20 * WITHIN);
        assert_eq!((error, pair.ours.lost()), (FabricError::Closed, None));
        assert!(took < 2 * WITHIN, "{took:?}");
    }
}

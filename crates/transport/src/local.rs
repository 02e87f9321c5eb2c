//! Ranks of one process: links are queues. What is sent passes through the same frames as on a wire, and
//! through the [`Faults`] of its network, so tests see what a bad wire does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::frame::{header, split};
use crate::{Closer, Damage, Fabric, FabricError, Head, Link, MOST_BYTES};

mod faults;

pub use faults::{Fault, Faults};

/// Messages under way in one direction: a sender beyond that waits, as for a full socket.
const UNDER_WAY: usize = 64;
/// Links that nobody accepted yet.
const BACKLOG: usize = 64;

/// Ranks that reach each other by name.
#[derive(Clone, Debug, Default)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    places: Mutex<HashMap<String, Arc<Place>>>,
    faults: Option<Mutex<Faults>>,
}

/// A rank's name: who waits there, and every pipe that leads from or to it.
#[derive(Debug, Default)]
struct Place {
    arrivals: Pipe<LocalLink>,
    pipes: Mutex<Vec<Arc<Pipe<Vec<u8>>>>>,
}

impl Network {
    pub fn new() -> Self {
        Self::default()
    }

    /// All links of this network pass through these faults.
    pub fn with_faults(faults: Faults) -> Self {
        let faults = Some(Mutex::new(faults));
        Self { shared: Arc::new(Shared { faults, ..Shared::default() }) }
    }

    /// A rank's end, reached by `name`; a second one of a name takes the place of the first.
    pub fn fabric(&self, name: &str) -> LocalFabric {
        let place = Arc::new(Place::default());
        lock(&self.shared.places).insert(name.to_owned(), place.clone());
        LocalFabric { name: name.to_owned(), place, network: self.clone() }
    }

    /// The rank of that name is gone: its links close, nobody reaches it.
    pub fn kill(&self, name: &str) {
        if let Some(place) = lock(&self.shared.places).remove(name) {
            place.arrivals.close();
            lock(&place.pipes).iter().for_each(|pipe| pipe.close());
        }
    }

    /// The rank of that name answers no more, and nobody is told: bytes to and from it wait for ever.
    pub fn hang(&self, name: &str) {
        if let Some(place) = lock(&self.shared.places).get(name) {
            lock(&place.pipes).iter().for_each(|pipe| pipe.hang());
        }
    }

    /// Faults that were committed.
    pub fn injected(&self) -> u64 {
        self.shared.faults.as_ref().map_or(0, |faults| lock(faults).injected())
    }
}

/// One rank of a [`Network`].
#[derive(Debug)]
pub struct LocalFabric {
    name: String,
    place: Arc<Place>,
    network: Network,
}

impl Fabric for LocalFabric {
    fn address(&self) -> String {
        self.name.clone()
    }

    fn connect(&self, address: &str, within: Duration) -> Result<Box<dyn Link>, FabricError> {
        let unreachable = |why: &str| FabricError::Unreachable { address: address.into(), why: why.into() };
        let other = lock(&self.network.shared.places).get(address).cloned();
        let other = other.ok_or_else(|| unreachable("no rank has this name"))?;
        let (there, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        for place in [&self.place, &other] {
            let mut pipes = lock(&place.pipes);
            pipes.retain(|pipe| !pipe.is_closed());
            pipes.extend([there.clone(), back.clone()]);
        }
        let link = |peer: &str, out: &Arc<Pipe<_>>, into: &Arc<Pipe<_>>| LocalLink {
            peer: peer.to_owned(),
            out: out.clone(),
            into: into.clone(),
            network: self.network.clone(),
            sent: 0,
            received: 0,
        };
        let theirs = link(&self.name, &back, &there);
        other.arrivals.push(theirs, BACKLOG, "connecting", within)?;
        Ok(Box::new(link(address, &there, &back)))
    }

    fn accept(&self, within: Duration) -> Result<Box<dyn Link>, FabricError> {
        Ok(Box::new(self.place.arrivals.pop("accepting a link", within)?))
    }
}

#[derive(Debug)]
struct LocalLink {
    peer: String,
    out: Arc<Pipe<Vec<u8>>>,
    into: Arc<Pipe<Vec<u8>>>,
    network: Network,
    sent: u64,
    received: u64,
}

impl Link for LocalLink {
    fn send(&mut self, head: Head, payload: &[u8], within: Duration) -> Result<(), FabricError> {
        if payload.len() > MOST_BYTES {
            return Err(FabricError::TooLarge { bytes: payload.len(), most: MOST_BYTES });
        }
        let mut message = payload.to_vec();
        let fault = self.network.shared.faults.as_ref().map(|faults| {
            let mut faults = lock(faults);
            let fault = faults.next(head.kind);
            faults.before_framing(head.kind, fault, &mut message);
            fault
        });
        let mut frame = [&header(head, self.sent, &message)[..], &message].concat();
        self.sent += 1;
        match fault.flatten() {
            Some(Fault::BitFlip) => {
                if let Some(faults) = &self.network.shared.faults {
                    lock(faults).flip(&mut frame);
                }
                self.out.push(frame, UNDER_WAY, "sending", within)
            }
            Some(Fault::Truncated) => {
                frame.truncate(frame.len() / 2);
                self.out.push(frame, UNDER_WAY, "sending", within)?;
                self.out.close();
                Ok(())
            }
            Some(Fault::Dropped) => Ok(()),
            Some(Fault::Hung) => {
                self.out.hang();
                Ok(())
            }
            Some(Fault::Reordered) => self.out.hold_back(frame),
            Some(Fault::Stale) | None => self.out.push(frame, UNDER_WAY, "sending", within),
        }
    }

    fn recv(&mut self, payload: &mut Vec<u8>, within: Duration) -> Result<Head, FabricError> {
        payload.clear();
        let frame = self.into.pop("receiving", within)?;
        let (header, bytes) = match split(&frame) {
            Ok(read) => read,
            Err(damage) => {
                // As on a wire: behind a damaged payload the next frame begins, behind the rest none does.
                if damage == Damage::Payload {
                    self.received += 1;
                } else {
                    self.into.close();
                }
                return Err(FabricError::Damaged(damage));
            }
        };
        if header.number != self.received {
            self.into.close();
            return Err(FabricError::OutOfOrder { expected: self.received, found: header.number });
        }
        self.received += 1;
        payload.extend_from_slice(bytes);
        Ok(header.head)
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn closer(&self) -> Result<Closer, FabricError> {
        let (out, into) = (self.out.clone(), self.into.clone());
        Ok(Box::new(move || {
            out.close();
            into.end();
        }))
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        self.out.close();
        self.into.close();
    }
}

/// A bounded queue with deadlines.
#[derive(Debug)]
struct Pipe<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    /// Goes behind the next one.
    held_back: Option<T>,
    closed: bool,
    hung: bool,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        let state = State { queue: VecDeque::new(), held_back: None, closed: false, hung: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<T> Pipe<T> {
    fn push(&self, item: T, bound: usize, what: &'static str, within: Duration) -> Result<(), FabricError> {
        let mut state = self.wait(what, within, |s| s.closed || s.queue.len() < bound)?;
        if state.closed {
            return Err(FabricError::Closed);
        }
        if !state.hung {
            state.queue.push_back(item);
            let held_back = state.held_back.take();
            state.queue.extend(held_back);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn pop(&self, what: &'static str, within: Duration) -> Result<T, FabricError> {
        let mut state = self.wait(what, within, |s| !s.hung && (s.closed || !s.queue.is_empty()))?;
        let item = state.queue.pop_front();
        drop(state);
        self.changed.notify_all();
        item.ok_or(FabricError::Closed)
    }

    fn wait(
        &self,
        what: &'static str,
        within: Duration,
        ready: impl Fn(&State<T>) -> bool,
    ) -> Result<MutexGuard<'_, State<T>>, FabricError> {
        let started = Instant::now();
        let mut state = lock(&self.state);
        while !ready(&state) {
            let left = within.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(FabricError::Deadline { what, within });
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        Ok(state)
    }

    fn hold_back(&self, item: T) -> Result<(), FabricError> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(FabricError::Closed);
        }
        state.held_back = Some(item);
        Ok(())
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    fn hang(&self) {
        lock(&self.state).hung = true;
    }

    /// Closed by the side that reads it: also of a pipe that hangs nothing is awaited any more.
    fn end(&self) {
        let mut state = lock(&self.state);
        (state.closed, state.hung) = (true, false);
        state.queue.clear();
        drop(state);
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }
}

/// What a panicking thread left behind is whole: no lock here is held over a call that may panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

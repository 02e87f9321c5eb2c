//! Which worker gets a request: the map's advice, corrected by what this coordinator has in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::{Incarnation, NoPlace, NodeId, NodeRecord, Problem, Role, View, VocabHash, place};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::failure::{self, Failure, Reason};

mod channels;

use channels::Channels;

/// When asking again is worth it, by a guess: a heartbeat or two.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Places requests. Cheap to share; asks nobody.
#[derive(Debug)]
pub(crate) struct Router {
    view: watch::Receiver<View>,
    channels: Channels,
    in_flight: Arc<InFlight>,
    /// Workers of another vocabulary that were warned of: it is asked for every request. Holds members
    /// of the map only.
    foreign: Mutex<HashMap<NodeId, Incarnation>>,
}

/// What a request needs of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need<'a> {
    pub(crate) model: &'a str,
    /// Of the tokenizer here: a worker with another vocabulary would be given ids that mean other text.
    pub(crate) vocab_hash: VocabHash,
    /// Prompt and most output.
    pub(crate) positions: u32,
    /// Workers that refused it or broke.
    pub(crate) tried: &'a [NodeId],
    /// Numerics fingerprint of the text so far.
    pub(crate) prefer: Option<&'a str>,
}

/// A place for a request; counted against the worker until dropped.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) worker: Arc<NodeRecord>,
    /// Best first.
    pub(crate) drafters: Vec<Arc<NodeRecord>>,
    pub(crate) channel: Channel,
    _in_flight: Counted,
}

/// Who serves a model now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Serving {
    /// Longest context of a worker that takes new work; 0 without one.
    pub(crate) context: u32,
    pub(crate) ready_workers: u32,
    pub(crate) ready_drafters: u32,
    /// Sorted, each once.
    pub(crate) fingerprints: Vec<String>,
}

impl Router {
    pub(crate) fn new(view: watch::Receiver<View>) -> Self {
        Self { view, channels: Channels::default(), in_flight: Arc::default(), foreign: Mutex::default() }
    }

    pub(crate) fn place(&self, need: &Need<'_>, random: u64) -> Result<Placed, Failure> {
        let view = self.usable(need.model, need.vocab_hash);
        let placement = {
            let in_flight = self.in_flight.counts();
            place(&Problem {
                view: &view,
                model: need.model,
                positions: need.positions,
                tried: need.tried,
                prefer: need.prefer,
                in_flight: &in_flight,
                random,
            })
        }
        .map_err(refusal)?;
        let channel = self.channels.get(&placement.worker.endpoint, &view).map_err(|e| {
            failure::new(Reason::Internal, format!("worker {} cannot be dialled: {e}", placement.worker.id))
        })?;
        let counted = self.in_flight.count(&placement.worker.id);
        Ok(Placed { worker: placement.worker, drafters: placement.drafters, channel, _in_flight: counted })
    }

    /// Counts a session against a drafter until dropped: requests that come within one heartbeat
    /// would otherwise all rank the same drafter first.
    pub(crate) fn count_drafter(&self, id: &NodeId) -> Counted {
        self.in_flight.count(id)
    }

    pub(crate) fn serving(&self, model: &str, vocab_hash: VocabHash) -> Serving {
        let view = self.usable(model, vocab_hash);
        let mut serving = Serving::default();
        for worker in view.role(Role::Worker).filter(|m| m.takes_work() && m.record.model == model) {
            serving.ready_workers += 1;
            serving.context = serving.context.max(worker.record.context);
            serving.fingerprints.push(worker.record.fingerprint.clone());
        }
        serving.fingerprints.sort_unstable();
        serving.fingerprints.dedup();
        serving.ready_drafters = view
            .role(Role::Drafter)
            .filter(|m| m.takes_work() && m.record.vocab_hash == vocab_hash)
            .count()
            .try_into()
            .unwrap_or(u32::MAX);
        serving
    }

    /// Longest context among workers that take requests for the model; without one, why there is none.
    pub(crate) fn context(&self, model: &str, vocab_hash: VocabHash) -> Result<u32, Failure> {
        let view = self.usable(model, vocab_hash);
        let contexts = view.role(Role::Worker).filter(|m| m.takes_work() && m.record.model == model);
        if let Some(longest) = contexts.map(|m| m.record.context).max() {
            return Ok(longest);
        }
        let (tried, in_flight) = (&[], &HashMap::new());
        let problem = Problem { view: &view, model, positions: 0, tried, prefer: None, in_flight, random: 0 };
        place(&problem).map(|placement| placement.worker.context).map_err(refusal)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// The map without workers of `model` whose vocabulary is not ours.
    fn usable(&self, model: &str, vocab_hash: VocabHash) -> View {
        let view = self.view.borrow().clone();
        let foreign = |m: &cluster::Member| {
            m.record.role == Role::Worker && m.record.model == model && m.record.vocab_hash != vocab_hash
        };
        if !view.members().iter().any(foreign) {
            return view;
        }
        let mut warned = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        warned.retain(|id, _| view.members().iter().any(|m| m.record.id == *id));
        for worker in view.members().iter().filter(|m| foreign(m)).map(|m| &m.record) {
            if warned.insert(worker.id.clone(), worker.incarnation) != Some(worker.incarnation) {
                tracing::warn!(
                    worker = %worker.id, model, theirs = %worker.vocab_hash, ours = %vocab_hash,
                    "worker is not used: its vocabulary is not that of the coordinator's model file"
                );
            }
        }
        view.members().iter().filter(|m| !foreign(m)).cloned().collect()
    }
}

fn refusal(no_place: NoPlace) -> Failure {
    let message = no_place.to_string();
    match no_place {
        NoPlace::TooLong { .. } => failure::new(Reason::ContextLengthExceeded, message),
        _ if no_place.all_draining() => failure::later(Reason::Draining, message, RETRY_AFTER),
        _ => failure::later(Reason::NoWorker, message, RETRY_AFTER),
    }
}

/// Requests of this coordinator at each node. Holds only nodes with at least one.
#[derive(Debug, Default)]
struct InFlight(Mutex<HashMap<NodeId, u32>>);

/// One unit of [`InFlight`].
#[derive(Debug)]
pub(crate) struct Counted {
    id: NodeId,
    of: Arc<InFlight>,
}

impl InFlight {
    fn count(self: &Arc<Self>, id: &NodeId) -> Counted {
        *self.counts().entry(id.clone()).or_default() += 1;
        Counted { id: id.clone(), of: Arc::clone(self) }
    }

    /// Plain counts stay right whatever panicked while it held them.
    fn counts(&self) -> MutexGuard<'_, HashMap<NodeId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
        if let Some(n) = counts.get_mut(&self.id) {
            *n -= 1;
            if *n == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

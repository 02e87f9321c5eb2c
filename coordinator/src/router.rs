//! Which worker gets a request: the map's advice, corrected by what this coordinator has in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::{
    Duty, Incarnation, Member, NoPlace, NodeId, NodeRecord, PrefixName, Problem, Role, Split, View,
    VocabHash, place,
};
use daemon::registry::Prefixes;
use kvcache::PAGE_POSITIONS;
use telemetry::Label;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::failure::{self, Failure, Reason};

mod channels;
mod full;
mod in_flight;

use channels::Channels;
use full::Full;
pub(crate) use in_flight::Counted;
use in_flight::InFlight;

/// When asking again is worth it, by a guess: a heartbeat or two.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Places requests. Cheap to share; asks nobody.
#[derive(Debug)]
pub(crate) struct Router {
    view: watch::Receiver<View>,
    prefixes: Arc<Prefixes>,
    channels: Channels,
    in_flight: Arc<InFlight>,
    full: Full,
    /// Workers of another vocabulary that were warned of: it is asked for every request. Holds members
    /// of the map only.
    foreign: Mutex<HashMap<NodeId, Incarnation>>,
    /// Prompts of so many tokens may be computed by another worker.
    split_at: u32,
}

/// What a request needs of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need<'a> {
    pub(crate) model: &'a str,
    /// Of the tokenizer here: a worker with another vocabulary would be given ids that mean other text.
    pub(crate) vocab_hash: VocabHash,
    /// Prompt and most output.
    pub(crate) positions: u32,
    /// Tokens to compute: prompt and what was delivered.
    pub(crate) tokens: u32,
    /// Their full pages, by name.
    pub(crate) prefix: &'a [PrefixName],
    /// Workers that refused it or broke.
    pub(crate) tried: &'a [NodeId],
    /// Numerics fingerprint of the text so far.
    pub(crate) prefer: Option<&'a str>,
    /// Priority of a request that no worker admitted yet: it goes to no worker that just refused
    /// another. One that lost its worker in mid-answer asks them all.
    pub(crate) new: Option<i32>,
}

/// A place for a request; counted against the worker until dropped.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) worker: Arc<NodeRecord>,
    /// Best first.
    pub(crate) drafters: Vec<Arc<NodeRecord>>,
    /// Who computes the prompt; `None`: the worker.
    pub(crate) prefill: Option<Arc<NodeRecord>>,
    pub(crate) channel: Channel,
    _in_flight: Counted,
    _prefill_in_flight: Option<Counted>,
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
    pub(crate) fn new(view: watch::Receiver<View>, prefixes: Arc<Prefixes>, split_at: u32) -> Self {
        Self {
            view,
            prefixes,
            channels: Channels::default(),
            in_flight: Arc::default(),
            full: Full::default(),
            foreign: Mutex::default(),
            split_at,
        }
    }

    pub(crate) fn place(&self, need: &Need<'_>, random: u64) -> Result<Placed, Failure> {
        let view = self.usable(need.model, need.vocab_hash);
        let full = need.new.map_or_else(Vec::new, |priority| self.full_of(&view, need.model, priority));
        let soonest = full.iter().map(|(_, retry_after)| *retry_after).min();
        let mut tried = need.tried.to_vec();
        tried.extend(full.into_iter().map(|(id, _)| id));
        let mut hits = self.prefixes.hits(need.prefix);
        hits.values_mut().for_each(|pages| *pages *= PAGE_POSITIONS);
        let placement = place(&Problem {
            view: &view,
            model: need.model,
            positions: need.positions,
            tried: &tried,
            prefer: need.prefer,
            in_flight: &self.in_flight.since_heartbeat(&view),
            random,
            tokens: need.tokens,
            hits: &hits,
            split: Some(Split { at: self.split_at }),
        })
        .map_err(|no_place| match soonest {
            Some(soonest) if matches!(no_place, NoPlace::NoneLeft { .. }) => overloaded(need.model, soonest),
            _ => refusal(no_place),
        })?;
        let channel = self.channels.get(&placement.worker.endpoint, &view).map_err(|e| {
            failure::new(Reason::Internal, format!("worker {} cannot be dialled: {e}", placement.worker.id))
        })?;
        let (model, meters) = ([Label::model(need.model)], telemetry::meters());
        meters.router_prefix_queries.add(need.tokens.into(), &model);
        let hit = hits.get(&placement.worker.id).copied().unwrap_or(0);
        meters.router_prefix_hits.add(hit.into(), &model);
        self.full.asked(&placement.worker.id, Instant::now());
        let counted = self.in_flight.count(&placement.worker.id, &view);
        let prefill = placement.prefill;
        Ok(Placed {
            _prefill_in_flight: prefill.as_ref().map(|p| self.in_flight.count(&p.id, &view)),
            worker: placement.worker,
            drafters: placement.drafters,
            prefill,
            channel,
            _in_flight: counted,
        })
    }

    /// Remembers for a moment that a worker is full. What is said of one field (a compiler of constraints
    /// that others hold) is no word on requests without it.
    pub(crate) fn refused(&self, worker: &NodeRecord, why: &Failure, priority: i32) {
        if why.reason == Reason::Overloaded && why.field.is_none() {
            let retry_after = why.retry_after.unwrap_or(RETRY_AFTER);
            self.full.refused(worker, retry_after, priority, Instant::now(), &self.view.borrow());
        }
    }

    /// A worker took a request: it is not full.
    pub(crate) fn admitted(&self, worker: &NodeId) {
        self.full.admitted(worker);
    }

    /// Why a new request need not be looked at any closer: every worker that could take it just said
    /// that it is full.
    pub(crate) fn full(&self, model: &str, vocab_hash: VocabHash, priority: i32) -> Option<Failure> {
        let view = self.usable(model, vocab_hash);
        let ready = view.role(Role::Worker).filter(|m| answers(m, model)).count();
        let full = self.full_of(&view, model, priority);
        let soonest = full.iter().map(|(_, retry_after)| *retry_after).min()?;
        (full.len() == ready).then(|| overloaded(model, soonest))
    }

    fn full_of(&self, view: &View, model: &str, priority: i32) -> Vec<(NodeId, Duration)> {
        let now = Instant::now();
        view.role(Role::Worker)
            .filter(|m| answers(m, model))
            .filter_map(|m| Some((m.record.id.clone(), self.full.stands(&m.record, priority, now)?)))
            .collect()
    }

    /// Counts a session against a drafter until dropped: requests that come within one heartbeat
    /// would otherwise all rank the same drafter first.
    pub(crate) fn count_drafter(&self, id: &NodeId) -> Counted {
        self.in_flight.count(id, &self.view.borrow())
    }

    pub(crate) fn serving(&self, model: &str, vocab_hash: VocabHash) -> Serving {
        let view = self.usable(model, vocab_hash);
        let mut serving = Serving::default();
        for worker in view.role(Role::Worker).filter(|m| answers(m, model)) {
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
        let contexts = view.role(Role::Worker).filter(|m| answers(m, model));
        if let Some(longest) = contexts.map(|m| m.record.context).max() {
            return Ok(longest);
        }
        let (tried, in_flight) = (&[], &HashMap::new());
        let problem = Problem {
            view: &view,
            model,
            positions: 0,
            tried,
            prefer: None,
            in_flight,
            random: 0,
            tokens: 0,
            hits: &HashMap::new(),
            split: None,
        };
        place(&problem).map(|placement| placement.worker.context).map_err(refusal)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// The map without workers of `model` whose vocabulary is not ours.
    fn usable(&self, model: &str, vocab_hash: VocabHash) -> View {
        let view = self.view.borrow().clone();
        let foreign = |m: &Member| {
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

/// Whether a worker takes requests for the model now.
fn answers(member: &Member, model: &str) -> bool {
    member.takes_work() && member.record.model == model && member.record.duty != Duty::Prefill
}

fn refusal(no_place: NoPlace) -> Failure {
    let message = no_place.to_string();
    match no_place {
        NoPlace::TooLong { .. } => failure::new(Reason::ContextLengthExceeded, message),
        _ if no_place.all_draining() => failure::later(Reason::Draining, message, RETRY_AFTER),
        _ => failure::later(Reason::NoWorker, message, RETRY_AFTER),
    }
}

/// A worker that is full says so by itself; the answer to the next request is the same for a moment.
fn overloaded(model: &str, retry_after: Duration) -> Failure {
    failure::later(
        Reason::Overloaded,
        format!("all workers of model `{model}` are full; try again in {:.1} s", retry_after.as_secs_f32()),
        retry_after,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::{Endpoint, Load, Member, NodeRecord, NodeState, Presence};
    use daemon::Shutdown;
    use daemon::registry::{self, Registry};

    use super::*;

    /// A ready worker.
    pub(super) fn member(id: &str, heard: Duration) -> Member {
        let record = NodeRecord {
            id: NodeId::new(id).unwrap(),
            incarnation: Incarnation(1),
            role: Role::Worker,
            endpoint: Endpoint::new("http://127.0.0.1:9").unwrap(),
            model: "m".into(),
            fingerprint: "fp_1".into(),
            vocab_hash: VocabHash([1; 32]),
            context: 512,
            slots: 4,
            state: NodeState::Ready,
            duty: Duty::Mixed,
        };
        Member { record: Arc::new(record), load: Load::default(), presence: Presence::Alive, heard }
    }

    pub(super) fn view(members: impl IntoIterator<Item = Member>) -> View {
        members.into_iter().collect()
    }

    #[tokio::test]
    async fn full_workers_are_not_asked_while_their_word_stands() {
        let members = view([member("v", Duration::ZERO), member("w", Duration::ZERO)]);
        let (_send, receive) = watch::channel(members.clone());
        let (registry, _owner) = Registry::new(&registry::Config::default(), &Shutdown::default());
        let router = Router::new(receive, registry.prefixes(), 512);
        let need = |new| Need {
            model: "m",
            vocab_hash: VocabHash([1; 32]),
            positions: 8,
            tokens: 4,
            prefix: &[],
            tried: &[],
            prefer: None,
            new,
        };
        let full = |retry| failure::later(Reason::Overloaded, "full", Duration::from_secs(retry));
        let worker = |id: &str| Arc::clone(&members.get(&NodeId::new(id).unwrap()).unwrap().record);
        router.refused(&worker("v"), &full(3), 0);
        assert_eq!(router.full("m", VocabHash([1; 32]), 0), None);
        for random in 0..8 {
            assert_eq!(router.place(&need(Some(0)), random).unwrap().worker.id.as_str(), "w");
        }
        // Refused for another reason: asked again.
        router.refused(&worker("w"), &failure::new(Reason::Draining, "leaving"), 0);
        assert_eq!(router.place(&need(Some(0)), 0).unwrap().worker.id.as_str(), "w");
        // Its compiler is held: that keeps no request without a constraint away.
        router.refused(&worker("w"), &Failure { field: Some("regex".into()), ..full(2) }, 0);
        assert_eq!(router.full("m", VocabHash([1; 32]), 0), None);
        router.refused(&worker("w"), &full(2), 0);
        for refused in
            [router.full("m", VocabHash([1; 32]), 0).unwrap(), router.place(&need(Some(0)), 0).unwrap_err()]
        {
            assert_eq!(refused.reason, Reason::Overloaded);
            let after = refused.retry_after.unwrap();
            assert!(
                after > Duration::from_secs(1) && after <= Duration::from_secs(2),
                "{after:?}: the sooner"
            );
        }
        // More urgent, or already under way: they may ask.
        let urgent = router.place(&need(Some(1)), 0).unwrap();
        router.place(&need(None), 0).unwrap();
        router.admitted(&urgent.worker.id);
        assert_eq!(router.full("m", VocabHash([1; 32]), 0), None);
    }
}

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use request::InvalidField;

use crate::{Incarnation, Load, Member, NodeId, NodeRecord, NodeState, NodeUpdate, Presence, Role};

/// One Join stream, numbered by whoever accepts them and never reused: a node that joins again
/// before its old stream is seen to break must not be taken down by the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// How long silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Silence after which a node gets no new work.
    pub suspect_after: Duration,
    /// Silence, or time without a stream, after which a node is forgotten. Longer than `suspect_after`.
    pub forget_after: Duration,
    /// Most nodes known at once; a snapshot of one more is refused.
    pub max_nodes: usize,
}

impl Patience {
    /// Three missed heartbeats make a suspect, thirty (at least a minute) a stranger.
    pub fn for_interval(heartbeat: Duration) -> Self {
        Self {
            suspect_after: heartbeat.saturating_mul(3),
            forget_after: heartbeat.saturating_mul(30).max(Duration::from_secs(60)),
            max_nodes: 4096,
        }
    }
}

/// What an update or a silence changed. A load alone changes nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not known before.
    Joined(NodeId),
    /// A later incarnation took its name's place: what the earlier one held is gone.
    Restarted(NodeId),
    /// Takes new work again after draining.
    Ready(NodeId),
    Draining(NodeId),
    /// Heartbeats are missing.
    Suspected(NodeId),
    /// Heard again, or joined again, within the same incarnation.
    Returned(NodeId),
    /// Its stream broke.
    Disconnected(NodeId),
    /// Forgotten, or left after draining.
    Removed(NodeId),
}

/// Why an update was not taken. The table is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A delta went missing, or came on a stream without a snapshot.
    #[error("delta {got} came where {expected} was due: send a snapshot")]
    Gap { expected: u64, got: u64 },
    #[error(
        "node `{id}` has incarnation {known} here and {offered} was offered: an older life of it, or a second node of that name; give each node its own --node-id"
    )]
    Stale { id: NodeId, known: Incarnation, offered: Incarnation },
    /// Another stream carries this node now.
    #[error("node `{id}` has joined again on a later stream")]
    Superseded { id: NodeId },
    #[error("stream of node `{joined}` sent a snapshot of `{offered}`: one stream carries one node")]
    OtherNode { joined: NodeId, offered: NodeId },
    #[error("node `{id}` changed its {field} without a new incarnation")]
    Changed { id: NodeId, field: &'static str },
    #[error("the table holds {max} nodes, its most")]
    Full { max: usize },
    #[error(transparent)]
    Invalid(#[from] InvalidField),
}

/// Who is there. One owner applies updates; readers get [`View`]s.
#[derive(Debug)]
pub struct Table {
    patience: Patience,
    nodes: BTreeMap<NodeId, Entry>,
    /// Open streams that sent a snapshot, and whose.
    streams: BTreeMap<StreamId, NodeId>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    stream: StreamId,
    /// Number of the last update taken.
    number: u64,
}

impl Table {
    pub fn new(patience: Patience) -> Self {
        Self { patience, nodes: BTreeMap::new(), streams: BTreeMap::new() }
    }

    /// Takes one message of a stream at time `now`. Only [`Refused::Gap`] is healed by a snapshot;
    /// after any other refusal the stream is of no use.
    pub fn apply(
        &mut self,
        stream: StreamId,
        update: NodeUpdate,
        now: Duration,
    ) -> Result<Vec<Change>, Refused> {
        match update {
            NodeUpdate::Snapshot { number, record, load } => self.snapshot(stream, number, record, load, now),
            NodeUpdate::Delta { number, state, load } => self.delta(stream, number, state, load, now),
        }
    }

    /// What silence up to `now` means.
    pub fn on_tick(&mut self, now: Duration) -> Vec<Change> {
        let Patience { suspect_after, forget_after, .. } = self.patience;
        let mut changes = Vec::new();
        self.nodes.retain(|id, entry| {
            let silence = now.saturating_sub(entry.member.heard);
            if silence >= forget_after {
                changes.push(Change::Removed(id.clone()));
                return false;
            }
            if silence >= suspect_after && entry.member.presence == Presence::Alive {
                entry.member.presence = Presence::Suspect { since: now };
                changes.push(Change::Suspected(id.clone()));
            }
            true
        });
        changes
    }

    /// A stream ended, however it ended. A node that was draining has left; another is kept, without
    /// new work, until it joins again or is forgotten.
    pub fn on_disconnect(&mut self, stream: StreamId, now: Duration) -> Vec<Change> {
        let Some(id) = self.streams.remove(&stream) else { return Vec::new() };
        let Some(entry) = self.nodes.get_mut(&id) else { return Vec::new() };
        if entry.stream != stream {
            return Vec::new();
        }
        if entry.member.record.state == NodeState::Draining {
            self.nodes.remove(&id);
            return vec![Change::Removed(id)];
        }
        entry.member.presence = Presence::Disconnected { since: now };
        vec![Change::Disconnected(id)]
    }

    /// The node that a stream carries now.
    pub fn carried(&self, stream: StreamId) -> Option<&NodeRecord> {
        let entry = self.nodes.get(self.streams.get(&stream)?)?;
        (entry.stream == stream).then_some(&*entry.member.record)
    }

    /// The table as it is now; later changes do not show in it.
    pub fn view(&self) -> View {
        View { members: self.nodes.values().map(|e| e.member.clone()).collect() }
    }

    fn snapshot(
        &mut self,
        stream: StreamId,
        number: u64,
        record: NodeRecord,
        load: Load,
        now: Duration,
    ) -> Result<Vec<Change>, Refused> {
        record.validate()?;
        let id = record.id.clone();
        if let Some(joined) = self.streams.get(&stream)
            && *joined != id
        {
            return Err(Refused::OtherNode { joined: joined.clone(), offered: id });
        }
        let state = record.state;
        let changes = match self.nodes.get(&id) {
            None if self.nodes.len() >= self.patience.max_nodes => {
                return Err(Refused::Full { max: self.patience.max_nodes });
            }
            None => vec![Change::Joined(id.clone())],
            Some(entry) => {
                let known = &entry.member.record;
                if record.incarnation < known.incarnation {
                    let (known, offered) = (known.incarnation, record.incarnation);
                    return Err(Refused::Stale { id, known, offered });
                }
                if record.incarnation > known.incarnation {
                    vec![Change::Restarted(id.clone())]
                } else if stream < entry.stream {
                    return Err(Refused::Superseded { id });
                } else if let Some(field) = difference(known, &record) {
                    return Err(Refused::Changed { id, field });
                } else {
                    let returned = entry.member.presence != Presence::Alive;
                    let returned = returned.then(|| Change::Returned(id.clone()));
                    returned.into_iter().chain(turn(&id, known.state, state)).collect()
                }
            }
        };
        self.streams.insert(stream, id.clone());
        let member = Member { record: Arc::new(record), load, presence: Presence::Alive, heard: now };
        self.nodes.insert(id, Entry { member, stream, number });
        Ok(changes)
    }

    fn delta(
        &mut self,
        stream: StreamId,
        number: u64,
        state: NodeState,
        load: Load,
        now: Duration,
    ) -> Result<Vec<Change>, Refused> {
        // A forgotten node whose stream lives on is asked for a snapshot too.
        let unknown = Refused::Gap { expected: 0, got: number };
        let Some(id) = self.streams.get(&stream) else { return Err(unknown) };
        let Some(entry) = self.nodes.get_mut(id) else { return Err(unknown) };
        if entry.stream != stream {
            return Err(Refused::Superseded { id: id.clone() });
        }
        let expected = entry.number.saturating_add(1);
        if number != expected {
            return Err(Refused::Gap { expected, got: number });
        }
        entry.number = number;
        let member = &mut entry.member;
        let mut changes = Vec::new();
        if member.presence != Presence::Alive {
            changes.push(Change::Returned(id.clone()));
        }
        changes.extend(turn(id, member.record.state, state));
        if member.record.state != state {
            Arc::make_mut(&mut member.record).state = state;
        }
        (member.load, member.presence, member.heard) = (load, Presence::Alive, now);
        Ok(changes)
    }
}

/// An immutable picture of the table, in node-id order; a clone shares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    members: Arc<[Member]>,
}

impl View {
    pub fn get(&self, id: &NodeId) -> Option<&Member> {
        let at = self.members.binary_search_by(|m| m.record.id.cmp(id)).ok()?;
        self.members.get(at)
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn role(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |m| m.record.role == role)
    }

    /// Names of the models that workers here run, sorted, each once; whether they take work or not.
    pub fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = self.role(Role::Worker).map(|m| m.record.model.clone()).collect();
        models.sort();
        models.dedup();
        models
    }
}

impl FromIterator<Member> for View {
    /// Later members of the same id replace earlier ones.
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let by_id: BTreeMap<NodeId, Member> = members.into_iter().map(|m| (m.record.id.clone(), m)).collect();
        Self { members: by_id.into_values().collect() }
    }
}

fn turn(id: &NodeId, from: NodeState, to: NodeState) -> Option<Change> {
    match (from, to) {
        (NodeState::Ready, NodeState::Draining) => Some(Change::Draining(id.clone())),
        (NodeState::Draining, NodeState::Ready) => Some(Change::Ready(id.clone())),
        _ => None,
    }
}

/// The first field, the state aside, in which two records of one incarnation differ: two processes
/// then claim the same name, and placements made on one of the records would reach the other.
fn difference(a: &NodeRecord, b: &NodeRecord) -> Option<&'static str> {
    [
        ("role", a.role != b.role),
        ("endpoint", a.endpoint != b.endpoint),
        ("model", a.model != b.model),
        ("fingerprint", a.fingerprint != b.fingerprint),
        ("vocab_hash", a.vocab_hash != b.vocab_hash),
        ("context", a.context != b.context),
        ("slots", a.slots != b.slots),
    ]
    .into_iter()
    .find_map(|(field, differs)| differs.then_some(field))
}

#[cfg(test)]
mod tests;

use std::time::Duration;

use ::cluster::{
    Duty, Endpoint, Incarnation, Load, Member, NodeId, NodeRecord, NodeState, NodeUpdate, PrefixName,
    PrefixUpdate, Presence, Role, VocabHash,
};

use super::micros;
use crate::cluster as wire;
use crate::cluster::node_update::Update;
use crate::error::{WireError, at_most};

/// A row of `cluster::MembersResponse`, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub record: NodeRecord,
    pub load: Load,
    /// What the coordinator thinks of it; never unspecified.
    pub presence: wire::Presence,
    /// Since the coordinator last heard it.
    pub quiet: Duration,
}

impl From<&NodeRecord> for wire::NodeRecord {
    fn from(record: &NodeRecord) -> Self {
        Self {
            node_id: record.id.as_str().to_owned(),
            incarnation: record.incarnation.0,
            role: wire::Role::from(record.role).into(),
            endpoint: record.endpoint.as_str().to_owned(),
            model: record.model.clone(),
            fingerprint: record.fingerprint.clone(),
            vocab_hash: record.vocab_hash.0.to_vec(),
            context: record.context,
            slots: record.slots,
            state: wire::NodeState::from(record.state).into(),
            duty: wire::Duty::from(record.duty).into(),
        }
    }
}

impl TryFrom<wire::NodeRecord> for NodeRecord {
    type Error = WireError;

    fn try_from(from: wire::NodeRecord) -> Result<Self, WireError> {
        // Before anything is copied or printed; `validate` knows the rest.
        at_most("model", from.model.len(), 256)?;
        at_most("fingerprint", from.fingerprint.len(), 128)?;
        let record = Self {
            id: NodeId::new(&from.node_id)?,
            incarnation: Incarnation(from.incarnation),
            role: role(from.role)?,
            endpoint: Endpoint::new(&from.endpoint)?,
            model: from.model,
            fingerprint: from.fingerprint,
            vocab_hash: vocab_hash(&from.vocab_hash)?,
            context: from.context,
            slots: from.slots,
            state: node_state(from.state)?,
            duty: duty(from.duty)?,
        };
        record.validate()?;
        Ok(record)
    }
}

impl From<Load> for wire::Load {
    fn from(load: Load) -> Self {
        Self {
            running: load.running,
            waiting: load.waiting,
            free_slots: load.free_slots,
            free_pages: load.free_pages,
            step_time_us: micros(load.step_time),
            prefill_tokens_per_s: load.prefill_rate,
            handed_tokens_per_s: load.handed_rate,
        }
    }
}

impl From<wire::Load> for Load {
    fn from(load: wire::Load) -> Self {
        Self {
            running: load.running,
            waiting: load.waiting,
            free_slots: load.free_slots,
            free_pages: load.free_pages,
            step_time: Duration::from_micros(load.step_time_us.into()),
            prefill_rate: load.prefill_tokens_per_s,
            handed_rate: load.handed_tokens_per_s,
        }
    }
}

impl From<&NodeUpdate> for wire::NodeUpdate {
    fn from(update: &NodeUpdate) -> Self {
        let update = match update {
            NodeUpdate::Snapshot { number, record, load } => Update::Snapshot(wire::Snapshot {
                number: *number,
                record: Some(record.into()),
                load: Some((*load).into()),
            }),
            NodeUpdate::Delta { number, state, load } => Update::Delta(wire::Delta {
                number: *number,
                load: Some((*load).into()),
                state: wire::NodeState::from(*state).into(),
            }),
        };
        Self { update: Some(update) }
    }
}

impl TryFrom<wire::NodeUpdate> for NodeUpdate {
    type Error = WireError;

    fn try_from(from: wire::NodeUpdate) -> Result<Self, WireError> {
        match from.update.ok_or(WireError::missing("update"))? {
            Update::Snapshot(s) => Ok(Self::Snapshot {
                number: s.number,
                record: s.record.ok_or(WireError::missing("snapshot.record"))?.try_into()?,
                load: s.load.ok_or(WireError::missing("snapshot.load"))?.into(),
            }),
            Update::Delta(d) => Ok(Self::Delta {
                number: d.number,
                state: node_state(d.state)?,
                load: d.load.ok_or(WireError::missing("delta.load"))?.into(),
            }),
            Update::Prefixes(_) => Err(WireError::invalid("update", "prefixes are no update of the table")),
        }
    }
}

impl From<&PrefixUpdate> for wire::NodeUpdate {
    fn from(update: &PrefixUpdate) -> Self {
        let names = |names: &[PrefixName]| names.iter().map(|name| name.0).collect();
        let prefixes = wire::Prefixes {
            number: update.number,
            reset: update.reset,
            stored: names(&update.stored),
            removed: names(&update.removed),
        };
        Self { update: Some(Update::Prefixes(prefixes)) }
    }
}

impl TryFrom<wire::Prefixes> for PrefixUpdate {
    type Error = WireError;

    fn try_from(from: wire::Prefixes) -> Result<Self, WireError> {
        at_most("prefixes", from.stored.len() + from.removed.len(), Self::MOST)?;
        let names = |names: Vec<u64>| names.into_iter().map(PrefixName).collect();
        Ok(Self {
            number: from.number,
            reset: from.reset,
            stored: names(from.stored),
            removed: names(from.removed),
        })
    }
}

/// A member at time `now` (since process start, as in the table it came from).
pub fn member(member: &Member, now: Duration) -> wire::Member {
    let presence = match member.presence {
        Presence::Alive => wire::Presence::Alive,
        Presence::Suspect { .. } => wire::Presence::Suspect,
        Presence::Disconnected { .. } => wire::Presence::Disconnected,
    };
    wire::Member {
        record: Some(member.record.as_ref().into()),
        load: Some(member.load.into()),
        presence: presence.into(),
        quiet_ms: now.saturating_sub(member.heard).as_millis().try_into().unwrap_or(u64::MAX),
    }
}

impl TryFrom<wire::Member> for Listed {
    type Error = WireError;

    fn try_from(from: wire::Member) -> Result<Self, WireError> {
        let presence = wire::Presence::try_from(from.presence)
            .map_err(|_| WireError::unknown("members.presence", from.presence))?;
        if presence == wire::Presence::Unspecified {
            return Err(WireError::missing("members.presence"));
        }
        Ok(Self {
            record: from.record.ok_or(WireError::missing("members.record"))?.try_into()?,
            load: from.load.ok_or(WireError::missing("members.load"))?.into(),
            presence,
            quiet: Duration::from_millis(from.quiet_ms),
        })
    }
}

impl From<Role> for wire::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Drafter => Self::Drafter,
        }
    }
}

/// Reads a `Role` field.
pub fn role(value: i32) -> Result<Role, WireError> {
    match wire::Role::try_from(value) {
        Ok(wire::Role::Unspecified) => Err(WireError::missing("role")),
        Ok(wire::Role::Worker) => Ok(Role::Worker),
        Ok(wire::Role::Drafter) => Ok(Role::Drafter),
        Err(_) => Err(WireError::unknown("role", value)),
    }
}

impl From<Duty> for wire::Duty {
    fn from(duty: Duty) -> Self {
        match duty {
            Duty::Mixed => Self::Mixed,
            Duty::Prefill => Self::Prefill,
            Duty::Decode => Self::Decode,
        }
    }
}

/// Reads a `Duty` field; a node of a release without it is mixed.
fn duty(value: i32) -> Result<Duty, WireError> {
    match wire::Duty::try_from(value) {
        Ok(wire::Duty::Unspecified | wire::Duty::Mixed) => Ok(Duty::Mixed),
        Ok(wire::Duty::Prefill) => Ok(Duty::Prefill),
        Ok(wire::Duty::Decode) => Ok(Duty::Decode),
        Err(_) => Err(WireError::unknown("duty", value)),
    }
}

impl From<NodeState> for wire::NodeState {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Ready => Self::Ready,
            NodeState::Draining => Self::Draining,
        }
    }
}

/// Reads a `NodeState` field.
pub fn node_state(value: i32) -> Result<NodeState, WireError> {
    match wire::NodeState::try_from(value) {
        Ok(wire::NodeState::Unspecified) => Err(WireError::missing("state")),
        Ok(wire::NodeState::Ready) => Ok(NodeState::Ready),
        Ok(wire::NodeState::Draining) => Ok(NodeState::Draining),
        Err(_) => Err(WireError::unknown("state", value)),
    }
}

/// Reads a vocabulary hash: 32 bytes.
pub fn vocab_hash(bytes: &[u8]) -> Result<VocabHash, WireError> {
    bytes
        .try_into()
        .map(VocabHash)
        .map_err(|_| WireError::invalid("vocab_hash", format!("has {} bytes; a SHA-256 has 32", bytes.len())))
}

/// How often a coordinator wants to hear from a node: 1 ms to 1 hour.
pub fn heartbeat_interval(response: &wire::JoinResponse) -> Result<Duration, WireError> {
    match response.heartbeat_interval_ms {
        ms @ 1..=3_600_000 => Ok(Duration::from_millis(ms.into())),
        ms => Err(WireError::invalid("heartbeat_interval_ms", format!("{ms} is not between 1 and 3600000"))),
    }
}

/// Reads an incarnation; 0 is what a sender that never set it would send.
pub(crate) fn incarnation(field: &'static str, value: u64) -> Result<Incarnation, WireError> {
    if value == 0 {
        return Err(WireError::missing(field));
    }
    Ok(Incarnation(value))
}

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use request::InvalidField;

use crate::Endpoint;

/// A node's name, unique in the cluster and kept over restarts: 1 to 128 of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    pub fn new(id: &str) -> Result<Self, InvalidField> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if id.is_empty() || id.len() > 128 || !id.bytes().all(allowed) {
            return Err(InvalidField::new("node_id", "must be 1 to 128 of a-z A-Z 0-9 . _ -"));
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // `pad`, so that tables can align it.
        f.pad(&self.0)
    }
}

/// Which life of a node: grows with every start of the process, never 0. What was granted by one
/// incarnation means nothing to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// SHA-256 over a vocabulary's token strings in id order. Equal hashes: one node's ids can be drafts
/// for the other. Written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VocabHash(pub [u8; 32]);

impl FromStr for VocabHash {
    type Err = InvalidField;

    fn from_str(hex: &str) -> Result<Self, InvalidField> {
        let wrong = || InvalidField::new("vocab_hash", "must be 64 lower-case hex digits (SHA-256)");
        // Lower case only, so that equal hashes are equal strings; `from_str_radix` alone would take "+f".
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

impl std::fmt::Display for VocabHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for VocabHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VocabHash({self})")
    }
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Runs the target model.
    Worker,
    /// Runs a draft model ahead of workers.
    Drafter,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Worker => "worker",
            Self::Drafter => "drafter",
        })
    }
}

/// Which part of a request a worker is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Duty {
    /// Whole requests.
    #[default]
    Mixed,
    /// Prompts of requests that others answer.
    Prefill,
    /// Whole requests, but long prompts are better computed elsewhere.
    Decode,
}

impl std::fmt::Display for Duty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Mixed => "mixed",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// What a node says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Takes new work.
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
        })
    }
}

/// What a node is. Only `state` changes during an incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub role: Role,
    /// Where others dial it.
    pub endpoint: Endpoint,
    /// Name of the model it runs, as requests name it: 1 to 256 visible ASCII characters.
    pub model: String,
    /// Numerics fingerprint: equal fingerprints give equal text. 1 to 128 visible ASCII characters.
    pub fingerprint: String,
    pub vocab_hash: VocabHash,
    /// Most positions of one sequence, at least 1.
    pub context: u32,
    /// Sequences (worker) or sessions (drafter) it runs at once, at least 1.
    pub slots: u32,
    pub state: NodeState,
    /// Of a worker; a drafter's is `Mixed`.
    pub duty: Duty,
}

impl NodeRecord {
    /// Checks what the field types do not.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let visible =
            |s: &str, most| !s.is_empty() && s.len() <= most && s.bytes().all(|b| b.is_ascii_graphic());
        if self.incarnation.0 == 0 {
            return Err(InvalidField::new("incarnation", "must not be 0"));
        }
        if !visible(&self.model, 256) {
            return Err(InvalidField::new(
                "model",
                "must be 1 to 256 visible ASCII characters without spaces",
            ));
        }
        if !visible(&self.fingerprint, 128) {
            return Err(InvalidField::new(
                "fingerprint",
                "must be 1 to 128 visible ASCII characters without spaces",
            ));
        }
        if self.context == 0 {
            return Err(InvalidField::new("context", "must be at least 1"));
        }
        if self.slots == 0 {
            return Err(InvalidField::new("slots", "must be at least 1"));
        }
        Ok(())
    }
}

/// How busy a node is, as of its last heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences (worker) or sessions (drafter) in slots.
    pub running: u32,
    /// Admitted and waiting for a slot.
    pub waiting: u32,
    pub free_slots: u32,
    /// KV pages not owned by a sequence.
    pub free_pages: u32,
    /// Recent time of one step; zero before the first.
    pub step_time: Duration,
    /// Prompt tokens a second that it computed lately; 0: not known.
    pub prefill_rate: u32,
    /// Prompt tokens a second whose pages it was handed lately; 0: not known.
    pub handed_rate: u32,
}

/// One message of a node's Join stream.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeUpdate {
    /// Everything; opens a stream and answers a wish for a snapshot. The next delta is `number` + 1.
    Snapshot { number: u64, record: NodeRecord, load: Load },
    /// What changed; also the heartbeat. Numbered without gaps within a stream.
    Delta { number: u64, state: NodeState, load: Load },
}

/// What the table thinks of a node, from hearing it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Heartbeats arrive.
    Alive,
    /// Heartbeats are missing since that time: no new work. Streams that run on it go on; only their
    /// own breaking replays them.
    Suspect { since: Duration },
    /// Its Join stream broke at that time: no new work until it joins again.
    Disconnected { since: Duration },
}

impl std::fmt::Display for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Alive => "alive",
            Self::Suspect { .. } => "suspect",
            Self::Disconnected { .. } => "disconnected",
        })
    }
}

/// A node in a [`View`](crate::View).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub record: Arc<NodeRecord>,
    pub load: Load,
    pub presence: Presence,
    /// When it was last heard.
    pub heard: Duration,
}

impl Member {
    /// Ready by its own word and by ours.
    pub fn takes_work(&self) -> bool {
        self.record.state == NodeState::Ready && self.presence == Presence::Alive
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ready worker (ids starting with `w`) or drafter of model `m`, vocabulary 1, 4 slots.
    pub(crate) fn node(id: &str) -> NodeRecord {
        NodeRecord {
            id: NodeId::new(id).unwrap(),
            incarnation: Incarnation(1),
            role: if id.starts_with('w') { Role::Worker } else { Role::Drafter },
            endpoint: Endpoint::new("http://127.0.0.1:9001").unwrap(),
            model: "m".into(),
            fingerprint: "fp_1".into(),
            vocab_hash: VocabHash([1; 32]),
            context: 1024,
            slots: 4,
            state: NodeState::Ready,
            duty: Duty::Mixed,
        }
    }

    #[test]
    fn records_name_the_field_that_is_wrong() {
        assert!(node("w").validate().is_ok());
        for (bad, field) in [
            (NodeRecord { incarnation: Incarnation(0), ..node("w") }, "incarnation"),
            (NodeRecord { model: String::new(), ..node("w") }, "model"),
            (NodeRecord { model: "a b".into(), ..node("w") }, "model"),
            (NodeRecord { fingerprint: "x".repeat(129), ..node("w") }, "fingerprint"),
            (NodeRecord { context: 0, ..node("w") }, "context"),
            (NodeRecord { slots: 0, ..node("w") }, "slots"),
        ] {
            assert_eq!(bad.validate().unwrap_err().field, field);
        }
        for bad in ["", "a b", "a/b", "\u{e9}", &"x".repeat(129)] {
            assert_eq!(NodeId::new(bad).unwrap_err().field, "node_id", "{bad:?}");
        }
    }

    #[test]
    fn vocab_hashes_are_lower_case_hex() {
        for bad in ["", "00", &"0".repeat(63), &"A".repeat(64), &"+1".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(bad.parse::<VocabHash>().unwrap_err().field, "vocab_hash", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn vocab_hashes_survive_writing(bytes: [u8; 32]) {
            let hash = VocabHash(bytes);
            prop_assert_eq!(hash.to_string().parse::<VocabHash>().unwrap(), hash);
        }
    }
}

//! Frames of the draft stream (`paceline.draft.v1`) as checked values.
//!
//! A bad frame harms its own session only: [`BadFrame`] names the session, so that a drafter can
//! refuse or close it and a worker can drop and count it. What a frame means for a sequence is
//! `speculation`'s to say.

mod drafter;
mod opening;
mod site;
mod worker;

pub use drafter::{ClosedReason, FromDrafter, RefusedReason};
pub use opening::{Open, Opening};
pub use worker::FromWorker;

use ::cluster::{Incarnation, NodeId, Site, VocabHash};
use request::TokenId;

use crate::bounds::{MAX_CHUNK_TOKENS, MAX_FRAME_BYTES};
use crate::convert::constraint::MOST_IN_OPEN;
use crate::convert::{tokens, vocab_hash};
use crate::draft;
use crate::error::{WireError, at_most};
use crate::reason::Reason;

/// Versions of the draft protocol that this build speaks, from and to.
pub const PROTOCOL: (u32, u32) = (1, 1);

/// A frame with both ends' incarnations.
#[derive(Clone, Debug, PartialEq)]
pub struct Addressed<F> {
    pub sender: Incarnation,
    pub receiver: Incarnation,
    pub frame: F,
}

impl<F> Addressed<F> {
    /// Refuses a frame for another life of this node, or from another life of the peer than the one
    /// that said Hello (`None` until it did).
    pub fn check(&self, me: Incarnation, peer: Option<Incarnation>) -> Result<(), WireError> {
        if self.receiver != me {
            return Err(WireError::new(
                Reason::StaleIncarnation,
                "receiver_incarnation",
                format!("the frame is for incarnation {}; this node is {me} now", self.receiver),
            ));
        }
        match peer {
            Some(peer) if peer != self.sender => Err(WireError::new(
                Reason::StaleIncarnation,
                "sender_incarnation",
                format!("the frame is from incarnation {}; the stream belongs to {peer}", self.sender),
            )),
            _ => Ok(()),
        }
    }
}

/// A frame that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{error}", session.map(|s| format!("session {s}: ")).unwrap_or_default())]
pub struct BadFrame {
    /// The session it was for; `None`: the stream as a whole is at fault.
    pub session: Option<u64>,
    pub error: WireError,
}

impl From<WireError> for BadFrame {
    fn from(error: WireError) -> Self {
        Self { session: None, error }
    }
}

impl From<BadFrame> for tonic::Status {
    fn from(bad: BadFrame) -> Self {
        bad.error.into()
    }
}

/// Says that an error belongs to one session.
fn of<T>(session: u64, result: Result<T, WireError>) -> Result<T, BadFrame> {
    result.map_err(|error| BadFrame { session: Some(session), error })
}

/// Who speaks on the stream; the first frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub node: NodeId,
    /// Versions spoken, from and to.
    pub protocol: (u32, u32),
    pub vocab_hash: VocabHash,
    /// Names of optional features; unknown ones are ignored.
    pub features: Vec<String>,
    /// Where the speaker computes; `None`: it does not say.
    pub site: Option<Site>,
}

impl Hello {
    /// A hello of this build.
    pub fn new(node: NodeId, vocab_hash: VocabHash) -> Self {
        Self { node, protocol: PROTOCOL, vocab_hash, features: Vec::new(), site: None }
    }

    /// The largest protocol version in common, or why the two cannot pair, naming both.
    pub fn agree(&self, theirs: &Self) -> Result<u32, WireError> {
        let (min, max) = (self.protocol.0.max(theirs.protocol.0), self.protocol.1.min(theirs.protocol.1));
        if min > max {
            return Err(WireError::new(
                Reason::ProtocolMismatch,
                "hello.protocol",
                format!(
                    "{} speaks versions {} to {}, {} speaks {} to {}; upgrade the older one",
                    self.node,
                    self.protocol.0,
                    self.protocol.1,
                    theirs.node,
                    theirs.protocol.0,
                    theirs.protocol.1
                ),
            ));
        }
        if self.vocab_hash != theirs.vocab_hash {
            return Err(WireError::new(
                Reason::VocabMismatch,
                "hello.vocab_hash",
                format!(
                    "the vocabulary of {} is {}, that of {} is {}; a drafter needs the tokenizer of its target",
                    self.node, self.vocab_hash, theirs.node, theirs.vocab_hash
                ),
            ));
        }
        Ok(max)
    }
}

impl From<Hello> for draft::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            node_id: hello.node.as_str().to_owned(),
            protocol_min: hello.protocol.0,
            protocol_max: hello.protocol.1,
            vocab_hash: hello.vocab_hash.0.to_vec(),
            features: hello.features,
            site: hello.site.map(Into::into),
        }
    }
}

impl TryFrom<draft::Hello> for Hello {
    type Error = WireError;

    fn try_from(from: draft::Hello) -> Result<Self, WireError> {
        if from.protocol_min == 0 || from.protocol_min > from.protocol_max {
            return Err(WireError::invalid(
                "hello.protocol",
                format!("{} to {} is no range of versions", from.protocol_min, from.protocol_max),
            ));
        }
        at_most("hello.features", from.features.len(), 64)?;
        at_most("hello.features", from.features.iter().map(String::len).max().unwrap_or(0), 64)?;
        Ok(Self {
            node: NodeId::new(&from.node_id)?,
            protocol: (from.protocol_min, from.protocol_max),
            vocab_hash: vocab_hash(&from.vocab_hash)?,
            features: from.features,
            site: from.site.map(Site::try_from).transpose()?,
        })
    }
}

/// At least one id, at most `most`, and no position past the largest one.
fn run(
    (at_field, ids_field): (&'static str, &'static str),
    at: u32,
    ids: Vec<u32>,
    most: usize,
) -> Result<Vec<TokenId>, WireError> {
    if ids.is_empty() {
        return Err(WireError::invalid(ids_field, "is empty"));
    }
    let ids = tokens(ids_field, ids, most)?;
    if at.checked_add(ids.len() as u32).is_none() {
        return Err(WireError::invalid(at_field, format!("{at} leaves no room for the ids")));
    }
    Ok(ids)
}

// A full chunk of the longest ids, with room for the other fields, passes the decoder.
const _: () = assert!(MAX_CHUNK_TOKENS * 5 + MOST_IN_OPEN + 1024 * 12 + 4096 < MAX_FRAME_BYTES);

#[cfg(test)]
mod tests;

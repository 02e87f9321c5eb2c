use std::time::Duration;

use request::{TokenId, Tokens as _};

use super::{Addressed, BadFrame, Hello, of, run};
use crate::bounds::{MAX_DISTRIBUTION, MAX_DRAFT_TOKENS, MAX_MESSAGE_BYTES, cut};
use crate::convert::{incarnation, micros, millis};
use crate::draft::{self, drafter_frame::Frame};
use crate::error::{WireError, at_most};

/// What a drafter tells a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum FromDrafter {
    Hello(Hello),
    Granted {
        session: u64,
        /// The slot is free again when no frame of the session arrives for this long. Above 0.
        lease_ttl: Duration,
    },
    Refused {
        session: u64,
        reason: RefusedReason,
        message: String,
    },
    /// The whole unconfirmed tail since the last commit that the drafter knows.
    Drafts {
        session: u64,
        at: u32,
        prefix_hash: u64,
        /// 1 to 64.
        ids: Vec<TokenId>,
        /// What each id was drawn from (rejection rule): one per id, or none.
        q: Vec<Vec<(TokenId, f32)>>,
        /// Of one token, recent mean.
        draft_time: Duration,
    },
    /// The drafter has `have` tokens: the next commit must start there or before.
    Resync {
        session: u64,
        have: u32,
    },
    Closed {
        session: u64,
        reason: ClosedReason,
        message: String,
    },
}

/// Why a session was not granted. In every case the worker decodes plainly or asks another drafter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedReason {
    NoSlot,
    TooLong,
    Draining,
    NotBuilt,
    Invalid,
    /// One that this version does not know: a refusal all the same.
    Unknown,
}

/// Why a session ended on the drafter's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClosedReason {
    Asked,
    LeaseExpired,
    Draining,
    ContextFull,
    Failed,
    Invalid,
    /// One that this version does not know: closed all the same.
    Unknown,
}

impl FromDrafter {
    /// `None`: the frame is about the stream.
    pub fn session(&self) -> Option<u64> {
        match self {
            Self::Hello(_) => None,
            Self::Granted { session, .. }
            | Self::Refused { session, .. }
            | Self::Drafts { session, .. }
            | Self::Resync { session, .. }
            | Self::Closed { session, .. } => Some(*session),
        }
    }
}

impl From<Addressed<FromDrafter>> for draft::DrafterFrame {
    fn from(from: Addressed<FromDrafter>) -> Self {
        let frame = match from.frame {
            FromDrafter::Hello(hello) => Frame::Hello(hello.into()),
            FromDrafter::Granted { session, lease_ttl } => {
                Frame::Granted(draft::Granted { session, lease_ttl_ms: millis(lease_ttl) })
            }
            FromDrafter::Refused { session, reason, message } => Frame::Refused(draft::Refused {
                session,
                reason: draft::RefusedReason::from(reason).into(),
                message: cut(&message, MAX_MESSAGE_BYTES).to_owned(),
            }),
            FromDrafter::Drafts { session, at, prefix_hash, ids, q, draft_time } => {
                Frame::Drafts(draft::Drafts {
                    session,
                    at,
                    prefix_hash,
                    ids: ids.to_ids(),
                    parents: Vec::new(),
                    q: q.into_iter().map(distribution).collect(),
                    draft_time_us: micros(draft_time),
                })
            }
            FromDrafter::Resync { session, have } => Frame::Resync(draft::Resync { session, have }),
            FromDrafter::Closed { session, reason, message } => Frame::Closed(draft::Closed {
                session,
                reason: draft::ClosedReason::from(reason).into(),
                message: cut(&message, MAX_MESSAGE_BYTES).to_owned(),
            }),
        };
        Self { sender_incarnation: from.sender.0, receiver_incarnation: from.receiver.0, frame: Some(frame) }
    }
}

impl TryFrom<draft::DrafterFrame> for Addressed<FromDrafter> {
    type Error = BadFrame;

    fn try_from(from: draft::DrafterFrame) -> Result<Self, BadFrame> {
        let frame = match from.frame.ok_or(WireError::missing("frame"))? {
            Frame::Hello(hello) => FromDrafter::Hello(hello.try_into()?),
            Frame::Granted(granted) => {
                if granted.lease_ttl_ms == 0 {
                    return of(granted.session, Err(WireError::missing("granted.lease_ttl_ms")));
                }
                FromDrafter::Granted {
                    session: granted.session,
                    lease_ttl: Duration::from_millis(granted.lease_ttl_ms.into()),
                }
            }
            Frame::Refused(refused) => FromDrafter::Refused {
                session: refused.session,
                reason: refused.reason().into(),
                message: cut(&refused.message, MAX_MESSAGE_BYTES).to_owned(),
            },
            Frame::Drafts(drafts) => of(drafts.session, read_drafts(drafts))?,
            Frame::Resync(resync) => FromDrafter::Resync { session: resync.session, have: resync.have },
            Frame::Closed(closed) => FromDrafter::Closed {
                session: closed.session,
                reason: closed.reason().into(),
                message: cut(&closed.message, MAX_MESSAGE_BYTES).to_owned(),
            },
        };
        Ok(Self {
            sender: incarnation("sender_incarnation", from.sender_incarnation)?,
            receiver: incarnation("receiver_incarnation", from.receiver_incarnation)?,
            frame,
        })
    }
}

fn read_drafts(from: draft::Drafts) -> Result<FromDrafter, WireError> {
    if !from.parents.is_empty() {
        return Err(WireError::not_built("drafts.parents"));
    }
    if !from.q.is_empty() && from.q.len() != from.ids.len() {
        let why = format!("has {} distributions for {} ids", from.q.len(), from.ids.len());
        return Err(WireError::invalid("drafts.q", why));
    }
    let q = from.q.into_iter().map(read_distribution).collect::<Result<_, _>>()?;
    let ids = run(("drafts.at", "drafts.ids"), from.at, from.ids, MAX_DRAFT_TOKENS)?;
    Ok(FromDrafter::Drafts {
        session: from.session,
        at: from.at,
        prefix_hash: from.prefix_hash,
        ids,
        q,
        draft_time: Duration::from_micros(from.draft_time_us.into()),
    })
}

fn distribution(entries: Vec<(TokenId, f32)>) -> draft::Distribution {
    let (ids, probabilities) = entries.into_iter().map(|(id, p)| (id.0, p)).unzip();
    draft::Distribution { ids, probabilities }
}

fn read_distribution(from: draft::Distribution) -> Result<Vec<(TokenId, f32)>, WireError> {
    at_most("drafts.q.ids", from.ids.len(), MAX_DISTRIBUTION)?;
    if from.ids.is_empty() || from.ids.len() != from.probabilities.len() {
        let why = format!("{} ids with {} probabilities", from.ids.len(), from.probabilities.len());
        return Err(WireError::invalid("drafts.q", why));
    }
    if !from.probabilities.iter().all(|p| p.is_finite() && *p > 0.0) {
        return Err(WireError::invalid("drafts.q", "holds a probability that is not finite and above 0"));
    }
    Ok(from.ids.into_iter().map(TokenId).zip(from.probabilities).collect())
}

impl From<RefusedReason> for draft::RefusedReason {
    fn from(reason: RefusedReason) -> Self {
        match reason {
            RefusedReason::NoSlot => Self::NoSlot,
            RefusedReason::TooLong => Self::TooLong,
            RefusedReason::Draining => Self::Draining,
            RefusedReason::NotBuilt => Self::NotBuilt,
            RefusedReason::Invalid => Self::Invalid,
            RefusedReason::Unknown => Self::Unspecified,
        }
    }
}

impl From<draft::RefusedReason> for RefusedReason {
    fn from(reason: draft::RefusedReason) -> Self {
        match reason {
            draft::RefusedReason::Unspecified => Self::Unknown,
            draft::RefusedReason::NoSlot => Self::NoSlot,
            draft::RefusedReason::TooLong => Self::TooLong,
            draft::RefusedReason::Draining => Self::Draining,
            draft::RefusedReason::NotBuilt => Self::NotBuilt,
            draft::RefusedReason::Invalid => Self::Invalid,
        }
    }
}

impl From<ClosedReason> for draft::ClosedReason {
    fn from(reason: ClosedReason) -> Self {
        match reason {
            ClosedReason::Asked => Self::Asked,
            ClosedReason::LeaseExpired => Self::LeaseExpired,
            ClosedReason::Draining => Self::Draining,
            ClosedReason::ContextFull => Self::ContextFull,
            ClosedReason::Failed => Self::Failed,
            ClosedReason::Invalid => Self::Invalid,
            ClosedReason::Unknown => Self::Unspecified,
        }
    }
}

impl From<draft::ClosedReason> for ClosedReason {
    fn from(reason: draft::ClosedReason) -> Self {
        match reason {
            draft::ClosedReason::Unspecified => Self::Unknown,
            draft::ClosedReason::Asked => Self::Asked,
            draft::ClosedReason::LeaseExpired => Self::LeaseExpired,
            draft::ClosedReason::Draining => Self::Draining,
            draft::ClosedReason::ContextFull => Self::ContextFull,
            draft::ClosedReason::Failed => Self::Failed,
            draft::ClosedReason::Invalid => Self::Invalid,
        }
    }
}

use request::{TokenId, Tokens as _};

use super::{Addressed, BadFrame, Hello, Opening, of, run};
use crate::bounds::{MAX_CHUNK_TOKENS, MAX_DRAFT_TOKENS};
use crate::convert::incarnation;
use crate::draft::{self, worker_frame::Frame};
use crate::error::WireError;

/// What a worker tells a drafter.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    Hello(Hello),
    /// The first part of an [`Open`](super::Open); `Known` frames bring the rest.
    Open(Opening),
    Known {
        session: u64,
        at: u32,
        ids: Vec<TokenId>,
    },
    Commit {
        session: u64,
        at: u32,
        prefix_hash: u64,
        ids: Vec<TokenId>,
    },
    Credit {
        session: u64,
        window: u32,
    },
    Close {
        session: u64,
    },
}

impl FromWorker {
    /// `None`: the frame is about the stream.
    pub fn session(&self) -> Option<u64> {
        match self {
            Self::Hello(_) => None,
            Self::Open(opening) => Some(opening.session()),
            Self::Known { session, .. }
            | Self::Commit { session, .. }
            | Self::Credit { session, .. }
            | Self::Close { session } => Some(*session),
        }
    }
}

impl From<Addressed<FromWorker>> for draft::WorkerFrame {
    fn from(from: Addressed<FromWorker>) -> Self {
        let frame = match from.frame {
            FromWorker::Hello(hello) => Frame::Hello(hello.into()),
            FromWorker::Open(opening) => Frame::Open(opening.into()),
            FromWorker::Known { session, at, ids } => {
                Frame::Known(draft::Known { session, at, ids: ids.to_ids() })
            }
            FromWorker::Commit { session, at, prefix_hash, ids } => {
                Frame::Commit(draft::Commit { session, at, prefix_hash, ids: ids.to_ids() })
            }
            FromWorker::Credit { session, window } => Frame::Credit(draft::Credit { session, window }),
            FromWorker::Close { session } => Frame::Close(draft::Close { session }),
        };
        Self { sender_incarnation: from.sender.0, receiver_incarnation: from.receiver.0, frame: Some(frame) }
    }
}

impl TryFrom<draft::WorkerFrame> for Addressed<FromWorker> {
    type Error = BadFrame;

    fn try_from(from: draft::WorkerFrame) -> Result<Self, BadFrame> {
        let frame = match from.frame.ok_or(WireError::missing("frame"))? {
            Frame::Hello(hello) => FromWorker::Hello(hello.try_into()?),
            Frame::Open(open) => FromWorker::Open(of(open.session, open.try_into())?),
            Frame::Known(known) => FromWorker::Known {
                session: known.session,
                at: known.at,
                ids: of(
                    known.session,
                    run(("known.at", "known.ids"), known.at, known.ids, MAX_CHUNK_TOKENS),
                )?,
            },
            Frame::Commit(commit) => FromWorker::Commit {
                session: commit.session,
                at: commit.at,
                prefix_hash: commit.prefix_hash,
                ids: of(
                    commit.session,
                    run(("commit.at", "commit.ids"), commit.at, commit.ids, MAX_CHUNK_TOKENS),
                )?,
            },
            Frame::Credit(credit) => {
                let window = of(credit.session, window("credit.window", 0, credit.window))?;
                FromWorker::Credit { session: credit.session, window }
            }
            Frame::Close(close) => FromWorker::Close { session: close.session },
        };
        Ok(Self {
            sender: incarnation("sender_incarnation", from.sender_incarnation)?,
            receiver: incarnation("receiver_incarnation", from.receiver_incarnation)?,
            frame,
        })
    }
}

pub(super) fn window(field: &'static str, least: u32, value: u32) -> Result<u32, WireError> {
    if value < least || value as usize > MAX_DRAFT_TOKENS {
        return Err(WireError::invalid(
            field,
            format!("{value} is not between {least} and {MAX_DRAFT_TOKENS}"),
        ));
    }
    Ok(value)
}

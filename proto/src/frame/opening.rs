use request::{Adjustments, Constraint, Rapid, Retrieval, Rule, Sampling, TokenId, Tokens as _};

use super::FromWorker;
use super::worker::window;
use crate::bounds::{
    MAX_CHUNK_TOKENS, MAX_KNOWN_TOKENS, MAX_SALT_BYTES, MAX_STOP_IDS, MAX_TRACEPARENT_BYTES,
};
use crate::convert::{constraint, rule, sampling, tokens};
use crate::error::{WireError, at_most};
use crate::{draft, v1};

/// What a drafter must know of a sequence to draft for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Chosen by the worker, never used twice on a stream.
    pub session: u64,
    pub prompt: Vec<TokenId>,
    /// Output known at the start.
    pub committed: Vec<TokenId>,
    /// The target's own.
    pub sampling: Sampling,
    pub adjust: Adjustments,
    /// Left out on the wire when it is very long: drafts then come without it.
    pub constraint: Option<Constraint>,
    pub rule: Rule,
    /// Most unconfirmed tokens past the last commit known.
    pub window: u32,
    pub stop_ids: Vec<TokenId>,
    /// None of them is drafted before this many output tokens.
    pub min_tokens: u32,
    /// Most tokens the sequence will ever have, prompt included.
    pub longest: u32,
    pub cache_salt: String,
    /// What the drafter reads of the prompt; `None`: all of it.
    pub retrieval: Option<Box<Retrieval>>,
    /// W3C trace context of the target's sequence; empty: none.
    pub traceparent: String,
}

impl Open {
    /// The frames that carry it, to be sent in this order. Small ones, so that a long prompt does not
    /// hold up the other sessions of the stream for long.
    pub fn into_frames(self) -> Vec<FromWorker> {
        let session = self.session;
        let (prompt_len, committed_len) = (self.prompt.len(), self.committed.len());
        let known = [self.prompt.as_slice(), self.committed.as_slice()].concat();
        let first = known.len().min(MAX_CHUNK_TOKENS);
        let opening = Opening {
            open: Self {
                prompt: known[..first.min(prompt_len)].to_vec(),
                committed: known[first.min(prompt_len)..first].to_vec(),
                ..self
            },
            prompt_len,
            committed_len,
        };
        let rest = known[first..].chunks(MAX_CHUNK_TOKENS).enumerate().map(|(i, ids)| FromWorker::Known {
            session,
            at: (first + i * MAX_CHUNK_TOKENS) as u32,
            ids: ids.to_vec(),
        });
        std::iter::once(FromWorker::Open(opening)).chain(rest).collect()
    }
}

/// An [`Open`] of which the last tokens may still be missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    open: Open,
    prompt_len: usize,
    committed_len: usize,
}

impl Opening {
    pub fn session(&self) -> u64 {
        self.open.session
    }

    /// Whether the drafter reads all of it.
    pub fn reads_all(&self) -> bool {
        self.open.retrieval.is_none()
    }

    /// Positions that the drafter must have room for before it drafts its first token.
    pub fn known_len(&self) -> usize {
        self.prompt_len + self.committed_len
    }

    /// Adds the tokens of a `Known` frame: exactly behind those it has, not more than were announced.
    pub fn add(&mut self, at: u32, ids: &[TokenId]) -> Result<(), WireError> {
        let have = self.have();
        if at as usize != have {
            return Err(WireError::invalid("known.at", format!("is {at}, but {have} tokens are known")));
        }
        if ids.len() > self.known_len() - have {
            return Err(WireError::invalid(
                "known.ids",
                format!(
                    "{} more than the {} that Open announced",
                    have + ids.len() - self.known_len(),
                    self.known_len()
                ),
            ));
        }
        let (prompt, committed) = ids.split_at(ids.len().min(self.prompt_len - self.open.prompt.len()));
        self.open.prompt.extend_from_slice(prompt);
        self.open.committed.extend_from_slice(committed);
        Ok(())
    }

    /// The whole, or itself while tokens are missing.
    pub fn complete(self) -> Result<Open, Box<Self>> {
        if self.have() == self.known_len() { Ok(self.open) } else { Err(self.into()) }
    }

    fn have(&self) -> usize {
        self.open.prompt.len() + self.open.committed.len()
    }
}

impl From<Opening> for draft::Open {
    fn from(opening: Opening) -> Self {
        let Opening { open, prompt_len, committed_len } = opening;
        let mut wire = Self {
            session: open.session,
            prompt: open.prompt.to_ids(),
            // Requests are bounded far below 2^32.
            prompt_len: prompt_len as u32,
            committed: open.committed.to_ids(),
            committed_len: committed_len as u32,
            sampling: Some(sampling::to_wire(open.sampling.params, &open.adjust)),
            seed: open.sampling.seed,
            choice: open.sampling.choice,
            rule: v1::Rule::from(open.rule).into(),
            window: open.window,
            stop_ids: open.stop_ids.to_ids(),
            longest: open.longest,
            traceparent: open.traceparent,
            cache_salt: open.cache_salt,
            min_tokens: open.min_tokens,
            retrieval: open.retrieval.map(|retrieval| (*retrieval).into()),
            ..Self::default()
        };
        constraint::write_open(open.constraint, &mut wire);
        wire
    }
}

impl TryFrom<draft::Open> for Opening {
    type Error = WireError;

    fn try_from(mut from: draft::Open) -> Result<Self, WireError> {
        let (prompt_len, committed_len) = (from.prompt_len as usize, from.committed_len as usize);
        if prompt_len == 0 {
            return Err(WireError::missing("open.prompt_len"));
        }
        at_most("open.prompt_len", prompt_len.saturating_add(committed_len), MAX_KNOWN_TOKENS)?;
        at_most("open.prompt", from.prompt.len() + from.committed.len(), MAX_CHUNK_TOKENS)?;
        if from.prompt.len() > prompt_len {
            return Err(WireError::invalid("open.prompt", "has more tokens than prompt_len"));
        }
        if from.committed.len() > committed_len {
            return Err(WireError::invalid("open.committed", "has more tokens than committed_len"));
        }
        if !from.committed.is_empty() && from.prompt.len() < prompt_len {
            return Err(WireError::invalid("open.committed", "has tokens while the prompt is not complete"));
        }
        if (from.longest as usize) < prompt_len + committed_len {
            return Err(WireError::invalid("open.longest", "is less than what is known at the start"));
        }
        at_most("open.longest", from.longest as usize, MAX_KNOWN_TOKENS)?;
        at_most("open.cache_salt", from.cache_salt.len(), MAX_SALT_BYTES)?;
        let (params, adjust) = sampling::from_wire(from.sampling.take())?;
        let constraint = constraint::read_open(&mut from)?;
        // A broken trace context is no context, never an error (W3C Trace Context).
        let traceparent =
            if from.traceparent.len() == MAX_TRACEPARENT_BYTES { from.traceparent } else { String::new() };
        let retrieval = from.retrieval.take().map(Retrieval::from);
        if let Some(retrieval) = retrieval {
            let checked = Rapid { retrieval, ..Rapid::default() }.validate();
            checked.map_err(|invalid| WireError::invalid("open.retrieval", invalid.to_string()))?;
        }
        let open = Open {
            session: from.session,
            prompt: tokens("open.prompt", from.prompt, MAX_CHUNK_TOKENS)?,
            committed: tokens("open.committed", from.committed, MAX_CHUNK_TOKENS)?,
            sampling: Sampling { params, seed: from.seed, choice: from.choice },
            adjust,
            constraint,
            rule: rule(from.rule)?,
            window: window("open.window", 1, from.window)?,
            stop_ids: tokens("open.stop_ids", from.stop_ids, MAX_STOP_IDS)?,
            min_tokens: from.min_tokens,
            longest: from.longest,
            cache_salt: from.cache_salt,
            retrieval: retrieval.map(Box::new),
            traceparent,
        };
        Ok(Self { open, prompt_len, committed_len })
    }
}

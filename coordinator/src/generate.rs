//! An answer, from the first placement to its end: refused, it asks the next worker; broken, it goes
//! on at another one where the text stopped.
//!
//! Both APIs read the same [`Answers`]: all choices of one question. They are pulled, not pushed: no
//! task, no queue. A client that stops reading stops the pulls, and HTTP/2's window carries that to the
//! worker, which bounds its own outbox; a client that leaves drops the answer, which resets the
//! worker's stream. [`Pump`] puts a task between them for answers that are streamed.
//!
//! One choice is [`choice::Choice`]: placed (`placing`), read (`choice`), ended (`ending`).

use std::sync::Arc;
use std::time::Duration;

use request::{Request, TokenId};
use tokio::time::Instant;

use crate::models::Model;
use crate::text::Pieces;

mod answers;
mod attempt;
mod choice;
mod ending;
mod event;
mod figures;
mod placing;
mod pump;

pub(crate) use answers::Answers;
pub(crate) use event::{Ended, Event, StopReason, TokensOut, Totals};
pub(crate) use pump::Pump;

/// How long an answer waits for others, its deadline aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From sending a request to the worker's Accepted.
    pub(crate) accept: Duration,
    /// From losing a worker to finding a place for the rest.
    pub(crate) replay: Duration,
}

/// A question with everything resolved that decides the text of its answers.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) model: Arc<Model>,
    /// Of the first choice; the others differ in the index only.
    pub(crate) request: Request,
    /// Those among `limits.stop_ids` that the client named.
    pub(crate) named_stop_ids: Vec<TokenId>,
    /// As after the request's `committed`.
    pub(crate) pieces: Pieces,
    /// Choices.
    pub(crate) n: u32,
    pub(crate) deadline: Instant,
    /// In the words of the GenAI conventions: `chat` or `text_completion`.
    pub(crate) operation: &'static str,
    /// When the question had been read.
    pub(crate) arrived: std::time::Instant,
}

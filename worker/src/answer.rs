//! One answer on its way out of the engine: tokens to the reader, commits to the drafter.

use std::sync::Arc;

use engine::{Outlet, Room, TargetEvent};
use proto::Answer;
use proto::worker::GenerateResponse;
use request::Source;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;

use crate::drafts::Port;
use crate::stages::Stages;

/// Messages of one step and the end: what an outlet with room must take.
const STEP: usize = 2;

/// The engine's end of an answer. It lives on the engine's thread and never waits.
#[derive(Debug)]
pub(crate) struct AnswerOutlet {
    pub(crate) reader: mpsc::Sender<Result<GenerateResponse, Status>>,
    pub(crate) prompt_len: u32,
    pub(crate) stages: Stages,
    /// Prompt tokens that the prefix cache served.
    pub(crate) cached: u32,
    pub(crate) port: Arc<Port>,
    /// Signalled when the sequence leaves the queue.
    pub(crate) started: CancellationToken,
    /// The process does not leave while answers are under way.
    pub(crate) _answer: TaskTrackerToken,
    /// Ends the task that looks for drafters, when the engine drops the sequence.
    pub(crate) _attending: DropGuard,
}

impl Outlet<TargetEvent> for AnswerOutlet {
    fn room(&self) -> Room {
        if self.reader.is_closed() {
            Room::Gone
        } else if self.reader.capacity() < STEP {
            Room::Full
        } else {
            Room::Free
        }
    }

    fn deliver(&mut self, event: TargetEvent) {
        let answer = match event {
            TargetEvent::Committed { frame, drafted, logprobs, verified, source } => {
                self.stages.committed(&drafted);
                // Drafts from elsewhere say nothing of the drafter.
                let theirs = match source {
                    Source::Drafter => (verified as usize, drafted.iter().filter(|d| **d).count()),
                    _ => (0, 0),
                };
                let answer = Answer::Tokens {
                    index: frame.at - self.prompt_len,
                    ids: frame.ids.clone(),
                    drafted,
                    logprobs,
                    verified,
                    predicted: verified > 0 && source == Source::Prediction,
                    cached_tokens: self.cached,
                };
                self.port.commit(frame, theirs.0, theirs.1);
                answer
            }
            TargetEvent::Started { cached } => {
                self.cached = cached;
                self.stages.started(cached);
                self.started.cancel();
                return;
            }
            TargetEvent::Ask { window } => {
                self.port.ask(window);
                return;
            }
            TargetEvent::Again(frame) => {
                self.port.commit(frame, 0, 0);
                return;
            }
            TargetEvent::Ended(ended) => {
                self.stages.ended(&ended);
                Answer::Finish { finish: ended.finish, usage: ended.usage, speculation: ended.speculation }
            }
        };
        // Full is only possible for a slow client that is being dropped; closed: the reader left.
        // Either way the stream ends without Finish, which says "incomplete".
        let _ = self.reader.try_send(Ok(answer.into()));
    }
}

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::{Answers, Event};
use crate::failure::{self, Failure, Reason};

/// Events between an answer and its client. Full: the answer is not pulled, and after the patience
/// with slow clients it is given up.
const AHEAD: usize = 16;

/// An answer that ends even when nobody polls it. A server stops polling a body whose client stopped
/// reading; the answer's permit and the worker's pages must not be held for ever by that.
#[derive(Debug)]
pub(crate) struct Pump {
    events: mpsc::Receiver<(u32, Event)>,
    /// Aborted when dropped, which drops the answer: the client left.
    task: AbortOnDropHandle<Result<(), Failure>>,
    over: bool,
}

impl Pump {
    pub(crate) fn new(answers: Answers, slow_client: Duration) -> Self {
        let (sender, events) = mpsc::channel(AHEAD);
        let span = answers.span();
        let pumping = pump(answers, sender, slow_client).instrument(span);
        let task = AbortOnDropHandle::new(tokio::spawn(pumping));
        Self { events, task, over: false }
    }

    /// As [`Answers::next`].
    pub(crate) async fn next(&mut self) -> Option<Result<(u32, Event), Failure>> {
        if let Some(event) = self.events.recv().await {
            return Some(Ok(event));
        }
        if std::mem::replace(&mut self.over, true) {
            return None;
        }
        match (&mut self.task).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(Err(failure)),
            Err(e) => Some(Err(failure::new(Reason::Internal, format!("the answer's task broke: {e}")))),
        }
    }
}

async fn pump(
    mut answers: Answers,
    events: mpsc::Sender<(u32, Event)>,
    slow_client: Duration,
) -> Result<(), Failure> {
    while let Some(event) = answers.next().await {
        if timeout(slow_client, events.send(event?)).await.is_err() {
            return Err(failure::new(
                Reason::SlowClient,
                format!("the answer was not read for {slow_client:?} and was given up; read faster"),
            ));
        }
    }
    Ok(())
}

//! `paceline.worker.v1`: what a coordinator asks of a target worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster::{Load, NodeRecord, NodeState};
use daemon::Shutdown;
use engine::{Command, Constraint, Inbox, Refusal, TargetOpen, pages_to_hand_over};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use proto::reason::{Reason, status};
use proto::worker::worker_server::Worker;
use proto::worker::{GenerateRequest, GenerateResponse, StatusRequest, StatusResponse};
use proto::{Answer, Candidate, Placed, timeout};
use rank::{Constraints, NoConstraint};
use request::{InvalidField, Quality};
use scheduler::{Refused, SequenceId};
use telemetry::trace;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span};

use crate::answer::AnswerOutlet;
use crate::drafts::{Attendance, Links, Port, attend};
use crate::pages::{Fetch, fetch};
use crate::stages::{self, Stages};

/// The engine answers between two steps; a step of a long prompt takes a while on a small machine.
pub(crate) const ADMISSION: Duration = Duration::from_secs(30);
/// What a refused client is told to wait.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) record: NodeRecord,
    /// Of the texts it gives.
    pub(crate) quality: Quality,
    pub(crate) inbox: Inbox,
    pub(crate) links: Arc<Links>,
    pub(crate) load: watch::Receiver<Load>,
    pub(crate) shutdown: Shutdown,
    pub(crate) outbox: usize,
    pub(crate) constraints: Constraints,
    /// Zero of the engine's clock.
    pub(crate) clock: Instant,
    pub(crate) next_sequence: Arc<AtomicU64>,
    pub(crate) fetch: Arc<Fetch>,
    /// One token an answer, from before the draining check to the engine's last word.
    pub(crate) answers: TaskTracker,
}

#[tonic::async_trait]
impl Worker for Service {
    type GenerateStream = BoxStream<'static, Result<GenerateResponse, Status>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let span = stages::span(request.metadata());
        let answered = self.answer(request, span.clone()).instrument(span.clone()).await;
        answered.inspect_err(|status| stages::refused(&span, status))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let state = if self.shutdown.is_draining() { NodeState::Draining } else { self.record.state };
        let node = NodeRecord { state, ..self.record.clone() };
        let load = *self.load.borrow();
        Ok(Response::new(StatusResponse { node: Some((&node).into()), load: Some(load.into()) }))
    }
}

impl Service {
    async fn answer(
        &self,
        request: Request<GenerateRequest>,
        span: Span,
    ) -> Result<Response<<Self as Worker>::GenerateStream>, Status> {
        let under_way = self.answers.token();
        if self.shutdown.is_draining() {
            return Err(status(Reason::Draining, "this worker is draining; ask another", None, Some(RETRY)));
        }
        let deadline = timeout(request.metadata())?.map(|left| self.clock.elapsed() + left);
        let Placed { model, request, drafters, prefill } = Placed::try_from(request.into_inner())?;
        if model != self.record.model {
            let why = format!("this worker serves {}, not {model}", self.record.model);
            return Err(status(Reason::ModelNotFound, &why, Some("model"), None));
        }
        if (self.quality, request.quality) == (Quality::Approximate, Quality::Exact) {
            let why = "this worker's heads see less than the model's own (rank.head_map): its texts are \
                       approximate; ask with quality approximate, or serve the model without a head map";
            return Err(status(Reason::ApproximateOnly, why, Some("quality"), None));
        }
        let constraint = match &request.constraint {
            Some(constraint) => {
                let compiled = self.constraints.compile(constraint).await;
                Some(compiled.map_err(|why| unconstrained(constraint.field(), &why))?)
            }
            None => None,
        };
        let sequence = SequenceId(self.next_sequence.fetch_add(1, Ordering::Relaxed));
        let (reader, answer) = mpsc::channel(self.outbox);
        let drafter = request.speculation.strategy.takes_drafter();
        let candidates = if drafter { drafters } else { Vec::new() };
        let accepted = Answer::Accepted {
            incarnation: self.record.incarnation,
            fingerprint: self.record.fingerprint.clone(),
            drafter: candidates.first().map(|c| c.id.clone()),
        };
        // First in the stream, before the engine can say anything; the channel is empty.
        let _ = reader.try_send(Ok(accepted.into()));

        let (port, done) = (Arc::new(Port::default()), self.links.me().stop.child_token());
        let started = CancellationToken::new();
        let attendance = Attendance {
            sequence,
            request: request.clone(),
            candidates,
            port: port.clone(),
            started: started.clone(),
            done: done.clone(),
            traceparent: trace::traceparent(&span),
        };
        let stages = Stages::new(telemetry::meters(), span, &self.record.model, &request);
        let outlet = AnswerOutlet {
            reader: reader.clone(),
            prompt_len: request.prompt.len() as u32,
            stages,
            cached: 0,
            port,
            started,
            _answer: under_way,
            _attending: done.drop_guard(),
        };
        let opening = Opening { inbox: self.inbox.clone(), sequence, request, constraint, deadline, outlet };
        let links = self.links.clone();
        let attending = move || {
            if !attendance.candidates.is_empty() {
                links.me().tasks.spawn(attend(links.clone(), attendance));
            }
        };
        match prefill.filter(|_| pages_to_hand_over(opening.request.known().len()) > 0) {
            None => {
                opening.admit().await?;
                attending();
            }
            // The caller has its Accepted: another worker may take long for the prompt.
            Some(from) => {
                let (fetch, stop) = (self.fetch.clone(), self.links.me().stop.clone());
                self.links.me().tasks.spawn(async move {
                    let admitted = tokio::select! {
                        admitted = opening.fetched(&fetch, &from) => admitted,
                        // The client left, or the process stops: nothing is admitted any more.
                        () = reader.closed() => return,
                        () = stop.cancelled() => return,
                    };
                    match admitted {
                        Ok(()) => attending(),
                        Err(status) => drop(reader.try_send(Err(status))),
                    }
                });
            }
        }
        // A process that leaves at once cuts its answers: without Finish they count as incomplete.
        let shutdown = self.shutdown.clone();
        let cut = async move { shutdown.aborting().await };
        Ok(Response::new(ReceiverStream::new(answer).take_until(cut).boxed()))
    }
}

/// A request on its way into the engine.
struct Opening {
    inbox: Inbox,
    sequence: SequenceId,
    request: request::Request,
    constraint: Option<Box<dyn Constraint>>,
    deadline: Option<Duration>,
    outlet: AnswerOutlet,
}

/// Gives up the pages that are held for a sequence, unless it came.
struct Holds {
    inbox: Inbox,
    sequence: SequenceId,
    came: bool,
}

impl Drop for Holds {
    fn drop(&mut self) {
        if !self.came {
            // A full inbox: the engine is so far behind that its end is near or the client's.
            let _ = self.inbox.send(Command::Cancel(self.sequence));
        }
    }
}

impl Opening {
    /// Takes what another worker computes of the prompt, then admits the request with that.
    async fn fetched(self, fetching: &Fetch, from: &Candidate) -> Result<(), Status> {
        let mut holds = Holds { inbox: self.inbox.clone(), sequence: self.sequence, came: false };
        fetch(fetching, self.sequence, &self.request, from).await;
        let admitted = self.admit().await;
        holds.came = admitted.is_ok();
        admitted
    }

    async fn admit(self) -> Result<(), Status> {
        let Self { inbox, sequence, request, constraint, deadline, outlet } = self;
        let (answer, admitted) = oneshot::channel();
        let taken = outlet.stages.admitted();
        let open = TargetOpen {
            sequence,
            outlet: Box::new(outlet),
            request,
            constraint,
            deadline,
            admitted: Box::new(move |admission| {
                taken.store(admission.is_ok(), Ordering::Relaxed);
                // The caller may have left meanwhile; then its closed stream ends the sequence.
                let _ = answer.send(admission);
            }),
        };
        if inbox.send(Command::Target(Box::new(open))).is_err() {
            return Err(status(Reason::Overloaded, "this worker's inbox is full", None, Some(RETRY)));
        }
        match tokio::time::timeout(ADMISSION, admitted).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(refusal))) => Err(refused(&refusal)),
            Ok(Err(_)) => Err(status(Reason::Internal, "the engine ended", None, None)),
            Err(_) => {
                let why = "the engine did not answer in time; it is busy with a long step";
                Err(status(Reason::Overloaded, why, None, Some(RETRY)))
            }
        }
    }
}

fn invalid(field: &InvalidField) -> Status {
    let reason = if field.not_built { Reason::NotBuilt } else { Reason::InvalidField };
    status(reason, &field.to_string(), Some(field.field), None)
}

/// The field tells who reads it that requests without a constraint are still taken.
fn unconstrained(field: &'static str, why: &NoConstraint) -> Status {
    match why {
        NoConstraint::Invalid(field) => invalid(field),
        NoConstraint::Busy => status(Reason::Overloaded, &why.to_string(), Some(field), Some(RETRY)),
    }
}

pub(crate) fn refused(refusal: &Refusal) -> Status {
    let (reason, field, retry) = match refusal {
        Refusal::Invalid(field) => return invalid(field),
        Refusal::Wait { predicted, most } => {
            (Reason::Overloaded, None, Some(predicted.saturating_sub(*most).max(RETRY)))
        }
        Refusal::Scheduler(refused) => match refused {
            Refused::Empty => (Reason::InvalidField, Some("prompt"), None),
            Refused::TooLong { .. } | Refused::NeverFits { .. } => {
                (Reason::ContextLengthExceeded, Some("max_tokens"), None)
            }
            Refused::QueueFull { .. } => (Reason::Overloaded, None, Some(RETRY)),
            Refused::Doubled(_) => (Reason::Internal, None, None),
        },
    };
    status(reason, &refusal.to_string(), field, retry)
}

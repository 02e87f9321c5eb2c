//! One placement of a request: the stream of one worker, and what its errors mean.

use std::time::Duration;

use cluster::NodeId;
use proto::bounds::{MAX_FRAME_BYTES, MAX_REQUEST_BYTES};
use proto::worker::worker_client::WorkerClient;
use proto::worker::{GenerateRequest, GenerateResponse};
use proto::{Answer as Said, Candidate};
use request::Request;
use telemetry::trace;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;
use tracing::Span;

use crate::failure::{self, Failure, Reason};
use crate::router::Placed;

/// On the wire a deadline is cut to whole milliseconds, and tonic turns one that passes into CANCELLED
/// without a reason. With this much more, the caller's own clock is first to say that it passed.
const ROUNDING: Duration = Duration::from_millis(2);

/// A worker that admitted the request.
#[derive(Debug)]
pub(super) struct Attempt {
    placed: Placed,
    stream: Streaming<GenerateResponse>,
    fingerprint: String,
    drafter: Option<NodeId>,
    /// Until the worker's part is over.
    span: Span,
}

/// Why a worker does not go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// It did not take the request; another may.
    Refused(Failure),
    /// It took the request and is gone, or talks nonsense: the rest belongs elsewhere.
    Lost(String),
    /// The request itself cannot be served, here or anywhere.
    Final(Failure),
}

impl Broken {
    fn reason(&self) -> Reason {
        match self {
            Self::Refused(failure) | Self::Final(failure) => failure.reason,
            Self::Lost(_) => Reason::NoWorker,
        }
    }
}

impl Attempt {
    /// Sends the request and waits until it is in the worker's inbox. The caller bounds the wait.
    pub(super) async fn open(placed: Placed, request: &Request, deadline: Instant) -> Result<Self, Broken> {
        let span = telemetry::span!(
            "generate", otel.kind = "client", rpc.system.name = "grpc",
            rpc.method = "paceline.worker.v1.Worker/Generate", server.address = %placed.worker.endpoint,
            paceline.worker = %placed.worker.id, paceline.request.attempt = request.attempt
        );
        let opened = Self::ask(placed, request, deadline, span.clone()).await;
        opened.inspect_err(|broken| trace::fail(&span, broken.reason().as_str()))
    }

    async fn ask(placed: Placed, request: &Request, deadline: Instant, span: Span) -> Result<Self, Broken> {
        let message = GenerateRequest::from(proto::Placed {
            model: placed.worker.model.clone(),
            request: request.clone(),
            drafters: placed.drafters.iter().map(|d| Candidate::from(&**d)).collect(),
            prefill: placed.prefill.as_deref().map(Candidate::from),
        });
        let mut call = tonic::Request::new(message);
        call.set_timeout(deadline.saturating_duration_since(Instant::now()) + ROUNDING);
        trace::inject(&span, call.metadata_mut().as_mut());
        let mut client = WorkerClient::new(placed.channel.clone())
            .max_encoding_message_size(MAX_REQUEST_BYTES)
            .max_decoding_message_size(MAX_FRAME_BYTES);
        let refused = |status: Status| before_accepted(&status, &placed);
        let mut stream = client.generate(call).await.map_err(refused)?.into_inner();
        let first = stream.message().await.map_err(refused)?;
        match first.map(Said::try_from) {
            Some(Ok(Said::Accepted { fingerprint, drafter, .. })) => {
                Ok(Self { placed, stream, fingerprint, drafter, span })
            }
            Some(Ok(other)) => Err(Broken::Lost(format!("began with {} instead of Accepted", name(&other)))),
            Some(Err(e)) => Err(Broken::Lost(format!("began with a malformed message: {e}"))),
            None => Err(Broken::Lost("ended its stream without a word".into())),
        }
    }

    /// Tokens or Finish.
    pub(super) async fn next(&mut self) -> Result<Said, Broken> {
        let said = self.hear().await;
        said.inspect_err(|broken| trace::fail(&self.span, broken.reason().as_str()))
    }

    async fn hear(&mut self) -> Result<Said, Broken> {
        let Some(message) = self.stream.message().await.map_err(|status| after_accepted(&status))? else {
            return Err(Broken::Lost("ended its stream without Finish".into()));
        };
        match Said::try_from(message) {
            Ok(Said::Accepted { .. }) => Err(Broken::Lost("sent Accepted twice".into())),
            Ok(said) => Ok(said),
            Err(e) => Err(Broken::Lost(format!("sent a malformed message: {e}"))),
        }
    }

    pub(super) fn worker(&self) -> &NodeId {
        &self.placed.worker.id
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn drafter(&self) -> Option<&NodeId> {
        self.drafter.as_ref()
    }
}

/// A status without our reason comes from the transport, or from something that is no worker.
fn spoke(status: &Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.domain == proto::reason::DOMAIN)
}

fn before_accepted(status: &Status, placed: &Placed) -> Broken {
    let failure = Failure::from(status);
    if spoke(status) {
        return match failure.reason {
            Reason::InvalidField | Reason::NotBuilt | Reason::TooLarge | Reason::Deadline => {
                Broken::Final(failure)
            }
            _ => Broken::Refused(failure),
        };
    }
    if status.code() == Code::DeadlineExceeded {
        return Broken::Final(failure);
    }
    let worker = &placed.worker;
    Broken::Refused(failure::later(
        Reason::NoWorker,
        format!("worker {} at {} cannot be reached: {}", worker.id, worker.endpoint, root_cause(status)),
        crate::router::RETRY_AFTER,
    ))
}

fn after_accepted(status: &Status) -> Broken {
    let failure = Failure::from(status);
    let gone = matches!(
        failure.reason,
        Reason::Draining
            | Reason::NoWorker
            | Reason::Overloaded
            | Reason::Cancelled
            | Reason::StaleIncarnation
    );
    if status.code() == Code::DeadlineExceeded || (spoke(status) && !gone) {
        return Broken::Final(failure);
    }
    Broken::Lost(root_cause(status))
}

/// tonic's message is often "transport error"; the cause is at the end of the chain.
fn root_cause(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut told = status.message().to_owned();
    while let Some(error) = cause {
        told = error.to_string();
        cause = error.source();
    }
    if told.is_empty() { status.code().description().to_owned() } else { told }
}

fn name(said: &Said) -> &'static str {
    match said {
        Said::Accepted { .. } => "Accepted",
        Said::Tokens { .. } => "Tokens",
        Said::Finish { .. } => "Finish",
    }
}

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use http_body_util::{BodyStream, StreamBody};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tracing::Instrument as _;

use crate::failure::{self, Failure, Reason};
use crate::frontdoor::{FrontDoor, request_id};
use crate::observe;

/// For a message to arrive; a client that sends it more slowly holds a place for nothing.
const MESSAGE: Duration = Duration::from_secs(30);

const GENERATE: &str = "/paceline.v1.Inference/Generate";

/// Admits calls of `Generate` before their message is read and decoded. So what undecoded messages take
/// is bounded by `max_in_flight` times the longest message, whatever the number of connections; beyond
/// that there is only what the transport holds unread, a stream window each. The permit goes on in the
/// request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S> {
    pub(super) inner: S,
    pub(super) door: Arc<FrontDoor>,
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if request.uri().path() == GENERATE {
            let span = observe::span(request.headers());
            match self.door.admit() {
                Ok(permit) => request.extensions_mut().insert(permit),
                Err(failure) => return Box::pin(async move { Ok(span.in_scope(|| refuse(failure))) }),
            };
            request = request.map(in_time);
            return Box::pin(self.inner.call(request).instrument(span));
        }
        Box::pin(self.inner.call(request))
    }
}

fn refuse(failure: Failure) -> Response<Body> {
    let id = request_id();
    if let Ok(id) = &id {
        failure::log(id.as_str(), &failure);
    }
    let mut status = Status::from(failure);
    if let Some(id) = id.ok().and_then(|id| id.as_str().parse().ok()) {
        status.metadata_mut().insert(super::REQUEST_ID, id);
    }
    status.into_http()
}

fn in_time(body: Body) -> Body {
    let by = Instant::now() + MESSAGE;
    let frames = stream::unfold(BodyStream::new(body), move |mut body| async move {
        let frame = timeout_at(by, body.next()).await.unwrap_or_else(|_| {
            let late = format!("the request did not arrive within {MESSAGE:?}");
            Some(Err(failure::new(Reason::SlowClient, late).into()))
        })?;
        Some((frame, body))
    });
    Body::new(StreamBody::new(frames))
}

//! The gRPC side of a process: one server with health and reflection, and how others are dialled.

use std::net::SocketAddr;
use std::time::Duration;

use request::InvalidField;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::{ByteSize, Check, Wrong, duration};
use crate::listen::{self, ListenError};
use crate::{Readiness, Shutdown};

mod connections;

/// Streams that do not end with the stop (a health watch, say) are cut after this long.
const GRACE: Duration = Duration::from_secs(2);

/// How this process is reached by gRPC, and how it reaches others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Connections at once; more wait in the kernel's backlog.
    pub max_connections: u32,
    /// Longest message taken; hand it to each service's `max_decoding_message_size`.
    pub max_message: ByteSize,
    /// Streams of one connection at once; more wait at the client.
    pub max_streams: u32,
    /// Unread bytes of one stream before its sender must wait.
    pub stream_window: ByteSize,
    /// Unread bytes of all streams of a connection. At least `stream_window` x `max_streams`: then
    /// readers that stall, however many, never use up what another stream needs.
    pub connection_window: ByteSize,
    /// A silent connection is pinged this often,
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    /// and is dead when the ping is unanswered for so long.
    #[serde(with = "duration")]
    pub keep_alive_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            max_connections: 1024,
            max_message: ByteSize::mib(8),
            max_streams: 1024,
            stream_window: ByteSize::kib(64),
            connection_window: ByteSize::mib(64),
            keep_alive: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(2),
        }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        /// RFC 9113, 6.9.1.
        const MAX_WINDOW: u64 = (1 << 31) - 1;
        let (stream, connection) = (self.stream_window.as_u64(), self.connection_window.as_u64());
        if self.max_connections == 0 {
            return Err(Wrong::new("max_connections", "must be at least 1"));
        }
        if self.max_streams == 0 {
            return Err(Wrong::new("max_streams", "must be at least 1"));
        }
        if !(65_535..=MAX_WINDOW).contains(&stream) {
            return Err(Wrong::new("stream_window", "must be 64 KiB to 2 GiB"));
        }
        if connection > MAX_WINDOW || connection < stream.saturating_mul(self.max_streams.into()) {
            return Err(Wrong::new(
                "connection_window",
                format!(
                    "{} is not between stream_window x max_streams = {} (one stalled stream could stall the \
                     others) and 2 GiB",
                    self.connection_window,
                    ByteSize(stream.saturating_mul(self.max_streams.into()))
                ),
            ));
        }
        if !(1024..=1 << 30).contains(&self.max_message.as_u64()) {
            return Err(Wrong::new("max_message", "must be 1 KiB to 1 GiB"));
        }
        if self.keep_alive.is_zero() || self.keep_alive_timeout.is_zero() {
            return Err(Wrong::new("keep_alive", "it and keep_alive_timeout must not be 0"));
        }
        Ok(())
    }
}

/// A bound gRPC port; add services, then [`Server::serve`].
#[derive(Debug)]
pub struct Server {
    config: Config,
    listener: TcpListener,
    address: SocketAddr,
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("gRPC server on {address}: {source}")]
    Transport { address: SocketAddr, source: tonic::transport::Error },
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Server {
    pub async fn bind(config: &Config, insecure: bool) -> Result<Self, ListenError> {
        const WHAT: &str = "grpc";
        let listener = listen::bind(WHAT, config.listen, insecure).await?;
        let bound = |source| ListenError::Bind { what: WHAT, address: config.listen, source };
        let address = listener.local_addr().map_err(bound)?;
        let (routes, names) = (RoutesBuilder::default(), Vec::new());
        Ok(Self { config: config.clone(), listener, address, routes, names })
    }

    /// With the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For the `max_decoding_message_size` of a generated server: tonic limits messages by service.
    pub fn max_message(&self) -> usize {
        usize::try_from(self.config.max_message.as_u64()).unwrap_or(usize::MAX)
    }

    /// Adds a generated server; health answers for its name too.
    #[expect(clippy::should_implement_trait, reason = "no sum: a server and its services")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: tower::Service<
                tonic::codegen::http::Request<tonic::body::Body>,
                Response = tonic::codegen::http::Response<tonic::body::Body>,
                Error = std::convert::Infallible,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Serves until the stop, then lets open streams end for a moment. Health says SERVING while every
    /// gate of `readiness` is open and the process does not drain.
    pub async fn serve(mut self, readiness: Readiness, shutdown: Shutdown) -> Result<(), ServeError> {
        let reporter = HealthReporter::new();
        let health = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(reporter.clone()),
        );
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        self.routes.add_service(health);
        self.routes.add_service(reflection().build_v1()?);
        self.routes.add_service(reflection().build_v1alpha()?);

        let window = |size: ByteSize| u32::try_from(size.as_u64()).unwrap_or(u32::MAX);
        let stop = shutdown.clone();
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(window(self.config.stream_window))
            .initial_connection_window_size(window(self.config.connection_window))
            .max_concurrent_streams(self.config.max_streams)
            .http2_keepalive_interval(Some(self.config.keep_alive))
            .http2_keepalive_timeout(Some(self.config.keep_alive_timeout))
            .add_routes(self.routes.routes())
            .serve_with_incoming_shutdown(
                connections::accept(self.listener, self.config.max_connections),
                async move { stop.stopping().await },
            );
        let late = async {
            shutdown.stopping().await;
            tokio::time::sleep(GRACE).await;
        };
        let address = self.address;
        tokio::select! {
            served = server => served.map_err(|source| ServeError::Transport { address, source }),
            () = report(reporter, self.names, readiness, &shutdown) => Ok(()),
            () = late => Ok(()),
        }
    }
}

/// How to dial a node or coordinator: the same windows and keep-alive, so that an answer nobody reads
/// stalls only itself and a dead peer is noticed. Connects on `connect`, or at the first call on
/// `connect_lazy`.
///
/// # Errors
/// When the endpoint is no URI after all.
pub fn dial(
    endpoint: &cluster::Endpoint,
    connect_timeout: Duration,
) -> Result<tonic::transport::Endpoint, InvalidField> {
    let Config { stream_window, connection_window, keep_alive, keep_alive_timeout, .. } = Config::default();
    let window = |size: ByteSize| u32::try_from(size.as_u64()).unwrap_or(u32::MAX);
    let dialled = tonic::transport::Endpoint::from_shared(endpoint.as_str().to_owned())
        .map_err(|e| InvalidField::new("endpoint", format!("{endpoint}: {e}")))?;
    Ok(dialled
        .connect_timeout(connect_timeout)
        .initial_stream_window_size(window(stream_window))
        .initial_connection_window_size(window(connection_window))
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive_timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// How long the way to a server and back is, by one question after its health. `None`: nothing came back within `within`.
pub async fn round_trip(channel: tonic::transport::Channel, within: Duration) -> Option<Duration> {
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let asked = tokio::time::Instant::now();
    let answer = tokio::time::timeout(within, health.check(tonic_health::pb::HealthCheckRequest::default()));
    match answer.await.ok()? {
        Ok(_) => Some(asked.elapsed()),
        // That it has no such service is an answer as well.
        Err(status) if status.code() == tonic::Code::Unimplemented => Some(asked.elapsed()),
        Err(_) => None,
    }
}

/// Tells health what readiness says, for "" and every service. Never ends.
async fn report(
    reporter: HealthReporter,
    names: Vec<&'static str>,
    readiness: Readiness,
    shutdown: &Shutdown,
) {
    let mut closed = readiness.subscribe();
    let tell = async |serving: bool| {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in names.iter().chain([&""]) {
            reporter.set_service_status(*name, status).await;
        }
    };
    loop {
        let ready = closed.borrow_and_update().is_empty();
        tell(ready && !shutdown.is_draining()).await;
        tokio::select! {
            // An error is not possible while `readiness` is held.
            changed = closed.changed() => if changed.is_err() { break },
            () = shutdown.draining() => break,
        }
    }
    shutdown.draining().await;
    tell(false).await;
    std::future::pending().await
}

#[cfg(test)]
mod tests;

//! The admin port: is this process alive, should it get work, and if not, why not; and its metrics.
//!
//! `GET /health/live` answers 200 as long as the runtime turns; `GET /health/ready` answers 200, or 503
//! with the gates that are closed. `GET /metrics` is Prometheus text (`docs/metrics.md`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::listen::{self, ListenError};
use crate::{Readiness, Shutdown};

/// A probe's connection may outlive the stop by this much; then it is cut.
const GRACE: Duration = Duration::from_secs(1);

/// A bound admin port; [`Server::serve`] answers on it.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    /// Gate name to reason.
    waiting_for: BTreeMap<&'static str, String>,
}

impl Server {
    pub async fn bind(address: SocketAddr, insecure: bool) -> Result<Self, ListenError> {
        const WHAT: &str = "admin";
        let listener = listen::bind(WHAT, address, insecure).await?;
        let bound = |source| ListenError::Bind { what: WHAT, address, source };
        let address = listener.local_addr().map_err(bound)?;
        Ok(Self { listener, address })
    }

    /// With the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the stop; while the process drains it says *not ready*, still alive.
    pub async fn serve(self, readiness: Readiness, shutdown: Shutdown) -> std::io::Result<()> {
        let stop = shutdown.clone();
        let server = axum::serve(self.listener, routes(readiness, shutdown.clone()))
            .with_graceful_shutdown(async move { stop.stopping().await });
        let late = async {
            shutdown.stopping().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            served = server => served,
            () = late => Ok(()),
        }
    }
}

fn routes(readiness: Readiness, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/health/live", get(|| async { Json(serde_json::json!({ "live": true })) }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .with_state((readiness, shutdown))
}

async fn ready(State((readiness, shutdown)): State<(Readiness, Shutdown)>) -> impl IntoResponse {
    let mut waiting_for = readiness.waiting_for();
    if shutdown.is_draining() {
        waiting_for.insert("drain", "the process is leaving".into());
    }
    let ready = waiting_for.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, waiting_for }))
}

/// Rendering reads sums in memory: it takes about a millisecond, and nothing waits for it.
async fn metrics() -> Response {
    match telemetry::meters().render() {
        Ok((media, text)) => ([(header::CONTENT_TYPE, media)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be rendered; the log says why\n")
                .into_response()
        }
    }
}

async fn unknown() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, "not served here; this port has /health/live, /health/ready and /metrics\n")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_is_every_gate_open_and_no_drain() {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let (address, readiness, shutdown) = (server.address(), Readiness::default(), Shutdown::default());
        let model = readiness.gate("model", "loading weights");
        let serving = tokio::spawn(server.serve(readiness.clone(), shutdown.clone()));

        assert_eq!(ask(address, "/health/live").await, (200, r#"{"live":true}"#.into()));
        let closed = r#"{"ready":false,"waiting_for":{"model":"loading weights"}}"#;
        assert_eq!(ask(address, "/health/ready").await, (503, closed.into()));
        model.open();
        assert_eq!(ask(address, "/health/ready").await, (200, r#"{"ready":true,"waiting_for":{}}"#.into()));
        telemetry::meters().snapshot_age.record(1.5, &[]);
        let (status, text) = ask(address, "/metrics").await;
        assert!(status == 200 && text.contains("\npaceline_snapshot_age_seconds 1.5\n"), "{status} {text}");
        assert_eq!(ask(address, "/").await.0, 404);
        shutdown.drain();
        let draining = r#"{"ready":false,"waiting_for":{"drain":"the process is leaving"}}"#;
        assert_eq!(ask(address, "/health/ready").await, (503, draining.into()));
        assert_eq!(ask(address, "/health/live").await.0, 200);
        // An idle connection does not hold the stop up for long.
        let _idle = tokio::net::TcpStream::connect(address).await.unwrap();
        shutdown.stop();
        tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap().unwrap();
    }
}

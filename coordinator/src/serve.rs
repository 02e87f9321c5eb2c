//! The HTTP port: connections, their bounds and their end. What is served is `api`'s concern.
//!
//! By hand rather than by `axum::serve`, which has no bound on connections and no deadline for a
//! client that sends its headers slowly or stops reading.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use daemon::Shutdown;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

/// For a request's headers to arrive, and for an idle connection to be used again.
const HEADERS: Duration = Duration::from_secs(30);

/// After an error of `accept` (mostly: too many open files), for connections to end.
const BREATH: Duration = Duration::from_millis(100);

/// For what is written already to reach clients once everything stops.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until the stop. More than `most` connections wait in the kernel's backlog. A client that
/// reads nothing for `slow_client` is disconnected.
pub(crate) async fn serve(
    listener: TcpListener,
    app: axum::Router,
    most: usize,
    slow_client: Duration,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    let slots = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            () = shutdown.stopping() => break,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(BREATH).await;
                continue;
            }
        };
        // Tokens are small and must not wait for more of them; without it they are only later.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(slow_client));
        let service = TowerToHyperService::new(app.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service));
        connections.spawn(async move {
            let _slot = slot;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
        });
    }
    drop(listener);
    // What is late is aborted with the set.
    let _ = timeout(GRACE, graceful.shutdown()).await;
    connections.shutdown().await;
    Ok(())
}

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How far this process is on its way out: *draining* (no new work, running work goes on), *stopping*
/// (servers and tasks end), *aborting* (nothing is waited for). Each implies the ones before.
#[derive(Clone, Debug)]
pub struct Shutdown {
    draining: CancellationToken,
    stopping: CancellationToken,
    aborting: CancellationToken,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
        }
    }
}

impl Shutdown {
    /// Listens to SIGTERM and SIGINT from now on: the first drains, the second aborts. The future ends
    /// when the process stops; spawn it in [`Tasks`](crate::Tasks).
    pub fn signals(&self) -> std::io::Result<impl Future<Output = Result<(), std::io::Error>> + use<>> {
        let shutdown = self.clone();
        // Registered before the first poll: a signal during a long start is not lost.
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        Ok(async move {
            loop {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                    () = shutdown.stopping() => return Ok(()),
                };
                if shutdown.is_draining() {
                    tracing::warn!(signal = name, "second signal: stopping at once");
                    shutdown.abort();
                    return Ok(());
                }
                tracing::info!(signal = name, "draining; a second signal stops at once");
                shutdown.drain();
            }
        })
    }

    /// Takes no new work from now on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends servers and tasks.
    pub fn stop(&self) {
        self.drain();
        self.stopping.cancel();
    }

    /// Ends them without waiting.
    pub fn abort(&self) {
        self.stop();
        self.aborting.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    pub async fn aborting(&self) {
        self.aborting.cancelled().await;
    }

    /// A token of one part: cancelled with the stop, or earlier by its holder.
    pub fn stop_token(&self) -> CancellationToken {
        self.stopping.child_token()
    }
}

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::failure::{self, Failure, Reason};

/// Text of at most this many bytes is worked on where it is: a millisecond or two, less than handing
/// it to another thread is worth under load.
const SHORT: usize = 4 << 10;

/// Long texts worked on at once; more wait here, bounded by admission and by their deadline. The
/// work cannot be interrupted, so it must not take every core.
const LONG_AT_ONCE: usize = 2;

/// Work on text, long work away from the runtime's threads.
#[derive(Debug)]
pub(crate) struct Aside {
    long: Arc<Semaphore>,
}

impl Default for Aside {
    fn default() -> Self {
        Self { long: Arc::new(Semaphore::new(LONG_AT_ONCE)) }
    }
}

impl Aside {
    /// Runs `work` on about `bytes` of text; `field` names it in errors.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        field: &'static str,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        if bytes <= SHORT {
            return work();
        }
        let broken = |why: String| failure::new(Reason::Internal, format!("tokenizing: {why}"));
        let long = async {
            let turn = Arc::clone(&self.long).acquire_owned().await.map_err(|e| broken(e.to_string()))?;
            let work = move || {
                let _turn = turn;
                work()
            };
            tokio::task::spawn_blocking(work).await.map_err(|e| broken(e.to_string()))?
        };
        timeout_at(deadline, long).await.unwrap_or_else(|_| {
            Err(failure::new(
                Reason::Deadline,
                format!("{field}: the deadline passed before the prompt was tokenized"),
            ))
        })
    }
}

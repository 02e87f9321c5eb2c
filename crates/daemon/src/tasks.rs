use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use crate::Shutdown;

/// An aborted task ends at its next await; one that never awaits is left behind after this long.
const ABORT: Duration = Duration::from_secs(1);

/// The owner of a process's long-lived tasks: nothing runs that it does not await or abort.
#[derive(Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    set: JoinSet<Result<(), String>>,
    names: HashMap<Id, &'static str>,
}

/// How long leaving may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For running work to finish once nothing new is taken.
    pub drain: Duration,
    /// For servers and tasks to end after that.
    pub stop: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { drain: Duration::from_secs(30), stop: Duration::from_secs(5) }
    }
}

/// How it ended; `main` makes the exit code of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Tasks that failed or panicked, and how.
    pub failed: Vec<(&'static str, String)>,
    /// Tasks that had to be aborted.
    pub late: Vec<&'static str>,
    /// Running work finished before the drain deadline.
    pub drained: bool,
}

impl Tasks {
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, set: JoinSet::new(), names: HashMap::new() }
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Starts a task. When it fails or panics, the process drains and leaves: a process with a dead
    /// part is worse than none. Ending well is no failure.
    pub fn spawn<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let span = tracing::info_span!("task", name);
        let task = async move { task.await.map_err(|e| e.to_string()) }.instrument(span);
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// The life of the process: watches the tasks until the shutdown begins, waits for `idle` (all
    /// running work finished) at most the drain deadline, stops, and awaits every task.
    pub async fn run(mut self, idle: impl Future<Output = ()>, deadlines: Deadlines) -> Ended {
        let shutdown = self.shutdown.clone();
        let mut ended = Ended::default();

        self.watch_until(shutdown.draining(), &mut ended).await;
        tracing::info!(deadline = ?deadlines.drain, "draining");
        let deadline = Instant::now() + deadlines.drain;
        let drained = async {
            tokio::select! {
                biased;
                () = idle => true,
                () = shutdown.stopping() => false,
                () = sleep_until(deadline) => false,
            }
        };
        ended.drained = self.watch_until(drained, &mut ended).await;
        if !ended.drained {
            tracing::warn!("work was still running when the drain ended; it is cut off");
        }

        shutdown.stop();
        let deadline = Instant::now() + deadlines.stop;
        let over = async {
            tokio::select! {
                () = sleep_until(deadline) => (),
                () = shutdown.aborting() => (),
            }
        };
        tokio::pin!(over);
        while !self.set.is_empty() {
            tokio::select! {
                Some(joined) = self.set.join_next_with_id() => self.note(joined, &mut ended),
                () = &mut over => break,
            }
        }
        ended.late = self.names.values().copied().collect();
        ended.late.sort();
        if !ended.late.is_empty() {
            tracing::warn!(tasks = ?ended.late, "did not end in time; aborted");
        }
        self.set.abort_all();
        let deadline = Instant::now() + ABORT;
        while let Ok(Some(_)) = timeout_at(deadline, self.set.join_next()).await {}
        ended
    }

    /// Awaits `until` while noting tasks that end; a failure begins the drain.
    async fn watch_until<T>(&mut self, until: impl Future<Output = T>, ended: &mut Ended) -> T {
        tokio::pin!(until);
        loop {
            tokio::select! {
                biased;
                done = &mut until => return done,
                Some(joined) = self.set.join_next_with_id() => self.note(joined, ended),
            }
        }
    }

    fn note(&mut self, joined: Result<(Id, Result<(), String>), JoinError>, ended: &mut Ended) {
        let (id, outcome) = match joined {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Err(error.to_string())),
        };
        let name = self.names.remove(&id).unwrap_or("unnamed");
        match outcome {
            Ok(()) => tracing::debug!(task = name, "ended"),
            Err(why) => {
                tracing::error!(task = name, why, "failed; the process leaves");
                ended.failed.push((name, why));
                self.shutdown.drain();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use super::*;

    const DEADLINES: Deadlines = Deadlines { drain: Duration::from_secs(30), stop: Duration::from_secs(5) };

    fn until_stop(shutdown: &Shutdown) -> impl Future<Output = Result<(), Infallible>> + use<> {
        let token = shutdown.stop_token();
        async move {
            token.cancelled().await;
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_drains_then_stops_and_awaits_all() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("server", until_stop(&shutdown));
        tasks.spawn("once", async { Ok::<_, Infallible>(()) });
        let begin = shutdown.clone();
        tasks.spawn("signal", async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            begin.drain();
            Ok::<_, Infallible>(())
        });
        let started = Instant::now();
        let ended = tasks.run(async { tokio::time::sleep(Duration::from_secs(4)).await }, DEADLINES).await;
        assert_eq!(ended, Ended { drained: true, ..Ended::default() });
        // `idle` is first asked when the drain begins.
        assert_eq!(started.elapsed().as_secs(), 5);
        assert!(shutdown.is_stopping());
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_hold_and_the_late_are_named() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("server", until_stop(&shutdown));
        tasks.spawn("stuck", pending::<Result<(), Infallible>>());
        shutdown.drain();
        let started = Instant::now();
        let ended = tasks.run(pending(), DEADLINES).await;
        assert_eq!(ended, Ended { late: vec!["stuck"], ..Ended::default() });
        assert_eq!(started.elapsed().as_secs(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_waits_for_nobody() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("stuck", pending::<Result<(), Infallible>>());
        shutdown.abort();
        let started = Instant::now();
        let ended = tasks.run(pending(), DEADLINES).await;
        assert_eq!(ended, Ended { late: vec!["stuck"], ..Ended::default() });
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_part_takes_the_process_down() {
        for (case, expected) in [("fails", "no luck"), ("panics", "panicked")] {
            let shutdown = Shutdown::default();
            let mut tasks = Tasks::new(shutdown.clone());
            tasks.spawn("server", until_stop(&shutdown));
            tasks.spawn("part", async move { if case == "fails" { Err("no luck") } else { panic!("oh") } });
            let ended = tasks.run(ready(()), DEADLINES).await;
            assert_eq!((ended.failed.len(), ended.late.len()), (1, 0));
            let (name, why) = &ended.failed[0];
            assert!(*name == "part" && why.contains(expected), "{name}: {why}");
        }
    }

    #[tokio::test]
    async fn sigterm_drains() {
        let shutdown = Shutdown::default();
        let signals = shutdown.signals().unwrap();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("signals", signals);
        let kill =
            std::process::Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status();
        assert!(kill.unwrap().success());
        let ended = tasks.run(ready(()), DEADLINES).await;
        assert_eq!(ended, Ended { drained: true, ..Ended::default() });
    }
}

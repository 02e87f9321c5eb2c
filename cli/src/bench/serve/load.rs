//! When requests are sent, and what came back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::arrival::{Arrival, Due};
use super::exchange::{Clock, Endpoint};
use super::progress::Progress;
use super::record::{Exchange, Record};

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many under way at once; an end starts the next.
    Closed { concurrency: usize },
    /// So many a second, whatever the server does. `most` under way at once: what is due then waits,
    /// and how long it waited is reported.
    Open { rate: f64, arrival: Arrival, seed: u64, most: usize },
}

/// What a run sends, and when it ends: after `requests` or `duration`, whichever is first.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub load: Load,
    pub requests: Option<u64>,
    pub duration: Option<Duration>,
    /// After `duration`, what is under way may end within this.
    pub grace: Duration,
}

/// What a run saw.
#[derive(Debug)]
pub struct Run {
    /// In the order of ending.
    pub records: Vec<Record>,
    pub clock: Clock,
    pub ended: SystemTime,
    /// The user stopped it; what was under way is lost.
    pub interrupted: bool,
}

/// Sends what `plan` says. `body` makes the request of an index; `interrupt` ends the run.
///
/// One task decides when to send; each request is a task of its own, owned by the set here and
/// aborted with it. At most `concurrency` or `most` of them exist.
pub async fn run(
    plan: &Plan,
    endpoint: &Arc<Endpoint>,
    body: impl Fn(u64) -> String,
    progress: &Progress,
    interrupt: impl Future<Output = ()>,
) -> Result<Run> {
    let clock = Clock::start();
    let until = plan.duration.map(|duration| duration.saturating_add(plan.grace));
    let (most, mut schedule) = match plan.load {
        Load::Closed { concurrency } => (concurrency, None),
        Load::Open { rate, arrival, seed, most } => (most, Some(Due::new(arrival, rate, seed))),
    };
    let mut scheduled = schedule.as_mut().and_then(Iterator::next);
    let mut tasks: JoinSet<(u64, Duration, Exchange)> = JoinSet::new();
    let (mut records, mut sent, mut interrupted) = (Vec::new(), 0u64, false);
    tokio::pin!(interrupt);
    loop {
        let due = scheduled.unwrap_or_else(|| clock.now());
        let more = plan.requests.is_none_or(|n| sent < n) && plan.duration.is_none_or(|d| due < d);
        // A schedule that fell behind by more than the duration is not caught up with.
        let more = more && plan.duration.is_none_or(|d| clock.now() < d);
        if more && tasks.len() < most && due <= clock.now() {
            let (endpoint, body, index) = (Arc::clone(endpoint), body(sent), sent);
            tasks.spawn(async move { (index, due, endpoint.ask(body, clock, until).await) });
            sent += 1;
            scheduled = schedule.as_mut().and_then(Iterator::next);
            progress.sent(tasks.len());
            continue;
        }
        if !more && tasks.is_empty() {
            break;
        }
        let room = more && tasks.len() < most;
        tokio::select! {
            biased;
            () = &mut interrupt => {
                interrupted = true;
                tasks.shutdown().await;
                break;
            }
            Some(joined) = tasks.join_next() => {
                let (index, due, exchange) = joined.context("a request's task failed")?;
                let record = Record { index, due, exchange };
                progress.ended(&record, clock.now(), tasks.len());
                records.push(record);
            }
            () = sleep_until(clock.instant(due)), if room => {}
        }
    }
    Ok(Run { records, clock, ended: clock.wall + clock.now(), interrupted })
}

//! The task that owns the table.

use std::convert::Infallible;
use std::sync::Arc;

use cluster::{Change, NodeUpdate, Patience, PrefixGap, PrefixUpdate, Refused, StreamId, Table, View};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Config, Prefixes};
use crate::Shutdown;

/// What a Join stream tells the owner.
#[derive(Debug)]
pub(super) enum Command {
    Update { stream: StreamId, update: NodeUpdate, taken: oneshot::Sender<Result<(), Refused>> },
    Prefixes { stream: StreamId, update: PrefixUpdate, taken: oneshot::Sender<Result<(), PrefixGap>> },
    Ended { stream: StreamId },
}

/// Applies updates and silence until the stop; publishes a view after each batch that changed anything.
pub(super) async fn own(
    config: Config,
    started: Instant,
    mut inbox: mpsc::Receiver<Command>,
    publish: watch::Sender<View>,
    prefixes: Arc<Prefixes>,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    let mut table = Table::new(Patience {
        suspect_after: config.suspect_after,
        forget_after: config.forget_after,
        max_nodes: config.max_nodes as usize,
    });
    let mut ticks = interval(config.heartbeat / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (first, ticked) = tokio::select! {
            command = inbox.recv() => (command, false),
            _ = ticks.tick() => (None, true),
            () = shutdown.stopping() => return Ok(()),
        };
        // What has arrived counts before silence does: a process that was paused would otherwise
        // suspect everyone whose heartbeats wait in the queue. Bounded, so that ticks are not starved.
        let mut changed = false;
        let waiting = inbox.len();
        for command in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok()).take(waiting)) {
            changed |= apply(&mut table, &prefixes, command, started);
        }
        let changes = table.on_tick(started.elapsed());
        changed |= !changes.is_empty();
        heed(&changes, &prefixes);
        if changed {
            publish.send_replace(table.view());
        }
        if ticked {
            super::gauges::record(telemetry::meters(), &publish.borrow(), started.elapsed());
            telemetry::meters().prefix_index_pages.record(prefixes.len() as f64, &[]);
        }
    }
}

/// Whether readers should see a new view.
fn apply(table: &mut Table, prefixes: &Prefixes, command: Command, started: Instant) -> bool {
    let now = started.elapsed();
    match command {
        Command::Update { stream, update, taken } => {
            let outcome = table.apply(stream, update, now).map(|changes| heed(&changes, prefixes));
            let changed = outcome.is_ok();
            // The stream may be gone already; its `Ended` follows.
            let _ = taken.send(outcome);
            changed
        }
        Command::Prefixes { stream, update, taken } => {
            // Of a stream that carries no node (any more) nothing is known to follow on.
            let outcome = match table.carried(stream) {
                Some(record) => prefixes.apply(record, &update),
                None => Err(PrefixGap { number: update.number }),
            };
            let _ = taken.send(outcome);
            false
        }
        Command::Ended { stream } => {
            let changes = table.on_disconnect(stream, now);
            heed(&changes, prefixes);
            !changes.is_empty()
        }
    }
}

/// Says what changed, and forgets the prefixes of those that are gone.
fn heed(changes: &[Change], prefixes: &Prefixes) {
    for change in changes {
        if let Change::Restarted(node) | Change::Disconnected(node) | Change::Removed(node) = change {
            prefixes.forget(node);
        }
        match change {
            Change::Joined(node) => tracing::info!(%node, "joined"),
            Change::Restarted(node) => tracing::info!(%node, "joined as a new incarnation"),
            Change::Returned(node) => tracing::info!(%node, "heard again"),
            Change::Ready(node) => tracing::info!(%node, "takes work again"),
            Change::Draining(node) => tracing::info!(%node, "draining"),
            Change::Suspected(node) => tracing::warn!(%node, "heartbeats are missing: no new work for it"),
            Change::Disconnected(node) => tracing::warn!(%node, "its stream broke: no new work for it"),
            Change::Removed(node) => tracing::info!(%node, "removed"),
        }
    }
}

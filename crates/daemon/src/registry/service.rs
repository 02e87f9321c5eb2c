//! Join streams and the member list.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::{NodeUpdate, PrefixGap, PrefixUpdate, Refused, StreamId};
use futures::Stream;
use proto::cluster as wire;
use proto::cluster::cluster_server::Cluster;
use proto::cluster::node_update::Update;
use proto::reason::{Reason, status};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::Registry;
use super::table::Command;

/// A stream's first update must come within this time.
const FIRST_UPDATE: Duration = Duration::from_secs(10);

/// `paceline.cluster.v1.Cluster`.
#[derive(Debug)]
pub struct Service(pub(super) Registry);

/// One node's stream, read while its responses are polled: when the connection breaks tonic drops
/// this, and the drop tells the owner.
struct Joined {
    registry: Registry,
    id: StreamId,
    updates: Streaming<wire::NodeUpdate>,
    /// How long the next update may take.
    patience: Duration,
    next: Next,
    /// All prefixes were asked for, and have not begun to come.
    asked: bool,
    /// The kept place in the owner's queue, for `Ended`.
    ended: Option<mpsc::OwnedPermit<Command>>,
    _stream: OwnedSemaphorePermit,
}

/// What a node is asked for.
enum Wish {
    Snapshot,
    Prefixes,
}

#[derive(Clone, Copy)]
enum Next {
    Greet,
    Read,
    End,
}

#[tonic::async_trait]
impl Cluster for Service {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<wire::JoinResponse, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<wire::NodeUpdate>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let registry = self.0.clone();
        let full = || status(Reason::Overloaded, "every Join stream is taken", None, Some(FIRST_UPDATE));
        let permit = registry.streams.clone().try_acquire_owned().map_err(|_| full())?;
        // The queue has a place for every stream's ending beside the updates; waiting for one takes no
        // longer than the owner needs for a batch.
        let ended = timeout(FIRST_UPDATE, registry.commands.clone().reserve_owned()).await;
        let ended = ended.map_err(|_| full())?.map_err(|_| stopping())?;
        let joined = Joined {
            id: StreamId(registry.next_stream.fetch_add(1, Ordering::Relaxed)),
            updates: request.into_inner(),
            patience: FIRST_UPDATE.min(registry.config.forget_after),
            next: Next::Greet,
            asked: false,
            ended: Some(ended),
            _stream: permit,
            registry,
        };
        Ok(Response::new(Box::pin(futures::stream::unfold(joined, Joined::respond))))
    }

    async fn members(
        &self,
        _: Request<wire::MembersRequest>,
    ) -> Result<Response<wire::MembersResponse>, Status> {
        let view = self.0.view.borrow().clone();
        let now = self.0.now();
        // The view is in id order and the sort is stable.
        let mut members: Vec<_> = view.members().iter().collect();
        members.sort_by_key(|m| m.record.role);
        let members = members.into_iter().map(|m| proto::convert::member(m, now)).collect();
        Ok(Response::new(wire::MembersResponse { members }))
    }
}

impl Joined {
    /// The next response, when there is something to say.
    async fn respond(mut self) -> Option<(Result<wire::JoinResponse, Status>, Self)> {
        let wish = match self.next {
            // A node that tells nothing of prefixes does not mind; a coordinator that does not ask is not told.
            Next::Greet => (self.registry.config.prefix_pages > 0).then_some(Wish::Prefixes),
            Next::Read => match self.read().await {
                Ok(Some(wish)) => Some(wish),
                Ok(None) => return None,
                Err(status) => {
                    self.next = Next::End;
                    return Some((Err(status), self));
                }
            },
            Next::End => return None,
        };
        self.next = Next::Read;
        self.asked |= matches!(wish, Some(Wish::Prefixes));
        let want_snapshot = matches!(wish, Some(Wish::Snapshot));
        let want_prefixes = matches!(wish, Some(Wish::Prefixes));
        let heartbeat = self.registry.config.heartbeat.as_millis();
        let heartbeat_interval_ms = u32::try_from(heartbeat).unwrap_or(u32::MAX);
        Some((Ok(wire::JoinResponse { heartbeat_interval_ms, want_snapshot, want_prefixes }), self))
    }

    /// Takes updates until something is wanted, or the node closed the stream (`None`).
    async fn read(&mut self) -> Result<Option<Wish>, Status> {
        let shutdown = self.registry.shutdown.clone();
        // Prefixes are no sign of life: who sends nothing else is not a member.
        let mut until = Instant::now() + self.patience;
        loop {
            let update = tokio::select! {
                update = timeout_at(until, self.updates.message()) => update,
                () = shutdown.stopping() => return Err(stopping()),
            };
            let silent = |_| {
                let text = format!("no update for {:?}; join again", self.patience);
                status(Reason::Deadline, &text, None, None)
            };
            let Some(update) = update.map_err(silent)?? else { return Ok(None) };
            if let Some(Update::Prefixes(prefixes)) = update.update {
                if self.prefixes(prefixes.try_into()?).await? {
                    return Ok(Some(Wish::Prefixes));
                }
                continue;
            }
            match self.apply(update.try_into()?).await? {
                Ok(()) => {
                    self.patience = self.registry.config.forget_after;
                    until = Instant::now() + self.patience;
                }
                Err(gap @ Refused::Gap { .. }) => {
                    tracing::debug!(stream = self.id.0, %gap, "snapshot wanted");
                    return Ok(Some(Wish::Snapshot));
                }
                Err(refused) => {
                    tracing::warn!(stream = self.id.0, %refused, "refused a node");
                    return Err(refusal(refused));
                }
            }
        }
    }

    /// Whether all prefixes are wanted again. What was under way when they were asked for does not follow either.
    async fn prefixes(&mut self, update: PrefixUpdate) -> Result<bool, Status> {
        if self.registry.config.prefix_pages == 0 {
            return Ok(false);
        }
        let (taken, outcome) = oneshot::channel();
        self.asked &= !update.reset;
        let command = Command::Prefixes { stream: self.id, update, taken };
        self.registry.commands.send(command).await.map_err(|_| stopping())?;
        match outcome.await.map_err(|_| stopping())? {
            Ok(()) => Ok(false),
            Err(gap @ PrefixGap { .. }) => {
                tracing::debug!(stream = self.id.0, %gap, asked = self.asked, "prefixes wanted");
                Ok(!self.asked)
            }
        }
    }

    async fn apply(&self, update: NodeUpdate) -> Result<Result<(), Refused>, Status> {
        let (taken, outcome) = oneshot::channel();
        let command = Command::Update { stream: self.id, update, taken };
        self.registry.commands.send(command).await.map_err(|_| stopping())?;
        outcome.await.map_err(|_| stopping())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(place) = self.ended.take() {
            place.send(Command::Ended { stream: self.id });
        }
    }
}

fn stopping() -> Status {
    status(Reason::Draining, "this coordinator is stopping", None, None)
}

fn refusal(refused: Refused) -> Status {
    let text = refused.to_string();
    let (reason, field) = match refused {
        Refused::Gap { .. } => (Reason::InvalidField, Some("number")),
        Refused::Stale { .. } | Refused::Superseded { .. } => (Reason::StaleIncarnation, None),
        Refused::OtherNode { .. } => (Reason::InvalidField, Some("node_id")),
        Refused::Changed { field, .. } => (Reason::InvalidField, Some(field)),
        Refused::Full { .. } => (Reason::Overloaded, None),
        Refused::Invalid(invalid) => (Reason::InvalidField, Some(invalid.field)),
    };
    status(reason, &text, field, None)
}

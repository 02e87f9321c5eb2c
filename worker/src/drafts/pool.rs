use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cluster::{Incarnation, NodeId};
use proto::Candidate;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::link::{Link, Me};
use super::link_error::LinkError;
use super::order::{Known, order};

/// A drafter that failed is not dialled again for this long.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a sequence waits for links to drafters to be there, so that it can compare them.
const COMPARE: Duration = Duration::from_millis(100);

/// The links of this worker, at most one a drafter.
#[derive(Debug)]
pub(crate) struct Links {
    me: Me,
    /// Each behind a lock of its own: a drafter that does not answer holds up only who wants it.
    links: std::sync::Mutex<HashMap<NodeId, Arc<Mutex<Place>>>>,
}

#[derive(Debug, Default)]
struct Place {
    link: Option<Arc<Link>>,
    /// The last life of the drafter that was dialled in vain, and when.
    failed: Option<(Incarnation, Instant)>,
}

impl Place {
    fn is_of_use(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.is_over())
            || self.failed.is_some_and(|(_, at)| at.elapsed() < PAUSE)
    }
}

impl Links {
    pub(crate) fn new(me: Me) -> Self {
        Self { me, links: std::sync::Mutex::default() }
    }

    pub(crate) fn me(&self) -> &Me {
        &self.me
    }

    /// Those first from whom drafts are there soonest. Links that do not exist are made, and waited for a moment; who is
    /// not linked by then comes last.
    pub(crate) async fn order<'a>(self: &Arc<Self>, candidates: &[&'a Candidate]) -> Vec<&'a Candidate> {
        let [_, _, ..] = candidates else { return candidates.to_vec() };
        let dial = |peer: &Candidate| {
            let (links, peer) = (self.clone(), peer.clone());
            let stop = self.me.stop.clone();
            // Its own task: a link that comes late is of use to the next sequence. It ends by the deadlines of `connect`.
            self.me.tasks.spawn(async move { stop.run_until_cancelled(links.get(&peer)).await.is_some() })
        };
        let missing: Vec<_> =
            candidates.iter().filter(|peer| self.known(peer).is_none()).map(|peer| dial(peer)).collect();
        let _ = timeout(COMPARE, futures::future::join_all(missing)).await;
        let mut known: Vec<_> = candidates.iter().map(|&peer| (peer, self.known(peer))).collect();
        order(self.me.step_time.mean(), &mut known);
        known.into_iter().map(|(peer, _)| peer).collect()
    }

    /// What is known of a drafter; `None` when there is no link to this life of it.
    fn known(&self, peer: &Candidate) -> Option<Known> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let place = links.get(&peer.id)?.try_lock().ok()?;
        let link = place.link.as_ref()?;
        (!link.is_over() && link.incarnation() == peer.incarnation).then(|| link.known())
    }

    /// The link to a drafter, connecting if there is none.
    pub(crate) async fn get(&self, peer: &Candidate) -> Result<Arc<Link>, LinkError> {
        let place = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            // Drafters come and go under new names: those that are gone leave no trace for long.
            links.retain(|id, place| {
                *id == peer.id || place.try_lock().map_or(true, |place| place.is_of_use())
            });
            links.entry(peer.id.clone()).or_default().clone()
        };
        let mut place = place.lock().await;
        if let Some(link) = place.link.as_ref().filter(|link| !link.is_over()) {
            match link.incarnation().cmp(&peer.incarnation) {
                Ordering::Equal => return Ok(link.clone()),
                // The sequence was placed before the drafter's restart. Dialling would be in vain, and
                // must not cost the others the link to its new life.
                Ordering::Greater => return Err(LinkError::Restarted(peer.id.to_string())),
                // Restarted: the stream to its old life is about to end.
                Ordering::Less => {}
            }
        }
        if place.failed.is_some_and(|(life, at)| life == peer.incarnation && at.elapsed() < PAUSE) {
            return Err(LinkError::Late(peer.id.to_string()));
        }
        match Link::connect(peer, &self.me).await {
            Ok(link) => {
                *place = Place { link: Some(link.clone()), failed: None };
                Ok(link)
            }
            Err(error) => {
                tracing::warn!(%error, "no link to this drafter; its sequences decode plainly");
                place.failed = Some((peer.incarnation, Instant::now()));
                Err(error)
            }
        }
    }
}

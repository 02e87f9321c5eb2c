use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Incarnation, NodeId};
use proto::Candidate;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::link::{Link, Me};
use super::link_error::LinkError;

/// A drafter that failed is not dialled again for this long.
const PAUSE: Duration = Duration::from_secs(1);

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

    /// The link to a drafter, connecting if there is none.
    pub(crate) async fn get(&self, peer: &Candidate) -> Result<Arc<Link>, LinkError> {
        let place = {
            let mut links = self.links.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::NodeId;
use proto::Candidate;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::link::{Link, LinkError, Me};

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
    failed: Option<Instant>,
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
            links.entry(peer.id.clone()).or_default().clone()
        };
        let mut place = place.lock().await;
        if let Some(link) = &place.link
            && !link.is_over()
            && link.incarnation() == peer.incarnation
        {
            return Ok(link.clone());
        }
        if place.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(LinkError::Late(peer.id.to_string()));
        }
        match Link::connect(peer, &self.me).await {
            Ok(link) => {
                *place = Place { link: Some(link.clone()), failed: None };
                Ok(link)
            }
            Err(error) => {
                tracing::warn!(%error, "no link to this drafter; its sequences decode plainly");
                *place = Place { link: None, failed: Some(Instant::now()) };
                Err(error)
            }
        }
    }
}

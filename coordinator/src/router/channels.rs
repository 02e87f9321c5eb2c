use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cluster::{Endpoint, View};
use request::InvalidField;
use tonic::transport::Channel;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection an endpoint, kept while the node is in the map; tonic dials again by itself.
#[derive(Debug, Default)]
pub(super) struct Channels(Mutex<HashMap<Endpoint, Channel>>);

impl Channels {
    /// `view` bounds the map: what it no longer lists is dropped when something new is dialled.
    /// Streams that run on a dropped channel keep it alive until they end.
    pub(super) fn get(&self, endpoint: &Endpoint, view: &View) -> Result<Channel, InvalidField> {
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(endpoint) {
            return Ok(channel.clone());
        }
        channels.retain(|known, _| view.members().iter().any(|m| m.record.endpoint == *known));
        // Its keep-alive pings are what notices a paused process or a cut network.
        let channel = daemon::grpc::dial(endpoint, CONNECT_TIMEOUT)?.connect_lazy();
        channels.insert(endpoint.clone(), channel.clone());
        Ok(channel)
    }
}

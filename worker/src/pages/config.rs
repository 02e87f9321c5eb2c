use std::net::SocketAddr;
use std::time::Duration;

use cluster::Duty;
use daemon::config::{Check, Wrong, duration};
use serde::{Deserialize, Serialize};

/// Hand-off of pages between workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PagesConfig {
    /// What this worker is for: `mixed` (whole requests), `prefill` (prompts for others), `decode` (whole requests, but long prompts
    /// are computed elsewhere).
    #[serde(with = "duty")]
    pub duty: Duty,
    /// Where others fetch pages; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` under which others reach that; the bound address when it is left out.
    pub advertise: Option<String>,
    /// A hand-off in which nothing moves for this long is given up, and the rest computed.
    #[serde(with = "duration")]
    pub stall: Duration,
    /// Prompts that are computed for others at once; one more is refused.
    pub transfers: u32,
}

impl Default for PagesConfig {
    fn default() -> Self {
        Self {
            duty: Duty::Mixed,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            stall: Duration::from_secs(3),
            transfers: 16,
        }
    }
}

impl Check for PagesConfig {
    fn check(&self) -> Result<(), Wrong> {
        if !(Duration::from_millis(50)..=Duration::from_secs(60)).contains(&self.stall) {
            return Err(Wrong::new("stall", "must be 50ms to 1m"));
        }
        if !(1..=1024).contains(&self.transfers) {
            return Err(Wrong::new("transfers", "must be 1 to 1024"));
        }
        if self.advertise.as_ref().is_some_and(|a| !a.contains(':') || a.len() > 256) {
            return Err(Wrong::new("advertise", "must be host:port"));
        }
        Ok(())
    }
}

/// The names of duties in a file.
mod duty {
    use cluster::Duty;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(duty: &Duty, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(duty)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Duty, D::Error> {
        match String::deserialize(from)?.as_str() {
            "mixed" => Ok(Duty::Mixed),
            "prefill" => Ok(Duty::Prefill),
            "decode" => Ok(Duty::Decode),
            other => Err(D::Error::custom(format!("{other:?} is no duty; use mixed, prefill or decode"))),
        }
    }
}

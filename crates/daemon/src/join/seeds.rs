use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use cluster::Endpoint;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::net::lookup_host;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::Config;

/// Most seeds, and most addresses of one name; a cluster has a handful of coordinators.
const MOST: usize = 64;

/// `host:port` of coordinators. In files a list of strings, in the environment and flags also one
/// string with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeds(Vec<Endpoint>);

impl Seeds {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn from_parts<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut seeds = Vec::new();
        for part in parts.map(str::trim).filter(|p| !p.is_empty()) {
            if seeds.len() == MOST {
                return Err(format!("names more than {MOST} coordinators"));
            }
            // The scheme is left out by people and taken when it is there.
            let bare = part.strip_prefix("http://").unwrap_or(part);
            seeds.push(Endpoint::new(&format!("http://{bare}")).map_err(|e| e.why)?);
        }
        Ok(Self(seeds))
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_parts(text.split(','))
    }
}

impl From<SocketAddr> for Seeds {
    /// One coordinator; none when the address is unspecified or has port 0.
    fn from(address: SocketAddr) -> Self {
        Self(Endpoint::try_from(address).into_iter().collect())
    }
}

impl Serialize for Seeds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Endpoint::authority))
    }
}

impl<'de> Deserialize<'de> for Seeds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"host:port,host:port\" or a list of host:port")]
        enum Form {
            One(String),
            Many(Vec<String>),
        }
        let seeds = match Form::deserialize(deserializer)? {
            Form::One(text) => text.parse(),
            Form::Many(list) => Self::from_parts(list.iter().map(String::as_str)),
        };
        seeds.map_err(serde::de::Error::custom)
    }
}

/// Looks the seeds up, again and again.
pub(super) struct Resolver {
    seeds: Seeds,
    timeout: Duration,
    ticks: Interval,
    /// What each seed resolved to last; kept while a look-up fails.
    known: BTreeMap<String, BTreeSet<SocketAddr>>,
    /// Seeds still to look up in this round; survives a cancelled `next`.
    due: VecDeque<Endpoint>,
}

impl Resolver {
    pub(super) fn new(config: &Config) -> Self {
        let mut ticks = interval(config.resolve_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (seeds, timeout) = (config.coordinators.clone(), config.connect_timeout);
        Self { seeds, timeout, ticks, known: BTreeMap::new(), due: VecDeque::new() }
    }

    /// The addresses after the next round of look-ups; the first round starts at once.
    pub(super) async fn next(&mut self) -> BTreeSet<SocketAddr> {
        if self.due.is_empty() {
            self.ticks.tick().await;
            self.due = self.seeds.0.iter().cloned().collect();
        }
        while let Some(seed) = self.due.front() {
            let name = seed.authority();
            match timeout(self.timeout, lookup_host(name)).await {
                Ok(Ok(found)) => {
                    self.known.insert(name.into(), one_a_machine(found.take(MOST).collect()));
                }
                Ok(Err(error)) => tracing::warn!(seed = name, %error, "coordinator's name not found"),
                Err(_) => {
                    tracing::warn!(seed = name, timeout = ?self.timeout, "name service does not answer")
                }
            }
            self.due.pop_front();
        }
        self.known.values().flatten().copied().collect()
    }
}

/// Several addresses of a name are several coordinators, except on loopback, where `localhost` is one
/// machine by two protocols; two streams of one node to one coordinator would take turns in
/// superseding each other. IPv4 is what coordinators bind by default.
fn one_a_machine(found: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    if found.iter().all(|a| a.ip().is_loopback()) {
        // Ordered: IPv4 comes first.
        return found.into_iter().take(1).collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seeds_are_lists_or_commas() {
        let two = "127.0.0.1:1, coordinator:9000".parse::<Seeds>().unwrap();
        let json = serde_json::to_string(&two).unwrap();
        assert_eq!(json, r#"["127.0.0.1:1","coordinator:9000"]"#);
        for same in [
            json.as_str(),
            r#""127.0.0.1:1,coordinator:9000,""#,
            r#"["http://127.0.0.1:1","coordinator:9000"]"#,
        ] {
            assert_eq!(serde_json::from_str::<Seeds>(same).unwrap(), two);
        }
        for (bad, why) in [("\"a\"", "no port"), ("[\"a:x\"]", "1 to 65535"), ("3", "expected \"host:port")] {
            let error = serde_json::from_str::<Seeds>(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(vec!["a:1"; MOST + 1].join(",").parse::<Seeds>().is_err());
    }

    #[test]
    fn loopback_is_one_machine() {
        let set = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<SocketAddr>>();
        assert_eq!(one_a_machine(set(&["[::1]:1", "127.0.0.1:1"])), set(&["127.0.0.1:1"]));
        let pods = set(&["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(one_a_machine(pods.clone()), pods);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in ".{0,60}") {
            let _ = text.parse::<Seeds>();
        }
    }
}

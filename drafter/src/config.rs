use std::time::Duration;

use daemon::config::{Check, Wrong, duration};
use engine::Settings;
use serde::{Deserialize, Serialize};

/// What a drafter can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub rank: rank::Config,
    pub telemetry: telemetry::Config,
    pub sessions: SessionsConfig,
}

/// How sessions are kept and stepped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// Most rows of one step: prompt chunks and one row for each session that drafts. When it is left out, what suits
    /// the device.
    pub token_budget: Option<u32>,
    /// A session of which no frame arrives for this long is closed.
    #[serde(with = "duration")]
    pub lease: Duration,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self { token_budget: None, lease: Duration::from_secs(60) }
    }
}

impl SessionsConfig {
    pub(crate) fn settings(&self, rank: &rank::Config) -> Settings {
        // Small chunks: a long prompt must not hold up the sessions that draft.
        let token_budget = self.token_budget.unwrap_or_else(|| rank.device.token_budget());
        // Slots are granted by the service; what waits in the engine is at most what it granted.
        Settings { token_budget, max_waiting: rank.slots as usize, ..Settings::default() }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        self.rank.check().map_err(|w| w.within("rank"))?;
        if self.rank.kv_spill.is_some() {
            return Err(Wrong::new("rank.kv_spill", "is for workers: a drafter's cache is small"));
        }
        Check::check(&self.telemetry).map_err(|w| w.within("telemetry"))?;
        if self.sessions.token_budget.is_some_and(|rows| !(1..=65_536).contains(&rows)) {
            return Err(Wrong::new("sessions.token_budget", "must be 1 to 65536"));
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.sessions.lease) {
            return Err(Wrong::new("sessions.lease", "must be 100ms to 1h"));
        }
        Ok(())
    }
}

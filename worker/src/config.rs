use std::time::Duration;

use daemon::config::{Check, Wrong, duration};
use engine::Settings;
use serde::{Deserialize, Serialize};

use crate::PagesConfig;

/// What a worker can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub rank: rank::Config,
    pub telemetry: telemetry::Config,
    pub engine: EngineConfig,
    pub pages: PagesConfig,
}

/// How the target's engine plans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Most rows of one step: prompt chunks, decodes and draft tokens together. When it is left out, what suits the
    /// device.
    pub token_budget: Option<u32>,
    /// Longest step while somebody decodes (what a reader waits for a token at most): long prompts are cut into chunks
    /// that keep it. When it is left out, chunks are as long as the budget allows.
    #[serde(with = "duration")]
    pub tpot_target: Option<Duration>,
    /// Requests that wait for a slot or for pages; one more is refused.
    pub max_waiting: usize,
    /// Longest predicted wait for a slot; a request that would wait longer is refused, and told how long.
    #[serde(with = "duration")]
    pub max_wait: Duration,
    /// Most draft tokens verified in one step for one sequence.
    pub max_draft: u32,
    /// Whether drafters draft under `auto` while sequences wait for them, as far as that pays, and not beside the target's
    /// steps. When it is left out: in turn on cores that worker and drafter share, as is measured to be faster on a GPU that
    /// they share, and beside the steps anywhere else.
    pub drafters_take_turns: Option<bool>,
    /// A client that reads nothing for this long loses its answer.
    #[serde(with = "duration")]
    pub slow_client_timeout: Duration,
    /// Messages of one answer that wait for its reader; when full the sequence is not planned.
    pub outbox: usize,
    /// Keep the keys and values of finished requests for others that begin alike.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let Settings { max_waiting, max_wait, max_draft, slow_client_timeout, prefix_cache, .. } =
            Settings::default();
        Self {
            token_budget: None,
            tpot_target: None,
            max_waiting,
            max_wait,
            max_draft,
            drafters_take_turns: None,
            slow_client_timeout,
            outbox: 64,
            prefix_cache,
        }
    }
}

impl EngineConfig {
    pub(crate) fn settings(&self, device: &rank::Device) -> Settings {
        Settings {
            token_budget: self.token_budget.unwrap_or_else(|| device.token_budget()),
            tpot_target: self.tpot_target,
            max_waiting: self.max_waiting,
            max_wait: self.max_wait,
            max_draft: self.max_draft,
            slow_client_timeout: self.slow_client_timeout,
            prefix_cache: self.prefix_cache,
            tell_prefixes: true,
        }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        self.rank.check().map_err(|w| w.within("rank"))?;
        if self.rank.shortlist.is_some() {
            let why = "is for drafters: a target must be able to say every token";
            return Err(Wrong::new("rank.shortlist", why));
        }
        if self.rank.kv_spill.is_some() && !self.engine.prefix_cache {
            let why = "is of the prefix cache, which engine.prefix_cache turns off";
            return Err(Wrong::new("rank.kv_spill", why));
        }
        Check::check(&self.telemetry).map_err(|w| w.within("telemetry"))?;
        self.engine.check().map_err(|w| w.within("engine"))?;
        self.pages.check().map_err(|w| w.within("pages"))
    }
}

impl Check for EngineConfig {
    fn check(&self) -> Result<(), Wrong> {
        if self.token_budget.is_some_and(|rows| !(1..=65_536).contains(&rows)) {
            return Err(Wrong::new("token_budget", "must be 1 to 65536"));
        }
        if self
            .tpot_target
            .is_some_and(|t| !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&t))
        {
            return Err(Wrong::new("tpot_target", "must be 1ms to 1m"));
        }
        if !(1..=65_536).contains(&self.max_waiting) {
            return Err(Wrong::new("max_waiting", "must be 1 to 65536"));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.max_wait) {
            return Err(Wrong::new("max_wait", "must be 1ms to 1h"));
        }
        if !(1..=request::Speculation::MAX_DRAFT).contains(&self.max_draft) {
            return Err(Wrong::new("max_draft", "must be 1 to 64"));
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&self.slow_client_timeout) {
            return Err(Wrong::new("slow_client_timeout", "must be 10ms to 1h"));
        }
        if !(4..=4096).contains(&self.outbox) {
            return Err(Wrong::new("outbox", "must be 4 to 4096"));
        }
        Ok(())
    }
}

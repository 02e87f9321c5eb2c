//! How far a run is: a bar on a terminal, silence elsewhere.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::load::Plan;
use super::record::Record;

/// Counts requests by number, or seconds when only a duration is planned.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    by_time: bool,
    failed: AtomicU64,
    tokens: AtomicU64,
}

impl Progress {
    pub fn new(plan: &Plan, label: &str) -> Self {
        let by_time = plan.requests.is_none();
        let total = match (plan.requests, plan.duration) {
            (Some(requests), _) => requests,
            (None, duration) => duration.unwrap_or_default().as_secs(),
        };
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(total),
            false => ProgressBar::hidden(),
        };
        let unit = if by_time { "s" } else { "requests" };
        let template = format!("{{prefix}} {{bar:30}} {{pos}}/{{len}} {unit}  {{msg}}");
        bar.set_style(
            ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_prefix(label.to_owned());
        Self { bar, by_time, failed: AtomicU64::new(0), tokens: AtomicU64::new(0) }
    }

    pub fn hidden() -> Self {
        let (bar, zero) = (ProgressBar::hidden(), || AtomicU64::new(0));
        Self { bar, by_time: false, failed: zero(), tokens: zero() }
    }

    pub(super) fn sent(&self, under_way: usize) {
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{under_way} under way"));
        }
    }

    pub(super) fn ended(&self, record: &Record, now: Duration, under_way: usize) {
        if self.bar.is_hidden() {
            return;
        }
        let failed = u64::from(!record.succeeded());
        let failed = self.failed.fetch_add(failed, Ordering::Relaxed) + failed;
        let tokens = record.output().unwrap_or(0);
        let tokens = self.tokens.fetch_add(tokens, Ordering::Relaxed) + tokens;
        let rate = tokens as f64 / now.as_secs_f64().max(0.001);
        if self.by_time {
            self.bar.set_position(now.as_secs());
        } else {
            self.bar.inc(1);
        }
        self.bar.set_message(format!("{under_way} under way, {failed} failed, {rate:.0} tokens/s"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

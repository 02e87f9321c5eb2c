//! What the engine's thread tells, as load for the heartbeats and as metrics.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cluster::{Load, PageChange, PrefixName, Role};
use daemon::join::Prefixes;
use engine::{Facts, Observed, PrefixChange, TierFacts, Way};
use telemetry::{Label, Meters};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Pace;

/// The observer of one rank. It runs on the engine's thread: a few microseconds a step, no waiting.
pub(crate) fn observe(
    publish: watch::Sender<Load>,
    step_time: Arc<Pace>,
    mut rates: Rates,
    slots: u32,
    ended: CancellationToken,
    numbers: Numbers,
    prefixes: Prefixes,
) -> engine::Observer {
    publish.send_replace(Load { free_slots: slots, ..Load::default() });
    // Dropped with the thread, whether it returns or panics.
    let guard = ended.drop_guard();
    Box::new(move |seen: &Observed| {
        let _ = &guard;
        numbers.record(seen);
        tell(&prefixes, &seen.prefixes);
        if let Some((facts, time)) = seen.step {
            // A step with a prompt chunk says nothing about decoding: there, each has one known row.
            if facts.known_rows == facts.decodes {
                step_time.record(time);
            }
            rates.step(&facts, time);
            if facts.failed > 0 {
                tracing::error!(sequences = facts.failed, "the model failed in a step; their answers end");
            }
        }
        let running = u32::try_from(seen.running).unwrap_or(u32::MAX);
        let load = Load {
            running,
            waiting: u32::try_from(seen.waiting).unwrap_or(u32::MAX),
            free_slots: slots.saturating_sub(running),
            free_pages: seen.free_pages,
            step_time: step_time.mean(),
            prefill_rate: rates.prefill(),
            handed_rate: rates.handed.load(Ordering::Relaxed),
        };
        publish.send_if_modified(|old| std::mem::replace(old, load) != load);
    })
}

/// Held for as long as the changes of one step take; a coordinator that is told everything holds it for a copy of them.
fn tell(prefixes: &Prefixes, changes: &[PrefixChange]) {
    if changes.is_empty() {
        return;
    }
    // A set and its latest changes stay right whatever panicked beside them.
    let mut log = prefixes.lock().unwrap_or_else(PoisonError::into_inner);
    for change in changes {
        log.record(match change {
            PrefixChange::Stored(hash) => PageChange::Stored(PrefixName(hash.short())),
            PrefixChange::Removed(hash) => PageChange::Removed(PrefixName(hash.short())),
            PrefixChange::Cleared => PageChange::Cleared,
        });
    }
}

/// Prompt tokens a second, computed here and handed over from elsewhere.
#[derive(Debug)]
pub(crate) struct Rates {
    prefill: f64,
    handed: Arc<AtomicU32>,
}

impl Rates {
    pub(crate) fn new(handed: Arc<AtomicU32>) -> Self {
        Self { prefill: 0.0, handed }
    }

    /// Steps with a chunk of some length tell; a few rows beside decodes say nothing of prompts.
    fn step(&mut self, facts: &Facts, time: Duration) {
        let rows = facts.known_rows.saturating_sub(facts.decodes);
        if rows >= CHUNK && !time.is_zero() {
            let new = f64::from(rows) / time.as_secs_f64();
            self.prefill = if self.prefill > 0.0 { 0.75 * self.prefill + 0.25 * new } else { new };
        }
    }

    /// Rounded: a heartbeat is sent for it only when it changed by some percents.
    fn prefill(&self) -> u32 {
        let rounded = self.prefill as u32;
        rounded - rounded % (rounded / 16).max(1)
    }
}

/// Rows of prompts in a step that are worth a look at the clock.
const CHUNK: u32 = 16;

/// The metrics of one rank, with their labels.
#[derive(Debug)]
pub(crate) struct Numbers {
    meters: &'static Meters,
    rank: [Label; 2],
    /// Of a target: only there drafts are verified.
    drafting: Option<Drafting>,
}

#[derive(Debug)]
struct Drafting {
    model: [Label; 1],
    plain: [[Label; 2]; 3],
    dropped: [[Label; 2]; 5],
    ways: [[Label; 2]; 2],
    spill: [[Label; 2]; 4],
}

impl Numbers {
    pub(crate) fn new(meters: &'static Meters, role: Role, model: &str) -> Self {
        let with = |reason| [Label::model(model), Label::reason(reason)];
        let (role, drafting) = match role {
            Role::Worker => {
                let drafting = Drafting {
                    model: [Label::model(model)],
                    plain: ["absent", "late", "spent"].map(with),
                    dropped: ["gap", "prefix", "stale", "late", "vocabulary"].map(with),
                    ways: ["turns", "ahead"].map(|way| [Label::model(model), Label::way(way)]),
                    spill: ["behind", "damaged", "io", "late"].map(with),
                };
                ("worker", Some(drafting))
            }
            Role::Drafter => ("drafter", None),
        };
        let numbers = Self { meters, rank: [Label::model(model), Label::role(role)], drafting };
        // Every counter is there from the start, at zero: a rate needs the value before the first event.
        numbers.step(&Facts::default());
        numbers.tier(TierFacts::default());
        numbers
    }

    fn record(&self, seen: &Observed) {
        let Self { meters, rank, .. } = self;
        meters.num_requests_running.record(seen.running as f64, rank);
        meters.num_requests_waiting.record(seen.waiting as f64, rank);
        if seen.pages > 0 {
            let used = seen.pages.saturating_sub(seen.free_pages);
            meters.kv_cache_usage_perc.record(f64::from(used) / f64::from(seen.pages), rank);
        }
        if let Some((facts, time)) = &seen.step {
            meters.step_duration.record(time.as_secs_f64(), rank);
            meters.iteration_tokens_total.record(f64::from(facts.known_rows + facts.draft_rows), rank);
            self.step(facts);
        }
        if seen.tier != TierFacts::default() {
            self.tier(seen.tier);
        }
    }

    fn tier(&self, facts: TierFacts) {
        let Some(Drafting { model, spill, .. }) = &self.drafting else { return };
        self.meters.kv_spilled_pages.add(facts.spilled.into(), model);
        self.meters.kv_restored_pages.add(facts.restored.into(), model);
        for (labels, pages) in spill.iter().zip([facts.behind, facts.damaged, facts.io, facts.late]) {
            self.meters.kv_spill_faults.add(pages.into(), labels);
        }
    }

    fn step(&self, facts: &Facts) {
        let Self { meters, rank, drafting } = self;
        meters.num_preemptions.add(facts.preempted.into(), rank);
        meters.prefix_cache_queries.add(facts.prefix_queries.into(), rank);
        meters.prefix_cache_hits.add(facts.prefix_hits.into(), rank);
        meters.sequence_failures.add(facts.failed.into(), rank);
        let Some(Drafting { model, plain, dropped, ways, .. }) = drafting else { return };
        meters.spec_decode_num_drafts.add(facts.drafts.into(), model);
        meters.spec_decode_num_draft_tokens.add(facts.draft_rows.into(), model);
        meters.spec_decode_num_accepted_tokens.add(facts.accepted.into(), model);
        let undrafted = [facts.undrafted.absent, facts.undrafted.late, facts.undrafted.spent];
        for (labels, steps) in plain.iter().zip(undrafted) {
            meters.spec_decode_num_plain_steps.add(steps.into(), labels);
        }
        for (labels, way) in ways.iter().zip([Way::Turns, Way::Ahead]) {
            meters.shared_gpu_steps.add((facts.way == Some(way)).into(), labels);
        }
        let drops = facts.dropped;
        let drops = [drops.gap, drops.prefix, drops.stale, drops.late, drops.vocabulary];
        for (labels, tokens) in dropped.iter().zip(drops) {
            meters.spec_decode_num_dropped_tokens.add(tokens.into(), labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(role: Role, seen: &[Observed]) -> String {
        let meters: &'static Meters = Box::leak(Box::new(Meters::alone()));
        let (publish, load) = watch::channel(Load::default());
        let numbers = Numbers::new(meters, role, "m");
        let ended = CancellationToken::new();
        let mut observer = observe(
            publish,
            Arc::default(),
            Rates::new(Arc::default()),
            8,
            ended.clone(),
            numbers,
            Arc::default(),
        );
        assert_eq!(load.borrow().free_slots, 8);
        seen.iter().for_each(&mut observer);
        drop(observer);
        assert!(ended.is_cancelled(), "the thread's end is seen");
        meters.render().unwrap().1
    }

    #[test]
    fn a_step_is_told_in_the_words_of_the_catalogue() {
        let facts = Facts {
            known_rows: 3,
            draft_rows: 8,
            accepted: 5,
            drafts: 2,
            preempted: 1,
            prefix_queries: 64,
            prefix_hits: 48,
            undrafted: engine::Undrafted { absent: 1, late: 2, spent: 0 },
            ..Facts::default()
        };
        let step = Observed {
            step: Some((facts, Duration::from_millis(20))),
            running: 3,
            waiting: 1,
            free_pages: 30,
            pages: 40,
            ..Observed::default()
        };
        let text = shown(Role::Worker, &[step.clone(), Observed { step: None, ..step }]);
        for line in [
            r#"paceline_num_requests_running{model="m",role="worker"} 3"#,
            r#"paceline_num_requests_waiting{model="m",role="worker"} 1"#,
            r#"paceline_kv_cache_usage_perc{model="m",role="worker"} 0.25"#,
            r#"paceline_step_duration_seconds_sum{model="m",role="worker"} 0.02"#,
            r#"paceline_iteration_tokens_total_sum{model="m",role="worker"} 11"#,
            r#"paceline_num_preemptions_total{model="m",role="worker"} 1"#,
            r#"paceline_prefix_cache_queries_total{model="m",role="worker"} 64"#,
            r#"paceline_prefix_cache_hits_total{model="m",role="worker"} 48"#,
            r#"paceline_sequence_failures_total{model="m",role="worker"} 0"#,
            r#"paceline_spec_decode_num_drafts_total{model="m"} 2"#,
            r#"paceline_spec_decode_num_draft_tokens_total{model="m"} 8"#,
            r#"paceline_spec_decode_num_accepted_tokens_total{model="m"} 5"#,
            r#"paceline_spec_decode_num_plain_steps_total{model="m",reason="late"} 2"#,
            r#"paceline_spec_decode_num_dropped_tokens_total{model="m",reason="gap"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn a_drafter_verifies_nothing() {
        let step = Observed { step: Some((Facts::default(), Duration::ZERO)), ..Observed::default() };
        let text = shown(Role::Drafter, &[step]);
        assert!(text.contains(r#"paceline_num_preemptions_total{model="m",role="drafter"} 0"#), "{text}");
        assert!(!text.contains("spec_decode"), "{text}");
    }
}

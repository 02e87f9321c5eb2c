//! Every metric there is: one table.
//!
//! `gen_ai.*` are the server metrics of OpenTelemetry's GenAI conventions (in development there), with
//! their buckets. `paceline.*` follow vLLM's vocabulary, so that its dashboards need a new prefix and
//! little else; what vLLM has no word for (drafting over a network, replays) is ours. Prometheus sees dots
//! as underscores, the unit at the end, and `_total` after counters ([`Metric::prometheus`]).
//!
//! Labels are bounded: models and roles are configured, reasons and states are listed in the code that
//! records them, positions end at 63. No label names a request, a client or a node.

use std::fmt::Write as _;

use opentelemetry::metrics::Meter;

use crate::instrument::{Instrument, Spec};
use crate::{Counter, Gauge, Histogram, UpDownCounter};

/// How a metric's values are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    /// Prometheus shows it as a gauge.
    UpDownCounter,
    Gauge,
    Histogram,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// As OTLP has it.
    pub name: &'static str,
    pub kind: Kind,
    /// UCUM: `s`, or an annotation such as `{token}`.
    pub unit: &'static str,
    /// All that it may carry; not every measurement carries all of them.
    pub labels: &'static [&'static str],
    /// The processes that record it.
    pub by: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    /// Its name on `/metrics`; of a histogram, without `_bucket`, `_sum` and `_count`.
    pub fn prometheus(&self) -> String {
        let mut name = self.name.replace('.', "_");
        if self.unit == "s" {
            name.push_str("_seconds");
        }
        if self.kind == Kind::Counter {
            name.push_str("_total");
        }
        name
    }
}

/// The table as `docs/metrics.md` shows it.
pub fn table() -> String {
    let mut text = String::from("| metric | kind, unit | labels | by | what |\n|---|---|---|---|---|\n");
    for metric in CATALOGUE {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::UpDownCounter => "gauge",
            Kind::Histogram => "histogram",
        };
        let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {kind}{unit} | {} | {} | {} |",
            metric.prometheus(),
            labels.join(" "),
            metric.by.join(", "),
            metric.help
        );
    }
    text
}

/// Buckets of the GenAI conventions, in seconds.
const GENAI_DURATION: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const GENAI_FIRST: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const GENAI_EACH: &[f64] = &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Of a whole request or of a stage of it: a millisecond to ten minutes.
const STAGE: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
    300.0, 600.0,
];
/// Between tokens: the conventions' finest bucket is 10 ms, and speculation is faster.
const TOKEN: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 1.0, 2.5,
];
/// Steps and round trips: a tenth of a millisecond to ten seconds.
const STEP: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Rows of a step.
const ROWS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];
const NONE: &[f64] = &[];

const GENAI: &[&str] = &["gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"];
const GENAI_ENDED: &[&str] =
    &["gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "error.type"];
const MODEL: &[&str] = &["model"];
const MODEL_REASON: &[&str] = &["model", "reason"];
const MODEL_WAY: &[&str] = &["model", "way"];
const MODEL_PLACEMENT: &[&str] = &["model", "placement"];
const MODEL_REASON_PLACEMENT: &[&str] = &["model", "reason", "placement"];
const RANK: &[&str] = &["model", "role"];

const COORDINATOR: &[&str] = &["coordinator"];
const WORKER: &[&str] = &["worker"];
const RANKS: &[&str] = &["worker", "drafter"];
const ALL: &[&str] = &["coordinator", "worker", "drafter"];

macro_rules! catalogue {
    ($($field:ident: $kind:ident($name:literal, $unit:literal, $buckets:expr) $labels:expr, $by:expr, $help:literal;)*) => {
        /// One instrument for each metric of the table.
        #[derive(Clone, Debug)]
        pub struct Instruments {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Instruments {
            pub(crate) fn new(meter: &Meter) -> Self {
                Self {
                    $($field: Instrument::new(meter, Spec {
                        name: $name, unit: $unit, help: $help, buckets: $buckets, labels: $labels,
                    }),)*
                }
            }
        }

        /// The table.
        pub const CATALOGUE: &[Metric] = &[
            $(Metric { name: $name, kind: Kind::$kind, unit: $unit, labels: $labels, by: $by, help: $help },)*
        ];
    };
}

catalogue! {
    // What a client sees.
    gen_ai_request_duration: Histogram("gen_ai.server.request.duration", "s", GENAI_DURATION) GENAI_ENDED, COORDINATOR,
        "From a request's arrival to its end; `error.type` when it failed";
    gen_ai_time_to_first_token: Histogram("gen_ai.server.time_to_first_token", "s", GENAI_FIRST) GENAI, COORDINATOR,
        "From a request's arrival to its first token; successful requests";
    gen_ai_time_per_output_token: Histogram("gen_ai.server.time_per_output_token", "s", GENAI_EACH) GENAI, COORDINATOR,
        "(Duration - time to first token) / (output tokens - 1); successful requests";
    time_to_first_token: Histogram("paceline.time_to_first_token", "s", STAGE) MODEL, COORDINATOR,
        "From a request's arrival to its first token";
    inter_token_latency: Histogram("paceline.inter_token_latency", "s", TOKEN) MODEL, COORDINATOR,
        "Between output tokens, once a token: tokens that arrive together share the gap before them";
    inter_chunk_latency: Histogram("paceline.inter_chunk_latency", "s", TOKEN) MODEL, COORDINATOR,
        "Between arrivals of output, once an arrival: what a reader of the stream waits";
    e2e_request_latency: Histogram("paceline.e2e_request_latency", "s", STAGE) MODEL, COORDINATOR,
        "From a request's arrival to its end; answered requests";
    requests_in_flight: UpDownCounter("paceline.requests_in_flight", "{request}", NONE) &[], COORDINATOR,
        "Requests under way";
    request_success: Counter("paceline.request_success", "{request}", NONE) MODEL_REASON, COORDINATOR,
        "Answers that ended, by finish reason: `stop`, `length`";
    request_failure: Counter("paceline.request_failure", "{request}", NONE) &["role", "reason"], ALL,
        "Requests (of a drafter: sessions) refused or broken off, by reason: the words of `proto::reason`, `cancelled` when the caller left";
    prompt_tokens: Counter("paceline.prompt_tokens", "{token}", NONE) MODEL, COORDINATOR,
        "Prompt tokens of answered requests";
    generation_tokens: Counter("paceline.generation_tokens", "{token}", NONE) MODEL, COORDINATOR,
        "Output tokens delivered";
    model_migration: Counter("paceline.model_migration", "{request}", NONE) MODEL, COORDINATOR,
        "Answers placed again because their worker was lost (replays)";
    fingerprint_crossings: Counter("paceline.fingerprint_crossings", "{request}", NONE) MODEL, COORDINATOR,
        "Answers that went on at a worker of another numerics fingerprint";
    members: Gauge("paceline.members", "{node}", NONE) &["role", "state"], COORDINATOR,
        "Nodes in the map: `ready`, `draining`, `suspect`, `disconnected`";
    snapshot_age: Gauge("paceline.snapshot_age", "s", NONE) &[], COORDINATOR,
        "Age of the oldest report of load that requests are placed by";
    router_prefix_queries: Counter("paceline.router_prefix_queries", "{token}", NONE) MODEL, COORDINATOR,
        "Tokens of placed requests whose prefix was looked up";
    router_prefix_hits: Counter("paceline.router_prefix_hits", "{token}", NONE) MODEL, COORDINATOR,
        "Of those, tokens that the chosen worker was thought to have in its cache";
    kv_cache_events_applied: Counter("paceline.kv_cache_events_applied", "{event}", NONE) &["event_type"], COORDINATOR,
        "What workers told of their prefix caches: pages `stored`, `removed`, `left_out` (no room to remember them), and messages `reset` (all was told again), `gap` (one was missing)";
    prefix_index_pages: Gauge("paceline.prefix_index_pages", "{page}", NONE) &[], COORDINATOR,
        "Pages of workers' prefix caches that are remembered";

    // What a rank does, step by step.
    num_requests_running: Gauge("paceline.num_requests_running", "{request}", NONE) RANK, RANKS,
        "Sequences that hold a slot";
    num_requests_waiting: Gauge("paceline.num_requests_waiting", "{request}", NONE) RANK, RANKS,
        "Sequences that wait for a slot or for pages";
    kv_cache_usage_perc: Gauge("paceline.kv_cache_usage_perc", "", NONE) RANK, RANKS,
        "Share of KV pages in use, 0 to 1; cached pages that may be evicted count as free";
    step_duration: Histogram("paceline.step_duration", "s", STEP) RANK, RANKS,
        "Time of one engine step: plan, submit, collect, commit";
    iteration_tokens_total: Histogram("paceline.iteration_tokens_total", "{token}", ROWS) RANK, RANKS,
        "Rows of one engine step: prompt chunks, decodes and draft tokens together";
    num_preemptions: Counter("paceline.num_preemptions", "{request}", NONE) RANK, RANKS,
        "Sequences whose pages were taken back; they are computed again later";
    prefix_cache_queries: Counter("paceline.prefix_cache_queries", "{token}", NONE) RANK, RANKS,
        "Tokens looked up in the prefix cache";
    prefix_cache_hits: Counter("paceline.prefix_cache_hits", "{token}", NONE) RANK, RANKS,
        "Tokens found in the prefix cache";
    sequence_failures: Counter("paceline.sequence_failures", "{request}", NONE) RANK, RANKS,
        "Sequences ended because the model failed in a step";

    // A request inside its worker.
    request_queue_time: Histogram("paceline.request_queue_time", "s", STAGE) MODEL, WORKER,
        "From the worker's inbox to the first step that holds a row of the request";
    request_prefill_time: Histogram("paceline.request_prefill_time", "s", STAGE) MODEL, WORKER,
        "From that step to the first token";
    request_decode_time: Histogram("paceline.request_decode_time", "s", STAGE) MODEL, WORKER,
        "From the first token to the last";

    // What drafting does for it.
    spec_decode_num_drafts: Counter("paceline.spec_decode_num_drafts", "{step}", NONE) MODEL, WORKER,
        "Verification steps: a sequence's steps with at least one draft token";
    spec_decode_num_draft_tokens: Counter("paceline.spec_decode_num_draft_tokens", "{token}", NONE) MODEL, WORKER,
        "Draft tokens verified";
    spec_decode_num_accepted_tokens: Counter("paceline.spec_decode_num_accepted_tokens", "{token}", NONE) MODEL, WORKER,
        "Draft tokens accepted";
    spec_decode_num_accepted_tokens_per_pos: Counter("paceline.spec_decode_num_accepted_tokens_per_pos", "{token}", NONE)
        &["model", "position"], WORKER,
        "Draft tokens accepted, by their place in the step from 0";
    spec_decode_num_plain_steps: Counter("paceline.spec_decode_num_plain_steps", "{step}", NONE) MODEL_REASON, WORKER,
        "Decode steps of sequences that want drafts and had none: `absent` (no drafter attached), `late` (nothing had arrived), `spent` (what was there was not worth its rows, or found no room)";
    spec_decode_num_dropped_tokens: Counter("paceline.spec_decode_num_dropped_tokens", "{token}", NONE) MODEL_REASON, WORKER,
        "Draft tokens that never reached a step: `gap`, `prefix`, `stale`, `late`, `vocabulary`";
    shared_gpu_steps: Counter("paceline.shared_gpu_steps", "{step}", NONE) MODEL_WAY, WORKER,
        "Decode steps of a worker that measures how a drafter on its own GPU is used best, by what that one did meanwhile: `turns` (it rested), `ahead` (it drafted)";
    draft_round_trip: Histogram("paceline.draft_round_trip", "s", STEP) MODEL_PLACEMENT, WORKER,
        "From sending a commit to the first drafts that follow it; `placement`: `colocated`, `same-node`, `remote`";
    draft_sessions: Counter("paceline.draft_sessions", "{session}", NONE) MODEL_REASON_PLACEMENT, WORKER,
        "Sessions asked of drafters: `granted`, `refused`, `late`, `unreachable`, `unpaired`; `placement`: `colocated`, `same-node`, `remote`, `unknown` without a link";

    // Pages that the prefix cache had no room for.
    kv_spilled_pages: Counter("paceline.kv_spilled_pages", "{page}", NONE) MODEL, WORKER,
        "Evicted pages that went to the spill file, of one head class each";
    kv_restored_pages: Counter("paceline.kv_restored_pages", "{page}", NONE) MODEL, WORKER,
        "Pages that came back from it, verified, for a sequence to start from";
    kv_spill_faults: Counter("paceline.kv_spill_faults", "{page}", NONE) MODEL_REASON, WORKER,
        "Pages that did not go or come back, and are computed again if they are wanted: `behind` (too many waited to be written), `damaged` (another checksum), `io` (not written or read), `late` (the sequence did not wait any more, or no page was free)";

    // Prompts that another worker computes.
    handed_pages: Counter("paceline.handed_pages", "{page}", NONE) MODEL, WORKER,
        "Page indices that another worker computed and this one took";
    handed_bytes: Counter("paceline.handed_bytes", "{byte}", NONE) MODEL, WORKER,
        "Bytes of keys and values that came that way";
    hand_over_faults: Counter("paceline.hand_over_faults", "{transfer}", NONE) MODEL_REASON, WORKER,
        "Hand-offs that ended early, the rest computed here: `unreachable`, `refused`, `closed`, `hung`, `damaged`, `truncated`, `order`, `stale`, `prefix`, `no_room`, `failed`";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_documentation_shows_the_table() {
        let page = include_str!("../../../docs/metrics.md");
        assert!(page.contains(&table()), "docs/metrics.md must hold this table:\n\n{}", table());
    }

    #[test]
    fn names_are_unique_and_say_what_they_are() {
        let mut seen = HashSet::new();
        for metric in CATALOGUE {
            assert!(seen.insert(metric.name) && seen.insert(metric.help), "{} is doubled", metric.name);
            assert!(
                metric.name.starts_with("paceline.") || metric.name.starts_with("gen_ai.server."),
                "{metric:?}"
            );
            assert!(
                metric.labels.len() <= 4 && !metric.by.is_empty() && !metric.help.is_empty(),
                "{metric:?}"
            );
            assert!(!metric.help.contains('|') && !metric.help.ends_with('.'), "{metric:?}");
        }
    }
}

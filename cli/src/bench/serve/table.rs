//! Results for people.

use tabled::builder::Builder;

use super::summary::{Summary, Value};
use crate::bench::{aligned, figure};

/// Rows of the table of spreads: what people call it, AIPerf's tag.
const ROWS: [(&str, &str); 11] = [
    ("time to first token (ms)", "time_to_first_token"),
    ("time to second token (ms)", "time_to_second_token"),
    ("inter token latency (ms)", "inter_token_latency"),
    ("time per output token (ms)", "time_per_output_token"),
    ("gap between chunks (ms)", "inter_chunk_latency"),
    ("end to end (ms)", "request_latency"),
    ("output tokens", "output_sequence_length"),
    ("prompt tokens", "input_sequence_length"),
    ("prompt tokens cached", "usage_prompt_cache_read_tokens"),
    ("drafts: acceptance length", "spec_decode_acceptance_length"),
    ("sent late by client (ms)", "credit_to_start_latency"),
];

/// Rows of the table of totals.
const TOTALS: [(&str, &str); 7] = [
    ("requests/s", "request_throughput"),
    ("output tokens/s", "output_token_throughput"),
    ("all tokens/s", "total_token_throughput"),
    ("goodput requests/s", "goodput"),
    ("good of all requests", "good_request_fraction"),
    ("duration (s)", "benchmark_duration"),
    ("requests that succeeded", "request_count"),
];

/// One run.
pub fn run(summary: &Summary) -> String {
    let mut rows = Builder::default();
    rows.push_record(["", "mean", "min", "p50", "p90", "p99", "max", "std"]);
    for (label, tag) in ROWS {
        let Some(s) = summary.spread(tag) else { continue };
        let figures = [s.avg, s.min, s.p50, s.p90, s.p99, s.max, s.std].map(figure);
        rows.push_record(std::iter::once(label.to_owned()).chain(figures));
    }
    let mut totals = Builder::default();
    for (label, tag) in TOTALS {
        if let Some(Value::One(value)) = summary.get(tag) {
            totals.push_record([label.to_owned(), figure(value)]);
        }
    }
    for (kind, failed) in &summary.failures {
        totals.push_record([format!("failed: {}", kind.label()), failed.count().to_string()]);
    }
    let mut text = aligned(rows) + "\n" + &aligned(totals);
    for failed in summary.failures.values() {
        if let Some((low, high)) = failed.retry_after {
            text += &format!("\nRetry-After seen: {low:?} to {high:?}\n");
        }
    }
    for (kind, failed) in &summary.failures {
        if let Some((message, count)) = failed.messages.iter().max_by_key(|(_, count)| **count) {
            text += &format!("{} ({count} times): {message}\n", kind.label());
        }
    }
    text
}

/// Several runs, a line each. `axis` names what differs.
pub fn sweep<'a>(axis: &str, runs: impl IntoIterator<Item = (f64, &'a Summary)>) -> String {
    let mut rows = Builder::default();
    let heads = ["ttft p50", "ttft p99", "itl p50", "itl p99", "gap p99", "e2e p99", "tokens/s", "req/s"];
    let tail = ["goodput", "failed"];
    rows.push_record(std::iter::once(axis).chain(heads).chain(tail));
    for (at, summary) in runs {
        let of = |tag, pick: fn(&crate::bench::spread::Spread) -> f64| {
            summary.spread(tag).map_or_else(|| "-".into(), |s| figure(pick(&s)))
        };
        let one = |tag| summary.one(tag).map_or_else(|| "-".into(), figure);
        rows.push_record([
            at.to_string(),
            of("time_to_first_token", |s| s.p50),
            of("time_to_first_token", |s| s.p99),
            of("inter_token_latency", |s| s.p50),
            of("inter_token_latency", |s| s.p99),
            of("inter_chunk_latency", |s| s.p99),
            of("request_latency", |s| s.p99),
            one("output_token_throughput"),
            one("request_throughput"),
            one("goodput"),
            summary.failed().to_string(),
        ]);
    }
    aligned(rows)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::record::{Failure, Kind, tests::record};
    use super::*;

    #[test]
    fn the_table_names_what_was_measured_and_what_failed() {
        let mut refused = record(0, 0, &[], 0);
        refused.exchange.failure = Some(Failure {
            retry_after: Some(Duration::from_secs(3)),
            ..Failure::new(Kind::Status(429), "queue full")
        });
        let records = [record(0, 0, &[50, 60, 70], 3), refused];
        let summary = Summary::of(&records, &["ttft:1s".parse().unwrap()], 3);
        let text = run(&summary);
        for wanted in ["time to first token (ms)", "goodput requests/s", "429 refused", "3s", "queue full"] {
            assert!(text.contains(wanted), "{wanted} is missing:\n{text}");
        }
        assert!(!text.contains("cached") && text.lines().all(|l| !l.ends_with(' ')), "{text}");
        let heads = text.lines().next().unwrap();
        let row = text.lines().find(|l| l.starts_with("inter token")).unwrap();
        let end = heads.find("p50").unwrap() + 3;
        assert_eq!(&row[end - 5..end], "10.00", "{text}");
        let lines = sweep("rate", [(1.5, &summary), (2.0, &summary)]);
        assert_eq!(lines.lines().count(), 3);
        assert!(lines.lines().nth(1).unwrap().starts_with("1.5"), "{lines}");
    }
}

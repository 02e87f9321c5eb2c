//! Results as AIPerf writes them: `profile_export_aiperf.json` (schema 1.4) and `profile_export.jsonl`.
//!
//! Names, units and nesting are AIPerf's, so its readers read these files. What it has no place for
//! stands under `paceline`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value as Json, json};

use super::load::Run;
use super::record::{Failure, PER_REQUEST, Record};
use super::summary::{Summary, Value};

const SCHEMA: &str = "1.4";

/// The summary of a run. `own` goes under `paceline`.
pub fn summary(summary: &Summary, run: &Run, own: Json) -> Json {
    let mut out = Map::new();
    for metric in &summary.metrics {
        let mut value = match metric.value {
            Value::One(value) => json!({ "avg": value }),
            Value::Spread(spread) => json!(spread),
        };
        value["unit"] = json!(metric.unit);
        out.insert(metric.tag.to_owned(), value);
    }
    let errors = summary.failures.iter().flat_map(|(kind, failed)| {
        let detail = |(message, count): (&String, &usize)| {
            let error = json!({ "code": kind.code(), "type": kind.label(), "message": message });
            json!({ "error_details": error, "count": count })
        };
        failed.messages.iter().map(detail).collect::<Vec<_>>()
    });
    let rest = json!({
        "schema_version": SCHEMA,
        "was_cancelled": run.interrupted,
        "is_complete": !run.interrupted,
        "error_summary": errors.collect::<Vec<_>>(),
        "start_time": humantime::format_rfc3339_micros(run.clock.wall).to_string(),
        "end_time": humantime::format_rfc3339_micros(run.ended).to_string(),
        "paceline": own,
    });
    if let Json::Object(rest) = rest {
        out.extend(rest);
    }
    Json::Object(out)
}

/// One line a request, in the order of ending.
pub fn records(run: &Run) -> String {
    run.records.iter().map(|record| format!("{}\n", line(record, run.clock.wall))).collect()
}

fn line(record: &Record, started: SystemTime) -> Json {
    let exchange = &record.exchange;
    let wall = |at: Duration| nanos(started + at);
    let mut metrics = Map::new();
    if record.succeeded() {
        for measure in PER_REQUEST {
            if let Some(value) = (measure.of)(record) {
                metrics.insert(measure.tag.to_owned(), json!({ "value": value, "unit": measure.unit }));
            }
        }
        let gaps: Vec<f64> = record.gaps().collect();
        if !gaps.is_empty() {
            metrics.insert("inter_chunk_latency".to_owned(), json!({ "value": gaps, "unit": "ms" }));
        }
    }
    let mut line = json!({
        "metadata": {
            "session_num": record.index,
            "turn_index": 0,
            "credit_issued_ns": wall(record.due),
            "request_start_ns": wall(exchange.start),
            "request_ack_ns": exchange.ack.map(wall),
            "request_end_ns": wall(exchange.end),
            "worker_id": "paceline",
            "record_processor_id": "paceline",
            "benchmark_phase": "profiling",
            "was_cancelled": false,
        },
        "metrics": metrics,
    });
    if let Some(Failure { kind, message, .. }) = &exchange.failure {
        line["error"] = json!({ "code": kind.code(), "type": kind.label(), "message": message });
    }
    line
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::exchange::Clock;
    use super::super::record::{Kind, tests::record};
    use super::*;

    fn run() -> Run {
        let mut failed = record(0, 0, &[], 0);
        failed.exchange.failure = Some(Failure::new(Kind::Status(503), "draining"));
        let started = UNIX_EPOCH + Duration::from_secs(1_000);
        Run {
            records: vec![record(0, 100, &[150, 160], 2), failed],
            clock: Clock { start: Instant::now(), wall: started },
            ended: started + Duration::from_secs(2),
            interrupted: false,
        }
    }

    #[test]
    fn the_summary_has_the_shape_of_profile_export_aiperf() {
        let run = run();
        let json = summary(&Summary::of(&run.records, &[], 2), &run, json!({ "model": "m" }));
        assert_eq!(json["schema_version"], "1.4");
        assert_eq!(json["time_to_first_token"]["unit"], "ms");
        assert_eq!(json["time_to_first_token"]["p99"], 50.0);
        assert_eq!(json["inter_chunk_latency"]["count"], 1);
        assert_eq!(json["request_throughput"], json!({ "unit": "requests/sec", "avg": 1.0 / 0.06 }));
        assert_eq!(json["error_request_count"]["avg"], 1.0);
        assert_eq!(json["error_summary"][0]["count"], 1);
        assert_eq!(json["error_summary"][0]["error_details"]["code"], 503);
        assert_eq!(json["start_time"], "1970-01-01T00:16:40.000000Z");
        assert_eq!(json["paceline"]["model"], "m");
    }

    #[test]
    fn a_line_has_the_shape_of_profile_export_jsonl() {
        let text = records(&run());
        let lines: Vec<Json> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["metadata"]["request_start_ns"], 1_000_100_000_000u64);
        assert_eq!(lines[0]["metrics"]["time_to_first_token"], json!({ "value": 50.0, "unit": "ms" }));
        assert_eq!(lines[0]["metrics"]["inter_chunk_latency"]["value"], json!([10.0]));
        assert_eq!(lines[0].get("error"), None);
        assert_eq!(lines[1]["error"]["message"], "draining");
        assert_eq!(lines[1]["metrics"], json!({}));
    }
}

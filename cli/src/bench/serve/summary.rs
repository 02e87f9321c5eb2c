//! What a run's requests came to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::record::{Kind, PER_REQUEST, Record};
use super::slo::Slo;
use crate::bench::spread::Spread;

/// All metrics of a run, and what failed.
#[derive(Clone, Debug)]
pub struct Summary {
    pub metrics: Vec<Metric>,
    pub failures: BTreeMap<Kind, Failed>,
    /// Answers of another length than asked for, of those whose length is known.
    pub other_length: usize,
    pub completed: usize,
}

/// A metric of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// AIPerf's name where it has the metric.
    pub tag: &'static str,
    pub unit: &'static str,
    pub value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    One(f64),
    Spread(Spread),
}

/// Requests that failed in one way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failed {
    /// Message to how often.
    pub messages: BTreeMap<String, usize>,
    /// Shortest and longest Retry-After seen.
    pub retry_after: Option<(Duration, Duration)>,
}

impl Summary {
    /// `asked`: tokens that each answer should have.
    pub fn of(records: &[Record], slos: &[Slo], asked: u64) -> Self {
        let good: Vec<&Record> = records.iter().filter(|r| r.succeeded()).collect();
        let mut metrics = Vec::new();
        for measure in PER_REQUEST {
            let spread = Spread::of(good.iter().filter_map(|r| (measure.of)(r)));
            metrics.extend(spread.map(|s| Metric {
                tag: measure.tag,
                unit: measure.unit,
                value: Value::Spread(s),
            }));
        }
        // Every pause of every answer, not one figure a request.
        let gaps = Spread::of(good.iter().flat_map(|r| r.gaps()));
        metrics.extend(gaps.map(|s| Metric {
            tag: "inter_chunk_latency",
            unit: "ms",
            value: Value::Spread(s),
        }));
        totals(records, &good, slos, &mut metrics);
        let mut failures: BTreeMap<Kind, Failed> = BTreeMap::new();
        for failure in records.iter().filter_map(|r| r.exchange.failure.as_ref()) {
            let failed = failures.entry(failure.kind).or_default();
            *failed.messages.entry(failure.message.clone()).or_default() += 1;
            if let Some(after) = failure.retry_after {
                let (low, high) = failed.retry_after.unwrap_or((after, after));
                failed.retry_after = Some((low.min(after), high.max(after)));
            }
        }
        let other_length = good.iter().filter(|r| r.output().is_some_and(|n| n != asked)).count();
        Self { metrics, failures, other_length, completed: good.len() }
    }

    pub fn get(&self, tag: &str) -> Option<Value> {
        self.metrics.iter().find(|m| m.tag == tag).map(|m| m.value)
    }

    pub fn spread(&self, tag: &str) -> Option<Spread> {
        match self.get(tag) {
            Some(Value::Spread(spread)) => Some(spread),
            _ => None,
        }
    }

    pub fn one(&self, tag: &str) -> Option<f64> {
        match self.get(tag) {
            Some(Value::One(value)) => Some(value),
            _ => None,
        }
    }

    /// Requests that failed.
    pub fn failed(&self) -> usize {
        self.failures.values().map(Failed::count).sum()
    }
}

impl Failed {
    pub fn count(&self) -> usize {
        self.messages.values().sum()
    }
}

/// Counts and rates. The duration is AIPerf's: from the first start to the last content, of requests
/// that did not fail.
fn totals(records: &[Record], good: &[&Record], slos: &[Slo], metrics: &mut Vec<Metric>) {
    let mut put = |tag, unit, value: f64| metrics.push(Metric { tag, unit, value: Value::One(value) });
    let failed = records.len() - good.len();
    put("request_count", "requests", good.len() as f64);
    if failed > 0 {
        put("error_request_count", "requests", failed as f64);
    }
    put("completed_request_count", "requests", records.len() as f64);
    if !records.is_empty() {
        put("request_error_rate", "%", 100.0 * failed as f64 / records.len() as f64);
    }
    let first = good.iter().map(|r| r.exchange.start).min();
    let last = good.iter().filter_map(|r| r.last()).max();
    let Some(seconds) = first.zip(last).map(|(a, b)| b.saturating_sub(a).as_secs_f64()).filter(|s| *s > 0.0)
    else {
        return;
    };
    put("benchmark_duration", "sec", seconds);
    put("request_throughput", "requests/sec", good.len() as f64 / seconds);
    if !slos.is_empty() {
        let met = good.iter().filter(|r| slos.iter().all(|slo| slo.met(r))).count() as f64;
        put("good_request_count", "requests", met);
        put("good_request_fraction", "ratio", met / records.len() as f64);
        put("goodput", "requests/sec", met / seconds);
    }
    // Without usage from the server there are no tokens to speak of.
    if good.iter().any(|r| r.exchange.usage.is_some()) {
        let input: u64 = good.iter().filter_map(|r| r.input()).sum();
        let output: u64 = good.iter().filter_map(|r| r.output()).sum();
        put("total_isl", "tokens", input as f64);
        put("total_osl", "tokens", output as f64);
        put("input_token_throughput", "tokens/sec", input as f64 / seconds);
        put("output_token_throughput", "tokens/sec", output as f64 / seconds);
        put("total_token_throughput", "tokens/sec", (input + output) as f64 / seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Failure, tests::record};
    use super::*;

    fn refused(after: u64) -> Record {
        let mut record = record(0, 0, &[], 0);
        record.exchange.failure = Some(Failure {
            retry_after: Some(Duration::from_secs(after)),
            ..Failure::new(Kind::Status(429), "full")
        });
        record
    }

    #[test]
    fn rates_are_over_the_time_from_the_first_start_to_the_last_content() {
        let records =
            [record(0, 100, &[200, 300], 2), record(0, 150, &[1000, 1100], 6), refused(2), refused(5)];
        let slos = ["ttft:100ms".parse().unwrap(), "itl:100ms".parse().unwrap()];
        let summary = Summary::of(&records, &slos, 6);
        for (tag, wanted) in [
            ("benchmark_duration", 1.0),
            ("request_count", 2.0),
            ("error_request_count", 2.0),
            ("completed_request_count", 4.0),
            ("request_error_rate", 50.0),
            ("request_throughput", 2.0),
            ("output_token_throughput", 8.0),
            ("total_token_throughput", 28.0),
            ("total_isl", 20.0),
            // The first meets both; of the second the first token is late.
            ("good_request_count", 1.0),
            ("good_request_fraction", 0.25),
            ("goodput", 1.0),
        ] {
            let got = summary.one(tag).unwrap();
            assert!((got - wanted).abs() < 1e-9, "{tag}: {got} is not {wanted}");
        }
        assert_eq!((summary.other_length, summary.failed()), (1, 2));
        let full = &summary.failures[&Kind::Status(429)];
        assert_eq!(full.count(), 2);
        assert_eq!(full.retry_after, Some((Duration::from_secs(2), Duration::from_secs(5))));
    }

    #[test]
    fn pauses_are_pooled_over_all_answers_and_time_per_token_is_one_a_request() {
        let records = [record(0, 0, &[10, 20, 30], 3), record(0, 0, &[10, 50], 2)];
        let summary = Summary::of(&records, &[], 3);
        let gaps = summary.spread("inter_chunk_latency").unwrap();
        assert_eq!((gaps.count, gaps.sum, gaps.p50), (3, 60.0, 10.0));
        let itl = summary.spread("inter_token_latency").unwrap();
        assert_eq!((itl.count, itl.avg), (2, 25.0));
    }

    #[test]
    fn a_run_without_answers_has_counts_and_no_rates() {
        let summary = Summary::of(&[refused(1)], &[], 3);
        assert_eq!(summary.one("request_error_rate"), Some(100.0));
        assert_eq!(summary.get("request_throughput"), None);
        assert_eq!(Summary::of(&[], &[], 3).one("request_count"), Some(0.0));
    }
}

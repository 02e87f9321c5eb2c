//! One request inside this worker, as its span and as metrics: how long it waited, prefilled, decoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::Ended;
use proto::reason::{Reason, parse};
use request::{Finish, Request};
use telemetry::{Label, Meters, trace};
use tonic::Status;
use tracing::Span;

/// From the inbox to the end. It lives with the answer's outlet on the engine's thread.
#[derive(Debug)]
pub(crate) struct Stages {
    meters: &'static Meters,
    model: [Label; 1],
    /// Closed when this is dropped.
    span: Span,
    /// Set by the engine once it took the request: before that, its refusal is what counts.
    admitted: Arc<AtomicBool>,
    arrived: Instant,
    started: Option<Instant>,
    /// First and latest commit.
    tokens: Option<(Instant, Instant)>,
    ended: bool,
}

/// The span of one call; its parent is the caller's.
pub(crate) fn span(headers: &tonic::metadata::MetadataMap) -> Span {
    let span = telemetry::span!("engine.generate", otel.kind = "server", gen_ai.operation.name = "generate");
    trace::continue_from(&span, headers.as_ref());
    span
}

/// Counts a call that was not admitted.
pub(crate) fn refused(span: &Span, status: &Status) {
    failed(telemetry::meters(), span, parse(status).reason);
}

fn failed(meters: &Meters, span: &Span, reason: Reason) {
    trace::fail(span, reason.as_str());
    meters.request_failure.add(1, &[Label::role("worker"), Label::reason(reason.as_str())]);
}

impl Stages {
    pub(crate) fn new(meters: &'static Meters, span: Span, model: &str, request: &Request) -> Self {
        trace::set(&span, "gen_ai.request.model", model.to_owned());
        trace::set(&span, "gen_ai.response.id", request.id.to_string());
        trace::set(&span, "gen_ai.request.max_tokens", i64::from(request.limits.max_tokens));
        trace::set(&span, "paceline.request.attempt", i64::from(request.attempt));
        trace::set(&span, "paceline.request.choice", i64::from(request.sampling.choice));
        Self {
            meters,
            model: [Label::model(model)],
            span,
            admitted: Arc::default(),
            arrived: Instant::now(),
            started: None,
            tokens: None,
            ended: false,
        }
    }

    /// For whoever hears that the engine took the request.
    pub(crate) fn admitted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.admitted)
    }

    /// Its first rows are in a step. Preempted and started again, it counts once.
    pub(crate) fn started(&mut self, cached: u32) {
        if self.started.is_none() {
            let now = Instant::now();
            self.started = Some(now);
            trace::set(&self.span, "gen_ai.usage.cache_read.input_tokens", i64::from(cached));
            self.time("gen_ai.latency.time_in_queue", &self.meters.request_queue_time, self.arrived, now);
        }
    }

    /// A step committed tokens; `drafted` says which stood in an accepted draft: the first ones.
    pub(crate) fn committed(&mut self, drafted: &[bool]) {
        let now = Instant::now();
        match &mut self.tokens {
            Some((_, last)) => *last = now,
            None => {
                self.tokens = Some((now, now));
                let from = self.started.unwrap_or(self.arrived);
                self.time(
                    "gen_ai.latency.time_in_model_prefill",
                    &self.meters.request_prefill_time,
                    from,
                    now,
                );
            }
        }
        for (position, _) in drafted.iter().enumerate().filter(|(_, accepted)| **accepted) {
            let labels = [self.model[0].clone(), Label::position(position)];
            self.meters.spec_decode_num_accepted_tokens_per_pos.add(1, &labels);
        }
    }

    pub(crate) fn ended(&mut self, ended: &Ended) {
        self.ended = true;
        if let Some((first, last)) = self.tokens {
            self.time("gen_ai.latency.time_in_model_decode", &self.meters.request_decode_time, first, last);
        }
        let Ended { finish, usage, speculation } = ended;
        for (name, count) in [
            ("gen_ai.usage.input_tokens", u64::from(usage.prompt_tokens)),
            ("gen_ai.usage.output_tokens", usage.completion_tokens.into()),
            ("paceline.speculation.drafts", speculation.drafts),
            ("paceline.speculation.draft_tokens", speculation.draft_tokens),
            ("paceline.speculation.accepted_tokens", speculation.accepted_tokens),
        ] {
            trace::set(&self.span, name, i64::try_from(count).unwrap_or(i64::MAX));
        }
        match finish {
            Finish::Stop => trace::set(&self.span, "gen_ai.response.finish_reasons", "stop"),
            Finish::Length => trace::set(&self.span, "gen_ai.response.finish_reasons", "length"),
            Finish::Cancelled => failed(self.meters, &self.span, Reason::Cancelled),
            Finish::SlowClient => failed(self.meters, &self.span, Reason::SlowClient),
            Finish::Deadline => failed(self.meters, &self.span, Reason::Deadline),
            Finish::Failed => failed(self.meters, &self.span, Reason::Internal),
        }
    }

    fn time(&self, name: &'static str, histogram: &telemetry::Histogram, from: Instant, to: Instant) {
        let seconds = to.saturating_duration_since(from).as_secs_f64();
        histogram.record(seconds, &self.model);
        trace::set(&self.span, name, seconds);
    }
}

impl Drop for Stages {
    /// Dropped without a last word: the caller left.
    fn drop(&mut self) {
        // A span that was entered ends where it was last left: here, not when the call was admitted.
        let _end = self.span.enter();
        if !self.ended && self.admitted.load(Ordering::Relaxed) {
            failed(self.meters, &self.span, Reason::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use request::{Limits, RequestId, Sampling, SamplingParams, SpeculationStats, TokenId, Usage};

    use super::*;

    fn stages() -> (&'static Meters, Stages) {
        let meters: &'static Meters = Box::leak(Box::new(Meters::alone()));
        let sampling = Sampling { params: SamplingParams::at(1.0), seed: 1, choice: 0 };
        let id = RequestId::new("r").unwrap();
        let request = Request::new(id, vec![TokenId(1)], sampling, Limits::new(4, Vec::new()));
        (meters, Stages::new(meters, Span::none(), "m", &request))
    }

    fn ended(finish: Finish) -> Ended {
        Ended { finish, usage: Usage::default(), speculation: SpeculationStats::default() }
    }

    #[test]
    fn every_stage_is_timed_once_and_positions_are_counted() {
        let (meters, mut stages) = stages();
        stages.started(0);
        stages.committed(&[true, true, false]);
        stages.started(0);
        stages.committed(&[true, false]);
        stages.ended(&ended(Finish::Length));
        drop(stages);
        let text = meters.render().unwrap().1;
        for line in [
            "paceline_request_queue_time_seconds_count{model=\"m\"} 1",
            "paceline_request_prefill_time_seconds_count{model=\"m\"} 1",
            "paceline_request_decode_time_seconds_count{model=\"m\"} 1",
            "paceline_spec_decode_num_accepted_tokens_per_pos_total{model=\"m\",position=\"0\"} 2",
            "paceline_spec_decode_num_accepted_tokens_per_pos_total{model=\"m\",position=\"1\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("request_failure"), "{text}");
    }

    #[test]
    fn an_answer_that_was_admitted_ends_for_one_reason() {
        type Case = (&'static str, bool, Option<Finish>, Option<&'static str>);
        let cases: &[Case] = &[
            ("the reader left", true, None, Some("CANCELLED")),
            ("refused: counted where it is told", false, None, None),
            ("the deadline passed", true, Some(Finish::Deadline), Some("DEADLINE")),
            ("read too slowly", true, Some(Finish::SlowClient), Some("SLOW_CLIENT")),
            ("the model failed", true, Some(Finish::Failed), Some("INTERNAL")),
            ("stopped", true, Some(Finish::Stop), None),
        ];
        for (what, admitted, finish, reason) in cases {
            let (meters, mut stages) = stages();
            stages.admitted().store(*admitted, Ordering::Relaxed);
            if let Some(finish) = finish {
                stages.ended(&ended(*finish));
            }
            drop(stages);
            let text = meters.render().unwrap().1;
            let counted: Vec<&str> =
                text.lines().filter(|l| l.starts_with("paceline_request_failure")).collect();
            let expected: Vec<String> = reason
                .iter()
                .map(|r| format!("paceline_request_failure_total{{reason=\"{r}\",role=\"worker\"}} 1"))
                .collect();
            assert_eq!(counted, expected, "{what}");
        }
    }
}

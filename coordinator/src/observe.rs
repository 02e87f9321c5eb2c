//! Requests as telemetry sees them: one span from arrival to the last word, and what clients notice as
//! numbers. No text of prompts or answers comes here.

use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use request::Finish;
use telemetry::{Label, Meters, trace};
use tracing::{Instrument as _, Span};

use crate::failure::{Failure, Reason};
use crate::generate::{Ended, Event, Prepared};

/// The paths that generate; others are no requests in the sense of the metrics.
const GENERATES: &[&str] = &["/v1/chat/completions", "/v1/completions", "/v1/responses"];

/// The span of a request that arrives with these headers, in its caller's trace. Named and described
/// once it is understood ([`Observer::new`]).
pub(crate) fn span(headers: &HeaderMap) -> Span {
    let span = telemetry::span!("request", otel.kind = "server", gen_ai.provider.name = "paceline");
    trace::continue_from(&span, headers);
    span
}

/// Gives requests over HTTP their span; what the handler awaits is within it.
pub(crate) async fn traced(request: Request, next: Next) -> Response {
    if !GENERATES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let span = span(request.headers());
    next.run(request).instrument(span).await
}

/// Counts a request that was not answered, within its span.
pub(crate) fn not_answered(reason: Reason) {
    failed(telemetry::meters(), &Span::current(), reason);
}

fn failed(meters: &Meters, span: &Span, reason: Reason) {
    trace::fail(span, reason.as_str());
    meters.request_failure.add(1, &[Label::role("coordinator"), Label::reason(reason.as_str())]);
}

/// One request from its placement to its end. Dropped before that, its client left.
#[derive(Debug)]
pub(crate) struct Observer {
    meters: &'static Meters,
    /// Closed when the last holder is dropped: this, or the handler.
    span: Span,
    model: [Label; 1],
    genai: [Label; 3],
    arrived: Instant,
    first: Option<Instant>,
    choices: Vec<Choice>,
    prompt_tokens: u32,
    over: bool,
}

/// When output of a choice came.
#[derive(Clone, Debug, Default)]
struct Choice {
    first: Option<Instant>,
    last: Option<Instant>,
    /// Tokens delivered by us; those that the client had already are not among them.
    output: u32,
    ended: bool,
}

impl Observer {
    /// Within the span of the request, which is described here.
    pub(crate) fn new(meters: &'static Meters, prepared: &Prepared) -> Self {
        let (span, request, name) = (Span::current(), &prepared.request, prepared.model.name.as_str());
        let (limits, params) = (&request.limits, &request.sampling.params);
        trace::rename(&span, format!("{} {name}", prepared.operation));
        trace::set(&span, "gen_ai.operation.name", prepared.operation);
        trace::set(&span, "gen_ai.request.model", name.to_owned());
        trace::set(&span, "gen_ai.response.model", name.to_owned());
        trace::set(&span, "gen_ai.response.id", request.id.to_string());
        trace::set(&span, "gen_ai.request.max_tokens", i64::from(limits.max_tokens));
        trace::set(&span, "gen_ai.request.choice.count", i64::from(prepared.n));
        trace::set(&span, "gen_ai.request.temperature", f64::from(params.temperature));
        trace::set(&span, "gen_ai.request.top_p", f64::from(params.top_p));
        // Attributes are signed; a seed above is shown as the same bits.
        trace::set(&span, "gen_ai.request.seed", request.sampling.seed.cast_signed());
        trace::set(&span, "gen_ai.usage.input_tokens", count(request.prompt.len()));
        let [model, provider] = Label::request_model(name);
        Self {
            meters,
            span,
            model: [Label::model(name)],
            genai: [Label::operation(prepared.operation), model, provider],
            arrived: prepared.arrived,
            first: None,
            choices: vec![Choice::default(); prepared.n as usize],
            prompt_tokens: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
            over: false,
        }
    }

    /// The span of the request, for what goes on after its handler has returned.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// An event on its way to the client.
    pub(crate) fn event(&mut self, choice: u32, event: &Event) {
        match event {
            Event::Crossed { .. } => self.meters.fingerprint_crossings.add(1, &self.model),
            Event::Tokens(out) => self.tokens(choice, u32::try_from(out.ids.len()).unwrap_or(u32::MAX)),
            Event::Ended(ended) => self.ended(choice, ended),
        }
    }

    fn tokens(&mut self, choice: u32, tokens: u32) {
        let Some(choice) = self.choices.get_mut(choice as usize).filter(|_| tokens > 0) else { return };
        let (now, meters) = (Instant::now(), self.meters);
        meters.generation_tokens.add(tokens.into(), &self.model);
        if self.first.is_none() {
            self.first = Some(now);
            let seconds = now.duration_since(self.arrived).as_secs_f64();
            meters.time_to_first_token.record(seconds, &self.model);
            trace::set(&self.span, "gen_ai.response.time_to_first_chunk", seconds);
        }
        choice.output = choice.output.saturating_add(tokens);
        choice.first.get_or_insert(now);
        if let Some(last) = choice.last.replace(now) {
            let gap = now.duration_since(last).as_secs_f64();
            meters.inter_chunk_latency.record(gap, &self.model);
            for _ in 0..tokens {
                meters.inter_token_latency.record(gap / f64::from(tokens), &self.model);
            }
        }
    }

    fn ended(&mut self, choice: u32, ended: &Ended) {
        let (now, meters) = (Instant::now(), self.meters);
        let Some(choice) = self.choices.get_mut(choice as usize) else { return };
        choice.ended = true;
        let reason = if ended.finish == Finish::Stop { "stop" } else { "length" };
        meters.request_success.add(1, &[self.model[0].clone(), Label::reason(reason)]);
        if let (Some(first), 2..) = (choice.first, choice.output) {
            let each = now.duration_since(first).as_secs_f64() / f64::from(choice.output - 1);
            meters.gen_ai_time_per_output_token.record(each, &self.genai);
        }
        trace::set(&self.span, "gen_ai.response.finish_reasons", reason);
        if !self.choices.iter().all(|choice| choice.ended) {
            return;
        }
        self.over = true;
        let seconds = now.duration_since(self.arrived).as_secs_f64();
        meters.prompt_tokens.add(self.prompt_tokens.into(), &self.model);
        meters.e2e_request_latency.record(seconds, &self.model);
        meters.gen_ai_request_duration.record(seconds, &self.genai);
        if let Some(first) = self.first {
            let seconds = first.duration_since(self.arrived).as_secs_f64();
            meters.gen_ai_time_to_first_token.record(seconds, &self.genai);
        }
        let output: u64 = self.choices.iter().map(|choice| u64::from(choice.output)).sum();
        trace::set(&self.span, "gen_ai.usage.output_tokens", i64::try_from(output).unwrap_or(i64::MAX));
        let cached = i64::from(ended.usage.cached_tokens);
        trace::set(&self.span, "gen_ai.usage.cache_read.input_tokens", cached);
    }

    /// Nothing was said; who hears of it counts it ([`not_answered`]).
    pub(crate) fn refused(mut self, failure: &Failure) {
        self.over(failure.reason);
    }

    /// The answer broke off.
    pub(crate) fn broke(&mut self, failure: &Failure) {
        if !self.over {
            self.over(failure.reason);
            failed(self.meters, &self.span, failure.reason);
        }
    }

    fn over(&mut self, reason: Reason) {
        self.over = true;
        let [operation, model, provider] = self.genai.clone();
        let labels = [operation, model, provider, Label::error(reason.as_str())];
        self.meters.gen_ai_request_duration.record(self.arrived.elapsed().as_secs_f64(), &labels);
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // A span that was entered ends where it was last left: here, not where its handler returned.
        let span = self.span.clone();
        let _end = span.enter();
        if !self.over {
            self.over(Reason::Cancelled);
            failed(self.meters, &span, Reason::Cancelled);
        }
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

//! One streamed request, timed.

use std::error::Error as _;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::record::{Exchange, Failure, Kind, Speculation, Usage};
use crate::client::Lines;

/// To connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Most bytes of an error answer that are read for its message.
const MAX_ERROR: usize = 64 << 10;
/// Most chunks of one answer; a stream without end stops here.
const MAX_CHUNKS: usize = 1 << 20;

/// Time since the start of a run, and when that was.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub start: Instant,
    pub wall: SystemTime,
}

/// A server, and how it is asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    http: reqwest::Client,
    url: String,
    timeout: Duration,
}

impl Clock {
    pub fn start() -> Self {
        Self { start: Instant::now(), wall: SystemTime::now() }
    }

    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The instant of a time since the start.
    pub fn instant(&self, at: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.start + at)
    }
}

impl Endpoint {
    /// `timeout`: for one whole request. `headers` go with each.
    pub fn new(url: String, headers: HeaderMap, timeout: Duration) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .default_headers(headers)
            .pool_max_idle_per_host(usize::MAX)
            .build()?;
        Ok(Self { http, url, timeout })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A JSON document of the same server.
    pub async fn get(&self, url: &str) -> reqwest::Result<Value> {
        self.http.get(url).send().await?.error_for_status()?.json().await
    }

    /// Sends `body` and reads the stream to its end, the request's timeout, or `until`.
    pub async fn ask(&self, body: String, clock: Clock, until: Option<Duration>) -> Exchange {
        let mut seen = Exchange { start: clock.now(), ..Exchange::default() };
        let left = until.map(|until| until.saturating_sub(seen.start));
        let limit = left.map_or(self.timeout, |left| left.min(self.timeout));
        let failure = match timeout(limit, Box::pin(self.stream(body, clock, &mut seen))).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) if limit < self.timeout => {
                Some(Failure::new(Kind::Cancelled, "the run and its grace were over"))
            }
            Err(_) => Some(Failure::new(Kind::Timeout, format!("no end within {:?}", self.timeout))),
        };
        seen.failure = failure;
        seen.end = clock.now();
        seen
    }

    async fn stream(&self, body: String, clock: Clock, seen: &mut Exchange) -> Result<(), Failure> {
        let request = self.http.post(&self.url).header(CONTENT_TYPE, "application/json").body(body);
        let answer = request.send().await.map_err(|e| failed(&e))?;
        seen.ack = Some(clock.now());
        if !answer.status().is_success() {
            return Err(refused(answer).await);
        }
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::new(Kind::Malformed, format!("content type {kind:?} instead of a stream")));
        }
        let (mut lines, mut done) = (Lines::default(), false);
        let mut bytes = answer.bytes_stream();
        while let Some(part) = bytes.next().await {
            let part = part.map_err(|e| failed(&e))?;
            // What arrives together has one time.
            let at = clock.now();
            let lines = lines.push(&part).map_err(|e| Failure::new(Kind::Malformed, format!("{e:#}")))?;
            for line in lines {
                let Some(event) = line.strip_prefix("data:").map(str::trim_start) else { continue };
                if event == "[DONE]" {
                    done = true;
                } else {
                    read(event, at, seen)?;
                }
            }
        }
        if !done {
            return Err(Failure::new(Kind::Broken, "the stream ended without [DONE]"));
        }
        if seen.chunks.is_empty() {
            return Err(Failure::new(Kind::Empty, "the answer holds no text"));
        }
        Ok(())
    }
}

/// What is read of a chunk; everything else is left alone.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    metrics: Option<Metrics>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct Metrics {
    #[serde(default)]
    speculative_decoding: Option<Speculation>,
}

/// Takes one event in. As AIPerf: the first choice counts, and a chunk without content (the role, the
/// usage) is no token.
fn read(event: &str, at: Duration, seen: &mut Exchange) -> Result<(), Failure> {
    let chunk: Chunk = serde_json::from_str(event)
        .map_err(|e| Failure::new(Kind::Malformed, format!("an event is no chunk: {e}")))?;
    if let Some(error) = chunk.error {
        return Err(Failure::new(Kind::Broken, message(&error)));
    }
    if chunk.choices.first().is_some_and(Choice::has_content) {
        if seen.chunks.len() >= MAX_CHUNKS {
            return Err(Failure::new(Kind::Malformed, format!("an answer of more than {MAX_CHUNKS} chunks")));
        }
        seen.chunks.push(at);
        if seen.chunks.len() == 1 {
            seen.first_chunk_tokens = chunk.usage.map(|usage| usage.completion_tokens);
        }
    }
    seen.usage = chunk.usage.or(seen.usage);
    seen.speculation = chunk.metrics.and_then(|m| m.speculative_decoding).or(seen.speculation);
    Ok(())
}

impl Choice {
    fn has_content(&self) -> bool {
        let some = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
        let delta = self.delta.as_ref().is_some_and(|d| {
            some(&d.content)
                || some(&d.reasoning_content)
                || some(&d.reasoning)
                || d.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
        });
        delta || some(&self.text)
    }
}

async fn refused(answer: reqwest::Response) -> Failure {
    let status = answer.status().as_u16();
    // HTTP dates are allowed as well; servers of models send seconds.
    let retry = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let (mut body, mut bytes) = (Vec::new(), answer.bytes_stream());
    while let Some(Ok(part)) = bytes.next().await {
        body.extend_from_slice(&part);
        if body.len() > MAX_ERROR {
            break;
        }
    }
    let parsed: Option<Value> = serde_json::from_slice(&body).ok();
    let text = match &parsed {
        Some(body) => message(body.get("error").unwrap_or(body)),
        None => String::from_utf8_lossy(&body).chars().take(300).collect(),
    };
    Failure {
        kind: Kind::Status(status),
        message: text,
        retry_after: retry.and_then(|s: f64| Duration::try_from_secs_f64(s).ok()),
    }
}

/// Text of an error object, or the object itself.
fn message(error: &Value) -> String {
    let text = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    text.map_or_else(|| error.to_string(), str::to_owned)
}

/// An error of the HTTP client, with its causes.
fn failed(error: &reqwest::Error) -> Failure {
    let kind = if error.is_connect() { Kind::Connect } else { Kind::Broken };
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    Failure::new(kind, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_chunks_with_content_are_timed() {
        let events = [
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, 0),
            (r#"{"choices":[{"delta":{"content":"a"}}],"usage":null}"#, 1),
            (r#"{"choices":[{"delta":{"reasoning_content":"b"}}]}"#, 2),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, 3),
            (r#"{"choices":[{"text":"c"}]}"#, 4),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, 4),
            (r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4}}"#, 4),
        ];
        let mut seen = Exchange::default();
        for (nth, (event, chunks)) in events.into_iter().enumerate() {
            read(event, Duration::from_millis(nth as u64), &mut seen).unwrap();
            assert_eq!(seen.chunks.len(), chunks, "{event}");
        }
        assert_eq!(seen.usage.map(|u| (u.prompt_tokens, u.completion_tokens)), Some((5, 4)));
        assert_eq!(seen.first_chunk_tokens, None);
    }

    #[test]
    fn usage_with_every_chunk_gives_the_size_of_the_first() {
        let mut seen = Exchange::default();
        for tokens in [3, 7] {
            let event = format!(
                r#"{{"choices":[{{"text":"x"}}],"usage":{{"prompt_tokens":1,"completion_tokens":{tokens}}}}}"#
            );
            read(&event, Duration::ZERO, &mut seen).unwrap();
        }
        assert_eq!((seen.first_chunk_tokens, seen.usage.unwrap().completion_tokens), (Some(3), 7));
    }

    #[test]
    fn errors_in_the_stream_are_failures() {
        for (event, kind, text) in [
            (r#"{"error":{"message":"worker lost"}}"#, Kind::Broken, "worker lost"),
            (r#"{"error":"gone"}"#, Kind::Broken, "gone"),
            ("{", Kind::Malformed, "no chunk"),
            ("[1]", Kind::Malformed, "no chunk"),
        ] {
            let failure = read(event, Duration::ZERO, &mut Exchange::default()).unwrap_err();
            assert!(failure.kind == kind && failure.message.contains(text), "{failure:?}");
        }
    }

    proptest! {
        #[test]
        fn no_event_panics(event in ".*", tail in r#"\{"choices":\[.{0,40}"#) {
            let mut seen = Exchange::default();
            let _ = read(&event, Duration::ZERO, &mut seen);
            let _ = read(&tail, Duration::ZERO, &mut seen);
        }
    }
}

//! The OpenAI API from the other side: one streamed completion.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures::StreamExt as _;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

/// To connect.
const CONNECT: Duration = Duration::from_secs(5);
/// To the answer's first byte, queue and prompt included: the server's own deadline, and a little.
const FIRST: Duration = Duration::from_secs(610);
/// Silence after which a stream counts as dead (the server sends a comment every 15 s).
const SILENCE: Duration = Duration::from_secs(60);
/// Longest line of a stream.
const MAX_LINE: usize = 1 << 20;

/// A part of the answer: text, and whether it stood in an accepted draft.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Segment {
    pub text: String,
    pub drafted: bool,
}

/// What an answer came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub text: String,
    pub completion_tokens: u64,
    /// From the first token to the last.
    pub decode: Duration,
    pub mean_acceptance_length: Option<f64>,
    pub draft_acceptance_rate: Option<f64>,
    /// `metrics.speculative_decoding` as the server sent it; null when it sent none.
    pub speculation: Value,
}

impl Summary {
    /// Tokens after the first, by the time they took.
    pub fn tokens_per_second(&self) -> f64 {
        self.completion_tokens.saturating_sub(1) as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// A client of one coordinator.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    pub fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT).build()?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned() })
    }

    /// Whether every served model has a path; the reason when not.
    pub async fn ready(&self) -> std::result::Result<(), String> {
        let answer = self.http.get(format!("{}/health", self.url)).timeout(CONNECT).send().await;
        match answer {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(answer.text().await.unwrap_or_else(|e| e.to_string())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The first model that is served.
    pub async fn model(&self) -> Result<String> {
        let url = format!("{}/v1/models", self.url);
        let answer = self.http.get(&url).timeout(CONNECT).send().await.with_context(|| self.unreachable())?;
        let models: Value = answer.error_for_status()?.json().await?;
        let first = models["data"][0]["id"].as_str();
        first.map(str::to_owned).ok_or_else(|| anyhow!("{url} lists no model"))
    }

    /// Streams a chat completion; `show` gets each part as it comes. `body` needs `model` and
    /// `messages`; the rest is set here.
    pub async fn chat(&self, body: Value, show: impl FnMut(&Segment)) -> Result<Summary> {
        self.stream("/v1/chat/completions", body, show).await
    }

    /// Streams the continuation of a prompt, which may be token ids; `body` needs `model` and `prompt`.
    pub async fn complete(&self, body: Value, show: impl FnMut(&Segment)) -> Result<Summary> {
        self.stream("/v1/completions", body, show).await
    }

    async fn stream(&self, path: &str, mut body: Value, mut show: impl FnMut(&Segment)) -> Result<Summary> {
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("x-paceline-draft-flags", HeaderValue::from_static("1"))
            .json(&body);
        let answer = timeout(FIRST, request.send()).await.context("no answer came in time")?;
        let answer = answer.with_context(|| self.unreachable())?;
        let status = answer.status();
        if !status.is_success() {
            let body: Value = answer.json().await.unwrap_or_default();
            bail!("{status}: {}", body["error"]["message"].as_str().unwrap_or("no message"));
        }
        let (mut summary, mut first, mut complete) = (Summary::default(), None, false);
        let mut lines = Lines::default();
        let mut bytes = answer.bytes_stream();
        while let Some(chunk) = timeout(SILENCE, bytes.next()).await.context("the stream went silent")? {
            for line in lines.push(&chunk.context("the stream broke; the answer is incomplete")?)? {
                let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
                if data == "[DONE]" {
                    complete = true;
                    continue;
                }
                let event: Value = serde_json::from_str(data).context("the stream holds no JSON")?;
                if let Some(message) = event["error"]["message"].as_str() {
                    bail!("the answer broke off: {message}");
                }
                let segments = segments(&event);
                if !segments.is_empty() {
                    first.get_or_insert_with(Instant::now);
                }
                for segment in &segments {
                    summary.text.push_str(&segment.text);
                    show(segment);
                }
                summary.read_end(&event);
                if let Some(first) = first {
                    summary.decode = first.elapsed();
                }
            }
        }
        if !complete {
            bail!("the stream ended without [DONE]; the answer is incomplete");
        }
        Ok(summary)
    }

    fn unreachable(&self) -> String {
        format!("no coordinator answers at {}: start one with `paceline up`, or pass --url", self.url)
    }
}

impl Summary {
    fn read_end(&mut self, event: &Value) {
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            self.completion_tokens = tokens;
        }
        let metrics = &event["metrics"]["speculative_decoding"];
        if metrics.is_object() {
            self.mean_acceptance_length = metrics["mean_acceptance_length"].as_f64();
            self.draft_acceptance_rate = metrics["draft_acceptance_rate"].as_f64();
            self.speculation = metrics.clone();
        }
    }
}

/// The parts of a chunk; a server that marks none gives its text as one undrafted part.
fn segments(event: &Value) -> Vec<Segment> {
    if let Ok(segments) = Vec::<Segment>::deserialize(&event["paceline"]["segments"]) {
        return segments;
    }
    let choice = &event["choices"][0];
    let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
    if text.is_empty() { Vec::new() } else { vec![Segment { text: text.to_owned(), drafted: false }] }
}

/// Bytes to lines, whatever the borders of the chunks are.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<String>> {
        self.0.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            lines.push(String::from_utf8(line).context("the stream is no UTF-8")?.trim_end().to_owned());
        }
        if self.0.len() > MAX_LINE {
            bail!("the stream holds a line of more than {MAX_LINE} bytes");
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_do_not_depend_on_chunk_borders() {
        let text = "data: {\"a\":\"ü\"}\n\ndata: [DONE]\r\n";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let got: Vec<String> =
                text.as_bytes().chunks(size).flat_map(|c| lines.push(c).unwrap()).collect();
            assert_eq!(got, ["data: {\"a\":\"ü\"}", "", "data: [DONE]"]);
        }
        assert!(Lines::default().push(&vec![b'x'; MAX_LINE + 1]).is_err());
    }

    #[test]
    fn segments_are_read_or_made_from_the_text() {
        let marked = json!({ "paceline": { "segments": [{ "text": "a", "drafted": true }] } });
        assert_eq!(segments(&marked), [Segment { text: "a".into(), drafted: true }]);
        let plain = json!({ "choices": [{ "delta": { "content": "b" } }] });
        assert_eq!(segments(&plain), [Segment { text: "b".into(), drafted: false }]);
        let completion = json!({ "choices": [{ "text": "c" }] });
        assert_eq!(segments(&completion), [Segment { text: "c".into(), drafted: false }]);
        assert_eq!(segments(&json!({ "choices": [] })), []);
    }
}

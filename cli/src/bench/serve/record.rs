//! One request: what was seen of it, and what that means.

use std::time::Duration;

use serde::Deserialize;

/// One request of a run. Times are since the start of the run.
#[derive(Clone, Debug)]
pub struct Record {
    /// Position in the order of sending.
    pub index: u64,
    /// When it should have been sent: by the schedule of an open loop, else when a place came free.
    pub due: Duration,
    pub exchange: Exchange,
}

/// What the client saw of one request and its answer.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// Before the request was handed to the HTTP client.
    pub start: Duration,
    /// The answer's status and headers.
    pub ack: Option<Duration>,
    /// Arrival of each chunk that carried text, reasoning or a tool call.
    pub chunks: Vec<Duration>,
    pub end: Duration,
    pub usage: Option<Usage>,
    /// Tokens of the first chunk, of servers that send usage with every chunk.
    pub first_chunk_tokens: Option<u64>,
    pub speculation: Option<Speculation>,
    pub failure: Option<Failure>,
}

/// `usage` of an answer; what a server leaves out is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    #[serde(default)]
    pub prompt_tokens: u64,
    #[serde(default)]
    pub completion_tokens: u64,
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PromptDetails {
    #[serde(default)]
    pub cached_tokens: Option<u64>,
}

/// `metrics.speculative_decoding` of an answer; of servers that draft and say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Speculation {
    #[serde(default)]
    pub mean_acceptance_length: Option<f64>,
    /// 0 to 1.
    #[serde(default)]
    pub draft_acceptance_rate: Option<f64>,
}

/// Why a request does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    pub retry_after: Option<Duration>,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A status that is no success.
    Status(u16),
    /// No connection came about.
    Connect,
    /// Its own time was over.
    Timeout,
    /// The run's time and grace were over; no fault of the server.
    Cancelled,
    /// The stream broke, ended early, or carried an error event.
    Broken,
    /// The answer is no stream of OpenAI's chunks.
    Malformed,
    /// A whole answer without any text: no first token to measure.
    Empty,
}

/// A metric of one request.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// AIPerf's name where it has the metric.
    pub tag: &'static str,
    /// AIPerf's spelling.
    pub unit: &'static str,
    /// None where the answer does not have it.
    pub of: fn(&Record) -> Option<f64>,
}

/// Metrics of a request that did not fail, in AIPerf's definitions; those it lacks are
/// `time_per_output_token` (vLLM's TPOT) and `max_inter_chunk_latency` (the longest pause).
pub const PER_REQUEST: &[Measure] = &[
    Measure { tag: "time_to_first_token", unit: "ms", of: |r| r.first().map(ms) },
    Measure { tag: "time_to_second_token", unit: "ms", of: |r| r.gaps().next() },
    // To the last chunk with content, not to the end of the stream.
    Measure { tag: "request_latency", unit: "ms", of: |r| r.latency().map(ms) },
    Measure { tag: "inter_token_latency", unit: "ms", of: |r| r.per_token(r.exchange.first_chunk_tokens) },
    Measure { tag: "time_per_output_token", unit: "ms", of: |r| r.per_token(None) },
    Measure { tag: "max_inter_chunk_latency", unit: "ms", of: |r| r.gaps().reduce(f64::max) },
    Measure { tag: "decode_duration", unit: "ms", of: |r| Some(ms(r.latency()?.saturating_sub(r.first()?))) },
    Measure {
        tag: "output_token_throughput_per_user",
        unit: "tokens/sec/user",
        of: |r| r.per_token(r.exchange.first_chunk_tokens).filter(|itl| *itl > 0.0).map(|itl| 1e3 / itl),
    },
    Measure {
        tag: "e2e_output_token_throughput",
        unit: "tokens/sec/user",
        of: |r| Some(r.output()? as f64 / r.latency().filter(|l| !l.is_zero())?.as_secs_f64()),
    },
    Measure {
        tag: "prefill_throughput_per_user",
        unit: "tokens/sec/user",
        of: |r| Some(r.input()? as f64 / r.first().filter(|t| !t.is_zero())?.as_secs_f64()),
    },
    Measure { tag: "output_sequence_length", unit: "tokens", of: |r| r.output().map(|n| n as f64) },
    Measure { tag: "input_sequence_length", unit: "tokens", of: |r| r.input().map(|n| n as f64) },
    Measure { tag: "usage_prompt_tokens", unit: "tokens", of: |r| r.input().map(|n| n as f64) },
    Measure { tag: "usage_completion_tokens", unit: "tokens", of: |r| r.output().map(|n| n as f64) },
    Measure {
        tag: "usage_prompt_cache_read_tokens",
        unit: "tokens",
        of: |r| r.exchange.usage?.prompt_tokens_details?.cached_tokens.map(|n| n as f64),
    },
    Measure {
        tag: "spec_decode_acceptance_length",
        unit: "ratio",
        of: |r| r.exchange.speculation?.mean_acceptance_length,
    },
    Measure {
        tag: "spec_decode_draft_acceptance_rate",
        unit: "%",
        of: |r| r.exchange.speculation?.draft_acceptance_rate.map(|rate| 100.0 * rate),
    },
    // How late this client was.
    Measure {
        tag: "credit_to_start_latency",
        unit: "ms",
        of: |r| Some(ms(r.exchange.start.saturating_sub(r.due))),
    },
    // From when it was due: a client that falls behind cannot hide it.
    Measure { tag: "effective_latency", unit: "ms", of: |r| Some(ms(r.last()?.saturating_sub(r.due))) },
];

impl Record {
    pub fn succeeded(&self) -> bool {
        self.exchange.failure.is_none()
    }

    /// Arrival of the last chunk with content.
    pub fn last(&self) -> Option<Duration> {
        self.exchange.chunks.last().copied()
    }

    /// Pauses between chunks with content, in milliseconds. A chunk may carry several tokens, and
    /// chunks that arrive together have none between them.
    pub fn gaps(&self) -> impl Iterator<Item = f64> {
        self.exchange.chunks.windows(2).map(|pair| match pair {
            [a, b] => ms(b.saturating_sub(*a)),
            _ => 0.0,
        })
    }

    /// Tokens of the prompt, as the server counts.
    pub fn input(&self) -> Option<u64> {
        self.exchange.usage.map(|usage| usage.prompt_tokens)
    }

    /// Tokens of the answer, as the server counts.
    pub fn output(&self) -> Option<u64> {
        self.exchange.usage.map(|usage| usage.completion_tokens)
    }

    fn first(&self) -> Option<Duration> {
        Some(self.exchange.chunks.first()?.saturating_sub(self.exchange.start))
    }

    fn latency(&self) -> Option<Duration> {
        Some(self.last()?.saturating_sub(self.exchange.start))
    }

    /// Milliseconds a token after the first chunk. A first chunk of unknown or impossible size counts
    /// as one token.
    fn per_token(&self, first_chunk: Option<u64>) -> Option<f64> {
        let output = self.output().filter(|tokens| *tokens >= 2)?;
        let first = first_chunk.filter(|tokens| (1..output).contains(tokens)).unwrap_or(1);
        let decode = self.latency()?.saturating_sub(self.first()?);
        Some(ms(decode) / (output - first) as f64)
    }
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }
}

impl Kind {
    /// The status, or none where none was seen.
    pub fn code(self) -> Option<u16> {
        match self {
            Self::Status(code) => Some(code),
            _ => None,
        }
    }

    pub fn label(self) -> String {
        match self {
            Self::Status(429) => "429 refused, try later".into(),
            Self::Status(code) => {
                let reason = reqwest::StatusCode::from_u16(code).ok().and_then(|s| s.canonical_reason());
                format!("{code} {}", reason.unwrap_or("status"))
            }
            Self::Connect => "no connection".into(),
            Self::Timeout => "timed out".into(),
            Self::Cancelled => "cut off at the end of the run".into(),
            Self::Broken => "stream broke off".into(),
            Self::Malformed => "no OpenAI stream".into(),
            Self::Empty => "empty answer".into(),
        }
    }
}

/// Milliseconds.
fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record by milliseconds: due, start, chunks; and output tokens.
    pub(crate) fn record(due: u64, start: u64, chunks: &[u64], output: u64) -> Record {
        let at = Duration::from_millis;
        let chunks: Vec<_> = chunks.iter().copied().map(at).collect();
        Record {
            index: 0,
            due: at(due),
            exchange: Exchange {
                start: at(start),
                ack: Some(at(start)),
                end: chunks.last().copied().unwrap_or_default(),
                chunks,
                usage: Some(Usage {
                    prompt_tokens: 10,
                    completion_tokens: output,
                    prompt_tokens_details: None,
                }),
                ..Exchange::default()
            },
        }
    }

    fn value(record: &Record, tag: &str) -> Option<f64> {
        let measure = PER_REQUEST.iter().find(|m| m.tag == tag).unwrap();
        (measure.of)(record).map(|v| (v * 1e6).round() / 1e6)
    }

    #[test]
    fn metrics_follow_their_definitions() {
        let one_a_chunk = record(0, 100, &[150, 160, 175], 3);
        let mut bundled = record(80, 100, &[200, 260], 8);
        bundled.exchange.first_chunk_tokens = Some(2);
        let single = record(0, 0, &[40], 1);
        for (record, tag, wanted) in [
            (&one_a_chunk, "time_to_first_token", Some(50.0)),
            (&one_a_chunk, "time_to_second_token", Some(10.0)),
            (&one_a_chunk, "request_latency", Some(75.0)),
            (&one_a_chunk, "inter_token_latency", Some(12.5)),
            (&one_a_chunk, "time_per_output_token", Some(12.5)),
            (&one_a_chunk, "max_inter_chunk_latency", Some(15.0)),
            (&one_a_chunk, "e2e_output_token_throughput", Some(40.0)),
            (&one_a_chunk, "output_token_throughput_per_user", Some(80.0)),
            (&one_a_chunk, "prefill_throughput_per_user", Some(200.0)),
            (&one_a_chunk, "credit_to_start_latency", Some(100.0)),
            (&one_a_chunk, "effective_latency", Some(175.0)),
            // 60 ms for the 6 tokens after a first chunk of 2; TPOT always takes 1 for the first.
            (&bundled, "inter_token_latency", Some(10.0)),
            (&bundled, "time_per_output_token", Some(8.571_429)),
            (&bundled, "credit_to_start_latency", Some(20.0)),
            (&single, "time_to_first_token", Some(40.0)),
            (&single, "time_to_second_token", None),
            (&single, "inter_token_latency", None),
            (&single, "max_inter_chunk_latency", None),
        ] {
            assert_eq!(value(record, tag), wanted, "{tag} of {record:?}");
        }
    }

    #[test]
    fn an_impossible_first_chunk_counts_as_one_token() {
        for tokens in [0, 8, 9] {
            let mut bundled = record(0, 0, &[10, 80], 8);
            bundled.exchange.first_chunk_tokens = Some(tokens);
            assert_eq!(value(&bundled, "inter_token_latency"), Some(10.0), "{tokens}");
        }
    }

    #[test]
    fn without_usage_there_is_no_time_per_token() {
        let mut silent = record(0, 0, &[10, 20], 8);
        silent.exchange.usage = None;
        assert_eq!(value(&silent, "inter_token_latency"), None);
        assert_eq!(value(&silent, "request_latency"), Some(20.0));
    }
}

//! Requests: when they come, how long they are.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

/// A made trace: log-normal lengths, Poisson arrivals. The defaults resemble chats that users shared: prompts hold the turns
/// before, answers are short, and both have a long tail. Nothing is downloaded.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Lengths {
    /// Requests of a made trace
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub requests: usize,
    /// Of lengths and arrivals
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Median tokens of prompts
    #[arg(long, default_value_t = 1700.0, value_name = "TOKENS")]
    pub prompt_median: f64,
    /// 90th percentile of tokens of prompts
    #[arg(long, default_value_t = 5700.0, value_name = "TOKENS")]
    pub prompt_p90: f64,
    /// Median tokens of answers
    #[arg(long, default_value_t = 415.0, value_name = "TOKENS")]
    pub output_median: f64,
    /// 90th percentile of tokens of answers
    #[arg(long, default_value_t = 830.0, value_name = "TOKENS")]
    pub output_p90: f64,
    /// Longest prompt and answer together; longer ones are cut
    #[arg(long, default_value_t = 8192, value_name = "TOKENS")]
    pub longest: u32,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Seconds since the start.
    pub arrival: f64,
    pub prompt: u32,
    pub output: u32,
}

/// Requests in the order of their arrival; at least two.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace(Vec<Asked>);

impl Trace {
    /// A trace at one request a second.
    pub fn made(lengths: &Lengths) -> Result<Self> {
        ensure!(lengths.requests >= 2, "--requests must be at least 2");
        ensure!(lengths.longest >= 2, "--longest must be at least 2");
        for (median, p90, what) in [
            (lengths.prompt_median, lengths.prompt_p90, "--prompt-median and --prompt-p90"),
            (lengths.output_median, lengths.output_p90, "--output-median and --output-p90"),
        ] {
            ensure!(
                median >= 1.0 && p90 >= median && p90.is_finite(),
                "{what} must be at least 1 and in rising order"
            );
        }
        let mut random = fastrand::Rng::with_seed(lengths.seed);
        let mut arrival = 0.0;
        let asked = (0..lengths.requests).map(|_| {
            arrival -= (1.0 - random.f64()).ln();
            let output = log_normal(&mut random, lengths.output_median, lengths.output_p90);
            let output = output.min(lengths.longest / 2);
            let prompt = log_normal(&mut random, lengths.prompt_median, lengths.prompt_p90);
            Asked { arrival, prompt: prompt.min(lengths.longest - output), output }
        });
        Ok(Self(asked.collect()))
    }

    pub fn read(file: &Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(file)?)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut asked = Vec::new();
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
            let one: Asked = serde_json::from_str(line).with_context(|| format!("line {number}"))?;
            ensure!(
                one.arrival.is_finite() && one.arrival >= 0.0,
                "line {number}: arrival must be at least 0"
            );
            ensure!(one.prompt > 0, "line {number}: prompt must be at least 1");
            ensure!(one.output > 0, "line {number}: output must be at least 1");
            ensure!(
                one.prompt.checked_add(one.output).is_some(),
                "line {number}: prompt and output are too long"
            );
            asked.push(one);
        }
        asked.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
        ensure!(asked.len() >= 2, "a trace needs two requests");
        ensure!(
            asked[0].arrival < asked[asked.len() - 1].arrival,
            "all requests arrive at once: that is no rate"
        );
        Ok(Self(asked))
    }

    pub fn asked(&self) -> &[Asked] {
        &self.0
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        let span = self.0[self.0.len() - 1].arrival - self.0[0].arrival;
        (self.0.len() - 1) as f64 / span
    }

    /// The same requests at another rate.
    pub fn at(&self, rate: f64) -> Self {
        let (scale, first) = (self.rate() / rate, self.0[0].arrival);
        let scaled = |asked: &Asked| Asked { arrival: (asked.arrival - first) * scale, ..*asked };
        Self(self.0.iter().map(scaled).collect())
    }

    /// Positions in the cache of a sequence in the middle of its answer, in the mean.
    pub fn mean_context(&self) -> u32 {
        let sum: u64 = self.0.iter().map(|a| u64::from(a.prompt) + u64::from(a.output) / 2).sum();
        (sum / self.0.len() as u64) as u32
    }

    /// Longest request.
    pub fn longest(&self) -> u32 {
        self.0.iter().map(|a| a.prompt + a.output).max().unwrap_or(0)
    }
}

/// At least 1.
fn log_normal(random: &mut fastrand::Rng, median: f64, p90: f64) -> u32 {
    // The 90th percentile of a standard normal.
    let sigma = (p90 / median).ln() / 1.281_551_565_544_600_4;
    // Box and Muller.
    let (u, v) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (median * (sigma * normal).exp()).round().clamp(1.0, 1e9) as u32
}

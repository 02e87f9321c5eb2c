//! `paceline bench schedule`: what a policy of the scheduler does to latency, without a machine.
//!
//! A [`trace`] of requests is [`replay`]ed against the real scheduler, step by step; what a step takes is said by a
//! [`cost`] model. [`capacity`] is the highest rate at which answers still keep a promise. Everything is a function of the
//! arguments, so figures can be had again to the last digit. Start at [`run`].

pub mod capacity;
pub mod cost;
pub mod replay;
mod report;
pub mod trace;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use scheduler::Policy;

use self::capacity::{Promise, capacity};
use self::cost::Cost;
use self::replay::{Limits, Outcome, replay};
use self::trace::{Lengths, Trace};
use super::{drawing, write_json, write_text};

/// `paceline bench schedule ...`
#[derive(Clone, Debug, Args)]
pub struct ScheduleArgs {
    /// Requests as lines of JSON, {"arrival": seconds, "prompt": tokens, "output": tokens}, instead of a made trace
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub lengths: Lengths,
    #[command(flatten)]
    pub cost: Cost,
    /// Policies side by side
    #[arg(long, value_enum, value_delimiter = ',', default_value = "sarathi,prefill-first,decode-first")]
    pub policies: Vec<Named>,
    /// Most rows of a step under sarathi
    #[arg(long, default_value_t = 512, value_name = "ROWS")]
    pub budget: u32,
    /// Most rows of whole prompts in a step under the other policies
    #[arg(long, default_value_t = 8192, value_name = "ROWS")]
    pub prompt_rows: u32,
    /// Sequences that run at once
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub slots: u32,
    /// Memory of the KV cache
    #[arg(long, default_value = "50GB", value_name = "SIZE")]
    pub kv_memory: bytesize::ByteSize,
    /// Requests a second for the table and the plot; several are a sweep [default: shares of sarathi's capacity]
    #[arg(long, value_delimiter = ',', value_name = "R,...")]
    pub rates: Vec<f64>,
    /// Longest 99th percentile of the time between tokens [default: 5 times a decode of 32 sequences]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub tbt: Option<Duration>,
    /// Longest median time until a request has its first row
    #[arg(long, value_parser = humantime::parse_duration, default_value = "2s", value_name = "TIME")]
    pub delay: Duration,
    /// Write everything as JSON; - is standard output
    // The global flag --log-json has the id json.
    #[arg(id = "schedule_json", long = "json", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw latency against the rate, as .svg
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// A policy as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Named {
    /// All decodes in every step, prompts in chunks (Sarathi-Serve)
    Sarathi,
    /// Whole prompts before decodes
    PrefillFirst,
    /// Prompts only when nothing decodes
    DecodeFirst,
}

impl Named {
    fn policy(self) -> Policy {
        match self {
            Self::Sarathi => Policy::Sarathi,
            Self::PrefillFirst => Policy::PrefillFirst,
            Self::DecodeFirst => Policy::DecodeFirst,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sarathi => "sarathi",
            Self::PrefillFirst => "prefill-first",
            Self::DecodeFirst => "decode-first",
        }
    }
}

/// One policy's part of the report.
#[derive(Debug, serde::Serialize)]
pub struct Figures {
    pub policy: Named,
    /// Requests a second up to which the promise is kept; 0: at no rate.
    pub capacity: f64,
    pub runs: Vec<Run>,
}

/// A replay at one rate.
#[derive(Debug, serde::Serialize)]
pub struct Run {
    pub rate: f64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// # Errors
/// An argument that makes no sense, a trace that cannot be read, a file that cannot be written.
pub fn run(args: &ScheduleArgs) -> Result<()> {
    args.cost.check()?;
    ensure!(
        args.slots > 0 && args.budget > 0 && args.prompt_rows > 0,
        "--slots, --budget and --prompt-rows must be at least 1"
    );
    ensure!(args.rates.iter().all(|r| r.is_finite() && *r > 0.0), "--rates must be above 0");
    let trace = match &args.trace {
        Some(file) => Trace::read(file).with_context(|| format!("--trace {}", file.display()))?,
        None => Trace::made(&args.lengths)?,
    };
    let promise = Promise {
        tbt: args.tbt.map_or_else(|| 5.0 * args.cost.decode(32, trace.mean_context()), |t| t.as_secs_f64()),
        delay: args.delay.as_secs_f64(),
    };
    let limits = |policy: Named| Limits {
        policy: policy.policy(),
        rows: if policy == Named::Sarathi { args.budget } else { args.prompt_rows },
        slots: args.slots,
        pages: args.cost.pages(args.kv_memory.as_u64()),
    };
    let mut figures = Vec::new();
    for policy in &args.policies {
        let capacity = capacity(&trace, &args.cost, &limits(*policy), &promise)?;
        figures.push(Figures { policy: *policy, capacity, runs: Vec::new() });
    }
    let rates = match args.rates.is_empty() {
        false => args.rates.clone(),
        true => shares(figures.iter().map(|f| f.capacity).fold(0.0, f64::max), trace.rate()),
    };
    for part in &mut figures {
        for rate in &rates {
            let outcome = replay(&trace.at(*rate), &args.cost, &limits(part.policy))?;
            part.runs.push(Run { rate: *rate, outcome });
        }
    }
    if let Some(file) = &args.json {
        write_json(file, &report::json(args, &trace, &promise, &figures))?;
    }
    if let Some(file) = &args.plot {
        let panels = report::panels(&figures);
        write_text(
            file,
            &drawing::svg("Policies of the scheduler (simulated)", "requests a second", panels),
        )?;
    }
    if args.json.as_deref() != Some(std::path::Path::new("-")) {
        write_text(std::path::Path::new("-"), &report::table(&promise, &figures))?;
    }
    Ok(())
}

/// Rates around what the best policy carries; without one, around the trace's own.
fn shares(best: f64, own: f64) -> Vec<f64> {
    let whole = if best > 0.0 { best } else { own };
    let rounded = |rate: f64| (rate * 100.0).round().max(1.0) / 100.0;
    [0.25, 0.5, 0.75, 0.9, 1.0, 1.1].map(|share| rounded(whole * share)).to_vec()
}

#[cfg(test)]
mod tests;

//! `paceline bench shared`: what two models that decode at once leave each other of the same cores.
//!
//! A target and its drafter on one machine meet at the memory: together they cannot read more than it gives. Two
//! processes that also fight for the cores lose far more than that. The figure is the sum of the shares of its own
//! speed that each keeps: 1 is a machine divided without loss.

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use engine::Model as _;
use model::{CpuModel, Options, PageBudget};
use scheduler::{Output, Slot, Step};
use serde::Serialize;
use tabled::builder::Builder;
use text::Tokenizer;

use super::hardware::Hardware;
use super::spread::Spread;
use super::steps::{execute, prefill, row};
use super::{aligned, figure};
use crate::args::StoreArgs;

/// Positions that a model decodes before it begins again at the prompt's end: the speed of a short context.
const LAP: u32 = 128;

/// `paceline bench shared ...`
#[derive(Clone, Debug, Args)]
pub struct SharedArgs {
    /// Target: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub target: String,
    /// Drafter, likewise
    #[arg(long, value_name = "MODEL", default_value = "coder-0.5b")]
    pub drafter: String,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub prompt: u32,
    /// CPU threads of each model [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// Rounds of target alone, drafter alone, both; medians are shown
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Write the results as JSON: to FILE, or to standard output in place of the table
    // The global flag --log-json has the id json.
    #[arg(id = "report_json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// The results; the fields of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    prompt: u32,
    threads: usize,
    seconds: u32,
    rounds: u32,
    hardware: Hardware,
    version: &'static str,
    target: Side,
    drafter: Side,
    /// Sum of both shares, a figure a round.
    sum_of_shares: Spread,
}

#[derive(Debug, Serialize)]
struct Side {
    model: String,
    alone_tokens_per_s: Spread,
    shared_tokens_per_s: Spread,
    /// Shared over alone of the same round.
    share: Spread,
}

/// Measures and prints.
pub async fn run(args: SharedArgs, store: &StoreArgs) -> Result<()> {
    let (target, drafter) = (store.resolve(&args.target).await?, store.resolve(&args.drafter).await?);
    let json = args.json.clone();
    let report = tokio::task::spawn_blocking(move || measure(&args, &target, &drafter)).await??;
    if let Some(file) = &json {
        super::write_json(file, &report)?;
    }
    if json.is_none_or(|file| file != Path::new("-")) {
        print!("{}", report.table());
    }
    Ok(())
}

fn measure(args: &SharedArgs, target: &Path, drafter: &Path) -> Result<Report> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or(cores);
    let mut target = Decoder::open(target, args.prompt, threads)?;
    let mut drafter = Decoder::open(drafter, args.prompt, threads)?;
    let time = Duration::from_secs(args.seconds.into());
    // Alone and shared of both sides, by round; the first round touches every page and does not count.
    let mut figures = Vec::new();
    for round in 0..=args.rounds {
        let alone = (target.alone(time)?, drafter.alone(time)?);
        let shared = together(&mut target, &mut drafter, time)?;
        if round > 0 {
            figures.push((alone, shared));
        }
    }
    let side = |model: &str, of: fn((f64, f64)) -> f64| -> Result<Side> {
        let nothing = "--rounds: nothing was measured";
        let spread = |figures: Vec<f64>| Spread::of(figures).context(nothing);
        Ok(Side {
            model: model.into(),
            alone_tokens_per_s: spread(figures.iter().map(|(alone, _)| of(*alone)).collect())?,
            shared_tokens_per_s: spread(figures.iter().map(|(_, shared)| of(*shared)).collect())?,
            share: spread(figures.iter().map(|(alone, shared)| of(*shared) / of(*alone)).collect())?,
        })
    };
    let sums = figures.iter().map(|(alone, shared)| shared.0 / alone.0 + shared.1 / alone.1);
    Ok(Report {
        prompt: args.prompt,
        threads,
        seconds: args.seconds,
        rounds: args.rounds,
        hardware: Hardware::here(),
        version: env!("CARGO_PKG_VERSION"),
        target: side(&args.target, |both| both.0)?,
        drafter: side(&args.drafter, |both| both.1)?,
        sum_of_shares: Spread::of(sums).context("--rounds: nothing was measured")?,
    })
}

/// A model with a prompt in its slot, which decodes behind it.
struct Decoder {
    model: CpuModel,
    prompt: u32,
}

impl Decoder {
    const SLOT: Slot = Slot(0);

    fn open(path: &Path, prompt: u32, threads: usize) -> Result<Self> {
        let vocab = Tokenizer::open(path).with_context(|| path.display().to_string())?.vocab_len();
        let positions = prompt + LAP;
        let options = Options {
            context: None,
            vocab: Some(vocab),
            slots: 1,
            pages: PageBudget::Pages(kvcache::pages_for(positions)),
            threads,
            heads: None,
        };
        let mut model = CpuModel::load(path, &options)?;
        let context = model.spec().context;
        ensure!(
            positions <= context,
            "--prompt {prompt}: with {LAP} tokens behind it more than the model's context of {context}"
        );
        prefill(&mut model, Self::SLOT, prompt, positions)?;
        Ok(Self { model, prompt })
    }

    /// Tokens a second from now until `end`; the last step that passes `end` counts with its whole time.
    fn decode(&mut self, end: Instant) -> Result<f64> {
        let (start, mut tokens) = (Instant::now(), 0);
        while Instant::now() < end {
            let rows = vec![row(Self::SLOT, self.prompt + tokens % LAP, Output::Pick)];
            execute(&mut self.model, &Step { deltas: Vec::new(), rows })?;
            tokens += 1;
        }
        Ok(f64::from(tokens) / start.elapsed().as_secs_f64())
    }

    fn alone(&mut self, time: Duration) -> Result<f64> {
        self.decode(Instant::now() + time)
    }
}

/// Both from one moment to another: neither decodes a step while the other has not begun or has ended, but for the
/// last step of either.
fn together(target: &mut Decoder, drafter: &mut Decoder, time: Duration) -> Result<(f64, f64)> {
    let (barrier, end) = (&Barrier::new(2), Instant::now() + time);
    let decode = |decoder: &mut Decoder| {
        barrier.wait();
        decoder.decode(end)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(move || decode(drafter));
        let one = decode(target)?;
        let other = other.join().map_err(|_| anyhow::anyhow!("the drafter's thread ended in a panic"))??;
        Ok((one, other))
    })
}

impl Report {
    fn table(&self) -> String {
        let text = format!(
            "prompt {}, {} threads each, {} rounds of {} s\n{}\n\n",
            self.prompt,
            self.threads,
            self.rounds,
            self.seconds,
            self.hardware.line()
        );
        let mut table = Builder::default();
        table.push_record(["decode", "alone tokens/s", "shared tokens/s", "share", "min", "max"]);
        for side in [&self.target, &self.drafter] {
            let s = side.share;
            let figures = [side.alone_tokens_per_s.p50, side.shared_tokens_per_s.p50, s.p50, s.min, s.max];
            table.push_record(std::iter::once(side.model.clone()).chain(figures.map(figure)));
        }
        let s = self.sum_of_shares;
        let sum = ["sum", "", "", &figure(s.p50), &figure(s.min), &figure(s.max)].map(String::from);
        table.push_record(sum);
        text + &aligned(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_stand_in_the_table() {
        let spread = |v: f64| Spread::of([v, v]).unwrap();
        let side = |model: &str| Side {
            model: model.into(),
            alone_tokens_per_s: spread(20.0),
            shared_tokens_per_s: spread(10.0),
            share: spread(0.5),
        };
        let report = Report {
            prompt: 128,
            threads: 2,
            seconds: 3,
            rounds: 5,
            hardware: Hardware::here(),
            version: "0",
            target: side("t"),
            drafter: side("d"),
            sum_of_shares: spread(1.0),
        };
        let text = report.table();
        let rows: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for row in
            ["t 20.00 10.00 0.500 0.500 0.500", "d 20.00 10.00 0.500 0.500 0.500", "sum 1.00 1.00 1.00"]
        {
            assert!(rows.iter().any(|r| r == row), "{row}: {text}");
        }
    }
}

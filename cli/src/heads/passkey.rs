//! `paceline heads passkey`: whether what was said far back is still found when heads see less.
//!
//! A text names ten passkeys at ten depths; each is asked for by a request of its own, greedily, through the engine:
//! the text is computed once, and every other question finds it in the prefix cache. Three head maps are compared:
//! all heads full, the pattern's, and as many windows on heads drawn at random.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use engine::{Command, Engine, Outcome, Outlet, Room, Settings, TargetEvent, TargetOpen};
use fastrand::Rng;
use kvcache::{HeadClass, HeadMap, pages_for};
use model::{CpuModel, Options, PageBudget, Pattern};
use request::{Limits, Request, RequestId, Sampling, TokenId};
use scheduler::SequenceId;
use serde::Serialize;
use tabled::builder::Builder;
use text::Tokenizer;

use super::needle::{DEPTHS, Haystack, Needle};
use crate::args::StoreArgs;
use crate::bench::hardware::Hardware;

/// `paceline heads passkey ...`
#[derive(Clone, Debug, Args)]
pub struct PasskeyArgs {
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub model: String,
    /// A pattern folder
    #[arg(long, value_name = "FOLDER")]
    pub head_map: PathBuf,
    /// The share of all heads that see only a window
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub sparsity: f64,
    /// Which heads to compare
    #[arg(long, value_name = "HEADS", value_delimiter = ',', default_value = "full,identified,random")]
    pub heads: Vec<Heads>,
    /// Tokens of the texts
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "4096,8192")]
    pub lengths: Vec<u32>,
    /// Texts of each length
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub texts: u32,
    /// The same seed gives the same texts and the same random heads
    #[arg(long, default_value_t = 1000)]
    pub seed: u64,
    /// CPU threads [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Write the results as JSON: to FILE, or to standard output in place of the table
    // The global flag --log-json has the id json.
    #[arg(id = "report_json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// How the heads with a window are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Heads {
    /// None has one.
    Full,
    /// By the pattern.
    Identified,
    /// As many, at random.
    Random,
}

/// The results; the fields of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    sparsity: f64,
    sink: u32,
    recent: u32,
    texts: u32,
    seed: u64,
    threads: usize,
    hardware: Hardware,
    version: &'static str,
    /// dev or release.
    build: &'static str,
    runs: Vec<Run>,
}

/// One head map at one length.
#[derive(Clone, Debug, Serialize)]
struct Run {
    heads: Heads,
    length: u32,
    /// Found, by depth.
    hits: [u32; DEPTHS],
    asked: u32,
    found: u32,
    /// Prompt tokens that the prefix cache gave to all questions but a text's first.
    cached: u64,
    seconds: f64,
}

/// Measures and prints.
pub(super) async fn run(args: PasskeyArgs, store: &StoreArgs) -> Result<()> {
    ensure!(!args.lengths.is_empty(), "--lengths names no length");
    ensure!((1..=100).contains(&args.texts), "--texts must be from 1 to 100");
    let path = store.resolve(&args.model).await?;
    let json = args.json.clone();
    let report = tokio::task::spawn_blocking(move || measure(&args, &path)).await??;
    match json {
        Some(file) => {
            crate::bench::write_json(&file, &report)?;
            if file != Path::new("-") {
                print!("{}", report.table());
            }
        }
        None => print!("{}", report.table()),
    }
    Ok(())
}

fn measure(args: &PasskeyArgs, path: &Path) -> Result<Report> {
    let pattern = Pattern::open(&args.head_map).with_context(|| args.head_map.display().to_string())?;
    let HeadClass::Window { sink, recent } = pattern.window() else { bail!("a pattern has a window") };
    let tokenizer = Tokenizer::open(path).with_context(|| path.display().to_string())?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or(cores);
    let mut runs = Vec::new();
    for &heads in &args.heads {
        let map = match heads {
            Heads::Full => None,
            Heads::Identified => Some(pattern.map(args.sparsity)?),
            Heads::Random => Some(random(&pattern, args.seed)?.map(args.sparsity)?),
        };
        let mut asker = Asker::new(args, path, &tokenizer, threads, map)?;
        for &length in &args.lengths {
            let start = Instant::now();
            let mut run =
                Run { heads, length, hits: [0; DEPTHS], asked: 0, found: 0, cached: 0, seconds: 0.0 };
            for text in 0..args.texts {
                let text = Haystack::new(&tokenizer, length, args.seed + u64::from(text))?;
                for (depth, needle) in text.needles.iter().enumerate() {
                    let (found, cached) = asker.ask(&text.tokens, needle)?;
                    run.hits[depth] += u32::from(found);
                    run.found += u32::from(found);
                    run.asked += 1;
                    run.cached += u64::from(cached);
                    eprintln!("{heads:?}, {length} tokens, depth {:.2}: {found}", needle.depth);
                }
            }
            run.seconds = start.elapsed().as_secs_f64();
            runs.push(run);
        }
    }
    Ok(Report {
        model: args.model.clone(),
        sparsity: args.sparsity,
        sink,
        recent,
        texts: args.texts,
        seed: args.seed,
        threads,
        hardware: Hardware::here(),
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "dev" } else { "release" },
        runs,
    })
}

/// The same shape and window with values drawn at random.
fn random(pattern: &Pattern, seed: u64) -> Result<Pattern> {
    let HeadClass::Window { sink, recent } = pattern.window() else { bail!("a pattern has a window") };
    let mut random = Rng::with_seed(seed);
    let layer = |layer: &Vec<f64>| layer.iter().map(|_| random.f64()).collect();
    Ok(Pattern::new(pattern.gates().iter().map(layer).collect(), sink, recent)?)
}

/// An engine that is asked one question after the other.
struct Asker<'a> {
    tokenizer: &'a Tokenizer,
    engine: Engine<CpuModel>,
    clock: Instant,
    asked: u64,
}

impl<'a> Asker<'a> {
    fn new(
        args: &PasskeyArgs,
        path: &Path,
        tokenizer: &'a Tokenizer,
        threads: usize,
        heads: Option<HeadMap>,
    ) -> Result<Self> {
        // A text, its last sentence and a question.
        let longest = args.lengths.iter().copied().max().unwrap_or(0).saturating_add(256);
        let options = Options {
            context: None,
            vocab: Some(tokenizer.vocab_len()),
            slots: 1,
            pages: PageBudget::Pages(pages_for(longest) + 32),
            threads,
            heads,
        };
        let engine = Engine::new(CpuModel::load(path, &options)?, Settings::default());
        Ok(Self { tokenizer, engine, clock: Instant::now(), asked: 0 })
    }

    /// Whether the answer begins with the number, and how much of the prompt was cached.
    fn ask(&mut self, text: &[TokenId], needle: &Needle) -> Result<(bool, u32)> {
        self.asked += 1;
        let prompt = [text, &needle.question].concat();
        // As many as the right answer has: others need no more to be wrong.
        let limits = Limits::new(needle.answer.len() as u32, self.tokenizer.stop_ids().to_vec());
        let id = RequestId::new(&format!("passkey-{}", self.asked))?;
        let request = Request::new(id, prompt, Sampling::GREEDY, limits);
        let (outlet, events) = sync_channel(64);
        let (admit, admitted) = sync_channel(1);
        let open = TargetOpen {
            sequence: SequenceId(self.asked),
            request,
            constraint: None,
            deadline: None,
            outlet: Box::new(Collected(outlet)),
            admitted: Box::new(move |answer| {
                let _ = admit.try_send(answer);
            }),
        };
        self.engine.command(self.clock.elapsed(), Command::Target(Box::new(open)));
        admitted.recv_timeout(Duration::ZERO)??;
        while !self.engine.is_empty() {
            match self.engine.step(self.clock.elapsed()) {
                Outcome::Worked(facts) => ensure!(facts.failed == 0, "the model failed"),
                Outcome::Idle { .. } => bail!("the engine stands still"),
            }
        }
        let (mut said, mut cached) = (Vec::new(), 0);
        for event in events.try_iter() {
            match event {
                TargetEvent::Committed { frame, .. } => said.extend(frame.ids),
                TargetEvent::Started { cached: found } => cached = found,
                TargetEvent::Ask { .. } | TargetEvent::Again(_) | TargetEvent::Ended(_) => {}
            }
        }
        Ok((self.tokenizer.decode(&said).trim().starts_with(&needle.number), cached))
    }
}

/// Short answers: everything fits.
struct Collected(std::sync::mpsc::SyncSender<TargetEvent>);

impl Outlet<TargetEvent> for Collected {
    fn room(&self) -> Room {
        Room::Free
    }

    fn deliver(&mut self, event: TargetEvent) {
        let _ = self.0.try_send(event);
    }
}

impl Report {
    fn table(&self) -> String {
        let mut table = Builder::default();
        let depths = (0..DEPTHS).map(|i| format!("{:.2}", 0.05 + 0.9 * i as f64 / (DEPTHS - 1) as f64));
        table.push_record(["heads", "tokens", "found"].map(String::from).into_iter().chain(depths));
        for run in &self.runs {
            let found = format!("{}/{}", run.found, run.asked);
            let hits = run.hits.iter().map(u32::to_string);
            table.push_record(
                [format!("{:?}", run.heads), run.length.to_string(), found].into_iter().chain(hits),
            );
        }
        format!(
            "{}, sparsity {}, window {} first and {} last, {} texts of each length, {} build\n{}\n\n{}",
            self.model,
            self.sparsity,
            self.sink,
            self.recent,
            self.texts,
            self.build,
            self.hardware.line(),
            crate::bench::aligned(table)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_heads_are_as_many() {
        let gates = vec![vec![0.1, 0.9], vec![0.8, 0.2], vec![0.3, 0.4]];
        let pattern = Pattern::new(gates, 4, 8).unwrap();
        let (found, drawn) = (pattern.map(0.5).unwrap(), random(&pattern, 1).unwrap().map(0.5).unwrap());
        assert_eq!(found.units(0), drawn.units(0));
        assert_ne!(found.class_of, random(&pattern, 2).unwrap().map(0.5).unwrap().class_of);
        assert_eq!(random(&pattern, 1).unwrap().window(), pattern.window());
    }

    #[test]
    fn the_table_has_a_line_a_run() {
        let run = Run {
            heads: Heads::Random,
            length: 4096,
            hits: [1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            asked: 10,
            found: 2,
            cached: 0,
            seconds: 1.0,
        };
        let report = Report {
            model: "m".into(),
            sparsity: 0.5,
            sink: 64,
            recent: 256,
            texts: 1,
            seed: 0,
            threads: 2,
            hardware: Hardware::here(),
            version: "0",
            build: "dev",
            runs: vec![run],
        };
        let text = report.table();
        assert!(text.contains("Random") && text.contains("2/10"), "{text}");
        assert_eq!(serde_json::to_value(&report).unwrap()["runs"][0]["hits"][9], 1);
    }
}

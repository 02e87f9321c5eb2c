//! `paceline bench engine`: what this machine's arithmetic takes, without a network.
//!
//! Prefill and decode run through [`engine::Engine`], as they do in a worker; the time of one step by
//! its rows, which is what verifying drafts costs, is measured on the model itself.

mod curve;
mod phases;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use engine::Model as _;
use kvcache::HeadMap;
use model::{CpuModel, Options, PageBudget};
use serde::Serialize;
use tabled::builder::Builder;
use text::Tokenizer;

use super::hardware::Hardware;
use super::spread::Spread;
use super::{aligned, figure};
use crate::args::StoreArgs;

/// `paceline bench engine ...`
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub model: String,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub prompt: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub generate: u32,
    /// Sequences at once; several values are measured one after the other
    #[arg(long, default_value = "1", value_delimiter = ',', value_name = "N,...")]
    pub batch: Vec<u32>,
    /// Time one step with so many rows of one sequence, all of them picking
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub rows: Vec<u32>,
    /// Time the steps of --rows behind so many positions with made-up keys and values, instead of behind the prompt
    #[arg(long, value_name = "N", requires = "rows")]
    pub depth: Option<u32>,
    /// Half of the KV heads of every layer see only so many first and last positions
    #[arg(long, value_name = "SINK,RECENT", value_parser = windows)]
    pub windows: Option<[u32; 2]>,
    /// Repetitions of each measurement, after one that does not count; the median is shown
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// CPU threads of the model [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Write the results as JSON: to FILE, or to standard output in place of the table
    // The global flag --log-json has the id json.
    #[arg(id = "report_json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// The results; the fields of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    prompt: u32,
    generate: u32,
    /// Positions before the steps by rows, if they were made up.
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<u32>,
    /// Sink and recent of half of the heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    windows: Option<[u32; 2]>,
    repeat: u32,
    threads: usize,
    /// The instructions the kernels ran with.
    level: String,
    hardware: Hardware,
    version: &'static str,
    /// dev or release.
    build: &'static str,
    /// Seconds from the file to a model that can compute: layouts repacked, memory taken.
    load_s: f64,
    /// Bytes of weights that a step reads.
    weight_bytes: u64,
    /// Bytes a second that these threads read from memory, measured before the rest. A model smaller than the
    /// processor's caches can be faster than that.
    memory_bytes_per_s: f64,
    /// Medians of the first batch size.
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    batches: Vec<Batch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<Rows>,
}

/// So many sequences at once.
#[derive(Debug, Serialize)]
struct Batch {
    batch: u32,
    /// All sequences together.
    prefill_tokens_per_s: Spread,
    /// All sequences together.
    decode_tokens_per_s: Spread,
}

/// One step with so many rows.
#[derive(Debug, Serialize)]
struct Rows {
    rows: u32,
    step_ms: Spread,
    /// Its median over that of a step with one row; null when one row was not measured.
    over_one_row: Option<f64>,
    /// The step's weights over its median, as a share of `memory_bytes_per_s`.
    share_of_memory: f64,
}

/// Measures and prints.
pub async fn run(args: EngineArgs, store: &StoreArgs) -> Result<()> {
    args.check()?;
    let path = store.resolve(&args.model).await?;
    let json = args.json.clone();
    let report = tokio::task::spawn_blocking(move || measure(&args, &path)).await??;
    match json {
        Some(file) => {
            super::write_json(&file, &report)?;
            if file != Path::new("-") {
                print!("{}", report.table());
            }
        }
        None => print!("{}", report.table()),
    }
    Ok(())
}

impl EngineArgs {
    fn check(&self) -> Result<()> {
        ensure!(self.prompt >= 1, "--prompt must be at least 1");
        ensure!(self.generate >= 2, "--generate must be at least 2: the first token belongs to the prompt");
        ensure!(!self.batch.is_empty(), "--batch names no size");
        ensure!(self.batch.iter().all(|n| (1..=1024).contains(n)), "--batch must be from 1 to 1024");
        ensure!(self.rows.iter().all(|n| (1..=1024).contains(n)), "--rows must be from 1 to 1024");
        ensure!(self.depth != Some(0), "--depth must be at least 1");
        Ok(())
    }

    /// Positions that the longest sequence needs.
    fn longest(&self) -> u64 {
        let rows = self.rows.iter().copied().max().unwrap_or(0);
        let answers = u64::from(self.prompt) + u64::from(self.generate);
        answers.max(u64::from(self.before()) + u64::from(rows))
    }

    /// Positions before those of the steps by rows.
    fn before(&self) -> u32 {
        self.depth.unwrap_or(self.prompt)
    }
}

/// Reads `SINK,RECENT`.
fn windows(text: &str) -> Result<[u32; 2], String> {
    let both =
        text.split_once(',').and_then(|(sink, recent)| Some([sink.parse().ok()?, recent.parse().ok()?]));
    both.filter(|[_, recent]| *recent > 0)
        .ok_or_else(|| "must be SINK,RECENT, such as 64,256; RECENT at least 1".to_owned())
}

fn measure(args: &EngineArgs, path: &Path) -> Result<Report> {
    let vocab = Tokenizer::open(path).with_context(|| path.display().to_string())?.vocab_len();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or(cores);
    let most = args.batch.iter().copied().max().unwrap_or(1);
    let longest = u32::try_from(args.longest()).context("--prompt and --generate: too many tokens")?;
    // One sequence more than the batch: the steps by rows have a slot of their own.
    let pages = u64::from(kvcache::pages_for(longest)) * (u64::from(most) + 1);
    let pages = u32::try_from(pages).context("--batch, --prompt and --generate: too many pages")?;
    let options = Options {
        context: None,
        vocab: Some(vocab),
        slots: most + 1,
        pages: PageBudget::Pages(pages),
        threads,
        heads: match args.windows {
            None => None,
            Some([sink, recent]) => {
                let shape = model::Description::read(path)?;
                let (layers, heads) = (shape.layers as usize, shape.kv_heads as usize);
                Some(HeadMap::half_windows(layers, heads, sink, recent))
            }
        },
    };
    let start = Instant::now();
    let mut model = CpuModel::load(path, &options)?;
    let load_s = start.elapsed().as_secs_f64();
    let context = model.spec().context;
    ensure!(
        longest <= context,
        "{longest} tokens of one sequence are more than the model's context of {context}; lower --prompt, --generate or --rows"
    );
    let level = model.level().to_string();
    let weight_bytes = model.weight_bytes();
    let memory_bytes_per_s = model::memory_bandwidth(threads)?;
    let times = curve::run(&mut model, args, most)?;
    let one = times.iter().find(|(rows, _)| *rows == 1).map(|(_, time)| time.p50);
    let rows = times.into_iter().map(|(rows, step_ms)| Rows {
        rows,
        step_ms,
        over_one_row: one.filter(|one| *one > 0.0).map(|one| step_ms.p50 / one),
        share_of_memory: weight_bytes as f64 / (step_ms.p50 / 1e3).max(1e-9) / memory_bytes_per_s,
    });
    let rows = rows.collect();
    let batches = phases::run(model, args, vocab)?;
    let first = batches.first().context("--batch names no size")?;
    Ok(Report {
        model: args.model.clone(),
        prompt: args.prompt,
        generate: args.generate,
        depth: args.depth,
        windows: args.windows,
        repeat: args.repeat,
        threads,
        level,
        hardware: Hardware::here(),
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "dev" } else { "release" },
        load_s,
        weight_bytes,
        memory_bytes_per_s,
        prefill_tokens_per_s: first.prefill_tokens_per_s.p50,
        decode_tokens_per_s: first.decode_tokens_per_s.p50,
        batches,
        rows,
    })
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!(
            "{}, prompt {}, generate {}, {} threads, {}, {} build, median of {}\n{}\nloaded in {} s, {} MB of weights a step, memory gives {} GB/s\n\n",
            self.model,
            self.prompt,
            self.generate,
            self.threads,
            self.level,
            self.build,
            self.repeat,
            self.hardware.line(),
            figure(self.load_s),
            figure(self.weight_bytes as f64 / 1e6),
            figure(self.memory_bytes_per_s / 1e9),
        );
        if let Some([sink, recent]) = self.windows {
            text += &format!("half of the heads see the first {sink} and the last {recent} positions\n\n");
        }
        let mut table = Builder::default();
        table.push_record(["batch", "prefill tokens/s", "min", "max", "decode tokens/s", "min", "max"]);
        for batch in &self.batches {
            let (p, d) = (batch.prefill_tokens_per_s, batch.decode_tokens_per_s);
            let figures = [p.p50, p.min, p.max, d.p50, d.min, d.max].map(figure);
            table.push_record(std::iter::once(batch.batch.to_string()).chain(figures));
        }
        text += &aligned(table);
        if !self.rows.is_empty() {
            let mut table = Builder::default();
            let behind = self.depth.map_or_else(String::new, |depth| format!(" behind {depth} positions"));
            table.push_record([
                &*format!("rows of a step{behind}"),
                "ms",
                "min",
                "max",
                "over one row",
                "share of memory",
            ]);
            for row in &self.rows {
                let over = row.over_one_row.map_or_else(|| "-".into(), figure);
                let [ms, min, max] = [row.step_ms.p50, row.step_ms.min, row.step_ms.max].map(figure);
                table.push_record([row.rows.to_string(), ms, min, max, over, figure(row.share_of_memory)]);
            }
            text += &format!("\n{}", aligned(table));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn typed(words: &[&str]) -> EngineArgs {
        Typed::try_parse_from(std::iter::once("bench").chain(words.iter().copied())).unwrap().engine
    }

    fn report() -> Report {
        let spread = |v: f64| Spread::of([v, v + 1.0]).unwrap();
        let batch =
            |batch| Batch { batch, prefill_tokens_per_s: spread(900.0), decode_tokens_per_s: spread(90.0) };
        Report {
            model: "m".into(),
            prompt: 128,
            generate: 32,
            depth: None,
            windows: None,
            repeat: 3,
            threads: 2,
            level: "avx2".into(),
            hardware: Hardware::here(),
            version: "0",
            build: "dev",
            load_s: 1.5,
            weight_bytes: 1000,
            memory_bytes_per_s: 2e10,
            prefill_tokens_per_s: 900.5,
            decode_tokens_per_s: 90.5,
            batches: vec![batch(1), batch(4)],
            rows: vec![Rows { rows: 8, step_ms: spread(5.0), over_one_row: None, share_of_memory: 0.9 }],
        }
    }

    #[test]
    fn json_is_asked_for_with_and_without_a_file() {
        assert_eq!(typed(&[]).json, None);
        assert_eq!(typed(&["--json"]).json, Some("-".into()));
        assert_eq!(typed(&["--json", "out.json", "--rows", "1,2"]).json, Some("out.json".into()));
        assert_eq!(typed(&["--rows", "1,2", "--batch", "1,4"]).batch, [1, 4]);
    }

    #[test]
    fn impossible_sizes_are_refused_by_flag() {
        for (words, flag) in [
            (["--prompt", "0"], "--prompt"),
            (["--generate", "1"], "--generate"),
            (["--batch", "0,1"], "--batch"),
            (["--rows", "1,5000"], "--rows"),
            (["--depth=0", "--rows=1"], "--depth"),
        ] {
            let error = typed(&words).check().unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
        assert_eq!(typed(&["--prompt", "4294967295", "--generate", "9"]).longest(), 4_294_967_304);
        assert_eq!((windows("64,256"), windows("64,0").is_err()), (Ok([64, 256]), true));
        assert_eq!(typed(&["--depth", "16384", "--rows", "1,4"]).longest(), 16_388);
    }

    #[test]
    fn the_report_has_the_fields_that_scripts_read() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["prefill_tokens_per_s"], 900.5);
        assert_eq!(json["decode_tokens_per_s"], 90.5);
        assert_eq!(json["batches"][1]["batch"], 4);
        assert_eq!(json["rows"][0]["over_one_row"], serde_json::Value::Null);
        let text = report().table();
        assert!(text.contains("prefill tokens/s") && text.contains("rows of a step"), "{text}");
    }
}

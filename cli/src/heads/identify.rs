//! `paceline heads identify`: how much of each head's attention goes to what a window would hide and is needed.
//!
//! Instead of the paper's training of gates (hours on several GPUs), attention is measured, as NVIDIA's kvpress does
//! on the fly: texts with ten passkeys each, every passkey asked for at the end, and the answer given; the queries
//! that ask and answer must look back to where it was told. A head's value is the mean share of their attention on
//! that sentence, as far as it lies beyond sink and window. (Attention on all that lies there was tried first: much of it
//! goes to nothing in particular, and heads chosen by it lost passkeys; docs/benchmarks.md.)

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use model::{Asked, CpuModel, Options, PageBudget, Pattern};
use request::TokenId;
use serde_json::json;
use text::Tokenizer;

use super::needle::Haystack;
use crate::args::StoreArgs;

/// `paceline heads identify ...`
#[derive(Clone, Debug, Args)]
pub struct IdentifyArgs {
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub model: String,
    /// Folder to write the pattern to
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Texts that are measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub samples: u32,
    /// Tokens of each text
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    pub length: u32,
    /// Positions at the start that every head keeps seeing
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub sink: u32,
    /// Last positions that every head keeps seeing
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub recent: u32,
    /// The same seed gives the same texts
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// CPU threads [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Measures and writes.
pub(super) async fn run(args: IdentifyArgs, store: &StoreArgs) -> Result<()> {
    args.check()?;
    let path = store.resolve(&args.model).await?;
    tokio::task::spawn_blocking(move || identify(&args, &path)).await?
}

impl IdentifyArgs {
    fn check(&self) -> Result<()> {
        ensure!((1..=1000).contains(&self.samples), "--samples must be from 1 to 1000");
        ensure!(self.recent >= 1, "--recent must be at least 1: it counts the query's own position");
        let hidden = u64::from(self.length).saturating_sub(u64::from(self.sink) + u64::from(self.recent));
        ensure!(
            hidden >= u64::from(self.length) / 2,
            "--length {} leaves too little beyond --sink {} and --recent {}; at least half of it must be hidden",
            self.length,
            self.sink,
            self.recent
        );
        Ok(())
    }
}

fn identify(args: &IdentifyArgs, path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::open(path).with_context(|| path.display().to_string())?;
    let texts = (0..args.samples).map(|i| Text::new(&tokenizer, args, args.seed + u64::from(i)));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let longest = texts.iter().map(|text| text.tokens.len()).max().unwrap_or(0) as u32;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut model = CpuModel::load(
        path,
        &Options {
            context: None,
            vocab: Some(tokenizer.vocab_len()),
            slots: 1,
            pages: PageBudget::Pages(kvcache::pages_for(longest)),
            threads: args.threads.unwrap_or(cores),
            heads: None,
        },
    )?;
    let bar = ProgressBar::new(texts.iter().map(|text| text.tokens.len() as u64).sum());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {per_sec}, {eta} left {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(500));
    let mut gates: Vec<Vec<f64>> = Vec::new();
    let (mut before, mut measured) = (0, 0.0);
    for text in &texts {
        let shares = model
            .attention_shares(&text.tokens, &text.asked, |done| bar.set_position(before + done as u64))?;
        before += text.tokens.len() as u64;
        measured += shares.len() as f64;
        for of_text in shares {
            gates.resize_with(of_text.len(), Vec::new);
            for (sum, shares) in gates.iter_mut().zip(of_text) {
                sum.resize(shares.len(), 0.0);
                sum.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
            }
        }
    }
    bar.finish_and_clear();
    gates.iter_mut().flatten().for_each(|sum| *sum /= measured);
    let pattern = Pattern::new(gates, args.sink, args.recent)?;
    let said = [
        ("model_name", json!(args.model)),
        (
            "method",
            json!(
                "attention on the sentence of a passkey, beyond sink and recent, while it is asked for and said"
            ),
        ),
        ("num_samples", json!(args.samples)),
        ("context_length", json!(args.length)),
        ("seed", json!(args.seed)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ];
    pattern.write(&args.out, &said).with_context(|| args.out.display().to_string())?;
    print!("{}", super::show::terminal(&pattern, Some(0.5))?);
    println!("written to {}", args.out.display());
    Ok(())
}

/// A text with all its questions and answers at the end.
struct Text {
    tokens: Vec<TokenId>,
    asked: Vec<Asked>,
}

impl Text {
    fn new(tokenizer: &Tokenizer, args: &IdentifyArgs, seed: u64) -> Result<Self> {
        let Haystack { mut tokens, needles } = Haystack::new(tokenizer, args.length, seed)?;
        let mut asked = Vec::new();
        for needle in &needles {
            tokens.extend(&needle.question);
            // The query that says the first token of the answer is the last of the question.
            let first = tokens.len() as u32 - needle.question.len() as u32;
            tokens.extend(&needle.answer);
            let queries = first..tokens.len() as u32 - 1;
            // Of the sentence what a window would hide from all of them.
            let end = needle.place.end.min((first + 1).saturating_sub(args.recent));
            asked.push(Asked { keys: needle.place.start.max(args.sink).min(end)..end, queries });
        }
        Ok(Self { tokens, asked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(out: PathBuf) -> IdentifyArgs {
        IdentifyArgs {
            model: String::new(),
            out,
            samples: 2,
            length: 2000,
            sink: 64,
            recent: 256,
            seed: 1,
            threads: Some(1),
        }
    }

    #[test]
    fn queries_are_those_that_ask_and_answer() {
        let tokenizer = super::super::needle::tests::bytes();
        let text = Text::new(&tokenizer, &args(PathBuf::new()), 3).unwrap();
        let needles = Haystack::new(&tokenizer, 2000, 3).unwrap().needles;
        for (asked, needle) in text.asked.iter().zip(&needles) {
            let said = asked.queries.start as usize..asked.queries.end as usize + 1;
            assert_eq!(text.tokens[said], [&needle.question[..], &needle.answer].concat());
            assert!(asked.keys.start >= 64 && asked.keys.end + 255 <= asked.queries.start);
            assert!(asked.keys == needle.place || needle.depth < 0.06 || needle.depth > 0.8, "{asked:?}");
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused_by_flag() {
        let good = args(PathBuf::new());
        good.check().unwrap();
        for (args, flag) in [
            (IdentifyArgs { samples: 0, ..good.clone() }, "--samples"),
            (IdentifyArgs { recent: 0, ..good.clone() }, "--recent"),
            (IdentifyArgs { recent: 1000, ..good.clone() }, "--length"),
            (IdentifyArgs { sink: u32::MAX, ..good.clone() }, "--sink"),
        ] {
            assert!(args.check().unwrap_err().to_string().contains(flag), "{flag}");
        }
    }
}

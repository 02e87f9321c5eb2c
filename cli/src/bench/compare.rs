//! `paceline bench compare`: strategies side by side on the same prompts, and the record of a pair of models.
//!
//! A cluster is started, and every prompt is asked once under each strategy before the next one is: what
//! changes on the machine meanwhile changes it for all. Every text must be plain decoding's.

mod asked;
mod record;
mod report;
mod runs;
pub mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use proxy::{Link, Proxy};
use text::{ChatTemplate, Tokenizer};

use self::asked::Asked;
use self::record::Recording;
use self::report::Report;
use self::runs::Drafting;
use crate::args::{RankArgs, StoreArgs};
use crate::up::{Cluster, UpArgs};

/// `paceline bench compare ...`
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Target model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub target: String,
    /// Drafter model, or none; its vocabulary must be the target's
    #[arg(long, value_name = "MODEL|none", default_value = "coder-0.5b")]
    pub drafter: String,
    /// How to draft; none is always among them. pearl is draft under its paper's name, lockstep-K waits for K drafts, rapid-TOKENS-K reads so many of the prompt besides
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "S,...",
        default_value = "none,ngram,suffix,recycle,draft,auto"
    )]
    pub strategies: Vec<Drafting>,
    /// What to ask: humaneval, or a file as `bench serve` takes it
    #[arg(long, value_name = "humaneval|FILE", default_value = asked::HUMANEVAL)]
    pub prompts: String,
    /// So many of the prompts, from the first on
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub max_tokens: u32,
    /// 0 takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Seed of every answer
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Write what the target answers and what the drafter says at each place, for --replay, and compare nothing
    #[arg(long, value_name = "TRACE", conflicts_with_all = ["replay", "report_json", "plot"])]
    pub record: Option<PathBuf>,
    /// Ask the prompts of a trace, and let the models say its words at their own cost
    #[arg(long, value_name = "TRACE")]
    pub replay: Option<PathBuf>,
    /// Write the results as JSON: to FILE, or to standard output in place of the table
    // The global flag --log-json has the id json.
    #[arg(id = "report_json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Draw the results
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Worker and drafter on cores of their own, half of them each (Linux), as if on two machines
    #[arg(long)]
    pub split_cores: bool,
    /// Make the way from worker to drafter and back so much longer: 5ms
    #[arg(long, value_name = "DURATION", value_parser = daemon::config::parse_duration)]
    pub round_trip: Option<Duration>,
    /// With --round-trip: up to so much longer again each way, at random
    #[arg(long, value_name = "DURATION", requires = "round_trip", value_parser = daemon::config::parse_duration)]
    pub jitter: Option<Duration>,
    #[command(flatten)]
    pub rank: RankArgs,
}

pub async fn run(args: CompareArgs, store: &StoreArgs) -> Result<()> {
    match args.record.clone() {
        Some(file) => record(args, &file, store).await,
        None => compare(args, store).await,
    }
}

async fn record(args: CompareArgs, file: &Path, store: &StoreArgs) -> Result<()> {
    let questions = asked::questions(&args.prompts, args.limit as usize, store).await?;
    let (target, drafter) = (store.resolve(&args.target).await?, store.resolve(&args.drafter).await?);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let recorded = tokio::task::spawn_blocking(move || {
        record::record(&Recording {
            target: (&args.target, &target),
            drafter: (&args.drafter, &drafter),
            prompts: &args.prompts,
            questions: &questions,
            max_tokens: args.max_tokens,
            threads: args.rank.threads.unwrap_or(cores),
        })
    });
    let recorded = recorded.await??;
    super::write_text(file, &recorded.text()?)?;
    let tokens: usize = recorded.answers.iter().map(|a| a.recorded.target.len()).sum();
    let share = 100.0 * recorded.agreement();
    let answers = recorded.answers.len();
    eprintln!("{answers} answers, {tokens} tokens; the drafter is right at {share:.1} % of the places");
    Ok(())
}

async fn compare(mut args: CompareArgs, store: &StoreArgs) -> Result<()> {
    args.check()?;
    let asked = args.asked(store).await?;
    let link = match args.round_trip {
        Some(trip) => {
            let (proxy, forward) = Proxy::bind().await.context("no port for the proxy")?;
            let jitter = args.jitter.unwrap_or_default();
            proxy.set(Link::Delayed { one_way: trip / 2, jitter });
            Some((proxy, forward))
        }
        None => None,
    };
    let up = UpArgs {
        target: args.target.clone(),
        drafter: args.drafter.clone(),
        workers: 1,
        drafters: 1,
        port: 0,
        rank: args.rank.clone(),
        split_cores: args.split_cores,
        drafter_advertises: link.as_ref().map(|(proxy, _)| proxy.address),
        replay: args.replay.clone(),
    };
    let mut cluster = Cluster::start(&up, store).await?;
    // Kept until the comparison is done: dropped, it cuts the way.
    let _proxy = match link {
        Some((proxy, forward)) => {
            forward(cluster.drafter_listens().context("--round-trip: no drafter was started")?);
            Some(proxy)
        }
        None => None,
    };
    let runs = runs::run(&args, &asked, cluster.url()).await;
    cluster.stop().await;
    let report = Report::new(&args, runs?);
    if let Some(file) = &args.plot {
        super::write_text(file, &report.svg())?;
    }
    if let Some(file) = &args.json {
        super::write_json(file, &report)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print!("{}", report.table());
    }
    report.exact()
}

impl CompareArgs {
    /// Plain decoding is what the others are compared with: it comes first.
    fn check(&mut self) -> Result<()> {
        self.strategies.retain(|s| *s != Drafting::NONE);
        self.strategies.insert(0, Drafting::NONE);
        let drafter = self.strategies.iter().find(|s| s.needs_drafter());
        if let (Some(strategy), "none") = (drafter, self.drafter.as_str()) {
            anyhow::bail!("--strategies {strategy} needs a drafter, and --drafter is none");
        }
        ensure!(
            self.round_trip.is_none() || self.drafter != "none",
            "--round-trip is between worker and drafter, and --drafter is none"
        );
        Ok(())
    }

    async fn asked(&self, store: &StoreArgs) -> Result<Vec<Asked>> {
        let limit = self.limit as usize;
        if let Some(file) = &self.replay {
            ensure!(self.temperature == 0.0, "--replay says greedy answers: --temperature must be 0");
            let answers = trace::File::read(file)?.answers.into_iter().take(limit);
            let max_tokens = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).min(self.max_tokens);
            let asked = answers.map(|a| Asked {
                name: a.name,
                max_tokens: max_tokens(a.recorded.target.len()),
                ids: a.recorded.prompt,
                expect: None,
            });
            return Ok(asked.collect());
        }
        let questions = asked::questions(&self.prompts, limit, store).await?;
        let target = store.resolve(&self.target).await?;
        let tokenizer = Tokenizer::open(&target).with_context(|| target.display().to_string())?;
        let template = ChatTemplate::open(&target).context("no usable chat template")?;
        questions.iter().map(|q| q.encode(&tokenizer, &template, self.max_tokens)).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        compare: CompareArgs,
    }

    fn typed(words: &[&str]) -> Result<CompareArgs, String> {
        let typed = Typed::try_parse_from(std::iter::once("bench").chain(words.iter().copied()));
        let mut args = typed.map_err(|e| e.to_string())?.compare;
        args.check().map_err(|e| e.to_string())?;
        Ok(args)
    }

    #[test]
    fn plain_decoding_is_always_measured_and_first() {
        let names = |words: &[&str]| {
            let args = typed(words).unwrap();
            args.strategies.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&[]), "none ngram suffix recycle draft auto");
        assert_eq!(names(&["--strategies", "auto,none,lockstep-3,pearl"]), "none auto lockstep-3 pearl");
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for (words, why) in [
            (&["--strategies", "del-6-99"][..], "K must be 1 to 16"),
            (&["--strategies", "rapid-4-1"], "TOKENS must be"),
            (&["--drafter", "none", "--strategies", "rapid"], "needs a drafter"),
            (&["--strategies", "lockstep-0"], "1 to 64"),
            (&["--strategies", "fast"], "ngram"),
            (&["--drafter", "none", "--strategies", "draft"], "needs a drafter"),
            (&["--drafter", "none", "--strategies", "auto", "--round-trip", "5ms"], "--round-trip"),
            (&["--jitter", "5ms"], "--round-trip"),
            (&["--record", "a", "--replay", "b"], "cannot be used with"),
        ] {
            let error = typed(words).unwrap_err();
            assert!(error.contains(why), "{words:?}: {error}");
        }
        assert!(typed(&["--drafter", "none", "--strategies", "ngram,auto"]).is_ok());
    }
}

//! `paceline bench serve`: load on a server with OpenAI's API, and what its answers took.
//!
//! A run is a [`load::Plan`] carried out by [`load::run`]; each request is an [`exchange`], measured by
//! [`record::PER_REQUEST`] and condensed by [`summary`]. Start at [`run`].

pub mod aiperf;
pub mod arrival;
pub mod exchange;
pub mod load;
pub mod plot;
mod probe;
pub mod progress;
pub mod prompts;
pub mod record;
pub mod slo;
pub mod summary;
pub mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use self::arrival::Arrival;
use self::exchange::Endpoint;
use self::load::{Load, Plan, Run};
use self::progress::Progress;
use self::prompts::{Api, Made, Prompts};
use self::slo::Slo;
use self::summary::Summary;
use super::hardware::Hardware;

/// A run without an end of its own lasts so long.
const DURATION: Duration = Duration::from_secs(30);
/// Most requests under way at once in an open loop, unless `--concurrency` says otherwise.
const MOST: usize = 1024;
/// A client later than this at its 99th percentile is not measuring the server alone.
const LATE_MS: f64 = 10.0;

/// `paceline bench serve ...`
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The server, with or without /v1 at the end
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// Model [default: the first the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// API that is asked
    #[arg(long, value_enum, default_value = "chat")]
    pub endpoint: Api,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub ask: AskArgs,
    /// A limit that a good answer meets, METRIC:LIMIT with ttft, itl, tpot, e2e or gap (the longest
    /// pause); repeat for several
    #[arg(long = "slo", value_name = "METRIC:LIMIT")]
    pub slos: Vec<Slo>,
    /// Longest time of one request
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Sent as a bearer token
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// A header of every request; repeat for several
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub headers: Vec<String>,
    /// Write the summary as JSON in AIPerf's layout; - is standard output
    // The global flag --log-json has the id json.
    #[arg(id = "summary_json", long = "json", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write every request as a line of JSON in AIPerf's layout
    #[arg(long, value_name = "FILE")]
    pub records: Option<PathBuf>,
    /// Draw a sweep: latency and throughput against load, as .svg or .html
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// How requests follow each other, and how many.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Closed loop: requests under way at once; with --rate the most at once [default: 1, or 1024]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Open loop: requests a second, sent whether or not earlier ones were answered
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Gaps of the open loop
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrival: Arrival,
    /// Requests of a run
    #[arg(long, value_name = "M")]
    pub requests: Option<u64>,
    /// Stop sending after this time [default: 30s when --requests is not given]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// After --duration, what is under way may end within this; the rest is cut off and counted
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub grace: Duration,
    /// Requests sent and forgotten before a run is measured
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub warmup: u64,
    /// One run for each rate
    #[arg(long, value_delimiter = ',', value_name = "R,...", conflicts_with_all = ["rate", "sweep_concurrency"])]
    pub sweep_rate: Vec<f64>,
    /// One run for each number of requests under way at once
    #[arg(long, value_delimiter = ',', value_name = "N,...", conflicts_with_all = ["rate", "concurrency"])]
    pub sweep_concurrency: Vec<usize>,
}

/// What is asked.
#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    /// Prompts: .jsonl with messages, prompt or text in each line, else a prompt a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "shared_prefix"])]
    pub prompts: Option<PathBuf>,
    /// Length of made prompts, in words that are one token each in common vocabularies
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub prompt_tokens: usize,
    /// So many words at the start of made prompts are the same in all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub shared_prefix: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub output_tokens: u32,
    /// Let answers end before --output-tokens (do not send ignore_eos and min_tokens)
    #[arg(long)]
    pub stop_at_eos: bool,
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f32,
    /// Of arrivals, made prompts, and (with the request's place added) each request
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u32,
    /// A field of every request: NAME=JSON; repeat for several
    #[arg(long = "extra", value_name = "NAME=JSON")]
    pub extra: Vec<String>,
}

/// One run of a sweep, or the only one.
struct Point {
    /// The rate or the concurrency.
    at: f64,
    plan: Plan,
}

/// Measures, prints a table, writes what was asked for.
pub async fn run(args: ServeArgs) -> Result<()> {
    let points = args.points()?;
    let sweeps = points.len() > 1;
    ensure!(
        args.plot.is_none() || sweeps,
        "--plot needs --sweep-rate or --sweep-concurrency with several values"
    );
    ensure!(!(sweeps && args.records.is_some()), "--records is for one run; leave the sweep out");
    let prompts = args.ask.source(args.endpoint)?;
    let base = args.url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    let url = format!("{base}{}", args.endpoint.path());
    let endpoint = Arc::new(Endpoint::new(url, args.header_map()?, args.timeout)?);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => endpoint.first_model(&base).await?,
    };
    let mut body = args.ask.body(&model)?;
    probe::accepted(&endpoint, &mut body, &prompts, args.endpoint).await?;
    let asking = Asking { endpoint, prompts, body, api: args.endpoint, seed: args.ask.seed };

    let (mut results, mut text): (Vec<(f64, Summary, Run)>, String) = (Vec::new(), String::new());
    for (nth, point) in points.iter().enumerate() {
        // Prompts of one run are not those of another: a prefix cache would make later runs look fast.
        let offset = (nth as u64 + 1) << 32;
        if args.load.warmup > 0 {
            asking.warm_up(&args.load, offset + (1 << 31)).await?;
        }
        let label = point.label();
        let measured = asking.run(&point.plan, offset, &Progress::new(&point.plan, &label)).await?;
        let summary = Summary::of(&measured.records, &args.slos, args.ask.output_tokens.into());
        text += &format!("{label}\n\n{}\n", table::run(&summary));
        args.warn(&summary, &asking.body);
        let interrupted = measured.interrupted;
        results.push((point.at, summary, measured));
        if interrupted {
            eprintln!("note: stopped early; figures are of the requests that had ended");
            break;
        }
    }
    let axis =
        if args.load.sweep_concurrency.is_empty() { "requests/s offered" } else { "requests under way" };
    let runs: Vec<(f64, &Summary)> = results.iter().map(|(at, summary, _)| (*at, summary)).collect();
    if sweeps {
        text += &table::sweep(axis, runs.iter().copied());
    }
    args.write(&results, &model, &asking.body, axis)?;
    // Two texts on one standard output would be of use to nobody.
    if args.json.as_deref() == Some("-".as_ref()) {
        eprint!("{text}");
    } else {
        print!("{text}");
    }
    ensure!(results.iter().any(|(_, summary, _)| summary.completed > 0), "no request succeeded");
    Ok(())
}

/// All that a request is made of.
struct Asking {
    endpoint: Arc<Endpoint>,
    prompts: Prompts,
    body: Value,
    api: Api,
    seed: u32,
}

impl Asking {
    /// `offset` separates the made prompts and seeds of runs; listed prompts start anew in each.
    fn request(&self, index: u64, offset: u64) -> String {
        let mut body = self.body.clone();
        let at = match self.prompts {
            Prompts::Listed(_) => index,
            Prompts::Made(_) => index + offset,
        };
        self.prompts.get(at).fill(&mut body, self.api);
        // Servers take seeds of 63 bits and more.
        body["seed"] = json!(u64::from(self.seed) + index);
        body.to_string()
    }

    async fn run(&self, plan: &Plan, offset: u64, progress: &Progress) -> Result<Run> {
        let interrupt = async {
            // Without signals there is nothing to wait for.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        load::run(plan, &self.endpoint, |index| self.request(index, offset), progress, interrupt).await
    }

    async fn warm_up(&self, load: &LoadArgs, offset: u64) -> Result<()> {
        let concurrency = load.concurrency.unwrap_or(1).clamp(1, 64);
        let plan = Plan {
            load: Load::Closed { concurrency },
            requests: Some(load.warmup),
            duration: None,
            grace: Duration::ZERO,
        };
        let run = self.run(&plan, offset, &Progress::new(&plan, "warm-up")).await?;
        ensure!(!run.interrupted, "stopped during the warm-up");
        if let Some(failure) = run.records.iter().find_map(|r| r.exchange.failure.as_ref()) {
            bail!("a request of the warm-up failed: {}: {}", failure.kind.label(), failure.message);
        }
        Ok(())
    }
}

impl Point {
    fn label(&self) -> String {
        match self.plan.load {
            Load::Closed { concurrency } => format!("{concurrency} under way at once"),
            Load::Open { rate, arrival: Arrival::Poisson, .. } => format!("{rate} requests/s, Poisson"),
            Load::Open { rate, arrival: Arrival::Constant, .. } => format!("{rate} requests/s, equal gaps"),
        }
    }
}

impl ServeArgs {
    /// The runs, checked.
    fn points(&self) -> Result<Vec<Point>> {
        let load = &self.load;
        ensure!(!self.timeout.is_zero(), "--timeout must be above zero");
        ensure!(load.requests != Some(0), "--requests must be above zero");
        ensure!(load.requests.is_none_or(|n| n < 1 << 31), "--requests must be below 2^31");
        ensure!(load.duration.is_none_or(|d| !d.is_zero()), "--duration must be above zero");
        ensure!(self.ask.output_tokens > 0, "--output-tokens must be above zero");
        let counts: Vec<usize> = match load.sweep_concurrency.as_slice() {
            [] => load.concurrency.into_iter().collect(),
            sweep => sweep.to_vec(),
        };
        ensure!(counts.iter().all(|n| (1..=65_536).contains(n)), "concurrency must be from 1 to 65536");
        let rates: Vec<f64> = match load.sweep_rate.as_slice() {
            [] => load.rate.into_iter().collect(),
            sweep => sweep.to_vec(),
        };
        ensure!(
            rates.iter().all(|r| *r > 0.0 && *r <= 1e6),
            "rates must be above 0 and at most 1e6 a second"
        );
        let duration = if load.requests.is_none() { load.duration.or(Some(DURATION)) } else { load.duration };
        let plan = |load_of| Plan { load: load_of, requests: load.requests, duration, grace: load.grace };
        if rates.is_empty() {
            let counts = if counts.is_empty() { vec![1] } else { counts };
            let point = |n: &usize| Point { at: *n as f64, plan: plan(Load::Closed { concurrency: *n }) };
            return Ok(counts.iter().map(point).collect());
        }
        let most = load.concurrency.unwrap_or(MOST);
        let open =
            |rate: &f64| Load::Open { rate: *rate, arrival: load.arrival, seed: self.ask.seed.into(), most };
        Ok(rates.iter().map(|rate| Point { at: *rate, plan: plan(open(rate)) }).collect())
    }

    fn header_map(&self) -> Result<HeaderMap> {
        let mut map = HeaderMap::new();
        for header in &self.headers {
            let (name, value) =
                header.split_once('=').with_context(|| format!("{header:?} is no NAME=VALUE"))?;
            let name: HeaderName = name.parse().with_context(|| format!("{name:?} is no header name"))?;
            map.append(name, value.parse().with_context(|| format!("{header:?} has no valid value"))?);
        }
        if let Some(key) = &self.api_key {
            let mut value: HeaderValue = format!("Bearer {key}")
                .parse()
                .context("the API key has characters that no header may have")?;
            value.set_sensitive(true);
            map.insert(AUTHORIZATION, value);
        }
        Ok(map)
    }

    /// Says what makes figures mean less than they seem to.
    fn warn(&self, summary: &Summary, body: &Value) {
        if let Some(late) = summary.spread("credit_to_start_latency").filter(|s| s.p99 > LATE_MS) {
            eprintln!(
                "note: requests left this client up to {:.0} ms late (p99): latencies leave that out, \
                 effective_latency has it; raise --concurrency or lower the rate",
                late.p99
            );
        }
        if summary.completed > 0 && summary.one("total_osl").is_none() {
            eprintln!("note: the server sends no usage: no figures by tokens");
        } else if summary.other_length > 0 && body.get("ignore_eos").is_some() {
            eprintln!(
                "note: {} answers have another length than --output-tokens although ignore_eos was accepted",
                summary.other_length
            );
        }
    }

    fn write(&self, results: &[(f64, Summary, Run)], model: &str, body: &Value, axis: &str) -> Result<()> {
        let own = |at: f64, summary: &Summary| {
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "axis": axis, "at": at, "model": model, "endpoint": self.endpoint, "request": body,
                "arrival": self.load.arrival, "prompt_tokens": self.ask.prompt_tokens,
                "shared_prefix": self.ask.shared_prefix, "answers_of_other_length": summary.other_length,
                "client": Hardware::here(),
            })
        };
        if let Some(file) = &self.json {
            let mut all: Vec<Value> = results
                .iter()
                .map(|(at, summary, run)| aiperf::summary(summary, run, own(*at, summary)))
                .collect();
            let sweeps = self.load.sweep_rate.len().max(self.load.sweep_concurrency.len()) > 1;
            match all.pop() {
                Some(only) if !sweeps => super::write_json(file, &only)?,
                last => {
                    all.extend(last);
                    super::write_json(file, &json!({ "runs": all }))?;
                }
            }
        }
        if let (Some(file), Some((_, _, run))) = (&self.records, results.first()) {
            super::write_text(file, &aiperf::records(run))?;
        }
        if let Some(file) = &self.plot {
            let runs: Vec<(f64, &Summary)> = results.iter().map(|(at, summary, _)| (*at, summary)).collect();
            let title = format!(
                "{model}: {} prompt, {} output tokens",
                self.ask.prompt_tokens, self.ask.output_tokens
            );
            let page = file.extension().is_some_and(|e| e == "html" || e == "htm");
            let text = if page { plot::html(&title, axis, &runs) } else { plot::svg(&title, axis, &runs) };
            super::write_text(file, &text)?;
        }
        Ok(())
    }
}

impl AskArgs {
    fn source(&self, api: Api) -> Result<Prompts> {
        if let Some(file) = &self.prompts {
            return Prompts::read(file, api);
        }
        ensure!((1..=1 << 20).contains(&self.prompt_tokens), "--prompt-tokens must be from 1 to 1048576");
        ensure!(
            self.shared_prefix <= self.prompt_tokens,
            "--shared-prefix must not be above --prompt-tokens"
        );
        Ok(Prompts::Made(Made {
            words: self.prompt_tokens,
            shared: self.shared_prefix,
            seed: self.seed.into(),
        }))
    }

    /// What all requests have in common.
    fn body(&self, model: &str) -> Result<Value> {
        let mut body = json!({
            "model": model,
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": self.output_tokens,
            "temperature": self.temperature,
        });
        if !self.stop_at_eos {
            body["ignore_eos"] = json!(true);
            body["min_tokens"] = json!(self.output_tokens);
        }
        for field in &self.extra {
            let (name, value) =
                field.split_once('=').with_context(|| format!("{field:?} is no NAME=JSON"))?;
            body[name] = serde_json::from_str(value).with_context(|| {
                format!("--extra {name}: {value:?} is no JSON; quote text twice: {name}='\"text\"'")
            })?;
        }
        Ok(body)
    }
}

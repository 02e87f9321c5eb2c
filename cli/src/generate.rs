//! `paceline generate`: text from one model in this process, without a cluster.

use std::io::Write as _;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use engine::{Command, Engine, Outcome, Outlet, Room, Settings, TargetEvent, TargetOpen};
use model::{CpuModel, Options, PageBudget};
use request::{Finish, Limits, Request, RequestId, Sampling, SamplingParams};
use scheduler::SequenceId;
use text::{ChatTemplate, Message, Tokenizer};

use crate::args::{RankArgs, SamplingArgs, StoreArgs};

/// Answers of at most this many tokens when none is asked for.
const MAX_TOKENS: u32 = 256;

/// `paceline generate ...`
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// What to continue
    pub prompt: String,
    /// Model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub model: String,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Print only the text
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub rank: RankArgs,
}

/// Generates and prints the text as it comes; greedy unless a temperature is given.
pub async fn run(args: GenerateArgs, store: &StoreArgs) -> Result<()> {
    let path = store.resolve(&args.model).await?;
    tokio::task::spawn_blocking(move || generate(&args, &path)).await?
}

fn generate(args: &GenerateArgs, path: &std::path::Path) -> Result<()> {
    if path.is_file() {
        let header = gguf::Header::open(path).with_context(|| path.display().to_string())?;
        model::refuse_split(&header.metadata).with_context(|| path.display().to_string())?;
    }
    let tokenizer = Tokenizer::open(path).with_context(|| path.display().to_string())?;
    let prompt = if args.raw {
        tokenizer.prompt(&args.prompt, false)?
    } else {
        let template = ChatTemplate::open(path).context("no usable chat template: pass --raw")?;
        tokenizer.encode(&template.render(&vec![Message::new("user", args.prompt.as_str())].into())?, true)?
    };
    let max_tokens = args.sampling.max_tokens.unwrap_or(MAX_TOKENS);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let longest = u32::try_from(prompt.len())?.saturating_add(max_tokens);
    let options = Options {
        context: args.rank.context,
        vocab: Some(tokenizer.vocab_len()),
        slots: 1,
        pages: PageBudget::Pages(kvcache::pages_for(longest) + 1),
        threads: args.rank.threads.unwrap_or(cores),
        heads: crate::rank::heads(args.rank.head_map.as_deref(), args.rank.sparsity)?,
    };
    let mut engine = Engine::new(CpuModel::load(path, &options)?, Settings::default());
    let sampling = Sampling {
        params: SamplingParams {
            temperature: args.sampling.temperature.unwrap_or(0.0),
            top_p: args.sampling.top_p.unwrap_or(1.0),
            ..SamplingParams::GREEDY
        },
        seed: args.sampling.seed.unwrap_or(0),
        choice: 0,
    };
    let limits = Limits::new(max_tokens, tokenizer.stop_ids().to_vec());
    let request = Request::new(RequestId::new("generate")?, prompt, sampling, limits);
    let events = open(&mut engine, request)?;
    let mut out = std::io::stdout().lock();
    let mut detokenizer = tokenizer.detokenizer();
    let (started, mut first, mut tokens) = (Instant::now(), None, 0usize);
    loop {
        if let Outcome::Idle { .. } = engine.step(started.elapsed()) {
            bail!("the engine stands still");
        }
        for event in events.try_iter() {
            match event {
                TargetEvent::Committed { frame, .. } => {
                    first.get_or_insert_with(Instant::now);
                    tokens += frame.ids.len();
                    for id in frame.ids {
                        if let Some(text) = detokenizer.push(id) {
                            write!(out, "{text}")?;
                        }
                    }
                    out.flush()?;
                }
                TargetEvent::Started { .. } | TargetEvent::Ask { .. } | TargetEvent::Again(_) => {}
                TargetEvent::Ended(ended) => {
                    if let Some(text) = detokenizer.finish() {
                        write!(out, "{text}")?;
                    }
                    writeln!(out)?;
                    if ended.finish == Finish::Failed {
                        bail!(
                            "the model failed: its logits are not finite; check the file with `paceline models show`"
                        );
                    }
                    if !args.quiet {
                        report(started, first, tokens, ended.usage.prompt_tokens);
                    }
                    return Ok(());
                }
            }
        }
    }
}

fn open(engine: &mut Engine<CpuModel>, request: Request) -> Result<Receiver<TargetEvent>> {
    // A step brings two events at most, and they are read after each step.
    let (outlet, events) = sync_channel(4);
    let (admit, admitted) = sync_channel(1);
    let open = TargetOpen {
        sequence: SequenceId(0),
        request,
        constraint: None,
        deadline: None,
        outlet: Box::new(Printer(outlet)),
        admitted: Box::new(move |answer| {
            let _ = admit.try_send(answer);
        }),
    };
    engine.command(Duration::ZERO, Command::Target(Box::new(open)));
    admitted.try_recv()??;
    Ok(events)
}

struct Printer(std::sync::mpsc::SyncSender<TargetEvent>);

impl Outlet<TargetEvent> for Printer {
    fn room(&self) -> Room {
        Room::Free
    }

    fn deliver(&mut self, event: TargetEvent) {
        let _ = self.0.try_send(event);
    }
}

fn report(started: Instant, first: Option<Instant>, tokens: usize, prompt: u32) {
    let Some(first) = first else { return };
    let prefill = first.duration_since(started).max(Duration::from_micros(1));
    let decode = first.elapsed().max(Duration::from_micros(1));
    eprintln!(
        "prompt {prompt} tokens, {:.1}/s; answer {tokens} tokens, {:.1}/s",
        f64::from(prompt) / prefill.as_secs_f64(),
        tokens.saturating_sub(1) as f64 / decode.as_secs_f64()
    );
}

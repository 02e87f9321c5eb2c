//! `paceline chat`: a conversation with a running cluster, on the terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::Result;
use clap::Args;
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};

use crate::args::SamplingArgs;
use crate::client::{Client, Segment, Summary};

/// `paceline chat ...`
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// The question; without it, questions are read line by line
    pub prompt: Option<String>,
    /// Address of the coordinator
    #[arg(long, env = "PACELINE_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Model to ask [default: the one that is served]
    #[arg(long)]
    pub model: Option<String>,
    /// System message
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Answers one question, or a conversation until the input ends.
pub async fn run(args: ChatArgs) -> Result<()> {
    let client = Client::new(&args.url)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.model().await?,
    };
    let mut messages: Vec<Value> =
        args.system.iter().map(|s| json!({ "role": "system", "content": s })).collect();
    if let Some(prompt) = &args.prompt {
        messages.push(json!({ "role": "user", "content": prompt }));
        return answer(&client, &model, &args.sampling, &messages).await.map(|_| ());
    }
    let interactive = std::io::stdin().is_terminal();
    loop {
        if interactive {
            eprint!("> ");
        }
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|n| (n > 0).then_some(line))
        });
        let Some(line) = line.await?? else { return Ok(()) };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(json!({ "role": "user", "content": line.trim() }));
        let summary = answer(&client, &model, &args.sampling, &messages).await?;
        messages.push(json!({ "role": "assistant", "content": summary.text }));
    }
}

async fn answer(
    client: &Client,
    model: &str,
    sampling: &SamplingArgs,
    messages: &[Value],
) -> Result<Summary> {
    let mut body = json!({ "model": model, "messages": messages });
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body[key] = value;
        }
    };
    set("temperature", sampling.temperature.map(|v| json!(v)));
    set("top_p", sampling.top_p.map(|v| json!(v)));
    set("seed", sampling.seed.map(|v| json!(v)));
    set("max_tokens", sampling.max_tokens.map(|v| json!(v)));
    let summary = client.chat(body, print_segment).await?;
    println!();
    if std::io::stderr().is_terminal() {
        let rate = summary.draft_acceptance_rate.map_or_else(
            || "no drafts".into(),
            |rate| format!("{:.0} % of drafts accepted, {}", rate * 100.0, "drafted text is green".green()),
        );
        eprintln!("[{} tokens, {:.1}/s; {rate}]", summary.completion_tokens, summary.tokens_per_second());
    }
    Ok(summary)
}

/// Prints a part of an answer as it comes; what stood in an accepted draft is green on a terminal.
pub fn print_segment(segment: &Segment) {
    let mut out = std::io::stdout().lock();
    let shown = if segment.drafted && out.is_terminal() {
        write!(out, "{}", segment.text.green())
    } else {
        write!(out, "{}", segment.text)
    };
    // A closed pipe ends the conversation at the next question.
    let _ = shown.and_then(|()| out.flush());
}

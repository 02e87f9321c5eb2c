//! `paceline demo`: starts a local cluster, streams an answer, shows what drafting did, stops.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::args::{RankArgs, StoreArgs};
use crate::chat::print_segment;
use crate::client::Client;
use crate::up::{Cluster, UpArgs};

const QUESTION: &str = "Write a Python function that merges two sorted lists, with a short docstring.";

/// `paceline demo ...`
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Target model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub target: String,
    /// Drafter model, or none; its vocabulary must be the target's
    #[arg(long, value_name = "MODEL|none", default_value = "coder-0.5b")]
    pub drafter: String,
    /// What to ask
    #[arg(long, default_value = QUESTION)]
    pub prompt: String,
    /// Most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 160)]
    pub max_tokens: u32,
    #[command(flatten)]
    pub rank: RankArgs,
}

/// Runs the demonstration; the last line on standard output is
/// `tokens/s=... plain_tokens/s=... mean_acceptance_length=...`.
pub async fn run(args: DemoArgs, store: &StoreArgs) -> Result<()> {
    let up = UpArgs {
        target: args.target.clone(),
        drafter: args.drafter.clone(),
        workers: 1,
        drafters: 1,
        port: 0,
        rank: args.rank.clone(),
        split_cores: false,
        drafter_advertises: None,
        replay: None,
    };
    let mut cluster = Cluster::start(&up, store).await?;
    println!("{}\n\n> {}\n", cluster.describe(), args.prompt);
    let told = tell(&cluster, &args).await;
    cluster.stop().await;
    println!("{}", told?);
    Ok(())
}

async fn tell(cluster: &Cluster, args: &DemoArgs) -> Result<String> {
    let client = Client::new(cluster.url())?;
    let body = |strategy: &str| {
        json!({
            "messages": [{ "role": "user", "content": args.prompt }],
            "temperature": 0, "max_tokens": args.max_tokens, "speculation": { "strategy": strategy },
        })
    };
    let model = client.model().await?;
    let with_model = |mut body: serde_json::Value| {
        body["model"] = json!(model);
        body
    };
    let drafted = client.chat(with_model(body("auto")), print_segment).await?;
    println!("\n\nthe same once more without drafts ...");
    let plain = client.chat(with_model(body("none")), |_| {}).await?;
    anyhow::ensure!(
        drafted.text == plain.text,
        "the text with drafts is not the text without: please report this"
    );
    println!("byte for byte the same text.\n");
    if args.drafter != "none" && drafted.speculation["num_draft_tokens"].as_u64().unwrap_or(0) == 0 {
        eprintln!("note: no draft arrived in time; is this machine busy? `paceline status` shows step times");
    }
    Ok(format!(
        "tokens/s={:.1} plain_tokens/s={:.1} mean_acceptance_length={:.2}",
        drafted.tokens_per_second(),
        plain.tokens_per_second(),
        drafted.mean_acceptance_length.unwrap_or(1.0)
    ))
}

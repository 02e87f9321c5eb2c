//! `paceline status`: who is in the cluster and what they are doing.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use cluster::Endpoint;
use proto::Listed;
use proto::cluster::Presence;
use proto::cluster::cluster_client::ClusterClient;
use serde_json::json;
use tabled::builder::Builder;
use tabled::settings::Style;
use tokio::time::timeout;

/// To connect and to be answered, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// `paceline status ...`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// gRPC address of a coordinator
    #[arg(long, env = "PACELINE_COORDINATOR", default_value = "http://127.0.0.1:8081")]
    pub coordinator: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the members of the cluster.
pub async fn run(args: StatusArgs) -> Result<()> {
    let members = members(&args.coordinator).await?;
    if args.json {
        let rows: Vec<_> = members.iter().map(row_json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    if members.is_empty() {
        println!("no node has joined {} yet", args.coordinator);
        return Ok(());
    }
    println!("{}", table(&members));
    Ok(())
}

/// Asks a coordinator who is there.
pub async fn members(coordinator: &str) -> Result<Vec<Listed>> {
    let endpoint = Endpoint::new(coordinator).context("--coordinator: write http://host:port")?;
    let asking = async {
        let channel = daemon::grpc::dial(&endpoint, PATIENCE)?.connect().await.with_context(|| {
            format!(
                "no coordinator answers at {coordinator}: start one, or pass --coordinator http://host:port"
            )
        })?;
        let answer = ClusterClient::new(channel).members(proto::cluster::MembersRequest {}).await?;
        anyhow::Ok(answer.into_inner().members)
    };
    let members = timeout(PATIENCE * 2, asking).await.context("the coordinator did not answer in time")??;
    members.into_iter().map(|m| Ok(Listed::try_from(m)?)).collect()
}

fn presence(listed: &Listed) -> String {
    match listed.presence {
        Presence::Unspecified => "unknown".into(),
        Presence::Alive => listed.record.state.to_string(),
        Presence::Suspect => "suspect".into(),
        Presence::Disconnected => "disconnected".into(),
    }
}

fn table(members: &[Listed]) -> String {
    let mut table = Builder::default();
    table.push_record([
        "node",
        "role",
        "model",
        "state",
        "running",
        "waiting",
        "slots free",
        "step",
        "endpoint",
        "fingerprint",
    ]);
    for listed in members {
        let (record, load) = (&listed.record, &listed.load);
        table.push_record([
            record.id.to_string(),
            record.role.to_string(),
            record.model.clone(),
            presence(listed),
            load.running.to_string(),
            load.waiting.to_string(),
            format!("{}/{}", load.free_slots, record.slots),
            format!("{:.1} ms", load.step_time.as_secs_f64() * 1e3),
            record.endpoint.to_string(),
            record.fingerprint.clone(),
        ]);
    }
    table.build().with(Style::blank()).to_string()
}

fn row_json(listed: &Listed) -> serde_json::Value {
    let (record, load) = (&listed.record, &listed.load);
    json!({
        "node": record.id.to_string(),
        "role": record.role.to_string(),
        "model": record.model,
        "state": presence(listed),
        "running": load.running,
        "waiting": load.waiting,
        "slots": record.slots,
        "free_slots": load.free_slots,
        "free_pages": load.free_pages,
        "step_seconds": load.step_time.as_secs_f64(),
        "endpoint": record.endpoint.to_string(),
        "fingerprint": record.fingerprint,
        "context": record.context,
    })
}

//! `paceline up`: a whole cluster on this machine, one process a role.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::args::{RankArgs, StoreArgs};
use crate::client::Client;
use crate::rank::Announcement;

/// For a process to load its model and announce itself.
const START: Duration = Duration::from_secs(300);
/// For every served model to have a path, once all processes serve.
const READY: Duration = Duration::from_secs(60);
/// For a process to drain and end.
const STOP: Duration = Duration::from_secs(40);

/// `paceline up ...`
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Target model: a name, a path to a .gguf file, or hf:org/repo[:file]
    #[arg(long, value_name = "MODEL", default_value = "coder-1.5b")]
    pub target: String,
    /// Drafter model, or none; its vocabulary must be the target's
    #[arg(long, value_name = "MODEL|none", default_value = "coder-0.5b")]
    pub drafter: String,
    /// Target workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Drafters
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=64))]
    pub drafters: u16,
    /// HTTP port of the OpenAI API on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    #[command(flatten)]
    pub rank: RankArgs,
    /// Worker and drafter on cores of their own, half of them each (Linux), as if on two machines
    #[arg(long)]
    pub split_cores: bool,
    /// For measurements: where workers find the drafter, when a proxy stands before it
    #[arg(skip)]
    pub drafter_advertises: Option<SocketAddr>,
    /// For measurements: what worker and drafter say instead of their own words
    #[arg(long, hide = true, value_name = "TRACE")]
    pub replay: Option<std::path::PathBuf>,
}

/// One process of a local cluster.
#[derive(Debug)]
struct Part {
    announcement: Announcement,
    child: Child,
}

/// A cluster of child processes. Dropped, it is killed; [`Cluster::stop`] ends it well.
#[derive(Debug)]
pub struct Cluster {
    parts: Vec<Part>,
}

/// Starts a cluster and keeps it until Ctrl-C or SIGTERM.
pub async fn run(args: UpArgs, store: &StoreArgs) -> Result<()> {
    // From now on: a signal during the start drops the cluster, which kills what was started.
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut asked = async || {
        tokio::select! {
            _ = int.recv() => (),
            _ = term.recv() => (),
        }
    };
    let mut cluster = tokio::select! {
        started = Cluster::start(&args, store) => started?,
        () = asked() => bail!("stopped before the cluster was ready"),
    };
    println!("\n{}\n", cluster.describe());
    println!("Ask it:   paceline chat --url {} 'Write a haiku about rivers.'", cluster.url());
    println!("Look:     paceline status --coordinator {}", cluster.grpc());
    println!("OpenAI:   base_url {}/v1, any api_key.   Ctrl-C stops it.", cluster.url());
    tokio::select! {
        lost = cluster.lost() => {
            cluster.stop().await;
            bail!("{lost}; the cluster was stopped");
        }
        () = asked() => (),
    }
    eprintln!("stopping: answers under way may finish; Ctrl-C again kills");
    tokio::select! {
        () = cluster.stop() => Ok(()),
        () = asked() => Ok(()),
    }
}

impl Cluster {
    /// Fetches what is missing, starts all processes and waits until the cluster answers.
    pub async fn start(args: &UpArgs, store: &StoreArgs) -> Result<Self> {
        let target_file = store.resolve(&args.target).await?;
        let drafting = args.drafter != "none" && args.drafters > 0;
        let drafter_file = match drafting {
            true => Some(store.resolve(&args.drafter).await?),
            false => None,
        };
        if args.rank.cores.is_some() {
            bail!(
                "--cores is for one model: leave it out, or start worker and drafter with a --cores of their own"
            );
        }
        if args.rank.dummy_weights.is_some() {
            bail!(
                "--dummy-weights is one model's shape: start worker and drafter with a CONFIG of their own"
            );
        }
        let own = std::env::current_exe().context("where is this program?")?;
        let mut cluster = Self { parts: Vec::new() };
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let port = format!("127.0.0.1:{}", args.port);
        cluster
            .spawn(
                &own,
                &[
                    "coordinator",
                    "--model",
                    &path(&target_file),
                    "--listen",
                    &port,
                    "--grpc-listen",
                    "127.0.0.1:0",
                ],
            )
            .await?;
        let grpc = cluster.grpc().trim_start_matches("http://").to_owned();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let drafters = if drafting { args.drafters } else { 0 };
        let (mut target_threads, mut drafter_threads) = threads(cores, args.workers, drafters);
        let split = args.split(cores, drafters)?;
        if let Some((targets, drafters)) = &split {
            (target_threads, drafter_threads) = (targets.len(), drafters.len());
        }
        let wanted = |threads| args.rank.threads.unwrap_or(threads);
        let share_cores = drafters > 0
            && split.is_none()
            && wanted(target_threads) + wanted(drafter_threads) > cores
            && on_cpu(&args.rank);
        // A pattern of heads is the target's, a shortlist the drafter's.
        let (target_cores, drafter_cores) = split.unzip();
        let target = RankArgs { shortlist: None, cores: target_cores, ..args.rank.clone() };
        let mut target_flags = rank_flags(&target, target_threads)?;
        if share_cores {
            target_flags.push("--drafters-take-turns".to_owned());
        }
        let drafter = RankArgs { head_map: None, sparsity: None, cores: drafter_cores, ..args.rank.clone() };
        let mut drafter_flags = rank_flags(&drafter, drafter_threads)?;
        if let Some(address) = args.drafter_advertises {
            drafter_flags.extend(["--advertise".to_owned(), format!("http://{address}")]);
        }
        let nodes = std::iter::repeat_n(("worker", Some(&target_file), &target_flags), args.workers.into())
            .chain(std::iter::repeat_n(("drafter", drafter_file.as_ref(), &drafter_flags), drafters.into()));
        for (role, model, flags) in nodes {
            let Some(model) = model else { continue };
            let model = path(model);
            let mut words = vec![role, "--model", &model, "--coordinator", &grpc];
            let replay = args.replay.as_deref().map(path);
            words.extend(replay.iter().flat_map(|trace| ["--replay", trace.as_str()]));
            words.extend(flags.iter().map(String::as_str));
            cluster.spawn(&own, &words).await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Where the drafter listens, whatever it advertises.
    pub fn drafter_listens(&self) -> Option<SocketAddr> {
        let drafter = self.parts.iter().find(|part| part.announcement.node.starts_with("drafter"));
        drafter.and_then(|part| part.announcement.listens)
    }

    async fn spawn(&mut self, program: &std::path::Path, words: &[&str]) -> Result<()> {
        let role = words[0].to_owned();
        let mut child = Command::new(program)
            .args(words)
            .args(["--supervised", "--admin", "127.0.0.1:0"])
            // One file is one process's; the children take flags and the rest of the environment.
            .env_remove("PACELINE_CONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C on the terminal is this process's to pass on.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the {role}"))?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(START, lines.next_line())
            .await
            .with_context(|| format!("the {role} did not start in time"))??;
        let Some(line) = line else {
            let status = timeout(STOP, child.wait()).await??;
            bail!("the {role} did not start ({status}); its last words are above");
        };
        let announcement =
            serde_json::from_str(&line).with_context(|| format!("the {role} said {line:?}"))?;
        self.parts.push(Part { announcement, child });
        Ok(())
    }

    /// Waits until the coordinator has a path for its model, and for every drafter to have joined.
    async fn ready(&mut self) -> Result<()> {
        let client = Client::new(self.url())?;
        let deadline = Instant::now() + READY;
        let nodes = self.parts.len() - 1;
        loop {
            let waiting = match client.ready().await {
                Ok(()) => match crate::status::members(self.grpc()).await {
                    Ok(members) if members.len() >= nodes => return Ok(()),
                    Ok(members) => format!("{} of {nodes} nodes have joined", members.len()),
                    Err(error) => format!("{error:#}"),
                },
                Err(why) => why,
            };
            if let Some(lost) = self.exited() {
                bail!("{lost}");
            }
            ensure!(Instant::now() < deadline, "the cluster is not ready: {waiting}");
            // The coordinator offers no event to an outsider; asked again soon.
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Address of the OpenAI API.
    pub fn url(&self) -> &str {
        self.parts.first().and_then(|p| p.announcement.http.as_deref()).unwrap_or_default()
    }

    /// The coordinator's gRPC address.
    pub fn grpc(&self) -> &str {
        self.parts.first().map(|p| p.announcement.grpc.as_str()).unwrap_or_default()
    }

    /// One line a process.
    pub fn describe(&self) -> String {
        let width = self.parts.iter().map(|p| p.announcement.node.len()).max().unwrap_or(0);
        let line = |part: &Part| {
            let Announcement { node, grpc, http, admin, .. } = &part.announcement;
            let pid = part.child.id().unwrap_or_default();
            let http = http.as_ref().map(|h| format!("   http {h}")).unwrap_or_default();
            let metrics = admin.as_ref().map(|a| format!("   metrics {a}/metrics")).unwrap_or_default();
            format!("{node:width$}   pid {pid:<7}   grpc {grpc}{metrics}{http}")
        };
        self.parts.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Resolves when the cluster cannot serve any more: the coordinator or the last worker is gone. A
    /// lost drafter or one of several workers is only reported; the others go on.
    async fn lost(&mut self) -> String {
        loop {
            if let Some(lost) = self.exited() {
                let serves = |role: &str| self.parts.iter().any(|p| p.announcement.node.starts_with(role));
                if !serves("coordinator") || !serves("worker") {
                    return lost;
                }
                eprintln!("{lost}; the cluster goes on without it");
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Takes out a process that ended and says which.
    fn exited(&mut self) -> Option<String> {
        let gone = self.parts.iter_mut().position(|p| matches!(p.child.try_wait(), Ok(Some(_)) | Err(_)))?;
        let mut part = self.parts.remove(gone);
        let status = part.child.try_wait().ok().flatten().map_or_else(String::new, |s| format!(" ({s})"));
        Some(format!("{} ended{status}", part.announcement.node))
    }

    /// Drains and ends every process: workers and drafters first, so that answers may finish.
    pub async fn stop(&mut self) {
        let deadline = Instant::now() + STOP;
        let first = self.parts.len().min(1);
        let (coordinator, nodes) = self.parts.split_at_mut(first);
        for group in [nodes, coordinator] {
            // The end of its standard input tells a supervised process to drain.
            for part in &mut *group {
                drop(part.child.stdin.take());
            }
            for part in group {
                if tokio::time::timeout_at(deadline, part.child.wait()).await.is_err() {
                    eprintln!("{} did not end in time; killed", part.announcement.node);
                    let _ = part.child.kill().await;
                }
            }
        }
        self.parts.clear();
    }
}

impl UpArgs {
    /// The cores of worker and drafter, when they are to have their own.
    fn split(&self, cores: usize, drafters: u16) -> Result<Option<(Vec<usize>, Vec<usize>)>> {
        if !self.split_cores {
            return Ok(None);
        }
        ensure!(
            (self.workers, drafters) == (1, 1) && cores >= 2 && self.rank.threads.is_none(),
            "--split-cores is for one worker and one drafter on two cores or more, without --threads"
        );
        let half = cores.div_ceil(2);
        Ok(Some(((0..half).collect(), (half..cores).collect())))
    }
}

/// Whether the models compute on the CPU.
fn on_cpu(rank: &RankArgs) -> bool {
    rank.device.as_ref().is_none_or(|device| *device == rank::Device::Cpu)
}

/// Threads of each worker and of each drafter. One of each take turns, and all cores when it is theirs. More of them
/// share the cores, because pools that wait for each other's threads are slower than any alone.
fn threads(cores: usize, workers: u16, drafters: u16) -> (usize, usize) {
    if (workers, drafters) == (1, 1) {
        return (cores, cores);
    }
    let (workers, drafters) = (usize::from(workers).max(1), usize::from(drafters));
    let targets = if drafters == 0 { cores } else { cores.div_ceil(2) };
    let each = |cores: usize, among: usize| (cores / among.max(1)).max(1);
    (each(targets, workers), each(cores - targets, drafters))
}

/// A rank's flags, each that was given; `threads` unless it says otherwise.
fn rank_flags(rank: &RankArgs, threads: usize) -> Result<Vec<String>> {
    let rank = RankArgs { threads: Some(rank.threads.unwrap_or(threads)), ..rank.clone() };
    let serde_json::Value::Object(given) = serde_json::to_value(&rank)? else { bail!("flags are no object") };
    let mut flags = Vec::new();
    for (name, value) in given {
        let flag = format!("--{}", name.replace('_', "-"));
        match value {
            serde_json::Value::Bool(true) => flags.push(flag),
            serde_json::Value::String(text) => flags.extend([flag, text]),
            serde_json::Value::Array(many) => {
                let many: Vec<String> = many.iter().map(ToString::to_string).collect();
                flags.extend([flag, many.join(",")]);
            }
            value => flags.extend([flag, value.to_string()]),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        rank: RankArgs,
    }

    #[test]
    fn every_flag_of_a_rank_reaches_it() {
        let words = "--threads 3 --cores 0,1,2 --shortlist 9 --context 100 --slots 4 --device cuda:1 \
                     --batch-invariant --head-map folder/a --sparsity 0.5 --dummy-weights config.json";
        let typed =
            Typed::try_parse_from(std::iter::once("up").chain(words.split_whitespace())).unwrap().rank;
        let flags = rank_flags(&typed, 1).unwrap();
        let again = Typed::try_parse_from(std::iter::once("worker").chain(flags.iter().map(String::as_str)));
        let again = again.unwrap_or_else(|e| panic!("{flags:?}: {e}")).rank;
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&typed).unwrap());
        assert_eq!(flags.len(), words.split_whitespace().count(), "{flags:?}");
        assert_eq!(rank_flags(&RankArgs::default(), 2).unwrap(), ["--threads", "2"]);
    }

    #[test]
    fn the_cores_are_shared_among_all_ranks() {
        // Cores, workers, drafters; threads of a worker, of a drafter.
        for (cores, workers, drafters, expected) in [
            (8, 1, 0, (8, 1)),
            (8, 1, 1, (8, 8)),
            (2, 1, 1, (2, 2)),
            (8, 2, 1, (2, 4)),
            (8, 1, 4, (4, 1)),
            (9, 1, 2, (5, 2)),
            (2, 4, 4, (1, 1)),
            (1, 1, 1, (1, 1)),
        ] {
            assert_eq!(threads(cores, workers, drafters), expected, "{cores} {workers} {drafters}");
        }
    }
}

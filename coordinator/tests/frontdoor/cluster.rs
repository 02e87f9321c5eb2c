//! A coordinator, scripted workers that join it, and a client.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::cluster::{Duty, Endpoint, Incarnation, Load, NodeId, NodeRecord, NodeState, Role, VocabHash};
use coordinator::{Config, Coordinator, ModelConfig, Running};
use daemon::config::Valid;
use daemon::join::{self, Node};
use daemon::{Ended, Readiness, Shutdown, Tasks};
use futures::Stream;
use proto::reason::{Failure, Reason};
use proto::worker::worker_server::{Worker, WorkerServer};
use proto::{Answer, Placed, worker as wire};
use request::{Finish, Source, SpeculationStats, TokenId, TokenLogprobs, Usage};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::model_file;

/// What a worker does with the next request it gets; [`Act::Answer`] when nothing is scripted.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// The rest of the text, then Finish.
    Answer,
    /// Not admitted.
    Refuse(Reason),
    /// Not admitted: full for so many seconds.
    Full(u64),
    /// The same for ever.
    AlwaysFull,
    /// Up to this output index, then the stream ends without Finish.
    EndAt(usize),
    /// Up to this output index, then the process is gone: the connection breaks.
    DieAt(usize),
    /// Up to this output index, then silence until released, then the rest.
    HangAt(usize),
    /// The same, and gone when released.
    HangThenDie(usize),
    /// The text over and over, as fast as it is read.
    Forever,
    /// Up to this output index, then an index that skips one.
    SkipAt(usize),
    /// Up to this output index, then a failure that says so.
    FailAt(usize),
    /// Up to this output index, then this Finish, which counts so many tokens more than there are.
    FinishAt(usize, Finish, u32),
    /// All of it, and then more.
    OnAndOn,
    /// As `Answer`, and its drafter is of no use.
    IdleDrafter,
    /// Nothing, not even Accepted.
    Mute,
    /// This text instead.
    Say(&'static str),
    /// Not admitted because of this field.
    RefuseField(&'static str),
}

pub(crate) struct Fake {
    pub(crate) id: &'static str,
    pub(crate) shared: Arc<Shared>,
    kill: CancellationToken,
    _tasks: Tasks,
    shutdown: Shutdown,
}

#[derive(Default)]
pub(crate) struct Shared {
    script: Mutex<VecDeque<Act>>,
    pub(crate) seen: Mutex<Vec<Placed>>,
    /// The deadline of each, as the call said it.
    pub(crate) timeouts: Mutex<Vec<String>>,
    go: Notify,
    /// Tokens given to the transport.
    pub(crate) sent: AtomicU32,
    /// Streams that are open now.
    pub(crate) open: AtomicU32,
}

pub(crate) struct Front {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) ended: JoinHandle<Ended>,
}

/// What the target says to everything: more than one byte a character, so that seams would show.
pub(crate) const TEXT: &str = "Grüße, 世界! Ein Satz mit Ümlauten.";

/// What it says as the choice of that index; [`TEXT`] as the first.
pub(crate) fn text_of(choice: u32) -> String {
    if choice == 0 { TEXT.into() } else { TEXT.replace("Satz", &format!("{choice}. Satz")) }
}

/// The output that says [`TEXT`]: with the token that ends it.
pub(crate) fn output() -> Vec<TokenId> {
    output_of(0)
}

fn output_of(choice: u32) -> Vec<TokenId> {
    let mut output = model_file::tokens(&text_of(choice));
    output.push(TokenId(model_file::IM_END));
    output
}

/// What a scripted worker reports of the token at an output index.
pub(crate) fn logprobs_at(index: usize, id: TokenId, alternatives: u8) -> TokenLogprobs {
    let logprob = -(index as f32) / 8.0;
    let top = (0..u32::from(alternatives)).map(|i| (TokenId((id.0 + i) % 256), logprob - i as f32));
    TokenLogprobs { logprob, top: top.collect() }
}

pub(crate) async fn front(change: impl FnOnce(&mut Config)) -> Front {
    let mut config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        grpc_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        models: vec![ModelConfig {
            name: "bytes".into(),
            path: model_file::path(),
            aliases: vec!["org/alias".into()],
        }],
        drain_timeout: Duration::from_secs(5),
        ..Config::default()
    };
    config.registry.heartbeat = Duration::from_millis(50);
    config.registry.suspect_after = Duration::from_secs(5);
    change(&mut config);
    let shutdown = Shutdown::default();
    let running: Running = Coordinator::start(Valid::new(config).unwrap(), shutdown.clone()).await.unwrap();
    let (http, grpc) = (running.http_addr(), running.grpc_addr());
    Front { http, grpc, shutdown, ended: tokio::spawn(running.join()) }
}

impl Front {
    /// A worker of model `bytes` with fingerprint `fp_1` that has joined.
    pub(crate) async fn worker(&self, id: &'static str, script: impl IntoIterator<Item = Act>) -> Fake {
        self.worker_with(id, |_| {}, script).await
    }

    pub(crate) async fn worker_with(
        &self,
        id: &'static str,
        change: impl FnOnce(&mut NodeRecord),
        script: impl IntoIterator<Item = Act>,
    ) -> Fake {
        let shared =
            Arc::new(Shared { script: Mutex::new(script.into_iter().collect()), ..Shared::default() });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = Endpoint::try_from(listener.local_addr().unwrap()).unwrap();
        let mut record = NodeRecord { endpoint, ..Self::record(id, Role::Worker) };
        change(&mut record);
        let kill = CancellationToken::new();
        let service = Service {
            shared: Arc::clone(&shared),
            fingerprint: record.fingerprint.clone(),
            kill: kill.clone(),
        };
        // Killed, the server and all its connections are dropped: what a peer sees of a dead process.
        // A thread and runtime of its own, because tonic's connections are tasks that outlive it.
        let killed = kill.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = tonic::transport::Server::builder()
                    .add_service(WorkerServer::new(service))
                    .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener));
                tokio::select! {
                    served = server => served.unwrap(),
                    () = killed.cancelled() => (),
                }
            });
        });
        let (tasks, shutdown) = self.join(record);
        let fake = Fake { id, shared, kill, _tasks: tasks, shutdown };
        self.until(|members| members.contains(&id.to_string())).await;
        fake
    }

    /// A node that joins and is never called; its endpoint has no listener.
    pub(crate) fn record(id: &str, role: Role) -> NodeRecord {
        NodeRecord {
            id: NodeId::new(id).unwrap(),
            incarnation: Incarnation(1),
            role,
            endpoint: Endpoint::new("http://127.0.0.1:9").unwrap(),
            model: "bytes".into(),
            fingerprint: "fp_1".into(),
            vocab_hash: VocabHash(model_file::vocab_hash()),
            context: 512,
            slots: 4,
            state: NodeState::Ready,
            duty: Duty::Mixed,
        }
    }

    pub(crate) fn join(&self, record: NodeRecord) -> (Tasks, Shutdown) {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        let config = join::Config { coordinators: self.grpc.into(), ..join::Config::default() };
        // The load stays what it is; the sender may go.
        let (_, load) = watch::channel(Load::default());
        let gate = Readiness::default().gate("join", "not yet");
        tasks.spawn(
            "join",
            join::join(config, Node { record, load, prefixes: Default::default() }, gate, shutdown.clone()),
        );
        (tasks, shutdown)
    }

    /// Waits until the members are as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&[String]) -> bool) {
        let address = format!("http://{}", self.grpc);
        let mut client = proto::cluster::cluster_client::ClusterClient::connect(address).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let members =
                client.members(proto::cluster::MembersRequest {}).await.unwrap().into_inner().members;
            let ids: Vec<String> = members.into_iter().filter_map(|m| Some(m.record?.node_id)).collect();
            if wanted(&ids) {
                return;
            }
            assert!(Instant::now() < deadline, "members: {ids:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let response = reqwest::get(self.url(path)).await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub(crate) async fn send(&self, body: &Value) -> reqwest::Response {
        reqwest::Client::new().post(self.url("/v1/chat/completions")).json(body).send().await.unwrap()
    }

    pub(crate) async fn post(&self, body: &Value) -> (u16, Value) {
        let response = self.send(body).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

impl Fake {
    /// What a peer sees of a killed process.
    pub(crate) fn kill(&self) {
        self.kill.cancel();
    }

    /// Ends the silence of `HangAt` and `HangThenDie`.
    pub(crate) fn release(&self) {
        self.shared.go.notify_one();
    }

    pub(crate) fn seen(&self) -> Vec<Placed> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(crate) async fn until_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.shared.open.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < deadline, "{}: a stream stayed open", self.id);
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
        self.shutdown.abort();
    }
}

pub(crate) fn ask(fields: Value) -> Value {
    let mut body = json!({"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "seed": 7});
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
        body.extend(fields);
    }
    body
}

struct Service {
    shared: Arc<Shared>,
    fingerprint: String,
    kill: CancellationToken,
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::GenerateResponse, Status>> + Send>>;

/// Counts an open stream until dropped.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Worker for Service {
    type GenerateStream = Answers;

    async fn generate(&self, request: Request<wire::GenerateRequest>) -> Result<Response<Answers>, Status> {
        let timeout = request.metadata().get("grpc-timeout").expect("every call has a deadline");
        self.shared.timeouts.lock().unwrap().push(timeout.to_str().unwrap().to_owned());
        let placed = Placed::try_from(request.into_inner())?;
        self.shared.seen.lock().unwrap().push(placed.clone());
        let act = {
            let mut script = self.shared.script.lock().unwrap();
            let always = matches!(script.front(), Some(Act::AlwaysFull));
            let next = if always { Some(Act::Full(1)) } else { script.pop_front() };
            next.unwrap_or(Act::Answer)
        };
        if let Act::Refuse(reason) = act {
            let retry = (reason == Reason::Overloaded).then_some(Duration::from_secs(3));
            return Err(status(reason, format!("scripted {reason}"), retry));
        }
        if let Act::Full(seconds) = act {
            let retry = Some(Duration::from_secs(seconds));
            return Err(status(Reason::Overloaded, "scripted queue".into(), retry));
        }
        if let Act::RefuseField(field) = act {
            let message = format!("{field}: {field}: does not compile");
            let failure = Failure {
                field: Some(field.into()),
                reason: Reason::InvalidField,
                message,
                retry_after: None,
            };
            return Err(failure.into());
        }
        if let Act::Mute = act {
            std::future::pending::<Infallible>().await;
        }
        self.shared.open.fetch_add(1, Ordering::SeqCst);
        let play = Play {
            act,
            next: placed.request.committed.len(),
            accepted: false,
            over: false,
            fingerprint: self.fingerprint.clone(),
            placed,
            kill: self.kill.clone(),
            open: Open(Arc::clone(&self.shared)),
        };
        Ok(Response::new(Box::pin(futures::stream::unfold(play, |mut play| async {
            let said = play.next().await?;
            Some((said, play))
        }))))
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        Err(Status::unimplemented("not asked by a coordinator"))
    }
}

struct Play {
    act: Act,
    next: usize,
    accepted: bool,
    over: bool,
    fingerprint: String,
    placed: Placed,
    kill: CancellationToken,
    open: Open,
}

impl Play {
    async fn next(&mut self) -> Option<Result<wire::GenerateResponse, Status>> {
        if self.over {
            return None;
        }
        if !std::mem::replace(&mut self.accepted, true) {
            return Some(Ok(Answer::Accepted {
                incarnation: Incarnation(1),
                fingerprint: self.fingerprint.clone(),
                drafter: self.placed.drafters.first().map(|d| d.id.clone()),
            }
            .into()));
        }
        let endless = matches!(self.act, Act::Forever);
        let choice = self.placed.request.sampling.choice;
        let mut text = if endless { model_file::tokens(TEXT) } else { output_of(choice) };
        if let Act::Say(said) = self.act {
            text = model_file::tokens(said);
            text.push(TokenId(model_file::IM_END));
        }
        let stops = |id: &TokenId| self.placed.request.limits.stop_ids.contains(id);
        if let (Some(stop), false) = (text.iter().position(stops), endless) {
            text.truncate(stop + 1);
        }
        if let Act::OnAndOn = self.act {
            text.push(text[0]);
        }
        let at = self.next;
        let reached = |n: usize| at >= n;
        match self.act {
            Act::EndAt(n) if reached(n) => return None,
            Act::DieAt(n) if reached(n) => {
                // What was said before must have left: dying before Accepted is another case, a refusal.
                sleep(Duration::from_millis(30)).await;
                self.kill.cancel();
                std::future::pending::<Infallible>().await;
            }
            Act::HangAt(n) if reached(n) => {
                self.open.0.go.notified().await;
                self.act = Act::Answer;
            }
            Act::HangThenDie(n) if reached(n) => {
                self.open.0.go.notified().await;
                self.kill.cancel();
                std::future::pending::<Infallible>().await;
            }
            Act::SkipAt(n) if reached(n) => {
                let index = u32::try_from(at).unwrap() + 1;
                let logprobs = self.logprobs(at + 1, &text[..1]);
                return Some(Ok(Answer::Tokens {
                    index,
                    ids: vec![text[0]],
                    drafted: vec![false],
                    logprobs,
                    verified: 0,
                    predicted: false,
                    cached_tokens: 0,
                }
                .into()));
            }
            Act::FinishAt(n, finish, more) if reached(n) => {
                self.over = true;
                return Some(Ok(self.finish(finish, more)));
            }
            Act::FailAt(n) if reached(n) => {
                self.over = true;
                return Some(Err(status(Reason::Internal, "scripted failure".into(), None)));
            }
            _ => {}
        }
        let most = self.placed.request.limits.max_tokens as usize;
        if at == most || (!endless && at == text.len()) {
            self.over = true;
            let finish = if at == most { Finish::Length } else { Finish::Stop };
            return Some(Ok(self.finish(finish, 0)));
        }
        // Two tokens a message, the second an accepted draft, as if one draft were always right.
        let stop_at = match self.act {
            Act::EndAt(n)
            | Act::DieAt(n)
            | Act::HangAt(n)
            | Act::HangThenDie(n)
            | Act::SkipAt(n)
            | Act::FinishAt(n, ..)
            | Act::FailAt(n) => n,
            _ => usize::MAX,
        };
        let until = (at + 2).min(most).min(stop_at).min(if endless { usize::MAX } else { text.len() });
        let ids: Vec<_> = (at..until).map(|i| text[i % text.len()]).collect();
        let drafted = (0..ids.len()).map(|i| i == 1).collect();
        let logprobs = self.logprobs(at, &ids);
        self.next = until;
        self.open.0.sent.fetch_add(2, Ordering::SeqCst);
        let request = &self.placed.request;
        Some(Ok(Answer::Tokens {
            index: u32::try_from(at).unwrap(),
            ids,
            drafted,
            logprobs,
            verified: 2,
            predicted: !request.prediction.is_empty(),
            cached_tokens: 3 + request.sampling.choice,
        }
        .into()))
    }
}

impl Play {
    fn logprobs(&self, at: usize, ids: &[TokenId]) -> Vec<TokenLogprobs> {
        let Some(alternatives) = self.placed.request.logprobs else { return Vec::new() };
        ids.iter().enumerate().map(|(i, id)| logprobs_at(at + i, *id, alternatives)).collect()
    }

    fn finish(&self, finish: Finish, more: u32) -> wire::GenerateResponse {
        let mut speculation = SpeculationStats::default();
        if !self.placed.drafters.is_empty() && !matches!(self.act, Act::IdleDrafter) {
            speculation.record(Source::Drafter, 4, 3);
            speculation.record(Source::Drafter, 4, 1);
        }
        let usage = Usage {
            prompt_tokens: u32::try_from(self.placed.request.prompt.len()).unwrap(),
            completion_tokens: u32::try_from(self.next).unwrap() + more,
            cached_tokens: 3 + self.placed.request.sampling.choice,
            accepted_prediction_tokens: u32::from(!self.placed.request.prediction.is_empty()),
            rejected_prediction_tokens: 0,
        };
        Answer::Finish { finish, usage, speculation }.into()
    }
}

fn status(reason: Reason, message: String, retry_after: Option<Duration>) -> Status {
    Failure { reason, message, field: None, retry_after }.into()
}

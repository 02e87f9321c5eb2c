//! Many streams at once: each has the text it would have alone, and one that nobody reads costs the
//! others neither text nor time.

use std::time::{Duration, Instant};

use cli::client::Client;
use cluster::{Load, Role};
use futures::future::join_all;
use proto::worker::StatusRequest;
use proto::worker::worker_client::WorkerClient;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::model::{Size, Weights};
use crate::support::{HANG, Node, coordinator_with, eventually, model_file, start_worker};

const MODEL: &str = "smollm2-135m";

/// Streams at once, and slots: all of them decode in one step.
const STREAMS: usize = 64;

/// Output tokens of each.
const TOKENS: u32 = 12;

/// A client that reads nothing this long loses its answer. Longer than 63 streams take, so that they
/// run beside it.
const SLOW: Duration = Duration::from_secs(12);

struct Cluster {
    client: Client,
    running: coordinator::Running,
    worker: Node,
}

/// A text and the pauses between its tokens.
#[derive(Debug)]
struct Answer {
    text: String,
    gaps: Vec<Duration>,
}

impl Cluster {
    /// Every page free: what the 64 need twice over, and what the stalled one can fill.
    const PAGES: u32 = 1024;

    async fn start(weights: &Weights) -> Self {
        // The coordinator gives up on such clients, too; here it is the worker's rule that is seen.
        let patient = coordinator::Config { slow_client_timeout: HANG, ..coordinator::Config::default() };
        let running = coordinator_with(MODEL, &weights.path, patient).await;
        let mut config = worker::Config::default();
        config.rank.slots = STREAMS as u32;
        config.engine.slow_client_timeout = SLOW;
        // Each prompt is computed in each run, beside streams that decode.
        config.engine.prefix_cache = false;
        let identity = weights.identity(Role::Worker, "worker-1");
        let size = Size { slots: STREAMS as u32, pages: Self::PAGES };
        let grpc = Some(running.grpc_addr());
        let worker = start_worker(config, identity, weights.constraints(), grpc, weights.sized(size)).await;
        let client = Client::new(&format!("http://{}", running.http_addr())).unwrap();
        eventually("the worker joins", async || client.ready().await.is_ok()).await;
        Self { client, running, worker }
    }

    async fn ask(&self, body: Value) -> Answer {
        let (mut gaps, mut last) = (Vec::new(), None::<Instant>);
        let gap = |_: &_| {
            let now = Instant::now();
            gaps.extend(last.replace(now).map(|last| now - last));
        };
        let text = self.client.chat(body, gap).await.unwrap().text;
        Answer { text, gaps }
    }

    async fn ask_all(&self, streams: std::ops::Range<usize>) -> Vec<Answer> {
        join_all(streams.map(|i| self.ask(body(i)))).await
    }

    async fn load(&self) -> Load {
        let mut worker = WorkerClient::connect(format!("http://{}", self.worker.address)).await.unwrap();
        worker.status(StatusRequest {}).await.unwrap().into_inner().load.unwrap().into()
    }

    async fn stop(self) {
        assert_eq!(self.worker.drain().await.failed, []);
        let mut running = self.running;
        running.tasks().shutdown().abort();
        assert_eq!(running.join().await.failed, []);
    }
}

/// Different prompts, seeds and temperatures.
fn body(i: usize) -> Value {
    const THINGS: [&str; 16] = [
        "rain",
        "bread",
        "a river",
        "the moon",
        "iron",
        "a violin",
        "salt",
        "a bridge",
        "bees",
        "glass",
        "a clock",
        "snow",
        "a library",
        "tea",
        "the wind",
        "a map",
    ];
    const ASKS: [&str; 4] = ["What is", "Describe", "Tell a story about", "Write two lines of verse on"];
    const TEMPERATURES: [f64; 3] = [0.0, 0.7, 1.2];
    json!({
        "model": MODEL, "max_tokens": TOKENS, "min_tokens": TOKENS, "seed": i, "temperature": TEMPERATURES[i % 3],
        "messages": [{ "role": "user", "content": format!("{} {}?", ASKS[i / 16], THINGS[i % 16]) }],
    })
}

fn texts(answers: &[Answer]) -> Vec<&str> {
    answers.iter().map(|answer| answer.text.as_str()).collect()
}

/// Of all pauses of all streams, the one that a share of them stays below.
fn quantile(answers: &[Answer], share: f64) -> Duration {
    let mut gaps: Vec<Duration> = answers.iter().flat_map(|a| a.gaps.iter().copied()).collect();
    gaps.sort_unstable();
    gaps[((gaps.len() - 1) as f64 * share) as usize]
}

/// A client that asks for a long answer and reads nothing of it until it is told to.
struct Stalled(TcpStream);

impl Stalled {
    /// What the client advertises bounds what its peer sends ahead, and with it what the peer's kernel
    /// is ready to hold: on loopback it would otherwise be megabytes.
    const SEGMENT: u32 = 536;
    const RECEIVE: usize = 4096;

    async fn open(cluster: &Cluster) -> Self {
        let address = cluster.running.http_addr();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(Self::RECEIVE).unwrap();
        socket.set_tcp_mss(Self::SEGMENT).unwrap();
        socket.connect(&address.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(socket.into()).unwrap();
        // Log-probabilities make long events, so that the buffers on the way are full soon.
        let body = json!({
            "model": MODEL, "max_tokens": 1900, "min_tokens": 1900, "temperature": 0, "stream": true,
            "logprobs": true, "top_logprobs": 20,
            "messages": [{ "role": "user", "content": "Tell a very long story." }],
        })
        .to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Reads at last. The connection ends after the answer.
    async fn rest(mut self) -> String {
        let mut all = Vec::new();
        tokio::time::timeout(HANG, self.0.read_to_end(&mut all)).await.unwrap().unwrap();
        String::from_utf8(all).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_have_their_own_texts_and_one_that_is_not_read_costs_nothing() {
    let Some(file) = model_file(MODEL) else { return };
    let weights = Weights::open(MODEL, &file);
    let cluster = Cluster::start(&weights).await;

    let mut alone = Vec::new();
    for i in 0..STREAMS {
        alone.push(cluster.ask(body(i)).await);
    }
    let distinct: std::collections::HashSet<_> = texts(&alone).into_iter().collect();
    assert!(distinct.len() > STREAMS * 3 / 4, "answers differ: {distinct:?}");
    let together = cluster.ask_all(0..STREAMS).await;
    assert_eq!(texts(&together), texts(&alone), "{STREAMS} at once");

    let stalled = Stalled::open(&cluster).await;
    let mut pages = u32::MAX;
    eventually("the answer that nobody reads is held", async || {
        // Alone it would take another page every 16 tokens, some times a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let load = cluster.load().await;
        let moves = std::mem::replace(&mut pages, load.free_pages) != load.free_pages;
        load.running == 1 && !moves && load.free_pages < Cluster::PAGES - 4
    })
    .await;
    let beside = cluster.ask_all(1..STREAMS).await;
    assert_eq!(texts(&beside), texts(&alone[1..]), "beside a client that does not read");
    for share in [0.5, 0.9] {
        let (now, then) = (quantile(&beside, share), quantile(&together[1..], share));
        // Waiting for the one that is not read, they would stop for seconds. The room is for what else
        // this machine does meanwhile.
        assert!(
            now <= then.mul_f64(1.5) + Duration::from_millis(20),
            "quantile {share} of the pauses: {now:?} beside a client that does not read, {then:?} without"
        );
    }

    // It loses its answer; nothing of it stays, although it has still not read anything.
    eventually("all slots and pages are free", async || {
        let load = cluster.load().await;
        (load.running, load.waiting, load.free_pages) == (0, 0, Cluster::PAGES)
    })
    .await;
    // What had been sent is there, then what became of it, and no end as of a whole answer.
    let read = stalled.rest().await;
    assert!(read.starts_with("HTTP/1.1 200"), "{:.200}", read);
    assert!(read.matches("\"top_logprobs\"").count() > 20, "{} bytes", read.len());
    assert!(
        read.contains("was read too slowly and was given up"),
        "...{}",
        &read[read.len().saturating_sub(600)..]
    );
    assert!(!read.contains("[DONE]"));
    cluster.stop().await;
}

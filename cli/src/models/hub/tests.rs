use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, header};
use sha2::{Digest, Sha256};

use super::*;
use crate::models::progress::Progress;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// A hub on loopback with one repository `org/repo`, and its storage at an address of its own.
#[derive(Clone)]
pub(crate) struct FakeHub {
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// So many downloads end after a third of what was asked.
    pub(crate) break_off: Arc<AtomicU32>,
    /// So many listings are answered 503.
    momentary: Arc<AtomicU32>,
    /// `Range` headers seen by the storage.
    pub(crate) ranges: Arc<Mutex<Vec<String>>>,
    /// `Authorization` headers: whether of the storage, and the value.
    tokens: Arc<Mutex<Vec<(bool, String)>>>,
    /// What the hub claims the SHA-256 is, instead of the truth.
    pub(crate) claim: Option<&'static str>,
    /// Without the token there is nothing to see.
    private: bool,
    /// A mirror that sends files whole, whatever the range.
    whole: bool,
    storage: String,
}

impl FakeHub {
    pub(crate) fn new(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self {
            files,
            break_off: Arc::default(),
            momentary: Arc::default(),
            ranges: Arc::default(),
            tokens: Arc::default(),
            claim: None,
            private: false,
            whole: false,
            storage: String::new(),
        }
    }

    /// Serves until the runtime of the test ends; gives the address.
    pub(crate) async fn serve(&self) -> String {
        let storage = bind(Router::new().fallback(stored).with_state(self.clone())).await;
        bind(Router::new().fallback(answer).with_state(Self { storage, ..self.clone() })).await
    }

    fn saw(&self, headers: &HeaderMap, storage: bool) {
        if let Some(token) = headers.get(header::AUTHORIZATION) {
            self.tokens.lock().unwrap().push((storage, token.to_str().unwrap().to_owned()));
        }
    }
}

async fn bind(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

async fn answer(State(hub): State<FakeHub>, request: Request<Body>) -> Response<Body> {
    let status = |status: StatusCode| Response::builder().status(status).body(Body::empty()).unwrap();
    let headers = request.headers();
    hub.saw(headers, false);
    if hub.private && headers.get(header::AUTHORIZATION).is_none_or(|t| t != &format!("Bearer {TOKEN}")) {
        return status(StatusCode::UNAUTHORIZED);
    }
    let path = request.uri().path();
    if path == "/api/models/org/repo/revision/main" && request.uri().query() == Some("blobs=true") {
        if counted(&hub.momentary) {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        let entry = |(name, bytes): &(&str, Vec<u8>)| {
            let lfs = serde_json::json!({ "sha256": hub.claim.unwrap_or(&hex(bytes)), "size": bytes.len() });
            serde_json::json!({ "rfilename": name, "size": bytes.len(), "lfs": lfs })
        };
        let files: Vec<_> = hub.files.iter().map(entry).collect();
        let listing = serde_json::json!({ "id": "org/repo", "sha": COMMIT, "siblings": files });
        return Response::new(Body::from(listing.to_string()));
    }
    if let Some(name) = path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/")) {
        let to = format!("{}/{name}", hub.storage);
        let found = Response::builder().status(StatusCode::FOUND).header(header::LOCATION, to);
        return found.body(Body::empty()).unwrap();
    }
    status(StatusCode::NOT_FOUND)
}

async fn stored(State(hub): State<FakeHub>, request: Request<Body>) -> Response<Body> {
    hub.saw(request.headers(), true);
    let path = request.uri().path();
    let Some((_, bytes)) = hub.files.iter().find(|(name, _)| path == format!("/{}", escaped(name))) else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    let range = request.headers()[RANGE].to_str().unwrap().to_owned();
    hub.ranges.lock().unwrap().push(range.clone());
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let (status, asked) = match hub.whole {
        true => (StatusCode::OK, bytes.clone()),
        false => (StatusCode::PARTIAL_CONTENT, bytes[from..=to].to_vec()),
    };
    let content_range = format!("bytes {from}-{to}/{}", bytes.len());
    let response = Response::builder().status(status).header(CONTENT_RANGE, content_range);
    if counted(&hub.break_off) {
        let third = asked[..asked.len() / 3].to_vec();
        let cut = async {
            // The piece before must leave the server first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("line cut"))
        };
        let pieces = futures::stream::iter([Ok(third)]).chain(futures::stream::once(cut));
        return response.body(Body::from_stream(pieces)).unwrap();
    }
    response.body(Body::from(asked)).unwrap()
}

/// Whether one is left.
fn counted(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn escaped(name: &str) -> String {
    name.replace('%', "%25").replace(' ', "%20").replace('#', "%23").replace('?', "%3F")
}

fn content(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * i / 7) as u8).collect()
}

async fn hub(fake: &FakeHub, token: Option<&str>) -> Hub {
    Hub::open(Access { endpoint: fake.serve().await, token: token.map(str::to_owned) }).unwrap()
}

async fn download(hub: &Hub, located: &Located, partial: &Path) -> Result<()> {
    hub.download(located, partial, &Progress::quiet().stage("x", 0)).await
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_download_that_breaks_off_is_continued_where_it_stopped() {
    let fake = FakeHub::new(vec![("q4.gguf", content(90_000)), ("README.md", content(5))]);
    fake.break_off.store(2, Ordering::SeqCst);
    let hub = hub(&fake, None).await;
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    assert_eq!((located.bytes, located.commit.as_str()), (90_000, COMMIT));
    assert_eq!(located.sha256, Some(hex(content(90_000))));

    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("partial");
    // An earlier run left something.
    std::fs::write(&partial, &content(90_000)[..30_000]).unwrap();
    download(&hub, &located, &partial).await.unwrap();
    assert_eq!(std::fs::read(&partial).unwrap(), content(90_000));
    let ranges = fake.ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], "bytes=30000-89999");
    assert_eq!(ranges[1], "bytes=50000-89999");
}

#[tokio::test]
async fn a_line_that_never_holds_ends_with_an_error_and_keeps_what_came() {
    let fake = FakeHub::new(vec![("q4.gguf", content(4))]);
    fake.break_off.store(u32::MAX, Ordering::SeqCst);
    let hub = hub(&fake, None).await;
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("partial");
    let error = download(&hub, &located, &partial).await.unwrap_err();
    assert!(format!("{error:#}").contains("run this again to continue it"), "{error:#}");
    assert!(length(&partial) > 0);
}

#[tokio::test]
async fn a_mirror_without_ranges_serves_whole_files_and_spoils_no_partial_one() {
    let mut fake = FakeHub::new(vec![("q4.gguf", content(900))]);
    fake.whole = true;
    let hub = hub(&fake, None).await;
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (fresh, begun) = (dir.path().join("fresh"), dir.path().join("begun"));
    download(&hub, &located, &fresh).await.unwrap();
    assert_eq!(std::fs::read(&fresh).unwrap(), content(900));
    std::fs::write(&begun, &content(900)[..300]).unwrap();
    let error = download(&hub, &located, &begun).await.unwrap_err();
    assert!(format!("{error:#}").contains("does not continue at byte 300"), "{error:#}");
    assert_eq!(length(&begun), 300);
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_not_to_its_storage() {
    let mut fake = FakeHub::new(vec![("q4.gguf", content(90))]);
    fake.private = true;
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&fake, Some(TOKEN)).await;
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    download(&hub, &located, &dir.path().join("partial")).await.unwrap();
    let bearer = (false, format!("Bearer {TOKEN}"));
    assert_eq!(*fake.tokens.lock().unwrap(), [bearer.clone(), bearer]);
    assert_eq!(fake.ranges.lock().unwrap().len(), 1, "the storage was asked");
}

#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let mut private = FakeHub::new(vec![("q4.gguf", content(90))]);
    private.private = true;
    let down = FakeHub::new(Vec::new());
    down.momentary.store(u32::MAX, Ordering::SeqCst);
    let empty = FakeHub::new(Vec::new());
    for (fake, repo, says) in [
        (
            &private,
            "org/repo",
            "401 Unauthorized: there is no such thing, or it is private or gated; set HF_TOKEN",
        ),
        (&down, "org/repo", "503 Service Unavailable; try again later"),
        (&empty, "org/other", "404 Not Found: check the spelling"),
    ] {
        let hub = hub(fake, None).await;
        let error = format!("{:#}", hub.locate(repo, None, SOON).await.unwrap_err());
        assert!(
            error.contains(says) && error.contains(&format!("hf:{repo} at {}", hub.endpoint())),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_hub_that_is_out_of_order_for_a_moment_is_asked_again() {
    let fake = FakeHub::new(vec![("q4.gguf", content(9))]);
    fake.momentary.store(1, Ordering::SeqCst);
    assert_eq!(hub(&fake, None).await.locate("org/repo", None, SOON).await.unwrap().bytes, 9);
}

#[tokio::test]
async fn names_are_escaped_in_addresses() {
    let name = "sub dir/50% #1?.gguf";
    let fake = FakeHub::new(vec![(name, content(9))]);
    let hub = hub(&fake, None).await;
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    download(&hub, &located, &dir.path().join("partial")).await.unwrap();
    assert_eq!(std::fs::read(dir.path().join("partial")).unwrap(), content(9));
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_given_up_soon() {
    // A listener that never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    let hub = Hub::new(Some(&silent)).unwrap();
    let start = std::time::Instant::now();
    let error = hub.locate("org/repo", None, Duration::from_millis(300)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(format!("{error:#}").contains("no answer within"), "{error:#}");
}

#[tokio::test]
async fn a_storage_that_never_answers_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let hub = Hub::open(Access { endpoint, token: None }).unwrap();
    let file = HubFile { repo: "org/repo".into(), file: "q4.gguf".into() };
    let located = Located { file, bytes: 9, sha256: None, commit: COMMIT.into() };
    let dir = tempfile::tempdir().unwrap();
    tokio::time::pause();
    let error = download(&hub, &located, &dir.path().join("partial")).await.unwrap_err();
    assert!(format!("{error:#}").contains("the hub gave no answer"), "{error:#}");
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes.as_ref()).iter().map(|b| format!("{b:02x}")).collect()
}

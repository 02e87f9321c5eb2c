use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use sha2::{Digest, Sha256};

use super::*;
use crate::models::progress::Progress;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub on loopback with one repository `org/repo`.
#[derive(Clone)]
pub(crate) struct FakeHub {
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// So many downloads end after a third of what was asked.
    pub(crate) break_off: Arc<AtomicU32>,
    /// `Range` headers seen.
    pub(crate) ranges: Arc<std::sync::Mutex<Vec<String>>>,
    /// What the hub claims the SHA-256 is, instead of the truth.
    pub(crate) claim: Option<&'static str>,
}

impl FakeHub {
    pub(crate) fn new(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self { files, break_off: Arc::default(), ranges: Arc::default(), claim: None }
    }

    /// Serves until the runtime of the test ends; gives the address.
    pub(crate) async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        endpoint
    }
}

async fn answer(State(hub): State<FakeHub>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path();
    let json = |text: String| {
        Response::builder().header(header::CONTENT_TYPE, "application/json").body(Body::from(text)).unwrap()
    };
    if path == "/api/models/org/repo" || path == format!("/api/models/org/repo/revision/{COMMIT}") {
        return json(format!(r#"{{"_id":"1","id":"org/repo","sha":"{COMMIT}"}}"#));
    }
    if path == format!("/api/models/org/repo/tree/{COMMIT}") {
        let entry = |(name, bytes): &(&str, Vec<u8>)| {
            format!(r#"{{"type":"file","oid":"0","size":{},"path":"{name}"}}"#, bytes.len())
        };
        return json(format!("[{}]", hub.files.iter().map(entry).collect::<Vec<_>>().join(",")));
    }
    if let Some(name) = path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/"))
        && let Some((_, bytes)) = hub.files.iter().find(|(n, _)| *n == name)
    {
        return file(&hub, request.method(), request.headers(), bytes);
    }
    Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap()
}

fn file(hub: &FakeHub, method: &Method, headers: &HeaderMap, bytes: &[u8]) -> Response<Body> {
    let truth = hex(bytes);
    let tag = format!("\"{}\"", hub.claim.unwrap_or(&truth));
    let response = Response::builder().header("x-linked-etag", tag).header("x-repo-commit", COMMIT);
    if method == Method::HEAD {
        return response.header(header::CONTENT_LENGTH, bytes.len()).body(Body::empty()).unwrap();
    }
    let range = headers[header::RANGE].to_str().unwrap().to_owned();
    hub.ranges.lock().unwrap().push(range.clone());
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let asked = bytes[from.parse().unwrap()..=to.parse().unwrap()].to_vec();
    let breaks = hub.break_off.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
    let response = response.status(StatusCode::PARTIAL_CONTENT);
    if breaks {
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

fn content(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * i / 7) as u8).collect()
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_download_that_breaks_off_is_continued_where_it_stopped() {
    let fake = FakeHub::new(vec![("q4.gguf", content(90_000)), ("README.md", content(5))]);
    fake.break_off.store(2, Ordering::SeqCst);
    let hub = Hub::new(Some(&fake.serve().await)).unwrap();
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    assert_eq!((located.bytes, located.commit.as_str()), (90_000, COMMIT));
    assert_eq!(located.sha256, Some(hex(content(90_000))));

    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("partial");
    // An earlier run left something.
    std::fs::write(&partial, &content(90_000)[..30_000]).unwrap();
    hub.download(&located, &partial, &Progress::quiet().stage("x", 0)).await.unwrap();
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
    let hub = Hub::new(Some(&fake.serve().await)).unwrap();
    let located = hub.locate("org/repo", None, SOON).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("partial");
    let error = hub.download(&located, &partial, &Progress::quiet().stage("x", 0)).await.unwrap_err();
    assert!(format!("{error:#}").contains("run this again to continue it"), "{error:#}");
    assert!(length(&partial) > 0);
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

#[test]
fn the_file_is_named_or_the_only_one() {
    let two = [("a.gguf".to_owned(), 1), ("b.gguf".to_owned(), 2)];
    let split = [("m-00001-of-00002.gguf".to_owned(), 1)];
    assert_eq!(choose("o/r", Some("b.gguf"), &two).unwrap().1, 2);
    assert_eq!(choose("o/r", None, &two[..1]).unwrap().0, "a.gguf");
    for (wanted, files, says) in [
        (None, &two[..], "holds 2 GGUF files; name one:\n  hf:o/r:a.gguf\n  hf:o/r:b.gguf"),
        (Some("c.gguf"), &two[..], "has no file \"c.gguf\"; its GGUF files are:\n  hf:o/r:a.gguf"),
        (None, &[][..], "holds no GGUF file"),
        (None, &split[..], "not built yet"),
    ] {
        let error = choose("o/r", wanted, files).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes.as_ref()).iter().map(|b| format!("{b:02x}")).collect()
}

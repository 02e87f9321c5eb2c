//! Paths of OpenAI's API that are not served, so that a client is told why rather than that nobody
//! knows the path.

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::any;

use super::{Api, error};

/// What begins a path, and what to say.
const PATHS: &[(&str, &str)] = &[
    ("/v1/embeddings", "embeddings are not built: the models served here generate text"),
    ("/v1/moderations", "moderation is not built"),
    ("/v1/audio", "audio is not built: text only"),
    ("/v1/images", "images are not built: text only"),
    ("/v1/videos", "videos are not built: text only"),
    ("/v1/files", "files are not built: nothing is stored here"),
    ("/v1/uploads", "uploads are not built: nothing is stored here"),
    ("/v1/batches", "batches are not built; /v1/completions takes several prompts at once"),
    ("/v1/fine_tuning", "fine-tuning is not built"),
    ("/v1/evals", "evals are not built"),
    ("/v1/vector_stores", "vector stores are not built: nothing is stored here"),
    ("/v1/containers", "containers are not built"),
    (
        "/v1/conversations",
        "conversations are not built: nothing is stored here; /v1/responses takes the whole input",
    ),
    ("/v1/assistants", "assistants are not built; use /v1/chat/completions with tools"),
    ("/v1/threads", "threads are not built; use /v1/chat/completions"),
    ("/v1/realtime", "realtime is not built; stream /v1/chat/completions"),
];

pub(super) fn routes() -> Router<Api> {
    PATHS.iter().fold(Router::new(), |router, (path, why)| {
        let refuse = move |method: Method, uri: Uri| refuse(method, uri, why);
        router.route(path, any(refuse)).route(&format!("{path}/{{*rest}}"), any(refuse))
    })
}

/// `GET /v1/responses/{id}` and what lies below.
pub(super) async fn stored(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    error::no_route(
        StatusCode::NOT_FOUND,
        format!(
            "{method} {path}: responses are not stored here; send the whole conversation to POST /v1/responses"
        ),
    )
}

async fn refuse(method: Method, uri: Uri, why: &'static str) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    error::no_route(StatusCode::NOT_IMPLEMENTED, format!("{method} {path}: {why}"))
}

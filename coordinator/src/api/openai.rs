//! The OpenAI API: models, chat and legacy completions, responses; and vLLM's tokenizer paths. `docs/openai-api.md` says what is taken.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{any, get, post};

use crate::frontdoor::FrontDoor;

mod asking;
mod body;
mod chat;
mod completions;
mod constraint;
mod error;
mod events;
mod fields;
mod logprobs;
mod mark;
mod messages;
mod models;
mod responses;
mod sampling;
mod speculation;
mod speech;
mod tokenize;
mod tools;
mod unserved;
mod usage;

/// What handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) door: Arc<FrontDoor>,
    pub(crate) max_body_bytes: usize,
    pub(crate) slow_client: std::time::Duration,
    /// Start of the process in Unix seconds: when the models were "created".
    pub(crate) started: u64,
}

pub(crate) fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{*id}", any(unserved::stored))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .merge(unserved::routes())
        .route("/health", get(super::health::health))
        .route("/version", get(super::health::version))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_route)
        .with_state(api)
}

async fn no_route(State(_): State<Api>, method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    error::no_route(
        StatusCode::NOT_FOUND,
        format!(
            "{method} {path} is not served; served: /v1/models, /v1/models/{{id}}, /v1/chat/completions, \
             /v1/completions, /v1/responses, /tokenize, /detokenize, /health, /version"
        ),
    )
}

async fn wrong_method(State(_): State<Api>, method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    error::no_route(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed on {path}"))
}

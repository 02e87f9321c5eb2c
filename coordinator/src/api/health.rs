//! Whether requests would be served, and what this is.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::openai::Api;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    models: BTreeMap<String, ModelHealth>,
}

#[derive(Serialize)]
struct ModelHealth {
    ready_workers: u32,
    ready_drafters: u32,
    context: u32,
}

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
}

/// 200 when every served model has a worker that takes requests; else 503 and which one has none.
pub(super) async fn health(State(api): State<Api>) -> Response {
    let mut models = BTreeMap::new();
    for model in api.door.models.all() {
        let serving = api.door.serving(model);
        let (ready_workers, ready_drafters) = (serving.ready_workers, serving.ready_drafters);
        models.insert(
            model.name.clone(),
            ModelHealth { ready_workers, ready_drafters, context: serving.context },
        );
    }
    let (code, status) = if api.door.admission.is_closed() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if !api.door.unserved().is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "a model has no ready worker")
    } else {
        (StatusCode::OK, "ok")
    };
    (code, Json(Health { status, models })).into_response()
}

pub(super) async fn version() -> Response {
    Json(Version { name: "paceline", version: env!("CARGO_PKG_VERSION") }).into_response()
}

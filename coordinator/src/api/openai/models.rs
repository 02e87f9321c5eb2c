use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Api, error};
use crate::models::Model;

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest context of a worker that serves it now (vLLM's name); `null` without one.
    max_model_len: Option<u32>,
    aliases: Vec<String>,
}

/// `GET /v1/models`: what is configured, with a worker or without.
pub(super) async fn list(State(api): State<Api>) -> Response {
    let data = api.door.models.all().iter().map(|model| entry(&api, model)).collect();
    Json(List { object: "list", data }).into_response()
}

/// `GET /v1/models/{id}`; an id may be an alias and may contain slashes.
pub(super) async fn one(State(api): State<Api>, Path(id): Path<String>) -> Response {
    match api.door.models.find(&id) {
        Ok(model) => Json(entry(&api, model)).into_response(),
        Err(failure) => error::respond(failure),
    }
}

fn entry(api: &Api, model: &Model) -> Entry {
    let context = api.door.serving(model).context;
    Entry {
        id: model.name.clone(),
        object: "model",
        created: api.started,
        owned_by: "paceline",
        max_model_len: (context > 0).then_some(context),
        aliases: model.aliases.clone(),
    }
}

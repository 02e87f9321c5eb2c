//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use request::{RequestId, TokenId, Tokens as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use text::Conversation;

use super::body::{fields, missing, read, shown, typed};
use super::fields::{DETOKENIZE, TOKENIZE};
use super::logprobs::bytes;
use super::tools::Offer;
use super::{Api, asking, messages};
use crate::failure::{Failure, invalid};
use crate::models::Model;
use crate::question::Prompt;
use std::sync::Arc;

#[derive(Deserialize)]
struct RawTokenize {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Value>,
    tools: Option<Value>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Deserialize)]
struct RawDetokenize {
    model: Option<String>,
    tokens: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    /// Longest context of a worker that serves the model now; `null` without one.
    max_model_len: Option<u32>,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

pub(super) async fn tokenize(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    asking::named("tokenize-", |_: RequestId| tokens(api, headers, body)).await
}

pub(super) async fn detokenize(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    asking::named("detokenize-", |_: RequestId| text(api, headers, body)).await
}

async fn tokens(api: Api, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let deadline = asking::deadline(&api, &headers)?;
    let _permit = api.door.admit()?;
    let body = read(&headers, body, api.max_body_bytes, deadline).await?;
    let fields = fields(&body, &TOKENIZE)?;
    let raw: RawTokenize = typed(&fields)?;
    let model = model(&api, raw.model.as_deref())?;
    let (prompt, field) = match (raw.prompt, raw.messages) {
        (Some(_), Some(_)) => {
            return Err(invalid("prompt", "prompt: contradicts messages; send one of them"));
        }
        (None, None) => return Err(missing("prompt", "send a string, or messages")),
        (Some(_), None) if raw.tools.is_some() => {
            return Err(invalid("tools", "tools: only allowed with messages"));
        }
        (Some(text), None) => (Prompt::Text(text), "prompt"),
        (None, Some(messages)) => {
            let messages = messages::read(&messages, "messages")?;
            let tools = Offer::of_chat(raw.tools.as_ref(), None, None)?.told();
            (Prompt::Chat(Conversation { messages, tools }), "messages")
        }
    };
    let bos = raw.add_special_tokens.unwrap_or(true);
    let work = {
        let model = Arc::clone(&model);
        move || match prompt {
            Prompt::Text(text) if !bos => {
                let ids = model.text.tokenizer().encode(&text, true);
                ids.map_err(|e| invalid(field, format!("{field}: {e}")))
            }
            prompt => model.text.tokens(prompt, field),
        }
    };
    let ids = api.door.aside.run(body.len(), field, deadline, work).await?;
    let strs = |id: &TokenId| model.text.tokenizer().vocabulary().token(*id).unwrap_or_default().to_owned();
    let context = api.door.serving(&model).context;
    Ok(Json(Tokenized {
        count: ids.len(),
        max_model_len: (context > 0).then_some(context),
        token_strs: raw.return_token_strs.unwrap_or(false).then(|| ids.iter().map(strs).collect()),
        tokens: ids.to_ids(),
    })
    .into_response())
}

async fn text(api: Api, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let deadline = asking::deadline(&api, &headers)?;
    let _permit = api.door.admit()?;
    let body = read(&headers, body, api.max_body_bytes, deadline).await?;
    let fields = fields(&body, &DETOKENIZE)?;
    let raw: RawDetokenize = typed(&fields)?;
    let model = model(&api, raw.model.as_deref())?;
    let ids = raw.tokens.ok_or_else(|| missing("tokens", "send a list of token ids"))?;
    let vocab = model.text.vocab_len();
    if let Some(at) = ids.iter().position(|id| *id >= vocab) {
        let field = format!("tokens[{at}]");
        let why =
            format!("{field}: {} is not below {vocab}, the size of {}'s vocabulary", ids[at], model.name);
        return Err(invalid(field, why));
    }
    let most = api.max_body_bytes;
    let work = move || {
        let mut text = Vec::new();
        for id in &ids {
            // An id of three digits can stand for hundreds of bytes.
            text.extend(bytes(&model, TokenId(*id)));
            if text.len() > most {
                let why =
                    format!("tokens: stand for more than {most} bytes (max_body_bytes); send fewer at once");
                return Err(invalid("tokens", why));
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let prompt = api.door.aside.run(body.len(), "tokens", deadline, work).await?;
    Ok(Json(Detokenized { prompt }).into_response())
}

/// The named model, or the only one.
fn model(api: &Api, name: Option<&str>) -> Result<Arc<Model>, Failure> {
    match (name, api.door.models.all()) {
        (Some(name), _) => api.door.models.find(name).cloned(),
        (None, [only]) => Ok(Arc::clone(only)),
        (None, all) => {
            let names: Vec<&str> = all.iter().map(|model| model.name.as_str()).collect();
            Err(missing("model", &format!("name one of {}", shown(&names.join(", ")))))
        }
    }
}

//! One request before the load: does the server take what will be sent?

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::exchange::{Clock, Endpoint};
use super::prompts::{Api, Prompts};
use super::record::{Failure, Kind};

/// For a list of models.
const LIST: Duration = Duration::from_secs(10);
/// Fields that make answers as long as asked for. They are no part of OpenAI's API; a server that
/// refuses one by name is asked without it, and answers may then be shorter.
const LENGTH: [&str; 2] = ["ignore_eos", "min_tokens"];

impl Endpoint {
    /// The first model that the server lists.
    pub(super) async fn first_model(&self, base: &str) -> Result<String> {
        let url = format!("{base}/v1/models");
        let what = || format!("{url} names no model: pass --model NAME, or start a server first");
        let models: Value =
            tokio::time::timeout(LIST, self.get(&url)).await.with_context(what)?.with_context(what)?;
        models["data"][0]["id"].as_str().map(str::to_owned).with_context(what)
    }
}

/// Sends one short request and takes fields out of `body` that the server refuses by name.
pub(super) async fn accepted(
    endpoint: &Endpoint,
    body: &mut Value,
    prompts: &Prompts,
    api: Api,
) -> Result<()> {
    loop {
        let mut short = body.clone();
        // No measured request has this index, so the probe warms no prefix cache for one.
        prompts.get(u64::MAX).fill(&mut short, api);
        short["max_tokens"] = json!(2);
        if short.get("min_tokens").is_some() {
            short["min_tokens"] = json!(2);
        }
        let seen = endpoint.ask(short.to_string(), Clock::start(), None).await;
        let Some(failure) = seen.failure else { return Ok(()) };
        let Some(field) = refused(&failure, body) else {
            bail!("{} refuses: {}: {}", endpoint.url(), failure.kind.label(), failure.message);
        };
        eprintln!("note: the server does not take {field}; answers may be shorter than --output-tokens");
        if let Some(fields) = body.as_object_mut() {
            fields.remove(field);
        }
    }
}

/// The field of [`LENGTH`] that a refusal names.
fn refused(failure: &Failure, body: &Value) -> Option<&'static str> {
    let refusal = matches!(failure.kind, Kind::Status(400 | 422));
    LENGTH.into_iter().find(|field| refusal && body.get(field).is_some() && failure.message.contains(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_by_name_drops_a_field() {
        let body = json!({ "ignore_eos": true, "min_tokens": 4 });
        let failure = |status, message: &str| Failure::new(Kind::Status(status), message);
        for (failure, body, wanted) in [
            (failure(400, "ignore_eos: not built yet"), &body, Some("ignore_eos")),
            (failure(422, "extra field min_tokens"), &body, Some("min_tokens")),
            (failure(400, "model: no such model"), &body, None),
            (failure(500, "ignore_eos"), &body, None),
            (failure(400, "ignore_eos"), &json!({}), None),
        ] {
            assert_eq!(refused(&failure, body), wanted, "{failure:?}");
        }
    }
}

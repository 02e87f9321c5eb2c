//! The OpenAI surface over real sockets: what a client sends and gets, path by path.

use serde_json::Value;

use crate::cluster::Front;

mod completions;
mod responses;
mod resume;
mod shapes;
mod tokens;
mod tools;

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sse {
    id: String,
    event: String,
    data: String,
}

impl Sse {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {}", self.data))
    }
}

fn sse(body: &str) -> Vec<Sse> {
    let field = |block: &str, name: &str| {
        let value = block.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_default().to_owned()
    };
    body.split("\n\n")
        .filter(|block| block.contains("data: "))
        .map(|b| Sse { id: field(b, "id"), event: field(b, "event"), data: field(b, "data") })
        .collect()
}

async fn send(front: &Front, path: &str, body: &Value, last_event: Option<&str>) -> reqwest::Response {
    let request = reqwest::Client::new().post(front.url(path)).json(body);
    let request = last_event.iter().fold(request, |request, id| request.header("last-event-id", *id));
    request.send().await.unwrap()
}

async fn post(front: &Front, path: &str, body: &Value) -> (u16, Value) {
    let response = send(front, path, body, None).await;
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn stream(front: &Front, path: &str, body: &Value, last_event: Option<&str>) -> Vec<Sse> {
    let response = send(front, path, body, last_event).await;
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    sse(&text)
}

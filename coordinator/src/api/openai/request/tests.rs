use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;
use serde_json::json;

use super::super::error::Body;
use super::*;

use crate::failure::Reason;

fn parse(body: &Value) -> Result<ChatRequest, Failure> {
    ChatRequest::parse(body.to_string().as_bytes())
}

/// A good request with some fields set.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
        body.extend(fields);
    }
    body
}

#[test]
fn defaults_are_openais() {
    let ChatRequest { asked, stream, include_usage } = parse(&with(json!({}))).unwrap();
    assert_eq!(asked.model, "m");
    assert_eq!(asked.prompt, Prompt::Chat(vec![("user", "hi".into())]));
    assert_eq!(asked.params, SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 });
    assert_eq!((asked.seed, asked.max_tokens), (None, None));
    assert_eq!((asked.quality, asked.speculation), (Quality::Exact, Speculation::default()));
    assert!(!stream && !include_usage);
}

#[test]
fn honoured_fields_arrive() {
    let ChatRequest { asked, stream, include_usage } = parse(&with(json!({
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "eve"},
            {"role": "assistant", "content": "c", "tool_calls": [], "refusal": null},
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": -1, "n": 1,
        "max_completion_tokens": 7, "max_tokens": 7,
        "stream": true, "stream_options": {"include_usage": true},
        "quality": "exact",
        "speculation": {"strategy": "lockstep", "k": 4, "deadline_ms": 250, "max_draft": 8},
    })))
    .unwrap();
    let messages = [("system", "be brief"), ("user", "a\nb"), ("assistant", "c")];
    assert_eq!(asked.prompt, Prompt::Chat(messages.map(|(role, text)| (role, text.into())).to_vec()));
    assert_eq!(asked.params, SamplingParams { temperature: 0.5, top_k: 40, top_p: 0.9, min_p: 0.1 });
    assert_eq!((asked.seed, asked.max_tokens), (Some(u64::MAX), Some(7)));
    assert_eq!(asked.quality, Quality::Exact);
    let strategy = request::Strategy::Lockstep { k: 4, deadline: Duration::from_millis(250) };
    assert_eq!(asked.speculation, Speculation { strategy, max_draft: Some(8), ..Speculation::default() });
    assert!(stream && include_usage);
}

#[test]
fn neutral_values_and_null_ask_for_nothing() {
    for (name, _) in NOT_BUILT {
        parse(&with(json!({*name: null}))).unwrap();
    }
    parse(&with(json!({
        "tools": [], "tool_choice": "none", "functions": [], "response_format": {"type": "text"}, "stop": [],
        "logprobs": false, "top_logprobs": 0, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0,
        "repetition_penalty": 1.0, "modalities": ["text"], "temperature": null, "top_k": -1,
        "user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto",
    })))
    .unwrap();
}

/// What is sent, which field the error names, why, and a word of the message that helps.
#[test]
fn bad_values_name_their_field() {
    use Reason::{InvalidField, NotBuilt};
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (fields, field, reason, help) in [
        (json!({"model": null}), "model", InvalidField, "/v1/models"),
        (json!({"model": 1}), "model", InvalidField, "string"),
        (json!({"messages": null}), "messages", InvalidField, "missing"),
        (json!({"messages": []}), "messages", InvalidField, "empty"),
        (json!({"messages": {}}), "messages", InvalidField, "sequence"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", InvalidField, "missing"),
        (json!({"messages": [{"content": "x"}]}), "messages[0]", InvalidField, "role"),
        (
            json!({"messages": [{"role": "king", "content": "x"}]}),
            "messages[0].role",
            InvalidField,
            "assistant",
        ),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role", NotBuilt, "tools"),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}),
            "messages[1].content",
            InvalidField,
            "text parts",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}),
            "messages[0].tool_calls",
            NotBuilt,
            "leave it out",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "colour": 1}]}),
            "messages[0].colour",
            InvalidField,
            "",
        ),
        (user(json!([{"type": "image_url"}])), "messages[0].content[0].type", NotBuilt, "text parts"),
        (user(json!([{"type": "smell"}])), "messages[0].content[0].type", InvalidField, "text parts"),
        (user(json!([{"type": "text"}])), "messages[0].content[0].text", InvalidField, "string"),
        (
            user(json!([{"type": "text", "text": "x", "y": 1}])),
            "messages[0].content[0].y",
            InvalidField,
            "unknown",
        ),
        (user(json!([1])), "messages[0].content[0]", InvalidField, ""),
        (json!({"temperature": "hot"}), "temperature", InvalidField, "f32"),
        (json!({"temperature": -1}), "temperature", InvalidField, "0"),
        (json!({"temperature": 1e300}), "temperature", InvalidField, "between"),
        (json!({"top_p": 0}), "top_p", InvalidField, "above 0"),
        (json!({"top_k": -2}), "top_k", InvalidField, "-1"),
        (json!({"min_p": 2}), "min_p", InvalidField, "between"),
        (json!({"seed": 1.5}), "seed", InvalidField, "integer"),
        (json!({"max_tokens": 0}), "max_tokens", InvalidField, "at least 1"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", InvalidField, "at least 1"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens", InvalidField, "u32"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens", InvalidField, "contradicts"),
        (json!({"n": 2}), "n", NotBuilt, "seeds"),
        (json!({"n": 0}), "n", InvalidField, "1"),
        (json!({"stream": "yes"}), "stream", InvalidField, "boolean"),
        (json!({"stream_options": {}}), "stream_options", InvalidField, "stream is true"),
        (
            json!({"stream": true, "stream_options": {"x": 1}}),
            "stream_options.x",
            InvalidField,
            "include_usage",
        ),
        (json!({"quality": "approximate"}), "quality", NotBuilt, "exact"),
        (json!({"speculation": {"strategy": "magic"}}), "speculation.strategy", InvalidField, "lockstep"),
        (json!({"speculation": {"strategy": "lockstep"}}), "speculation.k", InvalidField, "lockstep"),
        (json!({"speculation": {"k": 4}}), "speculation.k", InvalidField, "lockstep"),
        (json!({"speculation": {"strategy": "lockstep", "k": 65}}), "speculation.k", InvalidField, "64"),
        (
            json!({"speculation": {"strategy": "lockstep", "k": 4, "deadline_ms": 0}}),
            "speculation.deadline_ms",
            InvalidField,
            "above 0",
        ),
        (json!({"speculation": {"max_draft": 0}}), "speculation.max_draft", InvalidField, "between 1"),
        (json!({"speculation": {"window": 4}}), "speculation.window", InvalidField, "max_draft"),
        (json!({"tools": [{}]}), "tools", NotBuilt, "neutral"),
        (json!({"stop": "x"}), "stop", NotBuilt, "neutral"),
        (json!({"logprobs": true}), "logprobs", NotBuilt, "false"),
        (json!({"response_format": {"type": "json_object"}}), "response_format", NotBuilt, "text"),
        (json!({"frequency_penalty": 0.1}), "frequency_penalty", NotBuilt, "0"),
        (json!({"top_n": 3}), "top_n", InvalidField, "unknown field"),
    ] {
        let failure = parse(&with(fields.clone())).unwrap_err();
        assert_eq!((failure.field.as_deref(), failure.reason), (Some(field), reason), "{fields}: {failure}");
        assert!(failure.message.contains(help), "{fields}: {failure}");
    }
}

#[test]
fn bodies_that_are_no_request() {
    for (body, help) in [
        (&b""[..], "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{\"model\": \"m\"", "column"),
        (b"[]", "not a JSON object"),
        (b"{\"model\": \"\xff\"}", "offset 11"),
        (b"{\"temperature\": 1e999}", "not valid JSON"),
    ] {
        let failure = ChatRequest::parse(body).unwrap_err();
        assert_eq!((failure.reason, failure.field.as_deref()), (Reason::InvalidField, None));
        assert!(failure.message.contains(help), "{failure}");
    }
    let deep = "[".repeat(100_000);
    assert!(ChatRequest::parse(deep.as_bytes()).unwrap_err().message.contains("recursion"));
}

/// Any JSON value of moderate size.
fn value() -> impl Generator<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
        prop_oneof![Just("user"), Just("text"), Just("lockstep"), Just("exact")].prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let key = prop_oneof![
            "[a-z]{1,6}",
            prop_oneof![
                Just("role"),
                Just("content"),
                Just("type"),
                Just("text"),
                Just("k"),
                Just("strategy")
            ]
            .prop_map(String::from),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// A field of the tables, or any other.
fn field() -> impl Generator<Value = String> {
    let mut names: Vec<&str> = HONOURED.iter().chain(NO_EFFECT).map(|(n, _)| *n).collect();
    names.extend(NOT_BUILT.iter().map(|(n, _)| *n));
    prop_oneof![9 => prop::sample::select(names).prop_map(String::from), 1 => "[a-z_]{1,12}"]
}

/// A refusal that a client can use: a 4xx with OpenAI's body.
fn is_clear(failure: Failure) -> bool {
    let status = failure.reason.http();
    let body = serde_json::to_value(Body::new(failure)).unwrap();
    let error = &body["error"];
    (400..500).contains(&status)
        && error["message"].as_str().is_some_and(|m| !m.is_empty() && m.len() < 1000)
        && error["type"] == "invalid_request_error"
        && error["code"].is_string()
        && (error["param"].is_string() || error["param"].is_null())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_refused_clearly(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(failure) = ChatRequest::parse(&bytes) {
            prop_assert!(is_clear(failure));
        }
    }

    #[test]
    fn any_fields_are_taken_or_refused_clearly(fields in prop::collection::btree_map(field(), value(), 0..6)) {
        if let Err(failure) = parse(&with(Value::Object(fields.into_iter().collect()))) {
            prop_assert!(is_clear(failure.clone()), "{failure:?}");
        }
    }

    /// Nothing that is not neutral slips through without being built.
    #[test]
    fn what_is_not_built_is_never_taken(row in prop::sample::select(NOT_BUILT), value in value()) {
        let (name, neutral) = row;
        let taken = parse(&with(json!({name: value.clone()}))).is_ok();
        prop_assert_eq!(taken, neutral.holds(&value));
    }
}

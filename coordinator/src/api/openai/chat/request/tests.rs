use ::request::{Constraint, Penalties, Quality, Rule, SamplingParams, Speculation, TokenId};
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;
use serde_json::json;
use text::Message;

use super::super::super::error::Body;
use super::*;
use crate::failure::Reason;
use crate::question::{Prediction, Stop};

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

fn question(fields: Value) -> Question {
    parse(&with(fields)).unwrap().question
}

fn names() -> impl Iterator<Item = &'static str> {
    let taken = CHAT.honoured.iter().chain(CHAT.no_effect).copied().flatten().map(|(name, _)| *name);
    taken.chain(CHAT.refused.iter().copied().flatten().map(|(name, ..)| *name))
}

#[test]
fn defaults_are_openais() {
    let ChatRequest { question, offer, form, stream, include_usage, .. } = parse(&with(json!({}))).unwrap();
    let prompt = Prompt::Chat(vec![Message::new("user", "hi")].into());
    assert_eq!(question, Question::new("m".into(), prompt));
    assert_eq!(question.params, SamplingParams::at(1.0));
    assert_eq!((offer.told(), form), (Vec::new(), None));
    assert!(!stream && !include_usage);
}

#[test]
fn honoured_fields_arrive() {
    let ChatRequest { question, stream, include_usage, .. } = parse(&with(json!({
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "eve"},
            {"role": "assistant", "content": "c", "tool_calls": [], "refusal": null, "annotations": []},
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "typical_p": 0.7, "seed": -1, "n": 3,
        "presence_penalty": 1.5, "frequency_penalty": -2, "repetition_penalty": 1.25,
        "logit_bias": {"7": -100, "0": 1.5},
        "stop": ["a", "b"], "stop_token_ids": [5], "include_stop_str_in_output": true, "ignore_eos": true,
        "min_tokens": 2, "max_completion_tokens": 7, "max_tokens": 7, "logprobs": true, "top_logprobs": 5,
        "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        "priority": -3, "cache_salt": "tenant",
        "stream": true, "stream_options": {"include_usage": true},
        "quality": "exact",
        "speculation": {"strategy": "lockstep", "rule": "rejection", "k": 4, "deadline_ms": 250, "max_draft": 8},
    })))
    .unwrap();
    let named = Message { name: Some("eve".into()), ..Message::new("user", "a\nb") };
    let messages = vec![Message::new("system", "be brief"), named, Message::new("assistant", "c")];
    let strategy = ::request::Strategy::Lockstep { k: 4, deadline: std::time::Duration::from_millis(250) };
    let expected = Question {
        params: SamplingParams { temperature: 0.5, top_k: 40, top_p: 0.9, min_p: 0.1, typical_p: 0.7 },
        adjust: ::request::Adjustments {
            penalties: Penalties { repetition: 1.25, presence: 1.5, frequency: -2.0 },
            logit_bias: vec![(TokenId(7), -100.0), (TokenId(0), 1.5)],
        },
        seed: Some(u64::MAX),
        n: 3,
        stop: Stop {
            strings: vec!["a".into(), "b".into()],
            ids: vec![TokenId(5)],
            ignore_eos: true,
            include_in_output: true,
        },
        min_tokens: 2,
        max_tokens: Some(7),
        logprobs: Some(5),
        prediction: Some(Prediction::Text("xy".into())),
        priority: -3,
        cache_salt: "tenant".into(),
        quality: Quality::Exact,
        speculation: Speculation { strategy, rule: Rule::Rejection, max_draft: Some(8) },
        ..Question::new("m".into(), Prompt::Chat(messages.into()))
    };
    assert_eq!(question, expected);
    assert!(stream && include_usage);
}

#[test]
fn tools_and_their_turns_arrive() {
    let ChatRequest { question, offer, .. } = parse(&with(json!({
        "messages": [
            {"role": "user", "content": "rain?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"z\": 1, \"a\": 2}"}},
                {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "yes"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": true}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": false,
    })))
    .unwrap();
    let Prompt::Chat(conversation) = question.prompt else { panic!("no chat") };
    assert_eq!(conversation.tools, offer.told());
    assert_eq!((conversation.tools[0].name.as_str(), conversation.tools.len()), ("weather", 1));
    let calls = &conversation.messages[1].tool_calls;
    assert_eq!(conversation.messages[1].content, None);
    assert_eq!((calls[0].id.as_str(), calls[1].arguments.len()), ("call_1", 0));
    assert_eq!(calls[0].arguments.keys().collect::<Vec<_>>(), ["z", "a"], "in the caller's order");
    assert_eq!(conversation.messages[2].tool_call_id.as_deref(), Some("call_1"));
    // Told of no tools, a model calls none.
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let ChatRequest { question, .. } = parse(&with(json!({"tools": tools, "tool_choice": "none"}))).unwrap();
    assert!(matches!(question.prompt, Prompt::Chat(c) if c.tools.is_empty()));
}

#[test]
fn forms_arrive_with_the_field_that_asked() {
    let schema = json!({"type": "object", "properties": {"z": {}, "a": {}}});
    let text = schema.to_string();
    for (fields, expected) in [
        (json!({"response_format": {"type": "text"}}), None),
        (
            json!({"response_format": {"type": "json_object"}}),
            Some((Constraint::JsonObject, "response_format")),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}}}),
            Some((Constraint::JsonSchema(text.clone()), "response_format.json_schema.schema")),
        ),
        (
            json!({"structured_outputs": {"json": schema}}),
            Some((Constraint::JsonSchema(text.clone()), "structured_outputs.json")),
        ),
        (
            json!({"structured_outputs": {"json": text}}),
            Some((Constraint::JsonSchema(text), "structured_outputs.json")),
        ),
        (
            json!({"structured_outputs": {"json_object": true}}),
            Some((Constraint::JsonObject, "structured_outputs.json_object")),
        ),
        (
            json!({"structured_outputs": {"regex": "a+"}}),
            Some((Constraint::Regex("a+".into()), "structured_outputs.regex")),
        ),
        (
            json!({"structured_outputs": {"choice": ["a.b", "<c>", "d|e"]}}),
            Some((Constraint::Regex("(?:a\\.b|<c>|d\\|e)".into()), "structured_outputs.choice")),
        ),
        (
            json!({"structured_outputs": {"grammar": "start: \"a\""}}),
            Some((Constraint::Grammar("start: \"a\"".into()), "structured_outputs.grammar")),
        ),
    ] {
        let form = parse(&with(fields.clone())).unwrap().form;
        let expected = expected.map(|(constraint, field)| Asked { constraint, field });
        assert_eq!(form, expected, "{fields}");
    }
}

#[test]
fn stop_is_one_or_many_and_prediction_text_or_parts() {
    assert_eq!(question(json!({"stop": "x"})).stop.strings, ["x"]);
    assert_eq!(question(json!({"stop": []})).stop, Stop::default());
    let content = json!({"prediction": {"type": "content", "content": "guess"}});
    assert_eq!(question(content).prediction, Some(Prediction::Text("guess".into())));
    assert_eq!(question(json!({"logprobs": true})).logprobs, Some(0));
}

#[test]
fn neutral_values_and_null_ask_for_nothing() {
    for name in names() {
        if !["model", "messages"].contains(&name) {
            parse(&with(json!({name: null}))).unwrap();
        }
    }
    parse(&with(json!({
        "tools": [], "tool_choice": "none", "functions": [], "function_call": "auto", "response_format": {"type": "text"},
        "stop": [], "logprobs": false, "top_logprobs": 0, "logit_bias": {}, "presence_penalty": 0,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "modalities": ["text"], "temperature": null, "top_k": -1,
        "user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "skip_special_tokens": true,
    })))
    .unwrap();
}

/// What is sent, which field the error names, why, and a word of the message that helps.
#[test]
fn bad_values_name_their_field() {
    use Reason::{InvalidField, NotBuilt};
    let call = |arguments: &str| json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
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
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0].tool_call_id",
            InvalidField,
            "call",
        ),
        (
            json!({"messages": [{"role": "function", "content": "x"}]}),
            "messages[0].role",
            NotBuilt,
            "role tool",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}),
            "messages[1].content",
            InvalidField,
            "text parts",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}),
            "messages[0].tool_calls[0]",
            InvalidField,
            "id",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [call("{}")]}]}),
            "messages[0].tool_calls",
            InvalidField,
            "assistant",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [call("[1]")]}]}),
            "messages[0].tool_calls[0].function.arguments",
            InvalidField,
            "JSON object",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [call("{")]}]}),
            "messages[0].tool_calls[0].function.arguments",
            InvalidField,
            "not valid JSON",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}),
            "messages[0].tool_call_id",
            InvalidField,
            "role tool",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}),
            "messages[0].refusal",
            NotBuilt,
            "leave it out",
        ),
        (json!({"tools": [{"type": "custom", "custom": {}}]}), "tools[0].type", NotBuilt, "functions"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", InvalidField, "missing"),
        (json!({"tools": [tool("a b")]}), "tools[0].function.name", InvalidField, "letters"),
        (json!({"tools": [tool("a"), tool("a")]}), "tools[1].function.name", InvalidField, "twice"),
        (json!({"tools": [tool("a")], "tool_choice": "any"}), "tool_choice", InvalidField, "required"),
        (json!({"tool_choice": "required"}), "tool_choice", InvalidField, "needs tools"),
        (
            json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
            "tool_choice.function.name",
            InvalidField,
            "among",
        ),
        (
            json!({"tools": [tool("a")], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}),
            "tool_choice.type",
            NotBuilt,
            "function",
        ),
        (json!({"response_format": {}}), "response_format", InvalidField, "type"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", InvalidField, "json_schema"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            InvalidField,
            "missing",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
            InvalidField,
            "missing",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}}),
            "response_format.json_schema.schema",
            InvalidField,
            "map",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}),
            "response_format.json_schema.name",
            InvalidField,
            "letters",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs.regex",
            InvalidField,
            "contradicts",
        ),
        (json!({"structured_outputs": {}}), "structured_outputs", InvalidField, "one of"),
        (
            json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}),
            "structured_outputs",
            InvalidField,
            "one form",
        ),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice", InvalidField, "list"),
        (
            json!({"structured_outputs": {"structural_tag": {}}}),
            "structured_outputs.structural_tag",
            NotBuilt,
            "",
        ),
        (json!({"guided_json": {}}), "guided_json", NotBuilt, "structured_outputs.json"),
        (json!({"typical_p": 0}), "typical_p", InvalidField, "above 0"),
        (json!({"presence_penalty": 3}), "presence_penalty", InvalidField, "between"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", InvalidField, "0.01"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias.a", InvalidField, "token id"),
        (json!({"logit_bias": {"01": 1}}), "logit_bias.01", InvalidField, "token id"),
        (json!({"logit_bias": {"1": "x"}}), "logit_bias.1", InvalidField, "number"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias", InvalidField, "100"),
        (json!({"stop": 1}), "stop", InvalidField, "list of strings"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]", InvalidField, "u32"),
        (json!({"top_logprobs": 2}), "top_logprobs", InvalidField, "logprobs is true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", InvalidField, "20"),
        (
            json!({"prediction": {"type": "guess", "content": "x"}}),
            "prediction.type",
            InvalidField,
            "content",
        ),
        (
            json!({"prediction": {"type": "content", "content": 1}}),
            "prediction.content",
            InvalidField,
            "string",
        ),
        (json!({"priority": 1.5}), "priority", InvalidField, "i32"),
        (json!({"speculation": {"rule": "magic"}}), "speculation.rule", InvalidField, "coupled"),
        (json!({"speculation": {"rule": "greedy"}}), "speculation.rule", InvalidField, "temperature 0"),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
            "stream_options.continuous_usage_stats",
            NotBuilt,
            "false",
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
        (json!({"n": 129}), "n", InvalidField, "128"),
        (json!({"n": 0}), "n", InvalidField, "1"),
        (json!({"stream": "yes"}), "stream", InvalidField, "boolean"),
        (json!({"stream_options": {}}), "stream_options", InvalidField, "stream is true"),
        (
            json!({"stream": true, "stream_options": {"x": 1}}),
            "stream_options.x",
            InvalidField,
            "include_usage",
        ),
        (json!({"quality": "rough"}), "quality", InvalidField, "approximate"),
        (json!({"speculation": {"eta": 4}}), "speculation.eta", InvalidField, "rapid"),
        (
            json!({"speculation": {"strategy": "rapid", "eta": -1}}),
            "speculation.eta",
            InvalidField,
            "between 0 and 100",
        ),
        (
            json!({"speculation": {"strategy": "rapid", "retrieval": {"chunk": 1}}}),
            "speculation.retrieval.chunk",
            InvalidField,
            "between 8",
        ),
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
        (json!({"tools": [{}]}), "tools[0]", InvalidField, "type"),
        (json!({"functions": [{}]}), "functions", NotBuilt, "tools"),
        (json!({"verbosity": "low"}), "verbosity", NotBuilt, "medium"),
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
    let names: Vec<&str> = names().collect();
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
    fn what_is_not_built_is_never_taken(
        row in prop::sample::select(CHAT.refused.concat()), value in value(),
    ) {
        let (name, neutral, _) = row;
        let taken = parse(&with(json!({name: value.clone()}))).is_ok();
        prop_assert_eq!(taken, neutral.holds(&value));
    }
}

//! Which field is named, and with which reason.

use prost::Message;
use request::{Quality, SamplingParams, Speculation};

use crate::bounds::*;
use crate::convert::*;
use crate::reason::Reason;
use crate::worker::generate_request::Constraint as Placing;
use crate::{v1, worker};

fn good() -> worker::GenerateRequest {
    worker::GenerateRequest {
        request_id: "r".into(),
        model: "m".into(),
        prompt: vec![1],
        limits: Some(worker::Limits { max_tokens: 8, stop_ids: vec![2], min_tokens: 0 }),
        ..Default::default()
    }
}

#[test]
fn absent_fields_of_a_placed_request_take_the_documented_defaults() {
    let request = Placed::try_from(good()).unwrap().request;
    assert_eq!(request.sampling.params, SamplingParams::at(1.0));
    assert_eq!((request.quality, request.speculation), (Quality::Exact, Speculation::default()));
}

#[test]
fn placed_requests_are_refused_by_field() {
    type Break = fn(&mut worker::GenerateRequest);
    let table: &[(Break, &str, Reason)] = &[
        (|r| r.request_id.clear(), "request_id", Reason::InvalidField),
        (|r| r.model.clear(), "model", Reason::InvalidField),
        (|r| r.model = "m".repeat(257), "model", Reason::TooLarge),
        (|r| r.prompt.clear(), "prompt", Reason::InvalidField),
        (|r| r.prompt = vec![0; MAX_KNOWN_TOKENS + 1], "prompt", Reason::TooLarge),
        (|r| r.committed = vec![0; MAX_KNOWN_TOKENS], "prompt", Reason::TooLarge),
        (|r| r.committed = vec![0; 9], "committed", Reason::InvalidField),
        (|r| r.limits = None, "limits", Reason::InvalidField),
        (|r| r.limits = Some(worker::Limits::default()), "max_tokens", Reason::InvalidField),
        (
            |r| r.limits = Some(worker::Limits { max_tokens: 8, stop_ids: vec![0; 65], min_tokens: 0 }),
            "stop_ids",
            Reason::TooLarge,
        ),
        (|r| r.quality = 9, "quality", Reason::InvalidField),
        (|r| sample(r).temperature = Some(f32::NAN), "temperature", Reason::InvalidField),
        (|r| sample(r).temperature = Some(f32::INFINITY), "temperature", Reason::InvalidField),
        (|r| sample(r).top_p = Some(0.0), "top_p", Reason::InvalidField),
        (|r| sample(r).min_p = Some(f32::NEG_INFINITY), "min_p", Reason::InvalidField),
        (|r| sample(r).presence_penalty = Some(f32::NAN), "presence_penalty", Reason::InvalidField),
        (|r| sample(r).presence_penalty = Some(2.5), "presence_penalty", Reason::InvalidField),
        (|r| sample(r).frequency_penalty = Some(-2.5), "frequency_penalty", Reason::InvalidField),
        (|r| sample(r).repetition_penalty = Some(0.0), "repetition_penalty", Reason::InvalidField),
        (|r| sample(r).typical_p = Some(1.5), "typical_p", Reason::InvalidField),
        (|r| sample(r).logit_bias = [(1, 101.0)].into(), "logit_bias", Reason::InvalidField),
        (|r| sample(r).logit_bias = (0..1025).map(|i| (i, 0.0)).collect(), "logit_bias", Reason::TooLarge),
        (
            |r| r.limits = Some(worker::Limits { min_tokens: 9, ..limits() }),
            "min_tokens",
            Reason::InvalidField,
        ),
        (|r| r.logprobs = Some(21), "logprobs", Reason::InvalidField),
        (|r| r.prediction = vec![0; MAX_PREDICTION + 1], "prediction", Reason::TooLarge),
        (|r| r.cache_salt = "x".repeat(257), "cache_salt", Reason::InvalidField),
        (|r| r.constraint = Some(Placing::Regex(String::new())), "regex", Reason::InvalidField),
        (|r| draft(r).strategy = 99, "speculation.strategy", Reason::InvalidField),
        (|r| draft(r).strategy = 4, "speculation.lockstep", Reason::InvalidField),
        (|r| draft(r).lockstep = Some(v1::Lockstep::default()), "speculation.lockstep", Reason::InvalidField),
        (
            |r| {
                draft(r).strategy = 4;
                draft(r).lockstep = Some(v1::Lockstep { k: 0, deadline_us: 1 });
            },
            "speculation.lockstep.k",
            Reason::InvalidField,
        ),
        (
            |r| {
                draft(r).strategy = 4;
                draft(r).lockstep = Some(v1::Lockstep { k: 4, deadline_us: 0 });
            },
            "speculation.lockstep.deadline",
            Reason::InvalidField,
        ),
        (|r| draft(r).max_draft = Some(65), "speculation.max_draft", Reason::InvalidField),
        (|r| draft(r).rule = -1, "speculation.rule", Reason::InvalidField),
        (|r| r.drafters = vec![candidate(); MAX_DRAFTERS + 1], "drafters", Reason::TooLarge),
        (
            |r| r.drafters = vec![worker::DrafterCandidate { node_id: "a b".into(), ..candidate() }],
            "node_id",
            Reason::InvalidField,
        ),
        (
            |r| r.drafters = vec![worker::DrafterCandidate { endpoint: "d:1".into(), ..candidate() }],
            "endpoint",
            Reason::InvalidField,
        ),
        (
            |r| r.drafters = vec![worker::DrafterCandidate { incarnation: 0, ..candidate() }],
            "drafters.incarnation",
            Reason::InvalidField,
        ),
    ];
    for (broken, field, reason) in table {
        let mut request = good();
        broken(&mut request);
        let error = Placed::try_from(request).unwrap_err();
        assert_eq!((error.field, error.reason), (*field, *reason), "{error}");
    }
    let mut request = good();
    draft(&mut request).rule = v1::Rule::Greedy.into();
    let error = Placed::try_from(request).unwrap_err();
    assert_eq!(error.field, "speculation.rule", "greedy is for temperature 0: {error}");
}

fn limits() -> worker::Limits {
    worker::Limits { max_tokens: 8, stop_ids: vec![2], min_tokens: 0 }
}

fn sample(request: &mut worker::GenerateRequest) -> &mut v1::SamplingParams {
    request.sampling.get_or_insert_default()
}

fn draft(request: &mut worker::GenerateRequest) -> &mut v1::Speculation {
    request.speculation.get_or_insert_default()
}

fn candidate() -> worker::DrafterCandidate {
    worker::DrafterCandidate { node_id: "d".into(), endpoint: "http://d:1".into(), incarnation: 1 }
}

#[test]
fn the_largest_request_passes_the_decoder() {
    let mut request = good();
    request.prompt = vec![u32::MAX; MAX_KNOWN_TOKENS];
    assert!(request.encoded_len() <= MAX_REQUEST_BYTES);
    assert!(Placed::try_from(request).is_ok());
}

#[test]
fn public_requests_are_refused_by_field() {
    use v1::generate_request::{Constraint, Prompt};

    type Break = fn(&mut v1::GenerateRequest);
    let good = v1::GenerateRequest {
        model: "m".into(),
        prompt: Some(Prompt::Text("hi".into())),
        ..Default::default()
    };
    let asked = Asked::try_from(good.clone()).unwrap();
    assert_eq!((asked.id, asked.seed, asked.max_tokens), (None, None, None));

    let table: &[(Break, &str, Reason)] = &[
        (|r| r.model.clear(), "model", Reason::InvalidField),
        (|r| r.request_id = "a b".into(), "request_id", Reason::InvalidField),
        (|r| r.prompt = None, "prompt", Reason::InvalidField),
        (|r| r.prompt = Some(Prompt::Text(String::new())), "text", Reason::InvalidField),
        (|r| r.prompt = Some(Prompt::Text("x".repeat(MAX_TEXT_BYTES + 1))), "text", Reason::TooLarge),
        (|r| r.prompt = Some(Prompt::Tokens(v1::TokenPrompt::default())), "tokens", Reason::InvalidField),
        (|r| r.prompt = Some(chat(0, 0)), "chat.messages", Reason::InvalidField),
        (|r| r.prompt = Some(chat(MAX_CHAT_MESSAGES + 1, 1)), "chat.messages", Reason::TooLarge),
        (|r| r.prompt = Some(chat(1, 0)), "chat.messages.role", Reason::InvalidField),
        (|r| r.prompt = Some(chat(1, 77)), "chat.messages.role", Reason::InvalidField),
        (|r| r.max_tokens = Some(0), "max_tokens", Reason::InvalidField),
        (|r| r.n = Some(0), "n", Reason::InvalidField),
        (|r| r.n = Some(129), "n", Reason::InvalidField),
        (|r| r.cache_salt = "s".repeat(257), "cache_salt", Reason::TooLarge),
        (|r| r.stop = vec![String::new()], "stop", Reason::InvalidField),
        (|r| r.stop = vec!["x".into(); 17], "stop", Reason::TooLarge),
        (|r| r.stop = vec!["x".repeat(1025)], "stop", Reason::TooLarge),
        (|r| r.stop_token_ids = vec![1; 49], "stop_token_ids", Reason::TooLarge),
        (|r| r.top_logprobs = Some(21), "top_logprobs", Reason::InvalidField),
        (|r| r.constraint = Some(Constraint::JsonSchema(String::new())), "json_schema", Reason::InvalidField),
        (|r| r.constraint = Some(Constraint::Grammar("a".repeat(300_000))), "grammar", Reason::InvalidField),
    ];
    for (broken, field, reason) in table {
        let mut request = good.clone();
        broken(&mut request);
        let error = Asked::try_from(request).unwrap_err();
        assert_eq!((error.field, error.reason), (*field, *reason), "{error}");
    }
}

fn chat(messages: usize, role: i32) -> v1::generate_request::Prompt {
    let message = v1::ChatMessage { role, content: "hi".into() };
    v1::generate_request::Prompt::Chat(v1::ChatPrompt { messages: vec![message; messages] })
}

#[test]
fn answers_are_refused_by_field() {
    use worker::generate_response::Event;

    let run = |ids: usize, drafted: usize| {
        Event::Tokens(worker::Tokens {
            index: 0,
            ids: vec![1; ids],
            drafted: vec![true; drafted],
            ..worker::Tokens::default()
        })
    };
    for (event, field) in [
        (None, "event"),
        (Some(Event::Accepted(worker::Accepted::default())), "accepted.incarnation"),
        (Some(run(0, 0)), "tokens.ids"),
        (Some(run(MAX_CHUNK_TOKENS + 1, 0)), "tokens.ids"),
        (Some(run(3, 2)), "tokens.drafted"),
        (Some(Event::Finish(worker::Finish::default())), "finish.reason"),
        (Some(Event::Finish(worker::Finish { reason: 1, usage: None, speculation: None })), "finish.usage"),
    ] {
        assert_eq!(Answer::try_from(worker::GenerateResponse { event }).unwrap_err().field, field);
    }
}

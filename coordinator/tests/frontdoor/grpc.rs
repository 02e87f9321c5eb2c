//! `paceline.v1.Inference`: the same answers over gRPC.

use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::reason::{Reason, parse};
use proto::v1;
use proto::v1::generate_request::Prompt;
use proto::v1::generate_response::Event;
use proto::v1::inference_client::InferenceClient;
use request::{Constraint, Finish, TokenId};
use tonic::transport::Channel;
use tonic::{IntoRequest, Request, Status};

use crate::cluster::{Act, Front, TEXT, front, logprobs_at, output};
use crate::model_file::tokens;

pub(crate) async fn client(front: &Front) -> InferenceClient<Channel> {
    InferenceClient::connect(format!("http://{}", front.grpc)).await.unwrap()
}

pub(crate) fn chat() -> v1::GenerateRequest {
    let message = v1::ChatMessage { role: v1::ChatRole::User.into(), content: "hi".into() };
    v1::GenerateRequest {
        request_id: "r-1".into(),
        model: "bytes".into(),
        prompt: Some(Prompt::Chat(v1::ChatPrompt { messages: vec![message] })),
        seed: Some(7),
        max_tokens: Some(100),
        ..v1::GenerateRequest::default()
    }
}

pub(crate) async fn events(
    front: &Front,
    request: impl IntoRequest<v1::GenerateRequest>,
) -> Result<Vec<Event>, Status> {
    let mut stream = client(front).await.generate(request.into_request()).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.unwrap());
    }
    Ok(events)
}

pub(crate) fn text(events: &[Event]) -> String {
    events
        .iter()
        .filter_map(|e| if let Event::Tokens(t) = e { Some(t.text.as_str()) } else { None })
        .collect()
}

#[tokio::test]
async fn an_answer_has_accepted_tokens_and_finish() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::EndAt(5)]).await;
    let events = events(&front, chat()).await.unwrap();
    let accepted = v1::Accepted { request_id: "r-1".into(), seed: 7, fingerprint: "fp_1".into() };
    assert_eq!(events[0], Event::Accepted(accepted));
    assert_eq!(text(&events), TEXT);
    let mut next = 0;
    for event in &events {
        if let Event::Tokens(run) = event {
            assert_eq!(run.index, next);
            next += u32::try_from(run.ids.len()).unwrap();
            assert!(run.drafted.is_empty() || run.drafted.len() == run.ids.len());
        }
    }
    assert_eq!(next as usize, TEXT.len() + 1);
    let Some(Event::Finish(finish)) = events.last() else { panic!("{events:?}") };
    assert_eq!(finish.reason(), v1::FinishReason::Stop);
    assert_eq!(finish.usage.unwrap().completion_tokens as usize, TEXT.len() + 1);
    assert_eq!(worker.seen().len(), 2, "it was replayed on the way");
}

#[tokio::test]
async fn a_client_goes_on_from_what_it_has() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    // In the middle of "ü": its first byte is committed, so the client has only "Gr".
    let committed: Vec<u32> = tokens(TEXT)[..3].iter().map(|t| t.0).collect();
    let request = v1::GenerateRequest { committed, attempt: 1, ..chat() };
    let events = events(&front, request).await.unwrap();
    assert_eq!(format!("Gr{}", text(&events)), TEXT);
    assert_eq!(worker.seen()[0].request.attempt, 1);
}

#[tokio::test]
async fn what_was_all_delivered_only_ends() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let whole: Vec<u32> = output().iter().map(|t| t.0).collect();
    for (committed, max_tokens, reason) in
        [(whole.clone(), 100, v1::FinishReason::Stop), (whole[..4].to_vec(), 4, v1::FinishReason::Length)]
    {
        let have = committed.len();
        let request = v1::GenerateRequest { committed, attempt: 1, max_tokens: Some(max_tokens), ..chat() };
        let events = events(&front, request).await.unwrap();
        let [Event::Accepted(_), Event::Finish(finish)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((finish.reason(), finish.usage.unwrap().completion_tokens as usize), (reason, have));
    }
}

#[tokio::test]
async fn nothing_is_crossed_before_the_first_token() {
    let front = front(|_| {}).await;
    let first = front.worker("w-a", [Act::HangThenDie(0)]).await;
    let (events, _second) = tokio::join!(events(&front, chat()), async {
        while first.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let second = front.worker_with("w-b", |r| r.fingerprint = "fp_2".into(), []).await;
        first.release();
        second
    });
    let events = events.unwrap();
    let accepted: Vec<&str> = events
        .iter()
        .filter_map(|e| if let Event::Accepted(a) = e { Some(a.fingerprint.as_str()) } else { None })
        .collect();
    assert_eq!((accepted.as_slice(), text(&events).as_str()), (&["fp_2"][..], TEXT));
}

#[tokio::test]
async fn prompts_of_text_and_tokens() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let ids = tokens("abc").iter().map(|t| t.0).collect();
    for prompt in [Prompt::Text("abc".into()), Prompt::Tokens(v1::TokenPrompt { ids })] {
        events(&front, v1::GenerateRequest { prompt: Some(prompt), ..chat() }).await.unwrap();
    }
    assert!(worker.seen().iter().all(|p| p.request.prompt == tokens("abc")));
}

#[tokio::test]
async fn failures_carry_their_reason_and_field() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let unknown = v1::TokenPrompt { ids: vec![1, 999] };
    for (request, reason, field) in [
        (v1::GenerateRequest { model: "none".into(), ..chat() }, Reason::ModelNotFound, "model"),
        (v1::GenerateRequest { prompt: None, ..chat() }, Reason::InvalidField, "prompt"),
        (
            v1::GenerateRequest { prompt: Some(Prompt::Tokens(unknown)), ..chat() },
            Reason::InvalidField,
            "prompt[1]",
        ),
        (v1::GenerateRequest { committed: vec![999], ..chat() }, Reason::InvalidField, "committed[0]"),
        (
            v1::GenerateRequest { max_tokens: Some(5000), ..chat() },
            Reason::ContextLengthExceeded,
            "max_tokens",
        ),
        (v1::GenerateRequest { n: Some(129), ..chat() }, Reason::InvalidField, "n"),
        (v1::GenerateRequest { n: Some(2), committed: vec![1], ..chat() }, Reason::InvalidField, "committed"),
        (v1::GenerateRequest { stop: vec![String::new()], ..chat() }, Reason::InvalidField, "stop"),
        (
            v1::GenerateRequest { stop_token_ids: vec![999], ..chat() },
            Reason::InvalidField,
            "stop_token_ids[0]",
        ),
        (v1::GenerateRequest { min_tokens: 101, ..chat() }, Reason::InvalidField, "min_tokens"),
        (
            v1::GenerateRequest {
                sampling: Some(v1::SamplingParams {
                    logit_bias: [(999, 1.0)].into(),
                    ..v1::SamplingParams::default()
                }),
                ..chat()
            },
            Reason::InvalidField,
            "logit_bias",
        ),
    ] {
        let status = events(&front, request).await.unwrap_err();
        assert_eq!(status.metadata().get("x-request-id").unwrap(), "r-1");
        let failure = parse(&status);
        assert_eq!((failure.reason, failure.field.as_deref()), (reason, Some(field)), "{failure}");
    }
}

#[tokio::test]
async fn the_callers_deadline_is_kept_in_mid_answer() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::HangAt(4)]).await;
    let mut request = Request::new(chat());
    request.set_timeout(Duration::from_millis(300));
    let status = events(&front, request).await.unwrap_err();
    assert_eq!(parse(&status).reason, Reason::Deadline);
    worker.until_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let front = front(|_| {}).await;
    let worker = front.worker_with("w0", |r| r.context = 2_000_000, [Act::Forever]).await;
    let endless = v1::GenerateRequest { max_tokens: Some(1_000_000), ..chat() };
    let stream = client(&front).await.generate(endless).await.unwrap();
    drop(stream);
    worker.until_idle().await;
    assert!(worker.shared.sent.load(Ordering::SeqCst) < 1_000_000);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up_alone() {
    let front = front(|c| c.slow_client_timeout = Duration::from_millis(300)).await;
    let worker = front.worker_with("w0", |r| r.context = 2_000_000, [Act::Forever]).await;
    let endless = v1::GenerateRequest { max_tokens: Some(1_000_000), ..chat() };
    let mut client = client(&front).await;
    let mut stalled = client.generate(endless).await.unwrap().into_inner();
    while worker.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // On the same connection, while the other stream is not read.
    let mut other = client.generate(chat()).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(message) = other.message().await.unwrap() {
        events.push(message.event.unwrap());
    }
    assert_eq!(text(&events), TEXT);
    worker.until_idle().await;
    let status = loop {
        match stalled.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without saying why"),
            Err(status) => break status,
        }
    };
    assert_eq!(parse(&status).reason, Reason::SlowClient);
}

#[tokio::test]
async fn models_are_listed_with_who_serves_them() {
    let front = front(|_| {}).await;
    let _worker = front.worker("w0", []).await;
    let models =
        client(&front).await.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    let expected = v1::Model {
        name: "bytes".into(),
        aliases: vec!["org/alias".into()],
        context: 512,
        ready_workers: 1,
        ready_drafters: 0,
        fingerprints: vec!["fp_1".into()],
    };
    assert_eq!(models, [expected]);
}

#[tokio::test]
async fn everything_asked_for_reaches_the_worker() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", []).await;
    let guess = v1::prediction::Content::Text("Grü<|im_end|>".into());
    let request = v1::GenerateRequest {
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.5),
            typical_p: Some(0.9),
            presence_penalty: Some(1.0),
            frequency_penalty: Some(-1.0),
            repetition_penalty: Some(1.5),
            logit_bias: [(65, 2.0)].into(),
            ..v1::SamplingParams::default()
        }),
        constraint: Some(v1::generate_request::Constraint::Regex("[a-z]+".into())),
        priority: -3,
        cache_salt: "tenant".into(),
        top_logprobs: Some(2),
        min_tokens: 4,
        stop_token_ids: vec![b'!'.into()],
        prediction: Some(v1::Prediction { content: Some(guess) }),
        ..chat()
    };
    let events = events(&front, request).await.unwrap();
    let placed = &worker.seen()[0].request;
    assert_eq!((placed.sampling.params.temperature, placed.sampling.params.typical_p), (0.5, 0.9));
    let penalties = placed.adjust.penalties;
    assert_eq!((penalties.presence, penalties.frequency, penalties.repetition), (1.0, -1.0, 1.5));
    assert_eq!(placed.adjust.logit_bias, [(TokenId(65), 2.0)]);
    assert_eq!(placed.constraint, Some(Constraint::Regex("[a-z]+".into())));
    assert_eq!((placed.priority, placed.cache_salt.as_str()), (-3, "tenant"));
    assert_eq!((placed.logprobs, placed.limits.min_tokens), (Some(2), 4));
    assert!(placed.limits.stop_ids.contains(&TokenId(b'!'.into())));
    // What a caller guesses spells no control token.
    assert_eq!(placed.prediction, tokens("Grü<|im_end|>"));
    let Some(Event::Finish(finish)) = events.last() else { panic!("{events:?}") };
    assert_eq!(finish.stopped_by, Some(v1::finish::StoppedBy::StopTokenId(b'!'.into())));
    let usage = finish.usage.unwrap();
    assert_eq!((usage.cached_tokens, usage.accepted_prediction_tokens), (3, 1));
    assert_eq!(text(&events), "Grüße, 世界");
}

#[tokio::test]
async fn log_probabilities_go_on_over_a_replay() {
    let front = front(|_| {}).await;
    let worker = front.worker("w0", [Act::EndAt(5)]).await;
    let events = events(&front, v1::GenerateRequest { top_logprobs: Some(2), ..chat() }).await.unwrap();
    assert_eq!(worker.seen().len(), 2);
    let said: Vec<v1::TokenLogprob> = events
        .iter()
        .filter_map(|e| if let Event::Tokens(t) = e { Some(t.logprobs.clone()) } else { None })
        .flatten()
        .collect();
    let expected: Vec<v1::TokenLogprob> =
        output().iter().enumerate().map(|(i, id)| logprobs_at(i, *id, 2).into()).collect();
    assert_eq!(said, expected);
}

#[tokio::test]
async fn the_gate_is_before_the_message() {
    let front = front(|c| c.max_in_flight = 1).await;
    let worker = front.worker("w0", [Act::HangAt(4)]).await;
    let running = client(&front).await.generate(chat()).await.unwrap();
    // A call whose message never comes: only what is before the message can answer it.
    let channel = Channel::from_shared(format!("http://{}", front.grpc)).unwrap().connect().await.unwrap();
    let call = async |channel: Channel| {
        let mut call = tonic::client::Grpc::new(channel);
        call.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::GenerateRequest, v1::GenerateResponse>::default();
        let path = "/paceline.v1.Inference/Generate".parse().unwrap();
        let never = Request::new(futures::stream::pending());
        let answer = call.streaming(never, path, codec).await;
        answer.map(|_| ())
    };
    let refused = call(channel).await.unwrap_err();
    assert_eq!(parse(&refused).reason, Reason::Overloaded);
    assert!(refused.metadata().contains_key("x-request-id"));
    drop(running);
    worker.until_idle().await;
    events(&front, chat()).await.unwrap();
}

#[tokio::test]
async fn the_worker_is_told_what_is_left_of_the_callers_time() {
    let front = front(|c| c.request_timeout = Duration::from_secs(100)).await;
    let worker = front.worker("w0", []).await;
    let mut short = Request::new(chat());
    short.set_timeout(Duration::from_secs(5));
    events(&front, short).await.unwrap();
    events(&front, chat()).await.unwrap();
    let timeouts = worker.shared.timeouts.lock().unwrap().clone();
    let seconds = timeouts.iter().map(|t| {
        let (digits, unit) = t.split_at(t.len() - 1);
        let scale = match unit {
            "S" => 1.0,
            "m" => 1e3,
            "u" => 1e6,
            "n" => 1e9,
            _ => panic!("{t}"),
        };
        digits.parse::<f64>().unwrap() / scale
    });
    let seconds: Vec<f64> = seconds.collect();
    assert!(seconds[0] > 1.0 && seconds[0] <= 5.01, "{seconds:?}");
    assert!(seconds[1] > 90.0 && seconds[1] <= 100.01, "{seconds:?}");
}

#[tokio::test]
async fn the_workers_own_deadline_is_the_callers() {
    for at in [0, 4] {
        let front = front(|_| {}).await;
        let worker = front.worker("w0", [Act::FinishAt(at, Finish::Deadline, 0)]).await;
        let status = events(&front, chat()).await.unwrap_err();
        assert_eq!(parse(&status).reason, Reason::Deadline);
        assert_eq!(worker.seen().len(), 1, "it is over everywhere");
    }
}

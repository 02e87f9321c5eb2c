//! What a worker does not take: by which reason, and whose field is at fault.

use proto::reason::{Reason, parse};
use proto::v1;
use proto::worker::generate_request::Constraint;
use proto::worker::{DrafterCandidate, GenerateRequest, Limits};

use super::nodes::{CONTEXT, Target, Toy, VOCAB};
use super::question::{Question, send};

type Spoil = fn(&mut GenerateRequest);

fn sampling(request: &mut GenerateRequest) -> &mut v1::SamplingParams {
    request.sampling.get_or_insert_default()
}

fn limits(request: &mut GenerateRequest) -> &mut Limits {
    request.limits.get_or_insert_default()
}

fn speculation(request: &mut GenerateRequest) -> &mut v1::Speculation {
    request.speculation.get_or_insert_default()
}

fn candidate(endpoint: &str) -> DrafterCandidate {
    DrafterCandidate { node_id: "drafter".into(), endpoint: endpoint.into(), incarnation: 1 }
}

#[rustfmt::skip]
const CASES: &[(&str, Spoil, Reason, &str)] = {
    use Reason::{ContextLengthExceeded, InvalidField, ModelNotFound, NotBuilt, TooLarge};
    &[
        ("no name", |r| r.request_id.clear(), InvalidField, "request_id"),
        ("a name with a space", |r| r.request_id = "a b".into(), InvalidField, "request_id"),
        ("no model", |r| r.model.clear(), InvalidField, "model"),
        ("another model", |r| r.model = "other".into(), ModelNotFound, "model"),
        ("an empty prompt", |r| r.prompt.clear(), InvalidField, "prompt"),
        ("a token outside the vocabulary", |r| r.prompt[1] = VOCAB, InvalidField, "prompt"),
        ("the largest token id", |r| r.prompt[0] = u32::MAX, InvalidField, "prompt"),
        ("a delivered token outside it", |r| r.committed = vec![VOCAB], InvalidField, "prompt"),
        ("more is delivered than asked for", |r| r.committed = vec![1; 21], InvalidField, "committed"),
        ("a prompt as long as the context",
            |r| r.prompt = vec![1; CONTEXT as usize], ContextLengthExceeded, "max_tokens"),
        ("more output than the context holds",
            |r| limits(r).max_tokens = CONTEXT, ContextLengthExceeded, "max_tokens"),
        ("the most output", |r| limits(r).max_tokens = u32::MAX, ContextLengthExceeded, "max_tokens"),
        ("more tokens than a request may have", |r| r.prompt = vec![1; (1 << 20) + 1], TooLarge, "prompt"),
        ("no limits", |r| r.limits = None, InvalidField, "limits"),
        ("no output", |r| limits(r).max_tokens = 0, InvalidField, "max_tokens"),
        ("too many stop tokens", |r| limits(r).stop_ids = vec![1; 65], TooLarge, "stop_ids"),
        ("a temperature that is no number",
            |r| sampling(r).temperature = Some(f32::NAN), InvalidField, "temperature"),
        ("a negative temperature", |r| sampling(r).temperature = Some(-0.5), InvalidField, "temperature"),
        ("no probability", |r| sampling(r).top_p = Some(0.0), InvalidField, "top_p"),
        ("an infinite share", |r| sampling(r).min_p = Some(f32::INFINITY), InvalidField, "min_p"),
        ("a penalty out of range",
            |r| sampling(r).presence_penalty = Some(2.5), InvalidField, "presence_penalty"),
        ("a repetition that is no number",
            |r| sampling(r).repetition_penalty = Some(f32::NAN), InvalidField, "repetition_penalty"),
        ("a bias out of range", |r| { sampling(r).logit_bias.insert(3, 101.0); }, InvalidField, "logit_bias"),
        ("a bias of no token", |r| { sampling(r).logit_bias.insert(VOCAB, 1.0); }, InvalidField, "logit_bias"),
        ("a typical set of nothing", |r| sampling(r).typical_p = Some(0.0), InvalidField, "typical_p"),
        ("no end before the end", |r| limits(r).min_tokens = 21, InvalidField, "min_tokens"),
        ("too many alternatives", |r| r.logprobs = Some(21), InvalidField, "logprobs"),
        ("a salt like a book", |r| r.cache_salt = "x".repeat(257), InvalidField, "cache_salt"),
        ("a form without a grammar's compiler",
            |r| r.constraint = Some(Constraint::Regex("a+".into())), NotBuilt, "regex"),
        ("an empty form", |r| r.constraint = Some(Constraint::Regex(String::new())), InvalidField, "regex"),
        ("a lossy strategy for an exact answer",
            |r| speculation(r).strategy = v1::Strategy::Rapid.into(), InvalidField, "speculation.strategy"),
        ("a pull out of range", |r| {
            r.quality = v1::Quality::Approximate.into();
            speculation(r).strategy = v1::Strategy::Rapid.into();
            speculation(r).rapid = Some(v1::Rapid { eta: Some(f32::NAN), ..Default::default() });
        }, InvalidField, "speculation.rapid.eta"),
        ("a pull without its strategy",
            |r| speculation(r).rapid = Some(v1::Rapid::default()), InvalidField, "speculation.rapid"),
        ("a quality of the future", |r| r.quality = 99, InvalidField, "quality"),
        ("a strategy of the future", |r| speculation(r).strategy = 99, InvalidField, "speculation.strategy"),
        ("lockstep without its numbers",
            |r| speculation(r).strategy = v1::Strategy::Lockstep.into(), InvalidField, "speculation.lockstep"),
        ("too many drafts a step",
            |r| speculation(r).max_draft = Some(65), InvalidField, "speculation.max_draft"),
        ("greedy drafts of what is sampled", |r| {
            sampling(r).temperature = Some(1.0);
            speculation(r).rule = v1::Rule::Greedy.into();
        }, InvalidField, "speculation.rule"),
        ("a rule of the future", |r| speculation(r).rule = 99, InvalidField, "speculation.rule"),
        ("too many drafters",
            |r| r.drafters = vec![candidate("http://127.0.0.1:1"); 17], TooLarge, "drafters"),
        ("a drafter without a port",
            |r| r.drafters = vec![candidate("http://127.0.0.1")], InvalidField, "endpoint"),
        ("a drafter behind TLS",
            |r| r.drafters = vec![candidate("https://127.0.0.1:1")], InvalidField, "endpoint"),
    ]
};

#[tokio::test]
async fn a_malformed_request_is_refused_by_reason_and_field() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let mut bystander = Question::numbered(3, 2000).ask(&worker).await;
    bystander.on(1).await;
    for (name, spoil, reason, field) in CASES {
        let mut request = Question::new(&[1, 2, 3], 20).wire();
        spoil(&mut request);
        let status = send(&worker, request).await.map(|_| ()).expect_err(name);
        let failure = parse(&status);
        assert_eq!(
            (failure.reason, failure.field.as_deref(), status.code()),
            (*reason, Some(*field), reason.grpc()),
            "{name}: {status:?}"
        );
        assert!(failure.message.len() > 10 && failure.retry_after.is_none(), "{name}: {failure:?}");
    }
    worker.hurry();
    bystander.right().await;
    worker.is_well().await;
}

/// A lossy mode is never switched on silently; who accepts one is served by either.
#[tokio::test]
async fn a_worker_with_a_head_map_takes_only_who_accepts_it() {
    let approximate = Target::of_quality("w-approximate", request::Quality::Approximate).await;
    let exact = Target::start("w-exact", Toy::TARGET).await;
    let mut request = Question::new(&[1, 2, 3], 20).wire();
    for quality in [v1::Quality::Unspecified, v1::Quality::Exact] {
        request.quality = quality.into();
        let status = send(&approximate, request.clone()).await.map(|_| ()).unwrap_err();
        let failure = parse(&status);
        assert_eq!((failure.reason, failure.field.as_deref()), (Reason::ApproximateOnly, Some("quality")));
        assert!(failure.message.contains("rank.head_map"), "{failure}");
        send(&exact, request.clone()).await.unwrap();
    }
    request.quality = v1::Quality::Approximate.into();
    send(&approximate, request.clone()).await.unwrap();
    send(&exact, request).await.unwrap();
    approximate.empty().await;
    exact.is_well().await;
}

#[tokio::test]
async fn a_message_above_the_byte_limit_is_refused_before_it_is_read() {
    let worker = Target::start("worker", Toy::TARGET).await;
    let mut request = Question::new(&[1, 2, 3], 20).wire();
    request.prompt = vec![u32::MAX; 2 << 20];
    let status = send(&worker, request).await.map(|_| ()).unwrap_err();
    assert_eq!(parse(&status).reason, Reason::TooLarge, "{status:?}");
    worker.is_well().await;
}

mod refusals;

use std::cell::Cell;
use std::time::Duration;

use ::cluster::{
    Duty, Endpoint, Incarnation, Load, NodeId, NodeRecord, NodeState, NodeUpdate, Role, VocabHash,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost::Message;
use request::{
    Adjustments, Constraint, Finish, Limits, Penalties, Quality, Request, RequestId, Rule, Sampling,
    SamplingParams, SourceStats, Speculation, SpeculationStats, Strategy as Drafting, TokenLogprobs, Usage,
};

use super::*;
use crate::bounds::*;
use crate::{cluster as wire, v1, worker};

/// Through the bytes, as another process sees it.
pub(crate) fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

pub(crate) fn ids(most: usize) -> impl Strategy<Value = Vec<TokenId>> {
    vec(any::<u32>().prop_map(TokenId), 0..=most)
}

pub(crate) fn sampling() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![Just(0.0f32), 0.01f32..=2.0];
    let filters = (any::<u32>(), 0.001f32..=1.0, 0.0f32..=1.0, 0.001f32..=1.0);
    (temperature, filters, any::<u64>(), any::<u32>()).prop_map(
        |(temperature, (top_k, top_p, min_p, typical_p), seed, choice)| Sampling {
            params: SamplingParams { temperature, top_k, top_p, min_p, typical_p },
            seed,
            choice,
        },
    )
}

pub(crate) fn adjust() -> impl Strategy<Value = Adjustments> {
    let bias = prop::collection::btree_map(any::<u32>(), -100f32..=100.0, 0..5);
    (0.1f32..=10.0, -2f32..=2.0, -2f32..=2.0, bias).prop_map(|(repetition, presence, frequency, bias)| {
        Adjustments {
            logit_bias: bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect(),
            penalties: Penalties { repetition, presence, frequency },
        }
    })
}

pub(crate) fn constraint() -> impl Strategy<Value = Option<Constraint>> {
    let source = || "\\PC{1,40}".prop_map(String::from);
    prop_oneof![
        Just(None),
        Just(Some(Constraint::JsonObject)),
        source().prop_map(|s| Some(Constraint::JsonSchema(s))),
        source().prop_map(|s| Some(Constraint::Regex(s))),
        source().prop_map(|s| Some(Constraint::Grammar(s))),
    ]
}

fn speculation() -> impl Strategy<Value = Speculation> {
    let lockstep = (1u32..=64, 1u64..=10_000_000)
        .prop_map(|(k, us)| Drafting::Lockstep { k, deadline: Duration::from_micros(us) });
    let plain = prop::sample::select(vec![
        Drafting::Auto,
        Drafting::None,
        Drafting::Draft,
        Drafting::Ngram,
        Drafting::Suffix,
        Drafting::Recycle,
        Drafting::Del(request::Del { fixed: None }),
        Drafting::Del(request::Del { fixed: Some((3, 4)) }),
        Drafting::Window(request::Window { sink: 0, recent: 9, k: None }),
        Drafting::Window(request::Window { k: Some(3), ..Default::default() }),
    ]);
    let rapid =
        (1u32..=64, 1u64..=10_000_000, 0f32..100.0, 0f32..1.0, (0u32..99, 1u32..99, 8u32..99, 8u32..99));
    let rapid = rapid.prop_map(|(k, us, eta, plausible, (head, question, chunk, budget))| {
        let retrieval = request::Retrieval { head, question, chunk, budget, threshold: plausible };
        let deadline = Duration::from_micros(us);
        Drafting::Rapid(request::Rapid { k, deadline, eta, plausible, retrieval })
    });
    let strategy = prop_oneof![4 => plain, 1 => lockstep, 1 => rapid];
    (strategy, prop::option::of(1u32..=64)).prop_map(|(strategy, max_draft)| Speculation {
        strategy,
        rule: Rule::Coupled,
        max_draft,
    })
}

pub(crate) fn node_id() -> impl Strategy<Value = NodeId> {
    "[a-zA-Z0-9._-]{1,20}".prop_map(|id| NodeId::new(&id).unwrap())
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (1u16..).prop_map(|port| Endpoint::new(&format!("http://worker-0.workers:{port}")).unwrap())
}

fn incarnations() -> impl Strategy<Value = Incarnation> {
    (1u64..).prop_map(Incarnation)
}

fn placed() -> impl Strategy<Value = Placed> {
    let candidate = || {
        (node_id(), endpoint(), incarnations()).prop_map(|(id, endpoint, incarnation)| Candidate {
            id,
            endpoint,
            incarnation,
        })
    };
    let request = (
        ("[!-~]{1,128}", any::<u32>()),
        (ids(50), any::<u32>(), ids(20)),
        sampling(),
        (any::<u32>(), any::<prop::sample::Index>(), ids(MAX_STOP_IDS)),
        speculation(),
        (adjust(), constraint(), prop::option::of(0u8..=20)),
        (ids(20), any::<i32>(), "[!-~]{0,20}"),
    )
        .prop_map(
            |((id, attempt), (mut prompt, first, committed), sampling, limits, speculation, shape, place)| {
                prompt.push(TokenId(first));
                let lossy = speculation.strategy.rapid().is_some();
                let quality = if lossy { Quality::Approximate } else { Quality::Exact };
                let max_tokens = limits.0.max(committed.len() as u32 + 1);
                Request {
                    id: RequestId::new(&id).unwrap(),
                    attempt,
                    prompt,
                    limits: Limits {
                        max_tokens,
                        min_tokens: limits.1.index(max_tokens as usize) as u32,
                        stop_ids: limits.2,
                    },
                    committed,
                    sampling,
                    quality,
                    speculation,
                    adjust: shape.0,
                    constraint: shape.1,
                    logprobs: shape.2,
                    prediction: place.0,
                    priority: place.1,
                    cache_salt: place.2,
                }
            },
        );
    ("[!-~]{1,256}", request, vec(candidate(), 0..=MAX_DRAFTERS), prop::option::of(candidate()))
        .prop_map(|(model, request, drafters, prefill)| Placed { model, request, drafters, prefill })
}

fn answer() -> impl Strategy<Value = Answer> {
    let accepted = (incarnations(), "[!-~]{1,128}", prop::option::of(node_id())).prop_map(
        |(incarnation, fingerprint, drafter)| Answer::Accepted { incarnation, fingerprint, drafter },
    );
    let top = vec((any::<u32>().prop_map(TokenId), -50f32..0.0), 0..3);
    let logprobs = (-50f32..0.0, top).prop_map(|(logprob, top)| TokenLogprobs { logprob, top });
    let tokens =
        (any::<u32>(), vec((any::<u32>(), any::<bool>(), logprobs), 1..80), any::<(bool, u32, bool, u32)>())
            .prop_map(|(index, run, (reported, verified, predicted, cached_tokens))| Answer::Tokens {
                index,
                ids: run.iter().map(|(id, ..)| TokenId(*id)).collect(),
                drafted: run.iter().map(|(_, drafted, _)| *drafted).collect(),
                logprobs: if reported { run.into_iter().map(|(.., l)| l).collect() } else { Vec::new() },
                verified,
                predicted,
                cached_tokens,
            });
    let source = any::<[u64; 3]>().prop_map(|[drafts, draft_tokens, accepted_tokens]| SourceStats {
        drafts,
        draft_tokens,
        accepted_tokens,
    });
    let source = prop_oneof![source, Just(SourceStats::default())];
    let sources = prop::array::uniform7(source);
    let stats = (any::<[u64; 6]>(), vec(any::<u64>(), 0..=MAX_DRAFT_TOKENS + 1), sources).prop_map(
        |(
            [drafts, draft_tokens, accepted_tokens, plain_steps, dropped_tokens, augmented_tokens],
            histogram,
            sources,
        )| {
            SpeculationStats {
                augmented_tokens,
                drafts,
                draft_tokens,
                accepted_tokens,
                histogram,
                plain_steps,
                dropped_tokens,
                sources,
            }
        },
    );
    let end = (prop::sample::select(FINISHES.to_vec()), any::<[u32; 5]>(), stats).prop_map(
        |(finish, counts, speculation)| Answer::Finish {
            finish,
            usage: Usage {
                prompt_tokens: counts[0],
                completion_tokens: counts[1],
                cached_tokens: counts[2],
                accepted_prediction_tokens: counts[3],
                rejected_prediction_tokens: counts[4],
            },
            speculation,
        },
    );
    prop_oneof![accepted, tokens, end]
}

const FINISHES: [Finish; 6] =
    [Finish::Stop, Finish::Length, Finish::Cancelled, Finish::SlowClient, Finish::Deadline, Finish::Failed];

fn update() -> impl Strategy<Value = NodeUpdate> {
    let state = || prop::sample::select(vec![NodeState::Ready, NodeState::Draining]);
    let load = || {
        any::<[u32; 7]>().prop_map(
            |[running, waiting, free_slots, free_pages, us, prefill_rate, handed_rate]| Load {
                running,
                waiting,
                free_slots,
                free_pages,
                step_time: Duration::from_micros(us.into()),
                prefill_rate,
                handed_rate,
            },
        )
    };
    let record = (
        (node_id(), incarnations(), prop::sample::select(vec![Role::Worker, Role::Drafter]), endpoint()),
        ("[!-~]{1,256}", "[!-~]{1,128}", any::<[u8; 32]>(), 1u32.., 1u32.., state()),
        prop::sample::select(vec![Duty::Mixed, Duty::Prefill, Duty::Decode]),
    )
        .prop_map(
            |((id, incarnation, role, endpoint), (model, fingerprint, hash, context, slots, state), duty)| {
                NodeRecord {
                    id,
                    incarnation,
                    role,
                    endpoint,
                    model,
                    fingerprint,
                    vocab_hash: VocabHash(hash),
                    context,
                    slots,
                    state,
                    duty,
                }
            },
        );
    prop_oneof![
        (any::<u64>(), record, load()).prop_map(|(number, record, load)| NodeUpdate::Snapshot {
            number,
            record,
            load
        }),
        (any::<u64>(), state(), load()).prop_map(|(number, state, load)| NodeUpdate::Delta {
            number,
            state,
            load
        }),
    ]
}

proptest! {
    #[test]
    fn placed_requests_survive_the_wire(placed in placed()) {
        let back = Placed::try_from(sent(&worker::GenerateRequest::from(placed.clone())));
        prop_assert_eq!(back, Ok(placed));
    }

    #[test]
    fn answers_survive_the_wire(answer in answer()) {
        let back = Answer::try_from(sent(&worker::GenerateResponse::from(answer.clone())));
        prop_assert_eq!(back, Ok(answer));
    }

    #[test]
    fn node_updates_survive_the_wire(update in update()) {
        let back = NodeUpdate::try_from(sent(&wire::NodeUpdate::from(&update)));
        prop_assert_eq!(back, Ok(update));
    }
}

/// Feeds `convert` with what strangers may send: arbitrary bytes, and valid messages with bytes
/// changed or cut off. Fails when the inputs did not reach both outcomes of the conversion.
pub(crate) fn survives_nonsense<M: Message + Default + std::fmt::Debug, T, E: std::fmt::Display>(
    valid: impl Strategy<Value = M>,
    convert: impl Fn(M) -> Result<T, E>,
) {
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let try_bytes = |bytes: &[u8]| {
        if let Ok(message) = M::decode(bytes) {
            match convert(message) {
                Ok(_) => taken.set(taken.get() + 1),
                Err(e) => {
                    assert!(e.to_string().len() < 2048, "errors stay short");
                    refused.set(refused.get() + 1);
                }
            }
        }
    };
    let bytes = vec(any::<u8>(), 0..100);
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    TestRunner::deterministic()
        .run(&(bytes, valid, changes, any::<prop::sample::Index>()), |(bytes, valid, changes, cut)| {
            try_bytes(&bytes);
            let mut bytes = valid.encode_to_vec();
            if bytes.is_empty() {
                return Ok(());
            }
            try_bytes(&bytes[..cut.index(bytes.len())]);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                try_bytes(&bytes);
            }
            Ok(())
        })
        .unwrap();
    assert!(taken.get() > 10 && refused.get() > 10, "taken {}, refused {}", taken.get(), refused.get());
}

#[test]
fn nonsense_never_panics() {
    survives_nonsense(placed().prop_map(worker::GenerateRequest::from), Placed::try_from);
    survives_nonsense(answer().prop_map(worker::GenerateResponse::from), Answer::try_from);
    survives_nonsense(update().prop_map(|u| wire::NodeUpdate::from(&u)), NodeUpdate::try_from);
    survives_nonsense(update().prop_map(listed), |m: wire::MembersResponse| {
        m.members.into_iter().map(Listed::try_from).collect::<Result<Vec<_>, _>>()
    });
    survives_nonsense(placed().prop_map(|p| asked_like(&p)), Asked::try_from);
    survives_nonsense((0u32..5).prop_map(beat), |j| heartbeat_interval(&j));
}

fn listed(update: NodeUpdate) -> wire::MembersResponse {
    let members = match wire::NodeUpdate::from(&update).update {
        Some(wire::node_update::Update::Snapshot(s)) => {
            vec![wire::Member { record: s.record, load: s.load, presence: 1, quiet_ms: 5 }]
        }
        _ => Vec::new(),
    };
    wire::MembersResponse { members }
}

fn beat(ms: u32) -> wire::JoinResponse {
    wire::JoinResponse { heartbeat_interval_ms: ms, want_snapshot: true, want_prefixes: false }
}

/// A public request with the fields of a placed one.
fn asked_like(placed: &Placed) -> v1::GenerateRequest {
    use v1::generate_request::Prompt;

    let request = &placed.request;
    let content = format!("prompt {}", request.attempt);
    let prompt = match request.attempt % 3 {
        0 => Prompt::Text(content),
        1 => Prompt::Tokens(v1::TokenPrompt { ids: request.prompt.iter().map(|t| t.0).collect() }),
        _ => Prompt::Chat(v1::ChatPrompt { messages: vec![v1::ChatMessage { role: 2, content }] }),
    };
    v1::GenerateRequest {
        request_id: request.id.to_string(),
        attempt: request.attempt,
        model: placed.model.clone(),
        prompt: Some(prompt),
        committed: request.committed.iter().map(|t| t.0).collect(),
        sampling: Some(sampling::to_wire(request.sampling.params, &request.adjust)),
        seed: Some(request.sampling.seed),
        max_tokens: Some(request.limits.max_tokens),
        quality: v1::Quality::from(request.quality).into(),
        speculation: Some(request.speculation.into()),
        ..Default::default()
    }
}

#[test]
fn a_vocabulary_hash_has_32_bytes() {
    assert!(vocab_hash(&[7; 32]).is_ok());
    for length in [0, 31, 33] {
        assert_eq!(vocab_hash(&vec![7; length]).unwrap_err().field, "vocab_hash");
    }
}

#[test]
fn durations_that_do_not_fit_are_as_long_as_can_be_said() {
    assert_eq!((micros(Duration::MAX), millis(Duration::MAX)), (u32::MAX, u32::MAX));
    assert_eq!((micros(Duration::from_millis(2)), millis(Duration::from_secs(2))), (2000, 2000));
}

#[test]
fn reflection_serves_every_service() {
    let set = prost_types::FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
    let mut services: Vec<String> = set
        .file
        .iter()
        .flat_map(|f| f.service.iter().map(|s| format!("{}.{}", f.package(), s.name())))
        .collect();
    services.sort();
    assert_eq!(
        services,
        [
            "paceline.cluster.v1.Cluster",
            "paceline.draft.v1.Draft",
            "paceline.pages.v1.Pages",
            "paceline.v1.Inference",
            "paceline.worker.v1.Worker",
        ]
    );
}

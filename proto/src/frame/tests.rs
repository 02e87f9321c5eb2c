use std::time::Duration;

use ::cluster::SiteDevice;
use proptest::prelude::*;
use request::{Adjustments, Retrieval, Rule, Sampling, TokenId};

use super::*;
use crate::bounds::{MAX_DISTRIBUTION, MAX_DRAFT_TOKENS, MAX_KNOWN_TOKENS};
use crate::convert::tests::{adjust, constraint, ids, node_id, sampling, sent, survives_nonsense};
use crate::draft::{drafter_frame, worker_frame};
use crate::reason::Reason;

fn hello() -> impl Strategy<Value = Hello> {
    let features = prop::collection::vec("[a-z]{1,64}", 0..4);
    (node_id(), (1u32..9, 0u32..9), any::<[u8; 32]>(), features, prop::option::of(site())).prop_map(
        |(node, (min, more), hash, features, site)| Hello {
            node,
            protocol: (min, min + more),
            vocab_hash: VocabHash(hash),
            features,
            site,
        },
    )
}

fn site() -> impl Strategy<Value = Site> {
    let cores = (prop::collection::btree_set(any::<u32>(), 0..9), any::<u32>());
    let device = prop_oneof![
        cores.prop_map(|(cores, threads)| SiteDevice::Cores { cores, threads }),
        prop::collection::btree_set("[a-zA-Z0-9-]{1,64}", 0..4).prop_map(SiteDevice::Gpus),
        Just(SiteDevice::Other),
    ];
    ("[0-9a-f-]{1,64}", device).prop_map(|(machine, device)| Site { machine, device })
}

fn open(longest: usize) -> impl Strategy<Value = Open> {
    let rule = prop::sample::select(vec![Rule::Coupled, Rule::Greedy, Rule::Strict, Rule::Rejection]);
    let shape =
        (adjust(), constraint(), rule, any::<u32>(), "[a-z]{0,9}", "(00-[0-9a-f]{32}-[0-9a-f]{16}-01)?");
    let sequence = (any::<u64>(), any::<u32>(), ids(longest), ids(longest));
    (sequence, sampling(), 1u32..=64, ids(64), shape).prop_map(
        |((session, first, mut prompt, committed), sampling, window, stop_ids, shape)| {
            let (adjust, constraint, rule, min_tokens, cache_salt, traceparent) = shape;
            prompt.push(TokenId(first));
            let longest = (prompt.len() + committed.len()) as u32 + (session % 100) as u32;
            Open {
                session,
                prompt,
                committed,
                sampling,
                adjust,
                constraint,
                rule,
                window,
                longest,
                stop_ids,
                min_tokens,
                cache_salt,
                retrieval: session
                    .is_multiple_of(3)
                    .then(|| Box::new(Retrieval { chunk: 8 + window, ..Retrieval::default() })),
                traceparent,
            }
        },
    )
}

fn run_of(most: usize) -> impl Strategy<Value = (u64, u32, Vec<TokenId>)> {
    (any::<u64>(), 0..u32::MAX - 100, ids(most - 1), any::<u32>()).prop_map(|(session, at, mut ids, last)| {
        ids.push(TokenId(last));
        (session, at, ids)
    })
}

fn addressed<F: std::fmt::Debug>(frame: impl Strategy<Value = F>) -> impl Strategy<Value = Addressed<F>> {
    (1u64.., 1u64.., frame).prop_map(|(sender, receiver, frame)| Addressed {
        sender: Incarnation(sender),
        receiver: Incarnation(receiver),
        frame,
    })
}

fn from_worker() -> impl Strategy<Value = Addressed<FromWorker>> {
    addressed(prop_oneof![
        hello().prop_map(FromWorker::Hello),
        open(30).prop_map(|o| o.into_frames().remove(0)),
        run_of(80).prop_map(|(session, at, ids)| FromWorker::Known { session, at, ids }),
        (run_of(80), any::<u64>()).prop_map(|((session, at, ids), prefix_hash)| FromWorker::Commit {
            session,
            at,
            prefix_hash,
            ids
        }),
        (any::<u64>(), 0u32..=64).prop_map(|(session, window)| FromWorker::Credit { session, window }),
        any::<u64>().prop_map(|session| FromWorker::Close { session }),
    ])
}

const REFUSED: [RefusedReason; 6] = [
    RefusedReason::NoSlot,
    RefusedReason::TooLong,
    RefusedReason::Draining,
    RefusedReason::NotBuilt,
    RefusedReason::Invalid,
    RefusedReason::Unknown,
];

const CLOSED: [ClosedReason; 7] = [
    ClosedReason::Asked,
    ClosedReason::LeaseExpired,
    ClosedReason::Draining,
    ClosedReason::ContextFull,
    ClosedReason::Failed,
    ClosedReason::Invalid,
    ClosedReason::Unknown,
];

fn from_drafter() -> impl Strategy<Value = Addressed<FromDrafter>> {
    let session = any::<u64>;
    let law = prop::collection::vec((any::<u32>().prop_map(TokenId), 0.001f32..1.0), 1..MAX_DISTRIBUTION);
    addressed(prop_oneof![
        hello().prop_map(FromDrafter::Hello),
        (session(), 1u64..=u32::MAX.into())
            .prop_map(|(session, ms)| FromDrafter::Granted { session, lease_ttl: Duration::from_millis(ms) }),
        (session(), prop::sample::select(REFUSED.to_vec()), "\\PC{0,80}")
            .prop_map(|(session, reason, message)| FromDrafter::Refused { session, reason, message }),
        (run_of(MAX_DRAFT_TOKENS), any::<u64>(), any::<u32>(), prop::option::of(law)).prop_map(
            |((session, at, ids), prefix_hash, us, law)| FromDrafter::Drafts {
                session,
                at,
                prefix_hash,
                q: law.map_or_else(Vec::new, |law| vec![law; ids.len()]),
                ids,
                draft_time: Duration::from_micros(us.into())
            }
        ),
        (session(), any::<u32>()).prop_map(|(session, have)| FromDrafter::Resync { session, have }),
        (session(), prop::sample::select(CLOSED.to_vec()), "\\PC{0,80}")
            .prop_map(|(session, reason, message)| FromDrafter::Closed { session, reason, message }),
    ])
}

proptest! {
    #[test]
    fn worker_frames_survive_the_wire(frame in from_worker()) {
        let wire = draft::WorkerFrame::from(frame.clone());
        prop_assert_eq!(Addressed::<FromWorker>::try_from(sent(&wire)), Ok(frame));
    }

    #[test]
    fn drafter_frames_survive_the_wire(frame in from_drafter()) {
        let wire = draft::DrafterFrame::from(frame.clone());
        prop_assert_eq!(Addressed::<FromDrafter>::try_from(sent(&wire)), Ok(frame));
    }
}

#[test]
fn nonsense_never_panics() {
    survives_nonsense(from_worker().prop_map(draft::WorkerFrame::from), Addressed::<FromWorker>::try_from);
    survives_nonsense(from_drafter().prop_map(draft::DrafterFrame::from), Addressed::<FromDrafter>::try_from);
}

/// An open of `prompt` and `committed` tokens, each with an id of its own.
fn long(prompt: usize, committed: usize) -> Open {
    let id = |i: usize| TokenId(i as u32);
    Open {
        session: 7,
        prompt: (0..prompt).map(id).collect(),
        committed: (prompt..prompt + committed).map(id).collect(),
        sampling: Sampling::GREEDY,
        adjust: Adjustments::default(),
        constraint: None,
        rule: Rule::Coupled,
        window: 8,
        longest: (prompt + committed) as u32,
        stop_ids: Vec::new(),
        min_tokens: 0,
        cache_salt: String::new(),
        retrieval: None,
        traceparent: String::new(),
    }
}

#[test]
fn an_open_of_any_length_arrives_whole() {
    const C: usize = MAX_CHUNK_TOKENS;
    for (prompt, committed, frames) in [
        (1, 0, 1),
        (C - 1, 1, 1),
        (C, 0, 1),
        (C, 1, 2),
        (C + 1, 0, 2),
        (C / 2, C, 2),
        (2 * C, 2 * C, 4),
        (3 * C + 5, 7, 4),
        (MAX_KNOWN_TOKENS, 0, MAX_KNOWN_TOKENS / C),
    ] {
        let open = long(prompt, committed);
        let mut arrived = open.clone().into_frames().into_iter().map(|frame| {
            let (sender, receiver) = (Incarnation(1), Incarnation(2));
            let wire = draft::WorkerFrame::from(Addressed { sender, receiver, frame });
            Addressed::<FromWorker>::try_from(sent(&wire)).unwrap().frame
        });
        let Some(FromWorker::Open(mut opening)) = arrived.next() else { panic!("open comes first") };
        assert_eq!(opening.known_len(), prompt + committed);
        let mut count = 1;
        for frame in arrived {
            opening = *opening.complete().expect_err("tokens are missing");
            let FromWorker::Known { session: 7, at, ids } = frame else { panic!("{frame:?}") };
            opening.add(at, &ids).unwrap();
            count += 1;
        }
        assert_eq!(count, frames, "{prompt} + {committed}");
        assert_eq!(opening.complete().unwrap(), open);
    }
}

#[test]
fn an_opening_takes_only_what_follows() {
    let mut frames = long(MAX_CHUNK_TOKENS + 4, 2).into_frames();
    let FromWorker::Open(mut opening) = frames.remove(0) else { panic!("open comes first") };
    let next = MAX_CHUNK_TOKENS as u32;
    for (at, count, field) in [(next + 1, 1, "known.at"), (next - 1, 1, "known.at"), (next, 7, "known.ids")] {
        assert_eq!(opening.add(at, &vec![TokenId(1); count]).unwrap_err().field, field);
    }
    opening.add(next, &[TokenId(1); 5]).unwrap();
    opening.add(next + 5, &[TokenId(1); 1]).unwrap();
    let open = opening.complete().unwrap();
    assert_eq!((open.prompt.len(), open.committed.len()), (MAX_CHUNK_TOKENS + 4, 2));
}

#[test]
fn bad_worker_frames_name_the_field_and_the_session() {
    use worker_frame::Frame;

    type Break = fn(&mut draft::Open);
    let good = draft::Open {
        session: 7,
        prompt: vec![1],
        prompt_len: 1,
        window: 8,
        longest: 9,
        ..Default::default()
    };
    let open: &[(Break, &str, Reason)] = &[
        (|o| o.prompt_len = 0, "open.prompt_len", Reason::InvalidField),
        (|o| o.prompt_len = u32::MAX, "open.prompt_len", Reason::TooLarge),
        (|o| o.committed_len = u32::MAX, "open.prompt_len", Reason::TooLarge),
        (|o| o.prompt = vec![0; MAX_CHUNK_TOKENS + 1], "open.prompt", Reason::TooLarge),
        (|o| o.prompt = vec![0; 2], "open.prompt", Reason::InvalidField),
        (|o| o.committed = vec![0; 2], "open.committed", Reason::InvalidField),
        (
            |o| (o.prompt_len, o.committed_len, o.committed) = (2, 1, vec![1]),
            "open.committed",
            Reason::InvalidField,
        ),
        (|o| o.longest = 0, "open.longest", Reason::InvalidField),
        (|o| o.longest = u32::MAX, "open.longest", Reason::TooLarge),
        (|o| o.window = 0, "open.window", Reason::InvalidField),
        (|o| o.window = 65, "open.window", Reason::InvalidField),
        (|o| o.rule = 44, "speculation.rule", Reason::InvalidField),
        (|o| o.cache_salt = "x".repeat(257), "open.cache_salt", Reason::TooLarge),
        (|o| o.retrieval.get_or_insert_default().budget = Some(0), "open.retrieval", Reason::InvalidField),
        (|o| o.stop_ids = vec![0; 65], "open.stop_ids", Reason::TooLarge),
        (|o| (o.grammar, o.regex) = ("a".into(), "a".into()), "open.grammar", Reason::InvalidField),
        (|o| o.sampling.get_or_insert_default().top_p = Some(f32::NAN), "top_p", Reason::InvalidField),
    ];
    let opens = open.iter().map(|(broken, field, reason)| {
        let mut open = good.clone();
        broken(&mut open);
        (Frame::Open(open), *field, *reason)
    });
    let commit = |at, ids| Frame::Commit(draft::Commit { session: 7, at, prefix_hash: 0, ids });
    let known = |at, ids| Frame::Known(draft::Known { session: 7, at, ids });
    let rest = [
        (commit(0, vec![]), "commit.ids", Reason::InvalidField),
        (commit(0, vec![0; MAX_CHUNK_TOKENS + 1]), "commit.ids", Reason::TooLarge),
        (commit(u32::MAX, vec![0]), "commit.at", Reason::InvalidField),
        (known(0, vec![]), "known.ids", Reason::InvalidField),
        (known(u32::MAX, vec![0]), "known.at", Reason::InvalidField),
        (Frame::Credit(draft::Credit { session: 7, window: 65 }), "credit.window", Reason::InvalidField),
    ];
    let wire = |frame| draft::WorkerFrame { sender_incarnation: 1, receiver_incarnation: 2, frame };
    assert!(Addressed::<FromWorker>::try_from(wire(Some(Frame::Open(good.clone())))).is_ok());
    for (frame, field, reason) in opens.chain(rest) {
        let bad = Addressed::<FromWorker>::try_from(wire(Some(frame))).unwrap_err();
        assert_eq!((bad.session, bad.error.field, bad.error.reason), (Some(7), field, reason), "{bad}");
    }
    let bad = Addressed::<FromWorker>::try_from(wire(None)).unwrap_err();
    assert_eq!((bad.session, bad.error.field), (None, "frame"));
}

#[test]
fn bad_drafter_frames_name_the_field_and_the_session() {
    use drafter_frame::Frame;

    let drafts = |at, ids: usize| draft::Drafts { session: 7, at, ids: vec![1; ids], ..Default::default() };
    let tree = draft::Drafts { parents: vec![0], ..drafts(0, 1) };
    let q = draft::Drafts { q: vec![draft::Distribution::default()], ..drafts(0, 1) };
    let law = |ids, probabilities| draft::Drafts {
        q: vec![draft::Distribution { ids, probabilities }],
        ..drafts(0, 1)
    };
    let wire = |frame| draft::DrafterFrame { sender_incarnation: 1, receiver_incarnation: 2, frame };
    for (frame, field, reason) in [
        (Frame::Drafts(drafts(0, 0)), "drafts.ids", Reason::InvalidField),
        (Frame::Drafts(drafts(0, 65)), "drafts.ids", Reason::TooLarge),
        (Frame::Drafts(drafts(u32::MAX, 1)), "drafts.at", Reason::InvalidField),
        (Frame::Drafts(tree), "drafts.parents", Reason::NotBuilt),
        (Frame::Drafts(q), "drafts.q", Reason::InvalidField),
        (Frame::Drafts(law(vec![1], vec![f32::NAN])), "drafts.q", Reason::InvalidField),
        (Frame::Drafts(law(vec![1], vec![0.0])), "drafts.q", Reason::InvalidField),
        (Frame::Drafts(law(vec![1], vec![])), "drafts.q", Reason::InvalidField),
        (Frame::Drafts(law(vec![1; 65], vec![1.0; 65])), "drafts.q.ids", Reason::TooLarge),
        (
            Frame::Drafts(draft::Drafts { ids: vec![1, 2], ..law(vec![1], vec![1.0]) }),
            "drafts.q",
            Reason::InvalidField,
        ),
        (
            Frame::Granted(draft::Granted { session: 7, lease_ttl_ms: 0 }),
            "granted.lease_ttl_ms",
            Reason::InvalidField,
        ),
    ] {
        let bad = Addressed::<FromDrafter>::try_from(wire(Some(frame))).unwrap_err();
        assert_eq!((bad.session, bad.error.field, bad.error.reason), (Some(7), field, reason), "{bad}");
    }
    let good = wire(Some(Frame::Drafts(drafts(3, 64))));
    assert_eq!(Addressed::<FromDrafter>::try_from(good).unwrap().frame.session(), Some(7));
}

#[test]
fn a_reason_from_a_newer_peer_still_ends_the_session() {
    use drafter_frame::Frame;

    let wire =
        |frame| draft::DrafterFrame { sender_incarnation: 1, receiver_incarnation: 2, frame: Some(frame) };
    let message = || "\u{e9}".repeat(4000);
    let refused = Frame::Refused(draft::Refused { session: 7, reason: 99, message: message() });
    let closed = Frame::Closed(draft::Closed { session: 7, reason: 99, message: message() });
    let cut = "\u{e9}".repeat(512);
    assert_eq!(
        Addressed::<FromDrafter>::try_from(wire(refused)).unwrap().frame,
        FromDrafter::Refused { session: 7, reason: RefusedReason::Unknown, message: cut.clone() }
    );
    assert_eq!(
        Addressed::<FromDrafter>::try_from(wire(closed)).unwrap().frame,
        FromDrafter::Closed { session: 7, reason: ClosedReason::Unknown, message: cut }
    );
}

#[test]
fn pairing_needs_a_common_version_and_one_vocabulary() {
    let hello = |id, protocol, hash| Hello {
        site: None,
        node: NodeId::new(id).unwrap(),
        protocol,
        vocab_hash: VocabHash([hash; 32]),
        features: Vec::new(),
    };
    let mine = hello("worker-1", (1, 3), 1);
    for (theirs, version) in [((1, 1), 1), ((2, 9), 3), ((3, 3), 3)] {
        assert_eq!(mine.agree(&hello("drafter-1", theirs, 1)), Ok(version));
    }
    let version = mine.agree(&hello("drafter-1", (4, 5), 1)).unwrap_err();
    let vocabulary = mine.agree(&hello("drafter-1", (1, 3), 2)).unwrap_err();
    assert_eq!(version.reason, Reason::ProtocolMismatch);
    assert_eq!(vocabulary.reason, Reason::VocabMismatch);
    for error in [version, vocabulary] {
        assert!(error.why.contains("worker-1") && error.why.contains("drafter-1"), "{error}");
        assert_eq!(error.reason.grpc(), tonic::Code::FailedPrecondition);
    }
    let wire = draft::Hello { protocol_min: 2, protocol_max: 1, ..mine.into() };
    assert_eq!(Hello::try_from(wire).unwrap_err().field, "hello.protocol");
}

#[test]
fn frames_of_another_life_are_refused() {
    let frame = Addressed { sender: Incarnation(3), receiver: Incarnation(5), frame: () };
    for (me, peer, field) in [
        (5, None, None),
        (5, Some(3), None),
        (6, Some(3), Some("receiver_incarnation")),
        (5, Some(2), Some("sender_incarnation")),
    ] {
        let error = frame.check(Incarnation(me), peer.map(Incarnation)).err();
        assert_eq!(error.as_ref().map(|e| e.field), field);
        assert!(error.is_none_or(|e| e.reason == Reason::StaleIncarnation));
    }
}

#[test]
fn a_site_is_bounded_and_an_old_hello_has_none() {
    use draft::site::Device;
    let cores = |many: u32| Some(Device::Cores(draft::Cores { cores: (0..many).collect(), threads: 1 }));
    let gpus = |names: Vec<String>| Some(Device::Gpus(draft::Gpus { names }));
    let site = |machine: &str, device| Some(draft::Site { machine: machine.into(), device });
    let hello = |site| {
        let mine = Hello::new(NodeId::new("drafter-1").unwrap(), VocabHash([1; 32]));
        Hello::try_from(draft::Hello { site, ..mine.into() })
    };
    assert_eq!(hello(None).map(|hello| hello.site), Ok(None));
    for (wrong, field) in [
        (site("", None), "hello.site.machine"),
        (site(&"m".repeat(65), None), "hello.site.machine"),
        (site("m", cores(4097)), "hello.site.cores"),
        (site("m", gpus(vec!["0".into(); 65])), "hello.site.gpus"),
        (site("m", gpus(vec!["g".repeat(65)])), "hello.site.gpus"),
    ] {
        assert_eq!(hello(wrong).unwrap_err().field, field);
    }
    for right in
        [site(&"m".repeat(64), cores(4096)), site("m", gpus(vec!["g".repeat(64); 64])), site("m", None)]
    {
        assert!(hello(right).unwrap().site.is_some());
    }
}

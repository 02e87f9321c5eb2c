//! The wire as any node could speak it, against a registry behind a real gRPC server.

use cluster::{Load, NodeRecord, NodeState, NodeUpdate, PrefixName, PrefixUpdate, Presence, View};
use proto::cluster as wire;
use proto::reason::{Reason, parse};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::testing::{Coordinator, HANG, fast, id, record};

/// A Join stream driven by hand.
struct Raw {
    send: mpsc::Sender<wire::NodeUpdate>,
    answers: Streaming<wire::JoinResponse>,
}

impl Raw {
    async fn open(coordinator: &Coordinator) -> Self {
        let (send, updates) = mpsc::channel(8);
        let answers = coordinator.client().await.join(ReceiverStream::new(updates)).await.unwrap();
        let mut raw = Self { send, answers: answers.into_inner() };
        let greeting = raw.answer().await.unwrap();
        let said = (greeting.heartbeat_interval_ms, greeting.want_snapshot, greeting.want_prefixes);
        assert_eq!(said, (20, false, true));
        raw
    }

    async fn joined(coordinator: &Coordinator, record: NodeRecord) -> Self {
        let raw = Self::open(coordinator).await;
        let id = record.id.clone();
        raw.snapshot(record).await;
        coordinator.sees("joined", |v| alive(v, id.as_str())).await;
        raw
    }

    async fn snapshot(&self, record: NodeRecord) {
        let update = NodeUpdate::Snapshot { number: 0, record, load: Load::default() };
        self.send.send((&update).into()).await.unwrap();
    }

    async fn delta(&self, number: u64) {
        let load = Load { running: number as u32, ..Load::default() };
        let update = NodeUpdate::Delta { number, state: NodeState::Ready, load };
        self.send.send((&update).into()).await.unwrap();
    }

    async fn answer(&mut self) -> Result<wire::JoinResponse, Status> {
        timeout(HANG, self.answers.message()).await.expect("no answer").map(|a| a.expect("closed"))
    }
}

fn alive(view: &View, name: &str) -> bool {
    view.get(&id(name)).is_some_and(|m| m.presence == Presence::Alive)
}

fn running(view: &View, name: &str) -> Option<u32> {
    view.get(&id(name)).map(|m| m.load.running)
}

#[test]
fn intervals_fit_together() {
    let ok = Config::default();
    assert_eq!(ok.check(), Ok(()));
    let ms = Duration::from_millis;
    for (bad, key) in [
        (Config { heartbeat: ms(1), ..ok.clone() }, "heartbeat"),
        (Config { heartbeat: ms(2000), ..ok.clone() }, "suspect_after"),
        (Config { forget_after: ms(3000), ..ok.clone() }, "forget_after"),
        (Config { max_nodes: 0, ..ok.clone() }, "max_nodes"),
        (Config { prefix_pages: u32::MAX, ..ok.clone() }, "prefix_pages"),
    ] {
        assert_eq!(bad.check().unwrap_err().key, key);
    }
}

#[tokio::test]
async fn a_gap_is_answered_with_a_wish_for_a_snapshot() {
    let coordinator = Coordinator::start(fast(), 0).await;
    // Even before the first snapshot.
    let mut raw = Raw::open(&coordinator).await;
    raw.delta(1).await;
    assert!(raw.answer().await.unwrap().want_snapshot);
    raw.snapshot(record("w", 1)).await;
    raw.delta(1).await;
    coordinator.sees("delta 1", |v| running(v, "w") == Some(1)).await;
    raw.delta(3).await;
    assert!(raw.answer().await.unwrap().want_snapshot);
    assert_eq!(running(&coordinator.registry.view().borrow(), "w"), Some(1));
    raw.snapshot(record("w", 1)).await;
    raw.delta(1).await;
    coordinator.sees("delta 1 again", |v| running(v, "w") == Some(1)).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_gap_in_the_prefixes_is_answered_with_a_wish_for_all_of_them() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let mut raw = Raw::open(&coordinator).await;
    let names = |names: &[u64]| names.iter().copied().map(PrefixName).collect::<Vec<_>>();
    let tell = async |raw: &Raw, number, reset, stored: &[u64]| {
        let update = PrefixUpdate { number, reset, stored: names(stored), removed: Vec::new() };
        raw.send.send((&update).into()).await.unwrap();
    };
    let has = async |pages: Option<u32>| {
        let prefixes = coordinator.registry.prefixes();
        while prefixes.hits(&names(&[1, 2, 3])).get(&id("w")).copied() != pages {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    // Of a node that sent no snapshot nothing is known; it was asked for all when it came.
    tell(&raw, 0, true, &[1]).await;
    assert!(raw.answer().await.unwrap().want_prefixes);
    raw.snapshot(record("w", 1)).await;
    tell(&raw, 1, true, &[1]).await;
    tell(&raw, 2, false, &[2]).await;
    timeout(HANG, has(Some(2))).await.unwrap();
    tell(&raw, 4, false, &[3]).await;
    let answer = raw.answer().await.unwrap();
    assert!(answer.want_prefixes && !answer.want_snapshot);
    timeout(HANG, has(None)).await.unwrap();
    // What was on its way is no second gap.
    tell(&raw, 5, false, &[3]).await;
    tell(&raw, 6, true, &[1, 2, 3]).await;
    timeout(HANG, has(Some(3))).await.unwrap();
    raw.delta(2).await;
    let answer = raw.answer().await.unwrap();
    assert!(answer.want_snapshot && !answer.want_prefixes, "numbers of their own");
    drop(raw);
    timeout(HANG, has(None)).await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn silence_makes_a_suspect_and_a_heartbeat_takes_it_back() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let raw = Raw::joined(&coordinator, record("w", 1)).await;
    let suspect = |v: &View| {
        v.get(&id("w")).is_some_and(|m| matches!(m.presence, Presence::Suspect { .. }) && !m.takes_work())
    };
    coordinator.sees("suspect", suspect).await;
    let listed = coordinator.client().await.members(wire::MembersRequest {}).await.unwrap().into_inner();
    let listed: Vec<proto::Listed> = listed.members.into_iter().map(|m| m.try_into().unwrap()).collect();
    assert_eq!(listed[0].presence, wire::Presence::Suspect);
    assert!(listed[0].quiet >= fast().suspect_after, "{:?}", listed[0].quiet);
    raw.delta(1).await;
    coordinator.sees("back", |v| alive(v, "w")).await;
    // The stream was never broken for it: it is the same one. Silent for good, it is forgotten.
    coordinator.sees("forgotten", |v| v.members().is_empty()).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_silent_stream_is_closed() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let mut mute = Raw::open(&coordinator).await;
    let mut once = Raw::joined(&coordinator, record("w", 1)).await;
    for raw in [&mut mute, &mut once] {
        let status = raw.answer().await.unwrap_err();
        assert_eq!(parse(&status).reason, Reason::Deadline, "{status:?}");
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn a_broken_stream_disconnects_a_goodbye_removes() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let lost = Raw::joined(&coordinator, record("lost", 1)).await;
    let left = Raw::joined(&coordinator, record("left", 1)).await;
    drop(lost);
    let gone =
        |v: &View| v.get(&id("lost")).is_some_and(|m| matches!(m.presence, Presence::Disconnected { .. }));
    coordinator.sees("disconnected", gone).await;
    let update = NodeUpdate::Delta { number: 1, state: NodeState::Draining, load: Load::default() };
    left.send.send((&update).into()).await.unwrap();
    coordinator.sees("draining", |v| v.get(&id("left")).is_some_and(|m| !m.takes_work())).await;
    drop(left);
    coordinator.sees("left", |v| v.get(&id("left")).is_none()).await;
    assert!(coordinator.registry.view().borrow().get(&id("lost")).is_some());
    coordinator.stop().await;
}

#[tokio::test]
async fn a_later_incarnation_replaces_and_the_earlier_is_refused() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let mut first = Raw::joined(&coordinator, record("w", 1)).await;
    let second = Raw::open(&coordinator).await;
    second.snapshot(record("w", 2)).await;
    let incarnation = |v: &View| v.get(&id("w")).map(|m| m.record.incarnation.0);
    coordinator.sees("restarted", |v| incarnation(v) == Some(2)).await;

    first.delta(1).await;
    assert_eq!(parse(&first.answer().await.unwrap_err()).reason, Reason::StaleIncarnation);
    let mut again = Raw::open(&coordinator).await;
    again.snapshot(record("w", 1)).await;
    let failure = parse(&again.answer().await.unwrap_err());
    assert_eq!(failure.reason, Reason::StaleIncarnation);
    assert!(failure.message.contains("incarnation 2 here and 1 was offered"), "{}", failure.message);
    // Neither ending touched the later life.
    drop((first, again));
    second.delta(1).await;
    coordinator
        .sees("alive", |v| alive(v, "w") && incarnation(v) == Some(2) && running(v, "w") == Some(1))
        .await;
    coordinator.stop().await;
}

#[tokio::test]
async fn nonsense_is_named_and_harms_nobody() {
    let coordinator = Coordinator::start(Config { max_nodes: 1, ..fast() }, 0).await;
    let good = Raw::joined(&coordinator, record("w", 1)).await;
    let wire_record = || wire::NodeRecord::from(&record("x", 1));
    let snapshot = |record: Option<wire::NodeRecord>| wire::NodeUpdate {
        update: Some(wire::node_update::Update::Snapshot(wire::Snapshot {
            number: 0,
            record,
            load: Some(Load::default().into()),
        })),
    };
    for (update, code, field) in [
        (wire::NodeUpdate { update: None }, Code::InvalidArgument, "update"),
        (snapshot(None), Code::InvalidArgument, "snapshot.record"),
        (
            snapshot(Some(wire::NodeRecord { endpoint: "ftp://x".into(), ..wire_record() })),
            Code::InvalidArgument,
            "endpoint",
        ),
        (
            snapshot(Some(wire::NodeRecord { vocab_hash: vec![1], ..wire_record() })),
            Code::InvalidArgument,
            "vocab_hash",
        ),
        (snapshot(Some(wire::NodeRecord { role: 7, ..wire_record() })), Code::InvalidArgument, "role"),
        (snapshot(Some(wire_record())), Code::ResourceExhausted, ""),
    ] {
        let mut raw = Raw::open(&coordinator).await;
        raw.send.send(update).await.unwrap();
        let status = raw.answer().await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(parse(&status).field.unwrap_or_default(), field, "{status:?}");
        drop(raw);
    }
    good.delta(1).await;
    coordinator.sees("alive", |v| v.members().len() == 1 && running(v, "w") == Some(1)).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stopping_coordinator_ends_its_streams_in_time() {
    let coordinator = Coordinator::start(fast(), 0).await;
    let mut raw = Raw::joined(&coordinator, record("w", 1)).await;
    let stopping = tokio::spawn(coordinator.stop());
    assert_eq!(parse(&raw.answer().await.unwrap_err()).reason, Reason::Draining);
    let ended = timeout(HANG, stopping).await.unwrap().unwrap();
    assert!(ended.failed.is_empty() && ended.late.is_empty(), "{ended:?}");
}

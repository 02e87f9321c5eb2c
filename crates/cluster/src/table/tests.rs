use proptest::prelude::*;

use super::*;
use crate::member::tests::node;

const PATIENCE: Patience =
    Patience { suspect_after: Duration::from_secs(3), forget_after: Duration::from_secs(10), max_nodes: 3 };

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn snapshot(id: &str, incarnation: u64) -> NodeUpdate {
    let record = NodeRecord { incarnation: Incarnation(incarnation), ..node(id) };
    NodeUpdate::Snapshot { number: 0, record, load: Load::default() }
}

fn delta(number: u64, state: NodeState) -> NodeUpdate {
    NodeUpdate::Delta { number, state, load: Load { running: number as u32, ..Load::default() } }
}

/// Runs a script of `time stream event` lines; gives `event -> outcome` lines.
///
/// Events: `snap ID INCARNATION`, `beat NUMBER`, `drain NUMBER`, `break`, `tick`.
fn run(script: &str) -> Vec<String> {
    let mut table = Table::new(PATIENCE);
    script
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (now, stream) = (at(words[0].parse().unwrap()), StreamId(words[1].parse().unwrap()));
            let outcome = match &words[2..] {
                ["snap", id, n] => table.apply(stream, snapshot(id, n.parse().unwrap()), now),
                ["beat", n] => table.apply(stream, delta(n.parse().unwrap(), NodeState::Ready), now),
                ["drain", n] => table.apply(stream, delta(n.parse().unwrap(), NodeState::Draining), now),
                ["break"] => Ok(table.on_disconnect(stream, now)),
                ["tick"] => Ok(table.on_tick(now)),
                other => panic!("unknown event {other:?}"),
            };
            match outcome {
                Ok(changes) => changes
                    .iter()
                    .map(|c| format!("{c:?}").replace("NodeId(\"", "").replace("\")", ""))
                    .collect::<Vec<_>>()
                    .join(" "),
                Err(refused) => {
                    let name = format!("{refused:?}");
                    format!("refused {}", name.split([' ', '(']).next().unwrap())
                }
            }
        })
        .collect()
}

#[test]
fn stories() {
    for (story, script, expected) in [
        (
            "heartbeats keep a node, silence makes it a suspect, then a stranger",
            "0 1 snap w 1
             2 1 beat 1
             4 0 tick
             5 0 tick
             6 0 tick
             6 1 beat 2
             15 0 tick
             16 0 tick",
            vec!["Joined(w)", "", "", "Suspected(w)", "", "Returned(w)", "Suspected(w)", "Removed(w)"],
        ),
        (
            "a gap asks for a snapshot, which heals it",
            "0 1 beat 1
             0 1 snap w 1
             0 1 beat 1
             0 1 beat 3
             0 1 beat 1
             0 1 snap w 1
             0 1 beat 1",
            vec!["refused Gap", "Joined(w)", "", "refused Gap", "refused Gap", "", ""],
        ),
        (
            "a restart replaces; its earlier life is refused and cannot take it down",
            "0 1 snap w 1
             1 2 snap w 2
             1 1 beat 1
             1 1 snap w 1
             2 1 break
             2 2 beat 1",
            vec!["Joined(w)", "Restarted(w)", "refused Superseded", "refused Stale", "", ""],
        ),
        (
            "a node that joins again before the old stream breaks stays",
            "0 1 snap w 1
             1 2 snap w 1
             1 1 snap w 1
             1 1 break
             1 2 beat 1
             2 2 break
             3 3 snap w 1",
            vec!["Joined(w)", "", "refused Superseded", "", "", "Disconnected(w)", "Returned(w)"],
        ),
        (
            "draining, then leaving, removes at once; a crash does not",
            "0 1 snap w 1
             0 2 snap w2 1
             1 1 drain 1
             2 1 break
             2 2 break
             9 0 tick
             10 0 tick",
            vec![
                "Joined(w)",
                "Joined(w2)",
                "Draining(w)",
                "Removed(w)",
                "Disconnected(w2)",
                "",
                "Removed(w2)",
            ],
        ),
        (
            "a forgotten node whose stream lives on is asked for a snapshot",
            "0 1 snap w 1
             10 0 tick
             11 1 beat 1
             11 1 snap w 1",
            vec!["Joined(w)", "Removed(w)", "refused Gap", "Joined(w)"],
        ),
        (
            "one stream, one node; a full table refuses strangers, not its own",
            "0 1 snap w 1
             0 1 snap w2 1
             0 2 snap w2 1
             0 3 snap d 1
             0 4 snap d2 1
             1 5 snap d 2",
            vec!["Joined(w)", "refused OtherNode", "Joined(w2)", "Joined(d)", "refused Full", "Restarted(d)"],
        ),
        (
            "draining is taken back",
            "0 1 snap w 1
             0 1 drain 1
             0 1 beat 2",
            vec!["Joined(w)", "Draining(w)", "Ready(w)"],
        ),
    ] {
        assert_eq!(run(script), expected, "{story}");
    }
}

#[test]
fn one_incarnation_keeps_its_record() {
    let mut table = Table::new(PATIENCE);
    table.apply(StreamId(1), snapshot("w", 1), at(0)).unwrap();
    for (changed, field) in [
        (NodeRecord { slots: 9, ..node("w") }, "slots"),
        (NodeRecord { fingerprint: "fp_2".into(), ..node("w") }, "fingerprint"),
        (NodeRecord { role: Role::Drafter, ..node("w") }, "role"),
    ] {
        let update = NodeUpdate::Snapshot { number: 0, record: changed, load: Load::default() };
        let refused = table.apply(StreamId(2), update, at(1)).unwrap_err();
        assert_eq!(refused, Refused::Changed { id: NodeId::new("w").unwrap(), field });
    }
    assert!(matches!(
        table.apply(StreamId(2), snapshot("d", 0), at(1)).unwrap_err(),
        Refused::Invalid(InvalidField { field: "incarnation", .. })
    ));
    assert_eq!(table.view().members().len(), 1);
}

#[test]
fn views_do_not_change_afterwards() {
    let mut table = Table::new(PATIENCE);
    table.apply(StreamId(1), snapshot("w", 1), at(0)).unwrap();
    let before = table.view();
    table.apply(StreamId(1), delta(1, NodeState::Draining), at(1)).unwrap();
    let id = NodeId::new("w").unwrap();
    assert!(before.get(&id).unwrap().takes_work());
    let after = table.view();
    let member = after.get(&id).unwrap();
    assert_eq!((member.takes_work(), member.load.running, member.heard), (false, 1, at(1)));
    assert_eq!(after.models(), ["m"]);
}

/// Any interleaving of streams, numbers, incarnations and silences.
fn events() -> impl Strategy<Value = Vec<(u8, u64, u64, u8, u64)>> {
    prop::collection::vec((0u8..6, 0u64..5, 0u64..4, 0u8..4, 0u64..6), 0..60)
}

proptest! {
    #[test]
    fn refusals_change_nothing_and_incarnations_never_go_back(events in events()) {
        let mut table = Table::new(PATIENCE);
        let mut now = Duration::ZERO;
        for (kind, stream, number, name, pause) in events {
            now += at(pause);
            let id = ["w0", "w1", "d0", "d1"][name as usize];
            let before = table.view();
            let stream = StreamId(stream);
            let outcome = match kind {
                0 | 1 => table.apply(stream, snapshot(id, number), now),
                2 => table.apply(stream, delta(number, NodeState::Ready), now),
                3 => table.apply(stream, delta(number, NodeState::Draining), now),
                4 => Ok(table.on_disconnect(stream, now)),
                _ => Ok(table.on_tick(now)),
            };
            let after = table.view();
            prop_assert!(after.members().len() <= PATIENCE.max_nodes);
            if outcome.is_err() {
                prop_assert_eq!(&before, &after);
            }
            for member in after.members() {
                prop_assert!(member.heard <= now);
                if let Some(earlier) = before.get(&member.record.id) {
                    prop_assert!(earlier.record.incarnation <= member.record.incarnation);
                }
            }
            // After a tick nobody silent is offered work.
            if kind == 5 {
                for member in after.members().iter().filter(|m| m.takes_work()) {
                    prop_assert!(now - member.heard < PATIENCE.suspect_after);
                }
            }
        }
    }
}

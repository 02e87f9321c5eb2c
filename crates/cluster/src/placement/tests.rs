use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::member::tests::node;
use crate::{Load, NodeState, Presence, VocabHash};

/// A member from a line such as `w1 model=m fp=a ctx=100 slots=2 run=1 wait=0 vocab=1 draining suspect`.
fn member(line: &str) -> Member {
    let mut words = line.split_whitespace();
    let mut record = node(words.next().unwrap());
    let (mut load, mut presence) = (Load::default(), Presence::Alive);
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, "0"));
        let n: u32 = value.parse().unwrap_or(0);
        match key {
            "model" => record.model = value.into(),
            "fp" => record.fingerprint = value.into(),
            "ctx" => record.context = n,
            "slots" => record.slots = n,
            "vocab" => record.vocab_hash = VocabHash([n as u8; 32]),
            "run" => load.running = n,
            "wait" => load.waiting = n,
            "draining" => record.state = NodeState::Draining,
            "suspect" => presence = Presence::Suspect { since: Duration::ZERO },
            "gone" => presence = Presence::Disconnected { since: Duration::ZERO },
            other => panic!("unknown word {other}"),
        }
    }
    Member { record: Arc::new(record), load, presence, heard: Duration::ZERO }
}

fn ids(names: &str) -> Vec<NodeId> {
    names.split_whitespace().map(|n| NodeId::new(n).unwrap()).collect()
}

/// `worker > drafter drafter`, or the refusal.
fn answer(members: &[&str], problem: impl FnOnce(&mut Problem<'_>), tried: &str, own: &str) -> String {
    let view: View = members.iter().map(|l| member(l)).collect();
    let tried = ids(tried);
    let in_flight = ids(own).into_iter().fold(HashMap::new(), |mut map, id| {
        *map.entry(id).or_insert(0) += 1;
        map
    });
    let mut asked = Problem {
        view: &view,
        model: "m",
        positions: 100,
        tried: &tried,
        prefer: None,
        in_flight: &in_flight,
        random: 0,
        tokens: 1000,
        hits: &HashMap::new(),
        split: None,
    };
    problem(&mut asked);
    match place(&asked) {
        Ok(p) => {
            let drafters: Vec<&str> = p.drafters.iter().map(|d| d.id.as_str()).collect();
            format!("{} > {}", p.worker.id, drafters.join(" "))
        }
        Err(e) => e.to_string(),
    }
}

#[test]
fn the_less_loaded_of_two() {
    for (case, members, tried, own, expected) in [
        ("the only one", vec!["w1 run=4 wait=9"], "", "", "w1 > "),
        ("less work", vec!["w1 run=2", "w2 run=1"], "", "", "w2 > "),
        ("per slot", vec!["w1 run=2 slots=2", "w2 run=3 slots=8"], "", "", "w2 > "),
        ("own work in flight counts", vec!["w1", "w2 run=1"], "", "w1 w1", "w2 > "),
        ("waiting counts", vec!["w1 wait=3", "w2 run=2"], "", "", "w2 > "),
        ("tried ones are out", vec!["w1 run=4", "w2"], "w2", "", "w1 > "),
        ("draining ones are out", vec!["w1 run=4", "w2 draining"], "", "", "w1 > "),
        ("suspects are out", vec!["w1 run=4", "w2 suspect"], "", "", "w1 > "),
        ("the disconnected are out", vec!["w1 run=4", "w2 gone"], "", "", "w1 > "),
        ("other models are out", vec!["w1 run=4", "w2 model=x"], "", "", "w1 > "),
        ("too short a context is out", vec!["w1 run=4", "w2 ctx=99"], "", "", "w1 > "),
        ("drafters are no workers", vec!["w1 run=4", "d1"], "", "", "w1 > d1"),
    ] {
        assert_eq!(answer(&members, |_| (), tried, own), expected, "{case}");
    }
}

#[test]
fn a_cached_prefix_is_weighed_against_load() {
    for (case, members, tokens, hits, expected) in [
        ("it has the prefix", vec!["w1 run=1 slots=8", "w2 slots=8"], 1000, "w1=800", "w1 > "),
        ("load wins", vec!["w1 run=4 slots=8", "w2 slots=8"], 1000, "w1=800", "w2 > "),
        ("the longer prefix", vec!["w1 slots=8", "w2 slots=8", "w3 slots=8"], 1000, "w1=160 w3=320", "w3 > "),
        ("one of them is full", vec!["w1 slots=8", "w3 run=2 slots=8"], 1000, "w1=160 w3=320", "w1 > "),
        ("little of a long prompt", vec!["w1 run=1 slots=8", "w2 slots=8"], 1000, "w1=160", "w2 > "),
        ("all of a short one", vec!["w1 run=1 slots=8", "w2 slots=8"], 32, "w1=16", "w2 > "),
        ("nothing else differs", vec!["w1 slots=8", "w2 slots=8"], 32, "w2=16", "w2 > "),
        ("who left is no place", vec!["w1 slots=8 draining", "w2 slots=8"], 1000, "w1=800", "w2 > "),
        ("no more than the prompt", vec!["w1 run=5 slots=8", "w2 slots=8"], 1000, "w1=9000", "w2 > "),
    ] {
        let hits: HashMap<NodeId, u32> = hits
            .split_whitespace()
            .map(|hit| hit.split_once('=').unwrap())
            .map(|(id, pages)| (NodeId::new(id).unwrap(), pages.parse().unwrap()))
            .collect();
        for random in 0..4 {
            let members: View = members.iter().map(|l| member(l)).collect();
            let problem = Problem {
                view: &members,
                model: "m",
                positions: 100,
                tried: &[],
                prefer: None,
                in_flight: &HashMap::new(),
                random,
                tokens,
                hits: &hits,
                split: None,
            };
            let found = place(&problem).unwrap();
            assert_eq!(format!("{} > ", found.worker.id), expected, "{case}");
        }
    }
}

/// Among equal workers that all have the prefix requests take turns, and coordinators agree on each.
#[test]
fn coordinators_agree_on_a_request_and_requests_take_turns() {
    let view: View = ["w1", "w2", "w3"].iter().map(|l| member(l)).collect();
    let hits: HashMap<NodeId, u32> = ids("w1 w2 w3").into_iter().map(|id| (id, 320)).collect();
    let mut shares: HashMap<NodeId, u32> = HashMap::new();
    for n in 0..300 {
        let placed = |tries| {
            let problem = Problem {
                view: &view,
                model: "m",
                positions: 1,
                tried: &[],
                prefer: None,
                in_flight: &HashMap::new(),
                random: turn(&format!("chatcmpl-{n}"), 0, tries),
                tokens: 1000,
                hits: &hits,
                split: None,
            };
            place(&problem).unwrap().worker.id.clone()
        };
        assert_eq!(placed(0), placed(0));
        *shares.entry(placed(0)).or_insert(0) += 1;
    }
    assert!(shares.len() == 3 && shares.values().all(|share| (70..130).contains(share)), "{shares:?}");
}

#[test]
fn drafters_of_the_workers_vocabulary_by_load() {
    for (case, members, expected) in [
        ("least loaded first", vec!["w", "d1 run=2", "d2 run=1", "d3"], "w > d3 d2 d1"),
        ("full ones last", vec!["w", "d1 run=1 slots=1", "d2 run=3"], "w > d2 d1"),
        ("another vocabulary never", vec!["w", "d1 vocab=2", "d2 run=4"], "w > d2"),
        ("another model of that vocabulary", vec!["w", "d1 model=small"], "w > d1"),
        ("draining, suspect, gone never", vec!["w", "d1 draining", "d2 suspect", "d3 gone"], "w > "),
        ("a few at most", vec!["w", "d1", "d2", "d3", "d4", "d5"], "w > d1 d2 d3 d4"),
    ] {
        assert_eq!(answer(&members, |_| (), "", ""), expected, "{case}");
    }
    let turns = answer(&["w", "d1", "d2", "d3"], |p| p.random = 1, "", "");
    assert_eq!(turns, "w > d2 d3 d1", "equally loaded drafters take turns");
}

#[test]
fn a_replay_prefers_its_fingerprint() {
    let members = ["w1 fp=a run=4", "w2 fp=b"];
    assert_eq!(answer(&members, |p| p.prefer = Some("a"), "", ""), "w1 > ");
    assert_eq!(answer(&members, |p| p.prefer = Some("a"), "w1", ""), "w2 > ");
    assert_eq!(answer(&members, |p| p.prefer = Some("c"), "", ""), "w2 > ");
}

#[test]
fn a_refusal_says_why() {
    for (members, tried, expected) in [
        (vec![], "", "no worker serves model `m`; no worker has joined yet"),
        (vec!["d1"], "", "no worker serves model `m`; no worker has joined yet"),
        (vec!["w1 model=y", "w2 model=x"], "", "no worker serves model `m`; served now: x, y"),
        (
            vec!["w1 ctx=50", "w2 ctx=99"],
            "",
            "the request needs 100 positions and the longest context of a worker of `m` is 99: shorten the \
             prompt or lower max_tokens",
        ),
        (
            vec!["w1", "w2 draining", "w3 suspect", "w4 gone", "w5 ctx=9"],
            "w1",
            "no worker of model `m` takes new work: 1 tried, 1 draining, 1 suspect, 1 disconnected; try \
             again shortly",
        ),
    ] {
        assert_eq!(answer(&members, |_| (), tried, ""), expected);
    }
    let view: View = [member("w1 draining")].into_iter().collect();
    let problem = Problem {
        view: &view,
        model: "m",
        positions: 1,
        tried: &[],
        prefer: None,
        in_flight: &HashMap::new(),
        random: 0,
        tokens: 1000,
        hits: &HashMap::new(),
        split: None,
    };
    assert!(place(&problem).unwrap_err().all_draining());
}

#[test]
fn equal_workers_share_the_work() {
    let view: View = ["w1", "w2", "w3", "w4"].iter().map(|l| member(l)).collect();
    let mut in_flight: HashMap<NodeId, u32> = HashMap::new();
    let mut random = 7u64;
    for _ in 0..400 {
        // A fixed sequence of well mixed bits (Knuth's LCG, upper half folded in).
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let problem = Problem {
            view: &view,
            model: "m",
            positions: 1,
            tried: &[],
            prefer: None,
            in_flight: &in_flight,
            random: random ^ (random >> 29),
            tokens: 1000,
            hits: &HashMap::new(),
            split: None,
        };
        let worker = place(&problem).unwrap().worker.id.clone();
        *in_flight.entry(worker).or_insert(0) += 1;
    }
    let mut shares: Vec<u32> = in_flight.into_values().collect();
    shares.sort();
    assert_eq!(shares.len(), 4);
    assert!(shares[3] - shares[0] <= 6, "{shares:?}");
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    let one = (0u8..12, 0u8..2, 0u8..3, 0u8..2, 1u32..5, 0u32..9, 1u32..4, 0u8..2).prop_map(
        |(id, model, presence, state, slots, running, context, vocab)| {
            let mut m = member(&format!("{}{id}", if id % 2 == 0 { "w" } else { "d" }));
            let record = Arc::make_mut(&mut m.record);
            record.model = ["m", "x"][model as usize].into();
            record.state = [NodeState::Ready, NodeState::Draining][state as usize];
            (record.slots, record.context, record.vocab_hash) = (slots, context, VocabHash([vocab; 32]));
            m.load.running = running;
            let since = Duration::ZERO;
            m.presence = [Presence::Alive, Presence::Suspect { since }, Presence::Disconnected { since }]
                [presence as usize];
            m
        },
    );
    prop::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn a_placement_is_always_admissible_and_repeatable(
        members in members(),
        tried in prop::collection::vec(0u8..12, 0..4),
        positions in 0u32..5,
        random: u64,
        own in prop::collection::hash_map(0u8..12, 0u32..9, 0..6),
        hits in prop::collection::hash_map(0u8..12, 1u32..2000, 0..6),
    ) {

        let view: View = members.into_iter().collect();
        let name = |n: u8| NodeId::new(&format!("{}{n}", if n.is_multiple_of(2) { "w" } else { "d" })).unwrap();
        let tried: Vec<NodeId> = tried.into_iter().map(name).collect();
        let hits: HashMap<NodeId, u32> = hits.into_iter().map(|(n, count)| (name(n), count)).collect();
        let in_flight: HashMap<NodeId, u32> = own.into_iter().map(|(n, count)| (name(n), count)).collect();
        let problem = Problem {
            view: &view, model: "m", positions, tried: &tried, prefer: None, in_flight: &in_flight, random,
            tokens: 1000, hits: &hits, split: None,
        };
        let answer = place(&problem);
        prop_assert_eq!(&answer, &place(&problem));
        let usable = |m: &&Member| m.record.role == Role::Worker && m.record.model == "m" && m.takes_work()
            && m.record.context >= positions && !tried.contains(&m.record.id);
        match answer {
            Ok(Placement { worker, drafters, prefill }) => {
                prop_assert_eq!(prefill, None);
                prop_assert!(view.members().iter().filter(usable).any(|m| m.record == worker));
                prop_assert!(drafters.len() <= MAX_DRAFTERS);
                for drafter in drafters {
                    let member = view.get(&drafter.id).unwrap();
                    prop_assert!(member.takes_work() && drafter.role == Role::Drafter);
                    prop_assert_eq!(drafter.vocab_hash, worker.vocab_hash);
                }
            }
            // Refused only when nobody could have been asked.
            Err(_) => prop_assert!(!view.members().iter().any(|m| usable(&m))),
        }
    }
}

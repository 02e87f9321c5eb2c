use super::*;

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);
const DATA: u32 = 1;

fn pair(network: &Network) -> (Box<dyn Link>, Box<dyn Link>) {
    let (a, b) = (network.fabric("a"), network.fabric("b"));
    let there = a.connect("b", LONG).unwrap();
    (there, b.accept(LONG).unwrap())
}

fn head(item: u64) -> Head {
    Head { kind: DATA, token: 5, item }
}

type Seen = Vec<(Head, Vec<u8>)>;

/// Sends `messages` messages over a link with this fault; what the other end saw, up to the first error.
fn under(fault: Fault, one_in: u64, messages: u64) -> (Network, Seen, Option<FabricError>) {
    let network = Network::with_faults(Faults::new(1, fault, DATA, one_in));
    let (mut a, mut b) = pair(&network);
    for i in 0..messages {
        // A closed link is the fault's business.
        let _ = a.send(head(i), &[i as u8; 100], LONG);
    }
    let (mut seen, mut payload) = (Vec::new(), Vec::new());
    let error = loop {
        match b.recv(&mut payload, SOON) {
            Ok(head) => seen.push((head, payload.clone())),
            Err(FabricError::Deadline { .. }) if seen.len() as u64 == messages => break None,
            Err(e) => break Some(e),
        }
    };
    (network, seen, error)
}

#[test]
fn messages_arrive_in_order_both_ways() {
    let network = Network::new();
    let (mut a, mut b) = pair(&network);
    for i in 0..10 {
        a.send(head(i), &[i as u8; 40], LONG).unwrap();
    }
    let mut payload = Vec::new();
    for i in 0..10 {
        assert_eq!((b.recv(&mut payload, LONG).unwrap(), payload.len()), (head(i), 40));
        assert_eq!(payload[0], i as u8);
    }
    b.send(head(3), b"back", LONG).unwrap();
    assert_eq!(a.recv(&mut payload, LONG).unwrap(), head(3));
    assert_eq!((a.peer(), b.peer()), ("b", "a"));
    drop(a);
    assert_eq!(b.recv(&mut payload, LONG), Err(FabricError::Closed));
}

#[test]
fn each_fault_shows_as_what_it_is() {
    let first_bad = |fault| {
        let (network, seen, error) = under(fault, 3, 20);
        assert!(network.injected() > 0, "{fault:?}");
        assert!(
            seen.iter().zip(0..).all(|((h, _), i)| *h == head(i)),
            "{fault:?}: nothing out of order is delivered"
        );
        (seen, error)
    };
    for fault in [Fault::BitFlip, Fault::Truncated] {
        let (_, error) = first_bad(fault);
        assert!(matches!(error, Some(FabricError::Damaged(_))), "{fault:?}: {error:?}");
    }
    for fault in [Fault::Reordered, Fault::Dropped] {
        let (_, error) = first_bad(fault);
        assert!(matches!(error, Some(FabricError::OutOfOrder { .. })), "{fault:?}: {error:?}");
    }
    let (_, error) = first_bad(Fault::Hung);
    assert!(matches!(error, Some(FabricError::Deadline { .. })), "{error:?}");
    // Only who knows what the bytes should be can see this one.
    let (seen, error) = first_bad(Fault::Stale);
    assert_eq!((seen.len(), error), (20, None));
    assert!(seen.iter().any(|(head, bytes)| bytes.iter().any(|b| u64::from(*b) != head.item)));
}

#[test]
fn a_seed_gives_the_same_faults_again() {
    let run = || under(Fault::BitFlip, 4, 20);
    let ((a, seen, error), (b, again, same)) = (run(), run());
    assert_eq!((a.injected(), seen, error), (b.injected(), again, same));
}

#[test]
fn other_kinds_do_not_suffer_and_no_more_than_asked_do() {
    let network = Network::with_faults(Faults::new(1, Fault::BitFlip, DATA + 1, 1).at_most(1));
    let (mut a, mut b) = pair(&network);
    let mut payload = Vec::new();
    for i in 0..5 {
        a.send(head(i), b"fine", LONG).unwrap();
        assert_eq!(b.recv(&mut payload, LONG), Ok(head(i)));
    }
    assert_eq!(network.injected(), 0);
    for _ in 0..5 {
        let _ = a.send(Head { kind: DATA + 1, ..head(0) }, b"hit", LONG);
    }
    assert_eq!(network.injected(), 1);
}

#[test]
fn a_killed_rank_is_gone_at_once_and_a_hung_one_only_says_nothing() {
    let network = Network::new();
    let (mut a, _b) = pair(&network);
    network.hang("b");
    a.send(head(0), b"into the void", LONG).unwrap();
    let mut payload = Vec::new();
    assert!(matches!(a.recv(&mut payload, SOON), Err(FabricError::Deadline { .. })));

    let network = Network::new();
    let (mut a, _b) = pair(&network);
    network.kill("b");
    let started = Instant::now();
    assert_eq!(a.recv(&mut payload, LONG), Err(FabricError::Closed));
    assert!(started.elapsed() < LONG / 2);
    let again = network.fabric("c").connect("b", LONG);
    assert!(matches!(again, Err(FabricError::Unreachable { .. })), "{again:?}");
}

/// Also where nothing comes any more.
#[test]
fn a_link_is_closed_from_another_thread() {
    for hang in [false, true] {
        let network = Network::new();
        let (mut a, _b) = pair(&network);
        if hang {
            network.hang("b");
        }
        let close = a.closer().unwrap();
        let closing = std::thread::spawn(move || {
            std::thread::sleep(SOON);
            close();
        });
        let started = Instant::now();
        assert_eq!(a.recv(&mut Vec::new(), LONG), Err(FabricError::Closed));
        assert!(started.elapsed() < LONG / 2);
        closing.join().unwrap();
    }
}

#[test]
fn a_sender_waits_for_room_and_no_longer_than_told() {
    let network = Network::new();
    let (mut a, _b) = pair(&network);
    for i in 0..UNDER_WAY as u64 {
        a.send(head(i), b"", LONG).unwrap();
    }
    let late = a.send(head(99), b"", SOON).unwrap_err();
    assert_eq!(late, FabricError::Deadline { what: "sending", within: SOON });
}

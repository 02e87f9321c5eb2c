use super::*;

const SOON: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(10);

fn fabric() -> TcpFabric {
    TcpFabric::listen("127.0.0.1:0".parse().unwrap(), false).unwrap()
}

fn pair() -> (Box<dyn Link>, Box<dyn Link>) {
    let (a, b) = (fabric(), fabric());
    let there = a.connect(&b.address(), LONG).unwrap();
    (there, b.accept(LONG).unwrap())
}

fn head(item: u64) -> Head {
    Head { kind: 3, token: 9, item }
}

/// A socket that says what it likes to a link.
fn raw() -> (TcpStream, Box<dyn Link>) {
    let fabric = fabric();
    let stream = TcpStream::connect(fabric.address()).unwrap();
    (stream, fabric.accept(LONG).unwrap())
}

fn frame(number: u64, payload: &[u8]) -> Vec<u8> {
    [&header(head(number), number, payload)[..], payload].concat()
}

#[test]
fn messages_of_any_size_arrive_in_order_both_ways() {
    let (mut a, mut b) = pair();
    let sizes = [0, 1, 55, 56, 4096, AHEAD - HEADER, AHEAD, AHEAD + 1, 3 * GROWTH + 5, 2];
    let bytes = move |i: usize| (0..sizes[i]).map(|j| (i * 31 + j * 7) as u8).collect::<Vec<u8>>();
    let sender = std::thread::spawn(move || {
        for i in 0..sizes.len() {
            a.send(head(i as u64), &bytes(i), LONG).unwrap();
        }
        let mut back = Vec::new();
        assert_eq!(a.recv(&mut back, LONG).unwrap(), head(77));
        back
    });
    let mut payload = Vec::new();
    for i in 0..sizes.len() {
        assert_eq!(b.recv(&mut payload, LONG).unwrap(), head(i as u64));
        assert!(payload == bytes(i), "message {i}");
    }
    b.send(head(77), b"back", LONG).unwrap();
    assert_eq!(sender.join().unwrap(), b"back");
}

#[test]
fn a_link_is_closed_from_another_thread() {
    let (mut a, mut b) = pair();
    let close = a.closer().unwrap();
    let closing = std::thread::spawn(move || {
        std::thread::sleep(SOON);
        close();
    });
    let started = Instant::now();
    assert_eq!(a.recv(&mut Vec::new(), LONG), Err(FabricError::Closed));
    assert_eq!(b.recv(&mut Vec::new(), LONG), Err(FabricError::Closed));
    assert!(started.elapsed() < LONG / 2);
    closing.join().unwrap();
}

#[test]
fn a_deadline_that_passed_loses_nothing() {
    let (mut raw, mut link) = raw();
    let mut payload = Vec::new();
    let late = link.recv(&mut payload, SOON).unwrap_err();
    assert_eq!(late, FabricError::Deadline { what: "receiving", within: SOON });
    let frame = frame(0, b"slow");
    raw.write_all(&frame[..20]).unwrap();
    assert!(matches!(link.recv(&mut payload, SOON), Err(FabricError::Deadline { .. })));
    raw.write_all(&frame[20..]).unwrap();
    assert_eq!(link.recv(&mut payload, LONG).unwrap(), head(0));
    assert_eq!(payload, b"slow");
}

/// A peer that trickles bytes does not stretch a deadline.
#[test]
fn a_deadline_is_for_the_whole_message() {
    let (mut raw, mut link) = raw();
    let frame = frame(0, &[7; 400]);
    let trickle = std::thread::spawn(move || {
        for byte in frame {
            if raw.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let started = Instant::now();
    let mut payload = Vec::new();
    let mut outcome = link.recv(&mut payload, SOON * 4);
    // It passed within the payload: nothing may follow.
    assert!(matches!(outcome, Err(FabricError::Deadline { .. })), "{outcome:?}");
    assert!(started.elapsed() < SOON * 8, "{:?}", started.elapsed());
    outcome = link.recv(&mut payload, SOON);
    assert_eq!(outcome, Err(FabricError::Broken));
    drop(link);
    trickle.join().unwrap();
}

#[test]
fn a_reader_that_takes_nothing_is_a_deadline_for_the_sender() {
    let (mut a, _b) = pair();
    let large = vec![1; MOST_BYTES];
    let late = (0..4).map(|i| a.send(head(i), &large, SOON)).find(Result::is_err).unwrap();
    assert_eq!(late, Err(FabricError::Deadline { what: "sending", within: SOON }));
    assert_eq!(a.send(head(9), b"", SOON), Err(FabricError::Broken));
}

#[test]
fn what_is_no_frame_ends_the_link() {
    type Damages = (&'static str, fn(&mut Vec<u8>), FabricError);
    let cases: [Damages; 4] = [
        ("magic", |f| f[0] = b'X', FabricError::Damaged(Damage::Magic)),
        ("header", |f| f[9] ^= 1, FabricError::Damaged(Damage::Header)),
        ("early", |f| *f = frame(1, b"early"), FabricError::OutOfOrder { expected: 0, found: 1 }),
        ("cut", |f| f.truncate(58), FabricError::Damaged(Damage::Truncated)),
    ];
    for (name, damage, error) in cases {
        let (mut raw, mut link) = raw();
        let mut bytes = frame(0, b"payload");
        damage(&mut bytes);
        raw.write_all(&bytes).unwrap();
        drop(raw);
        let mut payload = Vec::new();
        assert_eq!(link.recv(&mut payload, LONG), Err(error), "{name}");
        assert_eq!(link.recv(&mut payload, LONG), Err(FabricError::Broken), "{name}");
    }
}

#[test]
fn a_damaged_payload_is_told_and_the_next_message_comes() {
    let (mut raw, mut link) = raw();
    let mut first = frame(0, b"payload");
    *first.last_mut().unwrap() ^= 4;
    raw.write_all(&[first, frame(1, b"next")].concat()).unwrap();
    let mut payload = Vec::new();
    assert_eq!(link.recv(&mut payload, LONG), Err(FabricError::Damaged(Damage::Payload)));
    assert!(payload.is_empty(), "nobody reads it by mistake");
    assert_eq!(link.recv(&mut payload, LONG).unwrap(), head(1));
    assert_eq!(payload, b"next");
}

#[test]
fn the_other_end_may_go_at_any_time() {
    let (a, mut b) = pair();
    drop(a);
    let mut payload = Vec::new();
    assert_eq!(b.recv(&mut payload, LONG), Err(FabricError::Closed));
    let gone = fabric();
    let address = gone.address();
    drop(gone);
    assert!(matches!(fabric().connect(&address, LONG), Err(FabricError::Unreachable { .. })));
    assert!(matches!(fabric().connect("nowhere", LONG), Err(FabricError::Unreachable { .. })));
    assert!(matches!(fabric().accept(SOON), Err(FabricError::Deadline { .. })));
}

#[test]
fn beyond_loopback_only_when_told() {
    let open = "0.0.0.0:0".parse().unwrap();
    let error = TcpFabric::listen(open, false).unwrap_err().to_string();
    assert!(error.contains("0.0.0.0:0") && error.contains("--insecure"), "{error}");
    assert!(TcpFabric::listen(open, true).is_ok());
    let error = fabric().connect("192.0.2.1:9", SOON).unwrap_err();
    assert!(matches!(error, FabricError::NotLoopback { .. }), "{error}");
}

#[test]
fn a_message_over_the_bound_is_refused_and_the_link_goes_on() {
    let (mut a, mut b) = pair();
    let error = a.send(head(0), &vec![0; MOST_BYTES + 1], LONG).unwrap_err();
    assert_eq!(error, FabricError::TooLarge { bytes: MOST_BYTES + 1, most: MOST_BYTES });
    a.send(head(1), b"fine", LONG).unwrap();
    assert_eq!(b.recv(&mut Vec::new(), LONG).unwrap(), head(1));
}

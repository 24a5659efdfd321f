//! What bad links and bad peers get on the way between nodes: refused, counted, logged once, and
//! nothing of it written.

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use rowship_proto::ack::NodeName;
use rowship_proto::message::{
    Ack, Hello, MESSAGE_MAGIC, Message, PROTOCOL_VERSIONS, Ready, RefuseCode, Welcome,
};
use rowship_proto::{Epoch, EpochHistory, LogId, Lsn};
use serde_json::Value;
use support::peer::{Peer, gibberish};
use support::proxy::{Fault, Proxy};
use support::{Node, PATIENCE, Random, assert_identical};

/// Short times, so that silence is noticed within a test.
const QUICK: &[&str] =
    &["--heartbeat-ms", "50", "--peer-timeout-ms", "600", "--reconnect-ms", "10"];

fn pair(scratch: &std::path::Path) -> (Node, Node, Proxy) {
    let mut primary = Node::primary(scratch, "primary", QUICK);
    primary.start();
    let proxy = Proxy::start(&primary.replication_address());
    let mut replica = Node::primary(scratch, "r1", QUICK);
    replica.follow(&proxy.address);
    replica.start();
    (primary, replica, proxy)
}

fn write_rows(primary: &Node, random: &mut Random, rows: u64) {
    let mut client = primary.client();
    for _ in 0..rows {
        let (key, value) = (random.below(500), "v".repeat(random.below(300) as usize));
        client.queue(&["SET", &format!("rows:{key}"), &value]);
    }
    client.flush().unwrap();
    for _ in 0..rows {
        assert!(client.receive().unwrap().error().is_none());
    }
}

fn refused(node: &Node) -> u64 {
    node.status()["counters"]["peers_refused"].as_u64().unwrap()
}

fn connects(replica: &Node) -> u64 {
    replica.status()["upstream"]["connects"].as_u64().unwrap()
}

/// Both nodes hold the same rows, and both logs verify.
fn assert_sound(primary: &mut Node, replica: &mut Node) {
    replica.catch_up_with(primary);
    assert_identical(primary, replica);
    for node in [primary, replica] {
        node.stop();
        let (code, out, err) = node.verify_log();
        assert_eq!(code, 0, "{}: {out}{err}", node.name);
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_link_that_is_cut_anywhere_goes_on_where_it_was() {
    let mut random = Random(0x00c0_ffee);
    let scratch = tempfile::tempdir().unwrap();
    let (mut primary, mut replica, proxy) = pair(scratch.path());
    for round in 0..12 {
        let fault = Fault::CutAfter(random.below(6000));
        println!("round {round}: {fault:?}");
        if round % 3 == 0 {
            proxy.toward_primary(Fault::CutAfter(random.below(300)));
        }
        proxy.toward_replica(fault);
        until("cut", || {
            write_rows(&primary, &mut random, 20);
            !proxy.pending_toward_replica() && !proxy.pending_toward_primary()
        });
    }
    assert!(connects(&replica) > 12);
    assert_eq!((refused(&primary), refused(&replica)), (0, 0), "a cut is nobody's fault");
    assert_sound(&mut primary, &mut replica);
}

#[test]
fn a_stalled_link_is_given_up_and_a_trickling_one_is_not() {
    let mut random = Random(0x5eed1);
    let scratch = tempfile::tempdir().unwrap();
    let (mut primary, mut replica, proxy) = pair(scratch.path());
    replica.until("streaming", |status| status["upstream"]["state"] == "streaming");
    let before = connects(&replica);
    proxy.toward_replica(Fault::Stall);
    proxy.toward_primary(Fault::Stall);
    write_rows(&primary, &mut random, 50);
    primary.until("rid of the silent link", |status| status["replicas"][0]["state"] == "down");
    replica.until("rid of the silent link", |status| status["upstream"]["state"] != "streaming");
    proxy.toward_replica(Fault::Trickle);
    proxy.toward_primary(Fault::Trickle);
    proxy.cut();
    write_rows(&primary, &mut random, 50);
    replica.catch_up_with(&primary);
    assert!(connects(&replica) > before);
    let trickled = connects(&replica);
    write_rows(&primary, &mut random, 50);
    replica.catch_up_with(&primary);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(connects(&replica), trickled, "slow is not silent");
    assert_sound(&mut primary, &mut replica);
}

#[test]
fn flipped_bits_are_refused_counted_and_never_written() {
    let mut random = Random(0xb17_f11b);
    let scratch = tempfile::tempdir().unwrap();
    let (mut primary, mut replica, proxy) = pair(scratch.path());
    for round in 0..20 {
        replica.until("streaming", |status| status["upstream"]["state"] == "streaming");
        let before = refused(&primary) + refused(&replica);
        let toward_replica = round % 4 != 3;
        // Every fifth round hits the handshake.
        let handshake = round % 5 == 4;
        let bytes = if handshake { 100 } else { 3000 };
        let bytes = if toward_replica { bytes } else { 88 };
        let fault = Fault::FlipBit(random.below(bytes), random.below(8) as u8);
        println!("round {round}: {fault:?}, handshake {handshake}, replica {toward_replica}");
        if handshake {
            proxy.cut();
        }
        if toward_replica {
            proxy.toward_replica(fault)
        } else {
            proxy.toward_primary(fault)
        }
        until("refused", || {
            write_rows(&primary, &mut random, 10);
            refused(&primary) + refused(&replica) > before
        });
        replica.catch_up_with(&primary);
    }
    assert_sound(&mut primary, &mut replica);
}

#[test]
fn replayed_bytes_change_nothing() {
    let mut random = Random(0x2e91a9);
    let scratch = tempfile::tempdir().unwrap();
    let (mut primary, mut replica, proxy) = pair(scratch.path());
    for round in 0..8 {
        write_rows(&primary, &mut random, 40);
        replica.catch_up_with(&primary);
        let fault = Fault::Replay(40 + random.below(2000) as usize);
        println!("round {round}: {fault:?}");
        proxy.toward_replica(fault);
        until("replayed", || {
            write_rows(&primary, &mut random, 5);
            !proxy.pending_toward_replica()
        });
        replica.catch_up_with(&primary);
    }
    assert!(refused(&replica) > 0);
    assert_sound(&mut primary, &mut replica);
}

fn hello(name: &str) -> Hello {
    Hello {
        versions: PROTOCOL_VERSIONS,
        log_id: LogId::NONE,
        node_id: 99,
        incarnation: 99,
        highest_epoch: Epoch::NONE,
        end: Lsn::ZERO,
        client_port: 7411,
        history: EpochHistory::default(),
        name: NodeName::new(name).unwrap(),
    }
}

/// What the primary tells a new replica; the link is closed again.
fn welcome_of(primary: &Node) -> Welcome {
    let mut peer = Peer::connect(&primary.replication_address());
    peer.say(&Message::Hello(hello("asks")));
    match peer.hear() {
        Some(Message::Welcome(welcome)) => welcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_bytes_on_the_replication_port_are_refused_one_by_one() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut primary, mut replica, _proxy) = pair(scratch.path());
    write_rows(&primary, &mut Random(7), 50);
    replica.catch_up_with(&primary);
    let (links, known) = (connects(&replica), welcome_of(&primary));
    let mut announces = MESSAGE_MAGIC.to_le_bytes().to_vec();
    announces.extend_from_slice(&[1, 0, 0, 0]);
    announces.extend_from_slice(&(2_u32 << 30).to_le_bytes());
    announces.resize(64, 0);
    let ack = Message::Ack(Ack::default()).encode();
    let bent = |change: &dyn Fn(&mut Hello)| {
        let mut hello = Hello {
            log_id: known.log_id,
            highest_epoch: known.epoch,
            history: known.history.clone(),
            end: Lsn(4096),
            ..hello("bent")
        };
        change(&mut hello);
        Message::Hello(hello).encode()
    };
    let newer = Epoch { counter: known.epoch.counter + 1, ..known.epoch };
    let forked = Epoch { nonce: known.epoch.nonce ^ 1, ..known.epoch };
    let cases: Vec<(&str, Vec<u8>, Option<RefuseCode>)> = vec![
        ("garbage", vec![0xa5; 4000], None),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), None),
        ("a client", b"*1\r\n$4\r\nPING\r\n".to_vec(), None),
        ("2 GiB", announces, Some(RefuseCode::Protocol)),
        ("an ack before hello", ack, Some(RefuseCode::Protocol)),
        ("a newer epoch", bent(&|h| h.highest_epoch = newer), Some(RefuseCode::StalePrimary)),
        ("a forked epoch", bent(&|h| h.highest_epoch = forked), Some(RefuseCode::ForkedEpoch)),
        ("another log", bent(&|h| h.log_id = LogId([1, 2])), Some(RefuseCode::OtherLog)),
        ("another version", bent(&|h| h.versions = (7, 9)), Some(RefuseCode::Version)),
        (
            "a name in use",
            bent(&|h| h.name = NodeName::new("r1").unwrap()),
            Some(RefuseCode::NameInUse),
        ),
    ];
    for (what, bytes, code) in cases {
        let (before, lines) = (refused(&primary), refusals_logged(&primary));
        let appended = primary.status()["log"]["appended"].clone();
        let mut peer = Peer::connect(&primary.replication_address());
        peer.stream.write_all(&bytes).unwrap();
        match code {
            Some(code) => assert_eq!(peer.hear_refusal(), Some(code), "{what}"),
            None => {
                let text = peer.read_text();
                assert!(text.starts_with("-ERR this port is for replicas"), "{what}: {text}");
                assert!(text.contains(&primary.address()), "{what}: {text}");
            }
        }
        primary.until(what, |status| status["counters"]["peers_refused"] == before + 1);
        assert_eq!(refusals_logged(&primary), lines + 1, "{what}: logged once");
        assert_eq!(primary.status()["log"]["appended"], appended, "{what}");
    }
    write_rows(&primary, &mut Random(8), 50);
    replica.catch_up_with(&primary);
    assert_eq!(connects(&replica), links, "others do not notice");
    assert_sound(&mut primary, &mut replica);
}

fn refusals_logged(node: &Node) -> usize {
    node.log().lines().filter(|line| line.contains("refused a replica")).count()
}

#[test]
fn forged_acks_are_refused_and_commit_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = [QUICK, &["--ack", "semi-sync 1"]].concat();
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    let mut client = primary.client();
    client.queue(&["SET", "rows:1", "not acknowledged"]);
    client.flush().unwrap();
    primary.until("written", |status| status["counters"]["transactions"] == 1);
    let status = primary.until("durable", |s| s["log"]["durable"] == s["log"]["appended"]);
    let (end, committed) = (lsn(&status, "appended"), lsn(&status, "committed"));
    assert!(committed < end);
    // All else in each of them is as it should be.
    let ack = |received: Lsn, durable: Lsn, applied: Lsn| {
        let visible = Lsn(4096);
        Ack { received, durable, applied, visible, ..Ack::default() }
    };
    let far = Lsn(end + 4096);
    let acks: &[(&str, &dyn Fn(Lsn) -> Ack)] = &[
        ("beyond what was written", &|at| ack(far, far, at)),
        ("durable beyond received", &|at| ack(at, far, at)),
        ("back", &|at| ack(Lsn(at.0 - 8), Lsn(at.0 - 8), at)),
        ("applied beyond durable", &|at| ack(at, at, far)),
        ("visible beyond applied", &|at| Ack { visible: far, ..ack(at, at, at) }),
    ];
    for (what, forge) in acks {
        let before = refused(&primary);
        let mut peer = Peer::connect(&primary.replication_address());
        peer.say(&Message::Hello(hello("forger")));
        let Some(Message::Welcome(welcome)) = peer.hear() else { panic!("{what}: no welcome") };
        let (resume, chain) = (welcome.resume, welcome.resume_chain);
        peer.say(&Message::Ready(Ready { resume, chain, visible: resume }));
        peer.say(&Message::Ack(forge(resume)));
        primary.until(what, |status| status["counters"]["peers_refused"] == before + 1);
        let status = primary.until("down", |status| status["replicas"][0]["state"] == "down");
        assert_eq!(lsn(&status, "committed"), committed, "{what}");
    }
    for wrong in [(0, 1), (8, 0)] {
        let before = refused(&primary);
        let mut peer = Peer::connect(&primary.replication_address());
        peer.say(&Message::Hello(hello("liar")));
        let Some(Message::Welcome(welcome)) = peer.hear() else { panic!("no welcome") };
        let (resume, chain) = (welcome.resume.plus(wrong.0), welcome.resume_chain ^ wrong.1);
        peer.say(&Message::Ready(Ready { resume, chain, visible: Lsn::ZERO }));
        assert_eq!(peer.hear_refusal(), Some(RefuseCode::Diverged));
        primary.until("refused", |status| status["counters"]["peers_refused"] == before + 1);
    }
    let names = primary.status()["replicas"].as_array().unwrap().len();
    assert_eq!(names, 1, "who never streamed leaves no name behind");
}

fn lsn(status: &Value, position: &str) -> u64 {
    status["log"][position].as_u64().unwrap()
}

#[test]
fn mute_connections_are_bounded_and_closed_and_keep_no_replica_out() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = [QUICK, &["--replicas-max", "4"]].concat();
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    let address = primary.replication_address();
    let mut mute: Vec<Peer> = (0..24).map(|_| Peer::connect(&address)).collect();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, QUICK);
    replica.start();
    write_rows(&primary, &mut Random(3), 20);
    replica.catch_up_with(&primary);
    // A hello that comes byte by byte has no more time than one that does not come.
    let mut slow = Peer::connect(&address);
    let started = Instant::now();
    for byte in Message::Hello(hello("slow")).encode() {
        if slow.stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(slow.hear(), None);
    assert!(started.elapsed() < PATIENCE / 4, "the connection ends with the peer timeout");
    for peer in &mut mute {
        assert_eq!(peer.read_text(), "", "closed");
    }
    primary.until("counted", |status| status["counters"]["peers_refused"] == 25);
    assert_eq!(connects(&replica), 1);
    assert_sound(&mut primary, &mut replica);
}

/// What is told instead of the truth.
type Lie = Box<dyn Fn(&Hello, &mut Welcome)>;

/// Takes the replica's next connection and answers its hello with what `change` makes of the
/// welcome that its real primary would send; returns what the replica says to that.
fn offer(
    listener: &TcpListener,
    honest: &Welcome,
    change: &dyn Fn(&Hello, &mut Welcome),
) -> Option<Message> {
    let mut peer = Peer::of(listener.accept().unwrap().0);
    let Some(Message::Hello(hello)) = peer.hear() else { panic!("no hello") };
    let mut welcome = Welcome { resume: hello.end, ..honest.clone() };
    change(&hello, &mut welcome);
    peer.say(&Message::Welcome(welcome));
    peer.hear()
}

/// Welcomes that a replica must refuse: what, with which code, and how it differs from an honest
/// one. `middle` lies in a tail above `visible`.
fn lies(visible: Lsn, middle: Lsn) -> Vec<(&'static str, RefuseCode, Lie)> {
    let newer = |hello: &Hello, welcome: &mut Welcome, start: Lsn| {
        let epoch = Epoch { counter: hello.highest_epoch.counter + 1, node_id: 66, nonce: 6 };
        welcome.history = hello.history.clone();
        assert!(welcome.history.push(epoch, start));
        (welcome.epoch, welcome.resume) = (epoch, start);
    };
    vec![
        ("another log", RefuseCode::OtherLog, Box::new(|_, w| w.log_id = LogId([1, 2]))),
        (
            "a forked epoch",
            RefuseCode::ForkedEpoch,
            Box::new(|_, w| {
                let epoch = Epoch { nonce: w.epoch.nonce ^ 1, ..w.epoch };
                let start = w.history.last().unwrap().start;
                w.history.cut(start);
                assert!(w.history.push(epoch, start));
                w.epoch = epoch;
            }),
        ),
        (
            "an older epoch",
            RefuseCode::StalePrimary,
            Box::new(|_, w| {
                let epoch = Epoch { counter: 0, ..w.epoch };
                w.history = EpochHistory::default();
                assert!(w.history.push(epoch, Lsn(4096)));
                w.epoch = epoch;
            }),
        ),
        ("another version", RefuseCode::Version, Box::new(|_, w| w.version = 9)),
        (
            "a place beyond the log",
            RefuseCode::Protocol,
            Box::new(|h, w| w.resume = h.end.plus(4096)),
        ),
        ("its own epoch, cut", RefuseCode::Protocol, Box::new(move |_, w| w.resume = middle)),
        ("another chain", RefuseCode::Diverged, Box::new(|_, w| w.resume_chain ^= 1)),
        (
            "a newer epoch on another chain",
            RefuseCode::Diverged,
            Box::new(move |h, w| newer(h, w, h.end)),
        ),
        (
            "a newer epoch in the middle of the tail",
            RefuseCode::Diverged,
            Box::new(move |h, w| newer(h, w, middle)),
        ),
        (
            "a newer epoch below what is applied",
            RefuseCode::Diverged,
            Box::new(move |h, w| newer(h, w, Lsn(visible.0 - 8))),
        ),
        ("a segment of 16 EiB", RefuseCode::Protocol, Box::new(|_, w| w.segment.1 = u64::MAX)),
    ]
}

/// Tells each lie and then each piece of gibberish to a replica that connects to `listener`: all
/// are refused and counted, and nothing of its log moves.
fn deceive(replica: &Node, listener: &TcpListener, honest: &Welcome, visible: Lsn, middle: Lsn) {
    let before = replica.status()["log"].clone();
    let cases = lies(visible, middle);
    for (at, (what, code, change)) in cases.iter().enumerate() {
        // The honest chain value is that of a new replica: right for none of these places.
        let answer = offer(listener, honest, change);
        let Some(Message::Refuse(refuse)) = answer else { panic!("{what}: {answer:?}") };
        assert_eq!(refuse.code, *code, "{what}: {}", refuse.text);
        let status = replica.until(what, |status| status["counters"]["peers_refused"] == at + 1);
        for position in ["appended", "durable", "committed", "visible", "segments"] {
            assert_eq!(status["log"][position], before[position], "{what}: {position}");
        }
    }
    for (at, bytes) in gibberish().iter().enumerate() {
        let mut peer = Peer::of(listener.accept().unwrap().0);
        peer.stream.write_all(bytes).unwrap();
        let counted = cases.len() + at + 1;
        replica.until("counted", |status| status["counters"]["peers_refused"] == counted);
    }
    assert_eq!(replica.status()["log"], before);
}

#[test]
fn a_false_primary_is_refused_and_nothing_is_cut() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = [QUICK, &["--ack", "semi-sync 2"]].concat();
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, QUICK);
    replica.start();
    let mut second = Node::replica(scratch.path(), "r2", &primary, QUICK);
    second.start();
    write_rows(&primary, &mut Random(5), 20);
    replica.catch_up_with(&primary);
    second.stop();
    // Two replicas are needed and there is one: it gets a tail that is not committed.
    let mut client = primary.client();
    for row in 0..50 {
        client.queue(&["SET", &format!("rows:{row}"), "uncommitted"]);
    }
    client.flush().unwrap();
    primary.until("written", |status| status["counters"]["transactions"] == 70);
    let end =
        lsn(&primary.until("durable", |s| s["log"]["durable"] == s["log"]["appended"]), "appended");
    let status = replica.until("whole", |status| lsn(status, "durable") == end);
    assert!(lsn(&status, "visible") < end, "there is a tail that could be cut");
    let honest = welcome_of(&primary);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    replica.stop();
    replica.follow(&listener.local_addr().unwrap().to_string());
    replica.start();
    let visible = Lsn(lsn(&status, "visible"));
    let middle = Lsn((visible.0 + end) / 2 / 8 * 8);
    deceive(&replica, &listener, &honest, visible, middle);
    // No claim of a newer epoch has stuck: the true primary is followed again.
    replica.stop();
    replica.follow(&primary.replication_address());
    replica.start();
    second.start();
    for _ in 0..50 {
        assert!(client.receive().unwrap().error().is_none());
    }
    second.catch_up_with(&primary);
    assert_identical(&primary, &second);
    assert_sound(&mut primary, &mut replica);
}

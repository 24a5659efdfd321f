//! What clients get that send nonsense, never read, or go away: a clear error or a closed
//! connection; the others do not notice, and memory stays bounded.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rowship::cli::client::encode_command;
use support::{Node, PATIENCE};

/// Longest time that a command of a well-behaved client may take while another one misbehaves:
/// generous, since the machine may be busy, but far below any time-out of the node.
const LATENCY_MAX: Duration = Duration::from_secs(5);

fn primary(scratch: &std::path::Path, flags: &[&str]) -> Node {
    let mut node = Node::primary(scratch, "primary", flags);
    node.start();
    node
}

fn raw(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the node closes the connection.
fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too; a time-out is not.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the node did not close");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn commands(commands: &[&[&str]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for command in commands {
        encode_command(command, &mut bytes);
    }
    bytes
}

fn resident_bytes(node: &Node) -> u64 {
    node.status()["memory"]["resident_bytes"].as_u64().unwrap()
}

/// Waits until only the asking connection is left.
fn until_alone(node: &Node) {
    node.until("alone", |status| status["clients"]["connected"] == 1);
}

fn assert_quick(node: &Node) {
    let started = Instant::now();
    assert!(node.call(&["PING"]).error().is_none());
    assert!(started.elapsed() < LATENCY_MAX, "PING took {:?}", started.elapsed());
}

#[test]
fn what_is_no_command_is_answered_and_the_connection_closed() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), &[]);
    let nested = "*1\r\n".repeat(20_000);
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("a billion arguments", b"*1000000000\r\n".to_vec(), "invalid multibulk length"),
        ("2 GiB", b"*1\r\n$2147483648\r\n".to_vec(), "invalid bulk length"),
        ("no number", b"*1\r\n$abc\r\n".to_vec(), "invalid bulk length"),
        ("nested arrays", nested.as_bytes()[..2000].to_vec(), "expected '$', got '*'"),
        ("a long line", vec![b'a'; 64 << 10], "too big inline request"),
        ("quotes", b"GET \"a\r\n".to_vec(), "unbalanced quotes"),
    ];
    for (at, (what, bytes, error)) in cases.iter().enumerate() {
        let mut stream = raw(&node);
        stream.write_all(bytes).unwrap();
        let text = read_to_end(&mut stream);
        assert!(text.starts_with("-ERR Protocol error") && text.contains(error), "{what}: {text}");
        assert_eq!(text.matches("\r\n").count(), 1, "{what}: one error, not one per byte");
        let counted = &node.status()["counters"]["protocol_errors"];
        assert_eq!(counted, &serde_json::json!(at + 1), "{what}");
    }
    let mut http = raw(&node);
    http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(read_to_end(&mut http).contains("not HTTP"));
    for bytes in [nested.into_bytes(), vec![b'a'; 1 << 20], vec![0xff; 1 << 20]] {
        let mut stream = raw(&node);
        // The node may have closed before all of it is out.
        let _ = stream.write_all(&bytes);
        read_to_end(&mut stream);
    }
    assert_quick(&node);
    until_alone(&node);
}

#[test]
fn a_replica_at_the_port_for_clients_reads_where_to_go() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), &[]);
    let mut replica = Node::primary(scratch.path(), "lost", &["--reconnect-ms", "10"]);
    replica.follow(&node.address());
    replica.start();
    replica.until("told", |status| {
        let told = status["upstream"]["last_error"].as_str().unwrap();
        told.contains("port for clients") && told.contains(&node.replication_address())
    });
}

#[test]
fn half_a_command_holds_no_more_memory_than_it_sent() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), &[]);
    let before = resident_bytes(&node);
    let half: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = raw(&node);
            stream.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16000000\r\nbeginning").unwrap();
            stream
        })
        .collect();
    node.until("connected", |status| status["clients"]["connected"] == 101);
    assert_quick(&node);
    let grown = resident_bytes(&node).saturating_sub(before);
    assert!(grown < 150 << 20, "{grown} bytes for 100 clients that announced 1600 MB");
    drop(half);
    until_alone(&node);
}

#[test]
fn a_client_that_never_reads_is_bounded_and_closed_and_others_do_not_notice() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--replies-bytes-max", "256KiB", "--client-write-timeout-ms", "1500"];
    let node = primary(scratch.path(), &flags);
    node.call(&["SET", "large", &"x".repeat(3000)]);
    let before = resident_bytes(&node);
    let mut stream = raw(&node);
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let pipeline = commands(&[&["GET", "large"]]).repeat(1000);
    let (mut closed, mut sent) = (false, 0);
    let mut stuck_since = None;
    let deadline = Instant::now() + PATIENCE;
    while !closed {
        match stream.write(&pipeline[sent % pipeline.len()..]) {
            Ok(written) => sent += written,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                stuck_since.get_or_insert_with(Instant::now);
            }
            Err(_) => closed = true,
        }
        assert_quick(&node);
        let grown = resident_bytes(&node).saturating_sub(before);
        assert!(grown < 64 << 20, "{grown} bytes after {sent} bytes of commands");
        assert!(Instant::now() < deadline, "{sent} bytes of commands were taken");
    }
    println!("{sent} bytes of commands sent, then stuck since {stuck_since:?}, then closed");
    assert!(stuck_since.is_some(), "commands are not read while replies are not taken");
    until_alone(&node);
}

#[test]
fn a_long_pipeline_of_a_client_that_reads_late_is_answered_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), &["--replies-bytes-max", "64KiB"]);
    let mut stream = raw(&node);
    let mut writing = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let pipeline = commands(&[&["PING"]]).repeat(1000);
        for _ in 0..100 {
            writing.write_all(&pipeline).unwrap();
        }
        writing.shutdown(Shutdown::Write).unwrap();
    });
    std::thread::sleep(Duration::from_millis(300));
    let text = read_to_end(&mut stream);
    writer.join().unwrap();
    assert_eq!(text.len(), 100_000 * "+PONG\r\n".len());
    until_alone(&node);
}

#[test]
fn a_reply_beyond_the_limit_is_an_error_and_costs_no_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), &[]);
    node.call(&["SET", "k", &"x".repeat(3500)]);
    let before = resident_bytes(&node);
    let mget: Vec<&str> =
        std::iter::once("MGET").chain(std::iter::repeat_n("k", 100_000)).collect();
    let mut bytes = commands(&[&mget, &["MULTI"]]);
    bytes.extend(commands(&[&["GET", "k"]]).repeat(16_000));
    bytes.extend(commands(&[&["EXEC"], &["QUIT"]]));
    let mut stream = raw(&node);
    let mut writing = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || writing.write_all(&bytes).unwrap());
    let text = read_to_end(&mut stream);
    writer.join().unwrap();
    let head = "-ERR reply is larger than replies_bytes_max";
    assert!(text.starts_with(head), "{}", &text[..200.min(text.len())]);
    assert!(text.contains("replies are larger than replies_bytes_max"), "EXEC is bounded too");
    assert!(text.ends_with("+OK\r\n"));
    let grown = resident_bytes(&node).saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes for replies of 400 MB");
    assert_quick(&node);
}

#[test]
fn one_client_too_many_is_told_so() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), &["--clients-max", "4"]);
    let mut clients: Vec<_> = (0..4).map(|_| node.client()).collect();
    for client in &mut clients {
        client.ask(&["PING"]).unwrap();
    }
    for _ in 0..50 {
        let text = read_to_end(&mut raw(&node));
        assert_eq!(text, "-ERR max number of clients reached\r\n");
    }
    assert_eq!(clients[0].status().unwrap()["clients"]["refused"], 50);
    clients.truncate(1);
    let deadline = Instant::now() + PATIENCE;
    while clients[0].status().unwrap()["clients"]["connected"] != 1 {
        assert!(Instant::now() < deadline, "places of clients that left are free again");
    }
    assert_quick(&node);
}

#[test]
fn clients_that_leave_while_something_waits_for_a_missing_replica_leave_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--ack", "semi-sync 1", "--stop-timeout-ms", "300"];
    let node = primary(scratch.path(), &flags);
    let token = "1-0000000000000000-0000000000000000:999999";
    let wait_position: &[&str] = &["ROWSHIP.WAITPOS", token, "0"];
    let large = "x".repeat(3000);
    let fill = commands(&[&["SET", "a", &large]]).repeat(40);
    let waiting: Vec<(&str, Vec<u8>)> = vec![
        ("a reply", commands(&[&["SET", "a", "b"]])),
        ("WAIT", commands(&[&["SET", "a", "b"], &["WAIT", "1", "0"]])),
        ("WAIT alone", commands(&[&["WAIT", "1", "0"]])),
        ("WAITAOF", commands(&[&["WAITAOF", "1", "1", "0"]])),
        ("a position", commands(&[wait_position])),
        ("room for its write", fill.clone()),
        ("room for its write, with more to come", fill.clone()),
    ];
    let streams: Vec<TcpStream> = waiting
        .iter()
        .map(|(_, bytes)| {
            let mut stream = raw(&node);
            stream.write_all(bytes).unwrap();
            stream
        })
        .collect();
    let all = waiting.len() + 1;
    node.until("waiting", |status| {
        let full = status["ack"]["uncommitted_bytes"].as_u64().unwrap() > 60_000;
        status["clients"]["connected"] == all && full
    });
    // Longer than the patience with those who leave: nobody is given up who is still there.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(node.status()["clients"]["connected"], all);
    drop(streams);
    until_alone(&node);
    // And what they wrote is there once a replica comes: a client that goes away changes nothing.
    let mut replica = Node::replica(scratch.path(), "r1", &node, &[]);
    replica.start();
    replica.catch_up_with(&node);
    assert_quick(&node);
}

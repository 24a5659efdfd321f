//! When replies leave, with real nodes: under each policy, with replicas frozen, gone and back.

mod support;

use std::time::{Duration, Instant};

use rowship::cli::client::{Client, ClientError};
use rowship::cli::reply::Reply;
use rustix::process::Signal;
use serde_json::Value;
use support::{Node, PATIENCE, assert_identical, rowship};

/// How long a reply that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(250);
/// A replica that is frozen for this long or more counts as dead.
const DEAD: [&str; 4] = ["--heartbeat-ms", "200", "--peer-timeout-ms", "2000"];

fn text(reply: &Reply) -> String {
    reply.text().unwrap_or_else(|| panic!("not text: {reply:?}"))
}

fn send(client: &mut Client, arguments: &[&str]) {
    client.queue(arguments);
    client.flush().unwrap();
}

fn ok(client: &mut Client, arguments: &[&str]) {
    assert_eq!(text(&client.ask(arguments).unwrap()), "OK", "{arguments:?}");
}

fn error(reply: &Reply) -> String {
    reply.error().unwrap_or_else(|| panic!("not an error: {reply:?}"))
}

/// Panics when a reply comes.
fn silent(client: &mut Client, why: &str) {
    client.set_reply_timeout(SILENCE).unwrap();
    match client.receive() {
        Err(ClientError::Timeout { .. }) => {}
        other => panic!("a reply although {why}: {other:?}"),
    }
    client.set_reply_timeout(PATIENCE).unwrap();
}

/// A connection with a policy of its own.
fn client_with(node: &Node, policy: &str) -> Client {
    let mut client = node.client();
    ok(&mut client, &["ROWSHIP.ACK", policy]);
    client
}

fn streaming(primary: &Node, names: &[&str]) {
    primary.until("streaming", |status| {
        names.iter().all(|name| replica_of(status, name)["state"] == "streaming")
    });
}

fn replica_of(status: &Value, name: &str) -> Value {
    let replicas = status["replicas"].as_array().unwrap();
    replicas.iter().find(|replica| replica["name"] == name).cloned().unwrap_or(Value::Null)
}

/// `[word, position]` of WAITPOS.
fn wait_position(node: &Node, token: &str, timeout: &str) -> String {
    match node.call(&["ROWSHIP.WAITPOS", token, timeout]) {
        Reply::Array(parts) => text(&parts[0]),
        other => panic!("{other:?}"),
    }
}

/// `[token, level]` of POSITION.
fn position(client: &mut Client) -> (String, String) {
    match client.ask(&["ROWSHIP.POSITION"]).unwrap() {
        Reply::Array(parts) => (text(&parts[0]), text(&parts[1])),
        other => panic!("{other:?}"),
    }
}

/// The token in an INDETERMINATE reply.
fn open_token(reply: &Reply) -> String {
    let error = error(reply);
    assert!(error.starts_with("INDETERMINATE "), "{error}");
    let after = error.split_once("WAITPOS ").expect("names the command").1;
    after.split(' ').next().unwrap().to_owned()
}

#[test]
fn under_semi_sync_replies_wait_for_a_frozen_replica_and_so_does_what_saw_its_writes() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "p", &["--ack", "semi-sync 1"]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    let mut writer = primary.client();
    ok(&mut writer, &["SET", "n", "5"]);
    let mut async_client = client_with(&primary, "async");
    let mut memory_client = client_with(&primary, "memory");
    let mut reader = primary.client();

    replica.signal(Signal::STOP);
    send(&mut writer, &["SET", "n", "7"]);
    silent(&mut writer, "the only replica is frozen");
    ok(&mut async_client, &["SET", "a", "1"]);
    assert_eq!(position(&mut async_client).1, "durable");
    ok(&mut memory_client, &["SET", "m", "1"]);
    // Plain reads: what is committed, and one's own.
    assert_eq!(text(&reader.ask(&["GET", "n"]).unwrap()), "5");
    assert_eq!(reader.ask(&["GET", "a"]).unwrap(), Reply::Null);
    assert_eq!(text(&async_client.ask(&["GET", "a"]).unwrap()), "1");
    assert_eq!(text(&memory_client.ask(&["GET", "m"]).unwrap()), "1");
    // Read-modify-write sees the pending 7, so its reply waits for that, whatever its policy; so
    // do an EXEC that only reads it, a refusal and the nil that tells of it.
    send(&mut memory_client, &["INCR", "n"]);
    let mut looks = [(); 3].map(|()| client_with(&primary, "async"));
    send(&mut looks[0], &["MULTI"]);
    send(&mut looks[0], &["GET", "n"]);
    send(&mut looks[0], &["EXEC"]);
    assert_eq!(text(&looks[0].receive().unwrap()), "OK");
    assert_eq!(text(&looks[0].receive().unwrap()), "QUEUED");
    send(&mut looks[1], &["SET", "n", "1", "NX"]);
    send(&mut looks[2], &["HSET", "n", "column", "1"]);
    silent(&mut memory_client, "INCR saw an uncommitted write");
    for look in &mut looks {
        silent(look, "it saw an uncommitted write");
    }
    let status = primary.status();
    assert!(status["ack"]["uncommitted_bytes"].as_u64().unwrap() > 0);

    replica.signal(Signal::CONT);
    assert_eq!(text(&writer.receive().unwrap()), "OK");
    assert_eq!(text(&memory_client.receive().unwrap()), "8");
    assert_eq!(looks[0].receive().unwrap(), Reply::Array(vec![Reply::Bulk("8".into())]));
    assert_eq!(looks[1].receive().unwrap(), Reply::Null);
    assert!(error(&looks[2].receive().unwrap()).starts_with("WRONGTYPE"));
    let until = Instant::now() + PATIENCE;
    while position(&mut async_client).1 != "visible" {
        assert!(Instant::now() < until);
    }
    assert_eq!(text(&reader.ask(&["GET", "a"]).unwrap()), "1");
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

#[test]
fn each_connection_waits_for_those_its_own_policy_names() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "p", &[]);
    primary.start();
    let mut r1 = Node::replica(scratch.path(), "r1", &primary, &[]);
    r1.start();
    let mut r2 = Node::replica(scratch.path(), "r2", &primary, &[]);
    r2.start();
    streaming(&primary, &["r1", "r2"]);
    let ready = ["async", "node", "memory", "semi-sync 1", "semi-sync ANY 1 received (r1, r2)"];
    let ready = ready.into_iter().chain(["semi-sync FIRST 1 (r2, r1)", "sync (r2)"]);
    let held = ["semi-sync 2", "semi-sync 2 received", "semi-sync ANY 1 (r1)", "sync (r1)"];
    let falls_over = "semi-sync FIRST 1 (r1, r2)";
    let held = held.into_iter().chain(["sync committed (r1, r2)"]);
    let mut ready: Vec<_> = ready.map(|policy| (policy, client_with(&primary, policy))).collect();
    let mut held: Vec<_> = held.map(|policy| (policy, client_with(&primary, policy))).collect();
    let mut first = client_with(&primary, falls_over);
    assert!(text(&first.ask(&["ROWSHIP.ACK"]).unwrap()).starts_with("semi-sync FIRST 1"));
    for (policy, client) in ready.iter_mut().chain(&mut held) {
        ok(client, &["SET", "warm", policy]);
    }

    r1.signal(Signal::STOP);
    for (_, client) in &mut held {
        send(client, &["SET", "k", "held"]);
    }
    send(&mut first, &["SET", "k", "held"]);
    for (policy, client) in &mut ready {
        ok(client, &["SET", "k", policy]);
    }
    for (policy, client) in &mut held {
        silent(client, &format!("{policy} needs the frozen replica"));
    }
    silent(&mut first, "the first name is frozen, but connected");
    r1.kill();
    assert_eq!(text(&first.receive().unwrap()), "OK", "the next name stands in");
    silent(&mut held[0].1, "a replica is missing");
    r1.start();
    for (policy, client) in &mut held {
        let reply = client.receive().unwrap_or_else(|error| panic!("{policy}: {error}"));
        assert_eq!(text(&reply), "OK", "{policy}");
    }
    // Back to the node's own.
    r1.signal(Signal::STOP);
    let (_, mut client) = held.pop().unwrap();
    ok(&mut client, &["ROWSHIP.ACK", "node"]);
    ok(&mut client, &["SET", "k", "async again"]);
    r1.signal(Signal::CONT);
    let refused = error(&client.call(&["ROWSHIP.ACK", "semi-sync 0"]).unwrap());
    assert!(refused.contains("cannot be met"), "{refused}");
}

#[test]
fn sync_means_that_every_named_replica_shows_it_and_wait_names_who_is_missing() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--ack", "sync (r1, r2)", "--on-missing", "wait"];
    let mut primary = Node::primary(scratch.path(), "p", &flags);
    primary.start();
    let mut r1 = Node::replica(scratch.path(), "r1", &primary, &[]);
    r1.start();
    let mut r2 = Node::replica(scratch.path(), "r2", &primary, &[]);
    streaming(&primary, &["r1"]);
    let mut writer = primary.client();
    send(&mut writer, &["SET", "early", "1"]);
    silent(&mut writer, "r2 is missing");
    let status = primary.status();
    assert_eq!(status["ack"]["waiting_for"], serde_json::json!(["r2"]));
    assert_eq!(primary.call(&["GET", "early"]), Reply::Null, "not committed");
    r2.start();
    assert_eq!(text(&writer.receive().unwrap()), "OK");
    assert_eq!(primary.status()["ack"]["waiting_for"], serde_json::json!([]));
    let mut readers = [r1.client(), r2.client()];
    for round in 0..100 {
        let round = round.to_string();
        ok(&mut writer, &["SET", "k", &round]);
        for reader in &mut readers {
            assert_eq!(text(&reader.ask(&["GET", "k"]).unwrap()), round, "acknowledged");
        }
    }
    // One dies with a write under way, and comes back.
    r1.kill();
    send(&mut writer, &["INCR", "k"]);
    silent(&mut writer, "r1 is missing");
    primary.until("named", |status| status["ack"]["waiting_for"] == serde_json::json!(["r1"]));
    r1.start();
    assert_eq!(text(&writer.receive().unwrap()), "100");
    assert_eq!(text(&r1.call(&["GET", "k"])), "100");
    assert_identical(&primary, &r1);
    assert_identical(&primary, &r2);
}

#[test]
fn refuse_refuses_before_the_append_and_leaves_a_token_after_it() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = [&["--ack", "semi-sync 1", "--on-missing", "refuse"][..], &DEAD].concat();
    let mut primary = Node::primary(scratch.path(), "p", &flags);
    primary.start();
    let mut writer = primary.client();
    let before = primary.status()["log"]["appended"].clone();
    let refused = error(&writer.call(&["SET", "a", "1"]).unwrap());
    assert!(refused.starts_with("NOREPLICAS "), "{refused}");
    assert!(refused.contains("any 1 more replica"), "{refused}");
    ok(&mut writer, &["MULTI"]);
    writer.ask(&["SET", "a", "1"]).unwrap();
    let refused = error(&writer.call(&["EXEC"]).unwrap());
    assert!(refused.starts_with("EXECABORT Transaction discarded because of: NOREPLICAS"));
    assert_eq!(writer.ask(&["GET", "a"]).unwrap(), Reply::Null, "reads go on");
    let status = primary.status();
    assert_eq!(status["log"]["appended"], before, "nothing was appended");
    assert_eq!(status["ack"]["refused_writes"], 2);
    let mut async_client = client_with(&primary, "async");
    ok(&mut async_client, &["SET", "async", "1"]);

    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    streaming(&primary, &["r1"]);
    ok(&mut writer, &["SET", "a", "2"]);
    replica.signal(Signal::STOP);
    let mut others: Vec<Client> = (0..3).map(|_| primary.client()).collect();
    send(&mut writer, &["SET", "a", "3"]);
    for client in &mut others {
        send(client, &["INCR", "counter"]);
    }
    let token = open_token(&writer.receive().unwrap());
    for client in &mut others {
        open_token(&client.receive().unwrap());
    }
    ok(&mut async_client, &["SET", "async", "2"]);
    assert!(error(&writer.call(&["SET", "a", "4"]).unwrap()).starts_with("NOREPLICAS "));
    assert_eq!(wait_position(&primary, &token, "50"), "timeout");
    assert!(primary.status()["ack"]["indeterminate_writes"].as_u64().unwrap() >= 4);
    // Scans do not wait for a write whose fate is open.
    assert!(matches!(writer.ask(&["SCAN", "0"]).unwrap(), Reply::Array(_)));
    replica.signal(Signal::CONT);
    assert_eq!(wait_position(&primary, &token, "30000"), "reached");
    assert_eq!(wait_position(&replica, &token, "30000"), "reached");
    assert_eq!(text(&replica.call(&["GET", "a"])), "3");
    assert_eq!(text(&primary.call(&["GET", "counter"])), "3");
    let forked = token.replacen(&token[token.find(':').unwrap() - 4..], "0000:1", 1);
    assert_eq!(wait_position(&primary, &forked, "50"), "lost");
    streaming(&primary, &["r1"]);
    ok(&mut writer, &["SET", "a", "5"]);
}

#[test]
fn under_refuse_each_policy_tells_its_own_writes_that_they_are_open() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = [&["--ack", "async", "--on-missing", "refuse"][..], &DEAD].concat();
    let mut primary = Node::primary(scratch.path(), "p", &flags);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    streaming(&primary, &["r1"]);
    let mut node_client = primary.client();
    let mut sync_client = client_with(&primary, "sync (r1)");
    ok(&mut sync_client, &["SET", "a", "1"]);
    replica.signal(Signal::STOP);
    send(&mut sync_client, &["SET", "a", "2"]);
    let until = Instant::now() + PATIENCE;
    while replica_of(&primary.status(), "r1")["state"] == "streaming" {
        assert!(Instant::now() < until);
        ok(&mut node_client, &["SET", "b", "1"]);
    }
    let token = open_token(&sync_client.receive().unwrap());
    assert_eq!(wait_position(&primary, &token, "30000"), "reached");
    let refused = error(&sync_client.call(&["SET", "a", "3"]).unwrap());
    assert!(refused.starts_with("NOREPLICAS ") && refused.ends_with("Missing: r1"), "{refused}");
    ok(&mut node_client, &["SET", "b", "2"]);
    assert_eq!(primary.status()["ack"]["indeterminate_writes"], 1);
}

#[test]
fn wait_and_waitaof_count_replicas_and_end_in_time() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "p", &[]);
    primary.start();
    let mut r1 = Node::replica(scratch.path(), "r1", &primary, &[]);
    r1.start();
    let mut r2 = Node::replica(scratch.path(), "r2", &primary, &[]);
    r2.start();
    streaming(&primary, &["r1", "r2"]);
    let mut client = primary.client();
    let mut ask = |arguments: &[&str]| client.ask(arguments).unwrap();
    let pair = |a, b| Reply::Array(vec![Reply::Integer(a), Reply::Integer(b)]);
    ask(&["SET", "k", "1"]);
    assert_eq!(ask(&["WAIT", "2", "30000"]), Reply::Integer(2));
    assert_eq!(ask(&["WAITAOF", "1", "2", "30000"]), pair(1, 2));
    r2.signal(Signal::STOP);
    ask(&["SET", "k", "2"]);
    assert_eq!(ask(&["WAIT", "1", "0"]), Reply::Integer(1));
    let start = Instant::now();
    assert_eq!(ask(&["WAIT", "2", "200"]), Reply::Integer(1));
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(ask(&["WAITAOF", "1", "1", "0"]), pair(1, 1));
    assert_eq!(ask(&["WAITAOF", "1", "2", "100"]), pair(1, 1));
    assert_eq!(ask(&["WAIT", "0", "0"]), Reply::Integer(1));
    r2.signal(Signal::CONT);
    assert_eq!(ask(&["WAIT", "2", "0"]), Reply::Integer(2));
    assert_eq!(ask(&["WAITAOF", "0", "2", "0"]), pair(1, 2));
    assert!(error(&r1.call(&["WAIT", "1", "1"])).contains("replica instances"));
    assert!(error(&r1.call(&["WAITAOF", "0", "1", "1"])).contains("replica instances"));
    // A token from the future of this epoch: not yet, then reached, on the replica.
    let (token, _) = position(&mut client);
    assert_eq!(wait_position(&r1, &token, "30000"), "reached");
}

#[test]
fn a_replica_writes_late_what_nobody_waits_for_and_at_once_what_somebody_does() {
    const DELAY: Duration = Duration::from_secs(1);
    const WRITES: u32 = 20;
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "p", &[]);
    primary.start();
    let mut replica =
        Node::replica(scratch.path(), "r", &primary, &["--replica-write-delay-ms", "1000"]);
    replica.start();
    streaming(&primary, &["r"]);
    let mut client = primary.client();
    // Shown before it is written: seen at least once, between two writes of the log.
    let early = (0..WRITES).any(|number| {
        ok(&mut client, &["SET", "n", &number.to_string()]);
        let token = position(&mut client).0;
        assert_eq!(wait_position(&replica, &token, "0"), "reached");
        let log = &replica.status()["log"];
        log["durable"].as_u64() < log["visible"].as_u64()
    });
    assert!(early, "it wrote before it showed, {WRITES} times");
    // Far below what these would take together if each waited for its turn.
    let at_once = |what: &str, mut write: Box<dyn FnMut(u32)>| {
        let start = Instant::now();
        (0..WRITES).for_each(&mut *write);
        let took = start.elapsed();
        assert!(took < DELAY * WRITES / 2, "{what}: {took:?} for {WRITES}");
    };
    at_once("WAITAOF", {
        let mut client = primary.client();
        Box::new(move |number| {
            ok(&mut client, &["SET", "w", &number.to_string()]);
            let durable = client.ask(&["WAITAOF", "1", "1", "0"]).unwrap();
            assert_eq!(durable, Reply::Array(vec![Reply::Integer(1), Reply::Integer(1)]));
        })
    });
    at_once("a connection's policy", {
        let mut client = client_with(&primary, "semi-sync 1 durable");
        Box::new(move |number| ok(&mut client, &["SET", "s", &number.to_string()]))
    });
    replica.kill();
    replica.start();
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

#[test]
fn lag_is_zero_when_idle_grows_when_frozen_and_a_dead_replica_is_down() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "p", &DEAD);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    streaming(&primary, &["r1"]);
    let mut client = primary.client();
    for row in 0..200 {
        ok(&mut client, &["SET", &format!("rows:{row}"), "1"]);
    }
    let lag = |status: &Value| replica_of(status, "r1")["lag_ms"].as_u64().unwrap();
    let bytes = |status: &Value| replica_of(status, "r1")["lag_bytes"].as_u64().unwrap();
    let stages = ["sent", "received", "durable", "applied", "visible"];
    primary.until("measured", |status| {
        let measured = &replica_of(status, "r1")["stages"];
        let counted = |stage: &&str| measured[stage]["count"].as_u64().unwrap() >= 100;
        lag(status) == 0 && bytes(status) == 0 && stages.iter().all(counted)
    });
    for _ in 0..20 {
        let status = primary.status();
        assert_eq!((lag(&status), bytes(&status)), (0, 0), "idle: {status:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let measured = replica_of(&primary.status(), "r1")["stages"].clone();
    let order = [("received", "durable"), ("received", "applied"), ("applied", "visible")];
    for (first, then) in order {
        // A replica reaches its stages in this order; the grain of a histogram is a percent.
        let p50 = |stage: &str| measured[stage]["p50_us"].as_u64().unwrap();
        assert!(p50(first) <= p50(then) + p50(then) / 20 + 1, "{measured:#}");
    }

    replica.signal(Signal::STOP);
    ok(&mut client, &["SET", "late", "1"]);
    let first = primary.until("behind", |status| bytes(status) > 0 && lag(status) > 0);
    let second = primary.until("further behind", |status| lag(status) >= lag(&first) + 300);
    assert_eq!(bytes(&second), bytes(&first), "one write");
    let down = primary.until("down", |status| replica_of(status, "r1")["state"] == "down");
    assert!(lag(&down) >= 1000, "{down:#}");
    primary.until("still growing", |status| lag(status) >= lag(&down) + 300);
    let info = text(&primary.call(&["INFO", "replication"]));
    assert!(info.contains("role:master") && info.contains("connected_slaves:0"), "{info}");

    replica.signal(Signal::CONT);
    streaming(&primary, &["r1"]);
    primary.until("caught up", |status| lag(status) == 0 && bytes(status) == 0);
    let info = text(&primary.call(&["INFO", "replication"]));
    let wanted = ["connected_slaves:1", "state=online", "name=r1", "replica0_lag_ms:0"];
    for wanted in wanted.into_iter().chain(["replica0_stages_visible_p99_us:", "ack_policy:async"])
    {
        assert!(info.contains(wanted), "{wanted}: {info}");
    }
    let info = text(&replica.call(&["INFO", "replication"]));
    assert!(info.contains("role:slave") && info.contains("master_link_status:up"), "{info}");
    let (code, out, err) = rowship(&["status", "--at", &primary.address()]);
    assert!(code == 0 && out.contains("r1") && out.contains("streaming"), "{out}{err}");
    let (code, out, err) = rowship(&["status", "--at", &replica.address(), "--json"]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!((code, &json["upstream"]["state"]), (0, &Value::from("streaming")));
}

//! Commands from bytes to bytes. The texts are Redis 7's, checked by [`super::differential`].

use bytes::Bytes;

use super::testing::{MemoryRows, TestClient, multibulk};
use super::*;

/// What Redis 7 answers: a line `> command` (or one transaction, its commands parted by `; `), then
/// its reply, escaped. [`super::differential`] checks it against a real Redis.
pub(super) const SCRIPT: &str = include_str!("script.txt");

/// The commands of the script, ready to send, and the replies to them.
pub(super) fn script() -> impl Iterator<Item = (Vec<u8>, String)> {
    let steps = SCRIPT.split("> ").skip(1).filter_map(|step| step.split_once('\n'));
    steps.map(|(line, reply)| {
        ((line.replace("; ", "\r\n") + "\r\n").into_bytes(), reply.trim_end().to_owned())
    })
}

#[test]
fn the_script_is_answered_as_redis_answered_it() {
    let mut client = TestClient::new();
    for (commands, expected) in script() {
        let reply = client.send(&commands).escape_ascii().to_string();
        assert_eq!(reply, expected, "to {}", commands.escape_ascii());
    }
    assert!(script().count() > 100, "the script is there");
}

/// What makes a connection unusable.
pub(super) const MALFORMED: &[&str] = &[
    "*abc\r\n",
    "*9999999999\r\n",
    "*99999999999999999999999\r\n",
    "* 1\r\n",
    "*01\r\n",
    "*1\r\nPING\r\n",
    "*1\r\n:1\r\n",
    "*1\r\n$-1\r\n",
    "*1\r\n$abc\r\n",
    "*1\r\n$2147483648\r\n",
    "*2\r\n$4\r\nPING\r\n*1\r\n",
    "SET a \"b\r\n",
    "SET a \"b\"c\r\n",
    "SET a 'b\r\n",
];

#[test]
fn set_options_with_expiry_are_refused_by_name() {
    let mut client = TestClient::new();
    assert_eq!(
        client.say("SET k v ex 10"),
        "-ERR SET option 'EX' is not supported: rowship has no key expiry\r\n"
    );
    assert_eq!(client.say("GET k"), "$-1\r\n");
}

#[test]
fn unknown_commands_repeat_a_bounded_excerpt() {
    let mut client = TestClient::new();
    assert_eq!(
        client.say("foo a b"),
        "-ERR unknown command 'foo', with args beginning with: 'a' 'b' \r\n"
    );
    let reply = client.send(&multibulk(&[&[b'x'; 1000], &[b'y'; 1000], b"z\r\n+OK"]));
    assert!(reply.len() < 400);
    assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn multi_queues_then_runs_all_and_errors_inside_do_not_stop_it() {
    let mut client = TestClient::new();
    assert_eq!(client.say("MULTI"), "+OK\r\n");
    assert_eq!(client.say("SET a x"), "+QUEUED\r\n");
    assert_eq!(client.say("INCR a"), "+QUEUED\r\n");
    assert_eq!(client.say("PING"), "+QUEUED\r\n");
    assert_eq!(client.rows.writes, 0);
    assert_eq!(
        client.say("EXEC"),
        "*3\r\n+OK\r\n-ERR value is not an integer or out of range\r\n+PONG\r\n"
    );
    assert!(!client.session.in_transaction());
}

#[test]
fn a_refused_command_makes_exec_refuse_and_run_nothing() {
    for refused in ["nosuch", "GET", "DBSIZE x", "CLIENT NOPE", "SHUTDOWN", "ROWSHIP.POSITION"] {
        let mut client = TestClient::new();
        client.say("MULTI");
        client.say("SET a 1");
        assert!(client.say(refused).starts_with("-ERR "), "{refused}");
        assert_eq!(client.say("SET b 1"), "+QUEUED\r\n");
        let abort = "-EXECABORT Transaction discarded because of previous errors.\r\n";
        assert_eq!(client.say("EXEC"), abort);
        assert_eq!(client.rows.writes, 0);
        assert_eq!(client.say("SET b 1"), "+OK\r\n");
    }
}

#[test]
fn a_queue_beyond_its_limits_is_dropped() {
    let limits = SessionLimits { queued_commands_max: 3, ..SessionLimits::default() };
    let mut client = TestClient::with(limits);
    client.say("MULTI");
    for _ in 0..3 {
        assert_eq!(client.say("INCR a"), "+QUEUED\r\n");
    }
    assert!(client.say("INCR a").contains("more commands than may be queued (3)"));
    assert!(client.say("EXEC").starts_with("-EXECABORT"));

    let limits = SessionLimits { queued_bytes_max: 1000, ..SessionLimits::default() };
    let mut client = TestClient::with(limits);
    client.say("MULTI");
    assert_eq!(client.say(&format!("SET a {}", "x".repeat(500))), "+QUEUED\r\n");
    assert!(
        client
            .say(&format!("SET a {}", "x".repeat(500)))
            .contains("larger than may be queued (1000")
    );
    assert!(client.say("EXEC").starts_with("-EXECABORT"));
    assert_eq!(client.rows.writes, 0);
}

#[test]
fn commands_of_any_cost_are_few_in_a_queue() {
    let limits = SessionLimits { queued_acts_max: 2, ..SessionLimits::default() };
    for act in ["SCAN 0", "INFO", "COMMAND DOCS", "CLIENT ID", "HELLO"] {
        let mut client = TestClient::with(limits);
        client.say("MULTI");
        for _ in 0..2 {
            assert_eq!(client.say(act), "+QUEUED\r\n", "{act}");
        }
        // What costs no more than its words is not meant.
        for cheap in ["SET a 1", "PING", "ECHO x", "SELECT 0", "COMMAND COUNT", "UNWATCH"] {
            assert_eq!(client.say(cheap), "+QUEUED\r\n", "{cheap}");
        }
        assert!(client.say(act).contains("than may be queued (2)"), "{act}");
        assert!(client.say("EXEC").starts_with("-EXECABORT"));
    }
}

#[test]
fn hello_inside_exec_changes_the_form_of_what_follows() {
    let mut client = TestClient::new();
    for line in ["MULTI", "HGETALL none", "HELLO 3", "HGETALL none"] {
        client.say(line);
    }
    let reply = client.say("EXEC");
    assert!(reply.starts_with("*3\r\n*0\r\n%7\r\n"), "{reply}");
    assert!(reply.ends_with("*0\r\n%0\r\n"), "{reply}");
    assert_eq!(client.say("HGETALL none"), "%0\r\n");
}

#[test]
fn what_is_queued_or_watched_keeps_no_read_buffer_alive() {
    let input = Bytes::from(multibulk(&[b"SET", b"k", b"v"]));
    let mut session = Session::new(1, NodeRole::Primary, SessionLimits::default());
    session.handle(vec![Bytes::from_static(b"MULTI")]);
    session.handle(decode(&input, Form::Multibulk).unwrap());
    assert!(input.is_unique(), "the queue holds copies");
    session.handle(vec![Bytes::from_static(b"DISCARD")]);
    let input = Bytes::from(multibulk(&[b"WATCH", b"k", b""]));
    let action = session.handle(decode(&input, Form::Multibulk).unwrap());
    assert_eq!(action, Action::Watch(vec![Bytes::from_static(b"k"), Bytes::new()]));
    assert!(input.is_unique(), "the watch list holds copies");
}

#[test]
fn reset_makes_the_connection_as_new() {
    let mut client = TestClient::new();
    client.say("HELLO 3 SETNAME me");
    client.say("MULTI");
    assert_eq!(client.session.name(), "me");
    let reset = client.session.handle(vec![Bytes::from_static(b"reset")]);
    assert_eq!(reset, Action::Reset(Reply::Simple("RESET".into())));
    assert_eq!(client.session.version(), RespVersion::Resp2);
    assert_eq!(client.session.name(), "");
    assert!(!client.session.in_transaction());
    assert_eq!(client.say("CLIENT ID"), ":7\r\n");
}

#[test]
fn hello_switches_the_version_and_refuses_auth() {
    let mut client = TestClient::new();
    assert!(client.say("HELLO 3 AUTH user secret").starts_with("-ERR AUTH is not supported"));
    assert!(client.say("HELLO").starts_with("*14\r\n"));
    assert!(client.say("HELLO 3").starts_with("%7\r\n$6\r\nserver\r\n$7\r\nrowship\r\n"));
    assert_eq!(client.say("GET none"), "_\r\n");
    assert_eq!(client.say("HGETALL none"), "%0\r\n");
}

#[test]
fn keys_beyond_their_limits_are_refused_before_they_are_looked_up() {
    let rows = RowLimits { key_bytes_max: 8, ..RowLimits::default() };
    let mut client = TestClient::with(SessionLimits { rows, ..SessionLimits::default() });
    assert_eq!(client.say("SET t:12345678 v"), "+OK\r\n");
    let long = "-ERR key of 9 bytes is longer than key_bytes_max (8 bytes)\r\n";
    assert_eq!(client.say("SET t:123456789 v"), long);
    assert_eq!(client.say("MGET a t:123456789"), long);
    assert_eq!(client.say("WATCH t:123456789"), long);
    assert_eq!(client.rows.writes, 1);
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let mut client = TestClient::new();
    client.say("SET s v");
    client.say("HSET h a 1");
    client.rows.writes = 0;
    for line in [
        "DEL none",
        "SET s w NX",
        "SET none w XX",
        "SETNX s w",
        "MSETNX none 1 s 2",
        "GETDEL none",
        "HDEL h none",
        "HDEL none a",
        "HSETNX h a 2",
        "INCR s",
        "HINCRBY s a 1",
        "HSET s a 1",
        "APPEND s \"\"",
        "SET h x GET",
        "GETSET h x",
        "GETDEL h",
    ] {
        client.say(line);
        assert_eq!(client.rows.writes, 0, "{line}");
    }
}

#[test]
fn the_last_column_takes_the_row_with_it() {
    let mut client = TestClient::new();
    client.say("HSET h a 1 b 2");
    assert_eq!(client.say("HDEL h a a b"), ":2\r\n");
    assert!(client.rows.rows.is_empty());
    assert_eq!(client.say("TYPE h"), "+none\r\n");
}

#[test]
fn images_beyond_their_limit_are_refused_before_anything_is_written() {
    let mut client = TestClient::new();
    client.rows.value_bytes_max = Some(20);
    assert_eq!(client.say("SET a 1234567890123456"), "+OK\r\n");
    let large = "is larger than a row may be (20 bytes, by frame_body_bytes_max)";
    for line in [
        "SET a 12345678901234567",
        "APPEND a x",
        "HSET h 12345 6789",
        "MSET b ok c 12345678901234567",
        "GETSET a 12345678901234567",
    ] {
        assert!(client.say(line).contains(large), "{line}");
    }
    assert_eq!(client.rows.writes, 1);
    assert_eq!(client.say("HSET h 1234 5678"), ":1\r\n");
    assert!(client.say("HINCRBY h 1234 100000").contains(large));
    assert!(client.say("HSETNX h x y").contains(large));
}

#[test]
fn one_value_asked_for_many_times_does_not_make_an_endless_reply() {
    let mut client = TestClient::new();
    client.say(&format!("SET s {}", "x".repeat(1000)));
    client.say(&format!("HSET h f {}", "x".repeat(1000)));
    client.rows.reply_bytes_max = Some(5000);
    client.rows.views.clear();
    let large = "-ERR reply is larger than replies_bytes_max (5000 bytes)\r\n";
    assert_eq!(client.say(&format!("MGET {}", "s ".repeat(100))), large);
    assert_eq!(client.rows.views.len(), 5, "reading stops at the limit");
    assert_eq!(client.say(&format!("HMGET h {}", "f ".repeat(100))), large);
    assert!(client.say("MGET s s s s").starts_with("*4\r\n"));
    assert!(client.say("HGETALL h").starts_with("*2\r\n"));
}

#[test]
fn a_row_has_at_most_its_maximum_of_columns_and_wide_ones_stay_quick() {
    let mut client = TestClient::new();
    client.rows.value_bytes_max = Some(16 << 20);
    client.rows.reply_bytes_max = Some(16 << 20);
    let names: Vec<String> = (0..u16::MAX).map(|at| format!("c{at}")).collect();
    let mut wide: Vec<&[u8]> = vec![b"HSET", b"h"];
    wide.extend(names.iter().flat_map(|name| [name.as_bytes(), b"1"]));
    assert_eq!(client.send(&multibulk(&wide)), b":65535\r\n");
    assert_eq!(client.send(&multibulk(&wide)), b":0\r\n");
    assert_eq!(client.say("HSET h more 1"), "-ERR row would have more than 65535 columns\r\n");
    let mut get: Vec<&[u8]> = vec![b"HMGET", b"h"];
    get.extend(names.iter().rev().map(|name| name.as_bytes()));
    assert!(client.send(&multibulk(&get)).starts_with(b"*65535\r\n$1\r\n1\r\n"));
    get[0] = b"HDEL";
    get.pop();
    assert_eq!(client.send(&multibulk(&get)), b":65534\r\n");
    assert_eq!(client.say("HGETALL h"), "*2\r\n$2\r\nc0\r\n$1\r\n1\r\n");
}

#[test]
fn of_a_name_given_twice_the_last_value_stays() {
    for width in [1, 5, 20] {
        let mut client = TestClient::new();
        let names: Vec<String> = (0..width).map(|at| format!("c{at}")).collect();
        let mut args: Vec<&[u8]> = vec![b"HSET", b"h"];
        for value in [b"old", b"new"] {
            args.extend(names.iter().flat_map(|name| [name.as_bytes(), value]));
        }
        assert_eq!(client.send(&multibulk(&args)), format!(":{width}\r\n").into_bytes());
        let last = format!("HGET h c{}", width - 1);
        assert_eq!(client.say(&last), "$3\r\nnew\r\n");
        assert_eq!(client.say("HGET h c0"), "$3\r\nnew\r\n");
    }
}

#[test]
fn reads_use_the_view_they_are_given_and_writes_the_latest() {
    let views = |line: &str| {
        let args = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
        let Ok(Command::Data(command)) = command::parse(args) else { panic!("{line}") };
        let mut rows = MemoryRows::default();
        execute(&command, View::Plain, &mut rows);
        rows.views.dedup();
        rows.views
    };
    for read in ["GET a", "MGET a b", "HGETALL a", "EXISTS a", "TYPE a", "STRLEN a", "HGET a f"] {
        assert_eq!(views(read), [View::Plain], "{read}");
    }
    for write in ["INCR a", "DEL a", "SET a b NX", "HSET a f v", "APPEND a x", "GETDEL a"] {
        assert_eq!(views(write), [View::Latest], "{write}");
    }
}

#[test]
fn every_row_of_the_table_is_found_and_parses_its_least_arguments() {
    for pair in table::COMMANDS.windows(2) {
        assert!(pair[0].name < pair[1].name, "{} before {}", pair[0].name, pair[1].name);
    }
    for info in table::COMMANDS {
        let upper = info.name.to_ascii_uppercase();
        assert_eq!(command::find(upper.as_bytes()).map(|found| found.name), Some(info.name));
        let mut args = vec![Bytes::from(upper)];
        args.resize(info.arity.unsigned_abs() as usize, Bytes::from_static(b"0"));
        let parsed = command::parse(args.clone());
        if let (Ok(command), command::InMulti::Queue) = (&parsed, info.in_multi) {
            let queues = matches!(
                command,
                Command::Data(_)
                    | Command::Constant(_)
                    | Command::Act(_)
                    | Command::Client(_)
                    | Command::Hello(_)
            );
            assert!(queues, "{} cannot be queued", info.name);
            let mut session = Session::new(1, NodeRole::Primary, SessionLimits::default());
            session.handle(vec![Bytes::from_static(b"MULTI")]);
            assert_eq!(session.handle(args.clone()), Action::Reply(Reply::QUEUED), "{}", info.name);
        }
        if let Ok(Command::Data(command)) = &parsed {
            assert_eq!(command.is_write(), info.flags.contains("write"), "{}", info.name);
            assert_eq!(command.keys().count() > 0, info.keys.0 > 0, "{}", info.name);
        }
        if info.arity > 1 {
            args.pop();
            let wrong = format!("ERR wrong number of arguments for '{}' command", info.name);
            assert_eq!(command::parse(args), Err(Reply::error(wrong)));
        }
    }
}

#[test]
fn node_commands_arrive_parsed() {
    let mut session = Session::new(1, NodeRole::Replica, SessionLimits::default());
    let mut handle = |line: &str| {
        session.handle(line.split(' ').map(|word| Bytes::from(word.to_owned())).collect())
    };
    let (epoch, lsn) = (rowship_proto::Epoch::NONE, rowship_proto::Lsn(8));
    let token = rowship_proto::Position { epoch, lsn };
    assert!(matches!(
        handle(&format!("rowship.waitpos {token} 50")),
        Action::WaitPosition { timeout_ms: 50, .. }
    ));
    assert!(matches!(handle("ROWSHIP.WAITPOS x 50"), Action::Reply(Reply::Error(_))));
    assert_eq!(handle("ROWSHIP.RETIRE 4096"), Action::Retire(rowship_proto::Lsn(4096)));
    assert_eq!(handle("WAIT 2 100"), Action::Wait { replicas: 2, timeout_ms: 100 });
    let expected = Action::WaitAof { local: true, replicas: 2, timeout_ms: 0 };
    assert_eq!(handle("WAITAOF 1 2 0"), expected);
    assert_eq!(handle("INFO Replication"), Action::Info(vec!["replication".into()]));
    assert_eq!(handle("ROWSHIP.ACK sync"), Action::Ack(vec![Bytes::from_static(b"sync")]));
    assert_eq!(handle("ROWSHIP.DUMP 5 99999999"), Action::Dump { cursor: 5, count: 10_000 });
    let Action::Scan(scan) = handle("SCAN 18446744073709551615 MATCH t:* TYPE hash COUNT 3") else {
        panic!("a scan")
    };
    assert_eq!((scan.cursor, scan.count), (u64::MAX, 3));
    assert_eq!(scan.row_type, Some(RowType::Hash));
    assert_eq!(scan.pattern.as_deref(), Some(&b"t:*"[..]));
    assert!(matches!(handle("POST / HTTP/1.1"), Action::Close(Reply::Error(_))));
    assert!(matches!(handle("QUIT"), Action::Close(Reply::Simple(_))));
}

//! The crate `redis` as a client of real nodes: what people's programs send, and what they get.

mod support;

use std::collections::{BTreeSet, HashMap};

use redis::{Commands, Connection, ErrorKind, RedisResult, Value, cmd, pipe};
use rowship::cli::client::Client;
use rowship::cli::reply::Reply;
use support::{Node, Random, assert_identical, connect, connect_with, noise, pair};

fn refusal<T: std::fmt::Debug>(result: RedisResult<T>) -> String {
    result.expect_err("must be refused").to_string()
}

/// MULTI, `commands`, EXEC, as a plain pipeline: the crate's own transactions drop the text of an
/// error that EXEC itself answers.
fn transaction(connection: &mut Connection, commands: &[redis::Cmd]) -> RedisResult<Value> {
    let mut all = pipe();
    all.cmd("MULTI").ignore();
    for command in commands {
        all.add_command(command.clone()).ignore();
    }
    all.cmd("EXEC").query(connection)
}

fn set(key: &str, value: &str) -> redis::Cmd {
    cmd("SET").arg(key).arg(value).clone()
}

#[test]
fn transactions_are_whole_or_not_at_all() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &["--tables-max", "6"]);
    let mut one = connect(&primary);
    let mut other = connect(&primary);
    let replies: (String, i64, i64, Option<String>) = pipe()
        .atomic()
        .cmd("SET")
        .arg("first:a")
        .arg("1")
        .cmd("INCRBY")
        .arg("second:b")
        .arg(5)
        .cmd("HSET")
        .arg("third:c")
        .arg("x")
        .arg("y")
        .arg("z")
        .arg("w")
        .cmd("GET")
        .arg("fourth:none")
        .query(&mut one)
        .unwrap();
    assert_eq!(replies, ("OK".into(), 5, 2, None));
    replica.catch_up_with(&primary);
    let mut there = connect(&replica);
    let seen: (String, i64) = cmd("MGET").arg("first:a").arg("second:b").query(&mut there).unwrap();
    assert_eq!(seen, ("1".into(), 5));

    // A watched key that another changes: nil, and nothing happens.
    cmd("WATCH").arg("first:a").exec(&mut one).unwrap();
    let _: () = other.set("first:a", "other").unwrap();
    let mut attempt = pipe();
    attempt.atomic().set("first:a", "mine").incr("second:b", 1);
    let nothing: Option<(String, i64)> = attempt.query(&mut one).unwrap();
    assert_eq!(nothing, None);
    // The watch is over.
    let done: Option<(String, i64)> = attempt.query(&mut one).unwrap();
    assert_eq!(done, Some(("OK".into(), 6)));

    // One command that fails by itself does not undo the others, as in Redis.
    let mut raw = primary.client();
    for line in [&["MULTI"][..], &["SET", "first:a", "text"], &["INCR", "first:a"]] {
        raw.ask(line).unwrap();
    }
    let Ok(Reply::Array(parts)) = raw.call(&["EXEC"]) else { panic!() };
    assert!(parts[0].error().is_none() && parts[1].error().unwrap().contains("not an integer"));
    assert_eq!(other.get::<_, String>("first:a").unwrap(), "text");

    // Too many tables, too many bytes: refused whole, and why.
    let new = ["a:1", "b:1", "c:1", "d:1"].map(|key| set(key, "1"));
    let tables = refusal(transaction(&mut one, &new));
    assert!(tables.contains("EXECABORT") || tables.contains("ExecAbort"), "{tables}");
    assert!(tables.contains("tables_max is 6"), "{tables}");
    let big = "b".repeat(1500);
    let large = ["first:x", "first:y", "first:z"].map(|key| set(key, &big));
    let large = refusal(transaction(&mut one, &large));
    assert!(large.contains("4096") && large.contains("frame_body_bytes_max"), "{large}");
    assert_eq!(cmd("EXISTS").arg(&["a:1", "first:x", "first:z"]).query(&mut one), Ok(0));

    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

/// The strings in SCAN's reply, in order of their text, and its cursor.
fn scanned(reply: &Reply) -> (String, Vec<String>) {
    let Reply::Array(parts) = reply else { panic!("{reply:?}") };
    let Reply::Array(keys) = &parts[1] else { panic!("{reply:?}") };
    let mut keys: Vec<String> = keys.iter().map(|key| key.text().unwrap()).collect();
    keys.sort();
    (parts[0].text().unwrap(), keys)
}

/// MULTI, the lines, EXEC: the replies to the lines.
fn exec(client: &mut Client, lines: &[&str]) -> Vec<Reply> {
    client.ask(&["MULTI"]).unwrap();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(client.call(&words).unwrap().text().as_deref(), Some("QUEUED"), "{line}");
    }
    let reply = client.call(&["EXEC"]).unwrap();
    let Reply::Array(replies) = reply else { panic!("{reply:?}") };
    assert_eq!(replies.len(), lines.len());
    replies
}

#[test]
fn what_multi_queues_besides_rows_runs_at_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    let mut client = primary.client();
    client.ask(&["HSET", "t:kept", "a", "1"]).unwrap();
    assert_eq!(client.ask(&["WAIT", "1", "30000"]).unwrap(), Reply::Integer(1));
    // The first half is what Redis 7 answers, line by line.
    let lines = [
        "SET t:new 1",
        "DBSIZE",
        "SCAN 0",
        "SCAN 0 MATCH *new TYPE string",
        "SET other:1 x",
        "DEL t:new t:kept",
        "DBSIZE",
        "SCAN 0",
        "WAIT 3 0",
        "COMMAND COUNT",
        "CLIENT SETNAME one",
        "CLIENT GETNAME",
        "ROLE",
        "CONFIG GET ack",
        "INFO server",
        "WAITAOF 1 3 0",
    ];
    let replies = exec(&mut client, &lines);
    assert_eq!(replies[1], Reply::Integer(2));
    let all = |keys: &[&str]| ("0".to_owned(), keys.iter().map(ToString::to_string).collect());
    assert_eq!(scanned(&replies[2]), all(&["t:kept", "t:new"]));
    assert_eq!(scanned(&replies[3]), all(&["t:new"]));
    assert_eq!(replies[6], Reply::Integer(1));
    assert_eq!(scanned(&replies[7]), all(&["other:1"]));
    assert_eq!(replies[8], Reply::Integer(1), "at once, and what the one replica holds");
    assert!(matches!(replies[9], Reply::Integer(40..)));
    assert_eq!(replies[11].text().as_deref(), Some("one"));
    assert!(matches!(&replies[12], Reply::Array(parts) if parts[0].text().unwrap() == "master"));
    assert!(matches!(&replies[13], Reply::Array(parts) if parts[1].text().unwrap() == "async"));
    assert!(replies[14].text().unwrap().contains("rowship_version:"));
    assert!(matches!(&replies[15], Reply::Array(parts) if parts.len() == 2));
    assert_eq!(primary.call(&["DBSIZE"]), Reply::Integer(1));

    // What EXEC does not do does not happen to the connection either.
    client.ask(&["WATCH", "t:w"]).unwrap();
    primary.call(&["SET", "t:w", "1"]);
    client.ask(&["MULTI"]).unwrap();
    client.ask(&["CLIENT", "SETNAME", "two"]).unwrap();
    assert_eq!(client.call(&["EXEC"]).unwrap(), Reply::Null);
    assert_eq!(client.ask(&["CLIENT", "GETNAME"]).unwrap().text().as_deref(), Some("one"));

    replica.catch_up_with(&primary);
    let replies = exec(&mut replica.client(), &["DBSIZE", "SCAN 0", "GET t:w", "ROLE", "WAIT 0 0"]);
    assert_eq!(replies[0], Reply::Integer(2));
    assert_eq!(scanned(&replies[1]), all(&["other:1", "t:w"]));
    assert_eq!(replies[2].text().as_deref(), Some("1"));
    assert!(replies[4].error().unwrap().contains("WAIT cannot be used with replica"));
}

#[test]
fn a_scan_inside_exec_shows_what_no_table_has_yet() {
    const ROWS: u64 = 500;
    let scratch = tempfile::tempdir().unwrap();
    let (primary, mut replica) = pair(&scratch, &["--ack", "semi-sync"]);
    support::set_rows(&primary, 0..ROWS, |row| row.to_string());
    replica.stop();
    // Nobody acknowledges these, so they stay out of the primary's table.
    let mut writer = primary.client();
    assert_eq!(writer.ask(&["ROWSHIP.ACK", "memory"]).unwrap().text().as_deref(), Some("OK"));
    for row in 0..100 {
        let new = [2 * row, 2 * row + 1].map(|row| format!("new:{row}"));
        writer.ask(&["DEL", &format!("t:{row}")]).unwrap();
        writer.ask(&["MSET", &new[0], "x", &new[1], "x"]).unwrap();
    }
    let commands = || primary.status()["counters"]["commands"].as_u64().unwrap();
    let (before, address) = (commands(), primary.address());
    let reader = std::thread::spawn(move || {
        let mut client = Client::connect(&address).unwrap();
        let (mut cursor, mut seen) = ("0".to_owned(), BTreeSet::new());
        let mut sizes = Vec::new();
        loop {
            let scan = format!("SCAN {cursor} COUNT 60");
            let replies = exec(&mut client, &["DBSIZE", &scan, "MGET t:0 new:0"]);
            sizes.push(replies[0].clone());
            let (next, keys) = scanned(&replies[1]);
            assert_eq!(format!("{:?}", replies[2]).matches("Null").count(), 1, "{:?}", replies[2]);
            seen.extend(keys);
            if next == "0" {
                return (sizes, seen);
            }
            cursor = next;
        }
    });
    // Its first EXEC has run, and its reply waits: what it shows may still be lost.
    primary.until("the first EXEC", |_| commands() >= before + 5);
    assert!(!reader.is_finished());
    replica.start();
    let (sizes, seen) = reader.join().unwrap();
    let expected = (100..ROWS).map(|row| format!("t:{row}"));
    let expected: BTreeSet<String> =
        expected.chain((0..200).map(|row| format!("new:{row}"))).collect();
    assert!(sizes.len() > 3, "several pages");
    assert!(sizes.iter().all(|size| *size == Reply::Integer(ROWS as i64 + 100)), "{sizes:?}");
    assert!(seen == expected, "{} rows", seen.len());
}

#[test]
fn a_replica_refuses_a_write_when_it_is_queued_and_then_the_transaction() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    primary.call(&["SET", "first:a", "1"]);
    replica.catch_up_with(&primary);
    let mut there = connect(&replica);
    let mut raw = replica.client();
    raw.ask(&["MULTI"]).unwrap();
    raw.ask(&["GET", "first:a"]).unwrap();
    let refused = raw.call(&["SET", "first:a", "1"]).unwrap().error().unwrap();
    assert!(refused.starts_with("READONLY ") && refused.contains(&primary.address()), "{refused}");
    let refused = raw.call(&["EXEC"]).unwrap().error().unwrap();
    assert_eq!(refused, "EXECABORT Transaction discarded because of previous errors.");
    let read: (Option<String>,) = pipe().atomic().get("first:a").query(&mut there).unwrap();
    assert!(read.0.is_some());
}

#[test]
fn strings_hashes_and_keys_of_every_kind_come_back_as_they_were() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    let mut client = connect(&primary);
    let every_byte: Vec<u8> = (0..=255).collect();
    let keys: [&[u8]; 9] =
        [b"a", b":a", b"a:", b":", b"a:b:c", b"", b"\r\n$5\r\n", &every_byte[59..], b"a:\0"];
    for (at, key) in keys.iter().enumerate() {
        let mut value = every_byte.clone();
        value.push(at as u8);
        let _: () = client.set(*key, value).unwrap();
    }
    let _: () = client.hset("a:hash", &every_byte[..], &every_byte[..]).unwrap();
    replica.catch_up_with(&primary);
    for node in [&primary, &replica] {
        for query in ["", "?protocol=resp3"] {
            let mut client = connect_with(node, query);
            let values: Vec<Vec<u8>> = client.mget(&keys[..]).unwrap();
            for (at, value) in values.iter().enumerate() {
                assert_eq!(value[..256], every_byte, "{:?}", keys[at]);
                assert_eq!(value[256..], [at as u8]);
            }
            let hash: HashMap<Vec<u8>, Vec<u8>> = client.hgetall("a:hash").unwrap();
            assert_eq!(hash[&every_byte], every_byte);
            let size: usize = cmd("DBSIZE").query(&mut client).unwrap();
            assert_eq!(size, keys.len() + 1);
            let none: Option<String> = client.get("a:none").unwrap();
            assert_eq!(none, None);
            let types: (String, String, String) = pipe()
                .cmd("TYPE")
                .arg("a")
                .cmd("TYPE")
                .arg("a:hash")
                .cmd("TYPE")
                .arg("no")
                .query(&mut client)
                .unwrap();
            assert_eq!(types, ("string".into(), "hash".into(), "none".into()));
            for wrong in [cmd("GET").arg("a:hash"), cmd("HGET").arg("a").arg("x")] {
                let error = wrong.query::<Value>(&mut client).unwrap_err();
                assert_eq!(error.code(), Some("WRONGTYPE"), "{error}");
            }
        }
    }
    let mut resp3 = connect_with(&primary, "?protocol=resp3");
    let hello: Value = cmd("HELLO").arg(3).query(&mut resp3).unwrap();
    assert!(matches!(hello, Value::Map(_)), "{hello:?}");
    let map: Value = cmd("HGETALL").arg("a:hash").query(&mut resp3).unwrap();
    assert!(matches!(map, Value::Map(_)), "{map:?}");
}

#[test]
fn tables_and_rows_beyond_the_limits_are_refused_with_the_limit() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &["--tables-max", "8"]);
    let mut client = connect(&primary);
    let _: () = client.set("a:first", 1).unwrap();
    // A table too many is refused; the tables that there are go on.
    let mut error = String::new();
    for table in 0..9 {
        if let Err(refused) = client.set::<_, _, ()>(format!("t{table}:k"), 1) {
            error = refused.to_string();
        }
    }
    assert!(error.contains("tables_max is 8"), "{error}");
    let _: () = client.set("a:more", 1).unwrap();
    // Values up to what a frame takes; beyond it, both sizes.
    let mut largest = 0;
    for len in [3000, 3900, 4200, 100_000] {
        let value = noise(&mut Random(7), len);
        match client.set::<_, _, ()>("a:large", &value) {
            Ok(()) => largest = len,
            Err(error) => {
                let error = error.to_string();
                assert!(len > 3900, "{error}");
                assert!(error.contains("4096"), "{error}");
                let named = error.split(|c: char| !c.is_ascii_digit());
                let named: Vec<usize> = named.filter_map(|word| word.parse().ok()).collect();
                assert!(named.iter().any(|&size| size >= len && size < len + 200), "{error}");
            }
        }
    }
    assert_eq!(client.get::<_, Vec<u8>>("a:large").unwrap(), noise(&mut Random(7), largest));
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

#[test]
fn pipelines_and_the_commands_that_libraries_send_by_themselves() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    let mut client = connect(&primary);
    let mut long = pipe();
    for row in 0..10_000 {
        long.cmd("INCR").arg(format!("counters:{}", row % 100));
    }
    let replies: Vec<i64> = long.query(&mut client).unwrap();
    let expected = (0..10_000).map(|row| row / 100 + 1);
    assert!(replies.into_iter().eq(expected), "in order, each its own");
    let pairs: Vec<(String, u64)> = (0..50).map(|at| (format!("m:{at}"), at)).collect();
    let _: () = client.mset(&pairs).unwrap();
    let keys: Vec<&String> = pairs.iter().map(|pair| &pair.0).collect();
    let values: Vec<u64> = client.mget(&keys).unwrap();
    assert!(values.into_iter().eq(0..50));

    cmd("CLIENT").arg("SETNAME").arg("tester").exec(&mut client).unwrap();
    assert_eq!(cmd("CLIENT").arg("GETNAME").query(&mut client), Ok("tester".to_owned()));
    let ids: (u64, u64) = (
        cmd("CLIENT").arg("ID").query(&mut client).unwrap(),
        cmd("CLIENT").arg("ID").query(&mut connect(&primary)).unwrap(),
    );
    assert!(ids.0 > 0 && ids.0 != ids.1);
    cmd("CLIENT").arg("SETINFO").arg("LIB-NAME").arg("x").exec(&mut client).unwrap();
    let commands: usize = cmd("COMMAND").arg("COUNT").query(&mut client).unwrap();
    let listed: Vec<Value> = cmd("COMMAND").query(&mut client).unwrap();
    assert!(commands > 40 && listed.len() == commands);
    let config: HashMap<String, String> =
        cmd("CONFIG").arg("GET").arg("*_max").arg("save").query(&mut client).unwrap();
    assert_eq!(config["frame_body_bytes_max"], "4096");
    assert_eq!(config["save"], "");
    let (role, offset, replicas): (String, u64, Vec<(String, String, String)>) =
        cmd("ROLE").query(&mut client).unwrap();
    assert!(role == "master" && offset > 0 && replicas.len() == 1);
    let (host, port, _) = &replicas[0];
    assert_eq!(format!("{host}:{port}"), replica.address(), "where clients reach it");
    let (role, host, port, state, _): (String, String, u16, String, u64) =
        cmd("ROLE").query(&mut connect(&replica)).unwrap();
    assert_eq!((role.as_str(), state.as_str()), ("slave", "connected"));
    assert_eq!(format!("{host}:{port}"), primary.address());
    assert_eq!(cmd("PING").query(&mut client), Ok("PONG".to_owned()));
    let unknown = cmd("FLUSHALL").query::<Value>(&mut client);
    assert!(refusal(unknown).contains("unknown command"));
    let read_only = connect(&replica).set::<_, _, ()>("a", "b").unwrap_err();
    assert_eq!(read_only.kind(), ErrorKind::Server(redis::ServerErrorKind::ReadOnly));
    assert_eq!(redis::cmd("WAIT").arg(1).arg(30_000).query(&mut client), Ok(1));
}

#[test]
fn replies_are_bounded_for_one_command_and_for_one_transaction() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut client = connect(&primary);
    let _: () = client.set("a:large", "x".repeat(3900)).unwrap();
    let before = primary.status()["memory"]["resident_bytes"].as_u64().unwrap();
    let keys = vec!["a:large"; 20_000];
    let error = refusal(client.mget::<_, Value>(&keys));
    assert!(error.contains("replies_bytes_max (16777216 bytes)"), "{error}");
    let mut many = vec![set("a:other", "1")];
    many.extend((0..10_000).map(|_| cmd("GET").arg("a:large").clone()));
    let error = refusal(transaction(&mut client, &many));
    assert!(error.contains("replies_bytes_max (16777216 bytes)"), "{error}");
    assert_eq!(client.get::<_, Option<String>>("a:other"), Ok(None), "refused whole");
    let fits: Vec<String> = client.mget(&keys[..1000]).unwrap();
    assert_eq!(fits.len(), 1000);
    let after = primary.status()["memory"]["resident_bytes"].as_u64().unwrap();
    assert!(after < before + (128 << 20), "from {before} to {after} bytes");
}

#[test]
fn whether_rows_exist_can_be_asked_of_more_than_fits_a_reply() {
    const ROWS: usize = 2600;
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--memtable-bytes", "16KiB", "--replies-bytes-max", "8MiB"];
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    support::set_rows(&primary, 0..ROWS as u64, |_| "x".repeat(3900));
    primary.until("on disk", |status| status["table"]["sealed_memtables"] == 0);
    let mut client = connect(&primary);
    let many: Vec<redis::Cmd> =
        (0..ROWS).map(|row| cmd("EXISTS").arg(format!("t:{row}")).clone()).collect();
    let found = format!("{:?}", transaction(&mut client, &many).unwrap());
    assert_eq!(found.matches("int(1)").count(), ROWS);
    let many: Vec<redis::Cmd> =
        (0..ROWS).map(|row| cmd("STRLEN").arg(format!("t:{row}")).clone()).collect();
    let error = refusal(transaction(&mut client, &many));
    assert!(error.contains("replies_bytes_max (8388608 bytes)"), "{error}");
    let cold = primary.status()["counters"]["cold_reads"].as_u64().unwrap();
    assert!(cold > ROWS as u64, "{cold}");
}

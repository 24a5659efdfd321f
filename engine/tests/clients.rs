//! The crate `redis` as a client of real nodes: what people's programs send, and what they get.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::{Commands, Connection, ErrorKind, RedisResult, Value, cmd, pipe};
use support::{Node, PATIENCE, Random, assert_identical};

fn connect(node: &Node) -> Connection {
    connect_with(node, "")
}

fn connect_with(node: &Node, query: &str) -> Connection {
    let url = format!("redis://{}/{query}", node.address());
    let connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// A primary and a replica that streams.
fn pair(scratch: &tempfile::TempDir, flags: &[&str]) -> (Node, Node) {
    let mut primary = Node::primary(scratch.path(), "primary", flags);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, flags);
    replica.start();
    (primary, replica)
}

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

/// `len` bytes that do not compress.
fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.next().to_le_bytes()[3]).collect()
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
    let Ok(rowship::cli::reply::Reply::Array(parts)) = raw.call(&["EXEC"]) else { panic!() };
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

    // A replica refuses a write when it is queued, and then the transaction.
    let mut raw = replica.client();
    raw.ask(&["MULTI"]).unwrap();
    raw.ask(&["GET", "first:a"]).unwrap();
    let refused = raw.call(&["SET", "first:a", "1"]).unwrap().error().unwrap();
    assert!(refused.starts_with("READONLY ") && refused.contains(&primary.address()), "{refused}");
    let refused = raw.call(&["EXEC"]).unwrap().error().unwrap();
    assert_eq!(refused, "EXECABORT Transaction discarded because of previous errors.");
    let read: (Option<String>,) = pipe().atomic().get("first:a").query(&mut there).unwrap();
    assert!(read.0.is_some());
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

#[test]
fn a_transaction_is_seen_whole_on_every_node_even_where_its_rows_are_on_disk() {
    const KEYS: u64 = 300;
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    // Transaction n sets `hot` and the row that this list names to n.
    let choices: Vec<u64> = (0..4000).map(|_| random.below(KEYS)).collect();
    let padding = String::from_utf8(vec![b'x'; 1000]).unwrap();
    let done = AtomicBool::new(false);
    let latest = AtomicU64::new(0);
    let number = |text: &str| text.split(' ').next().unwrap().parse::<u64>().unwrap();
    let checks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (at, node) in [&primary, &replica, &replica].into_iter().enumerate() {
            let (choices, done, latest, checks) = (&choices, &done, &latest, &checks);
            scope.spawn(move || {
                let mut random = Random(seed + 1 + at as u64);
                let mut client = connect(node);
                while !done.load(Ordering::Relaxed) {
                    // The row that comes next, or any.
                    let near = latest.load(Ordering::Relaxed) as usize + random.below(8) as usize;
                    let key = choices[near.min(choices.len() - 1)];
                    let (row, hot): (Option<String>, Option<String>) = cmd("MGET")
                        .arg(format!("cold:{key}"))
                        .arg("hot:1")
                        .query(&mut client)
                        .unwrap();
                    let Some(hot) = hot.map(|hot| number(&hot)) else { continue };
                    let wrote = |n: &usize| choices[*n] == key;
                    let expected = (0..=hot as usize).rev().find(wrote).map(|n| n as u64);
                    let row = row.map(|row| number(&row));
                    assert_eq!(row, expected, "{}: cold:{key} at {hot}, seed {seed:#x}", node.name);
                    checks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut client = connect(&primary);
        for (n, key) in choices.iter().enumerate() {
            let value = format!("{n} {padding}");
            let written = pipe()
                .atomic()
                .set(format!("cold:{key}"), &value)
                .set("hot:1", &value)
                .exec(&mut client);
            if written.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            written.unwrap();
            latest.store(n as u64, Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(checks.load(Ordering::Relaxed) > 300, "readers ran");
    assert!(replica.status()["counters"]["cold_reads"].as_u64().unwrap() > 0, "rows were cold");
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

#[test]
fn scans_return_every_key_that_stays_and_counts_are_exact() {
    const STABLE: usize = 3000;
    let scratch = tempfile::tempdir().unwrap();
    let (mut primary, mut replica) = pair(&scratch, &[]);
    let mut client = connect(&primary);
    let mut all = pipe();
    for row in 0..STABLE {
        all.set(format!("stable:{row}"), row).ignore();
    }
    // In one pipeline, with no time between: a count sees the connection's own writes.
    all.cmd("DBSIZE");
    let (size,): (usize,) = all.query(&mut client).unwrap();
    assert_eq!(size, STABLE);
    let keys: Vec<String> = cmd("KEYS").arg("*").query(&mut client).unwrap_or_default();
    assert!(keys.is_empty() || keys.len() == STABLE);
    let scan = |node: &Node, pattern: &str, count: usize| -> Vec<String> {
        let mut client = connect(node);
        let mut scan = cmd("SCAN");
        scan.cursor_arg(0).arg("MATCH").arg(pattern).arg("COUNT").arg(count);
        let found = scan.iter::<String>(&mut client).unwrap();
        found.map(|key| key.unwrap()).collect()
    };
    assert_eq!(scan(&primary, "*", 100).len(), STABLE, "just after the writes");
    replica.catch_up_with(&primary);
    let done = AtomicBool::new(false);
    let mut model = BTreeSet::new();
    std::thread::scope(|scope| {
        for (node, count) in [(&primary, 7), (&replica, 100)] {
            let (done, scan) = (&done, &scan);
            scope.spawn(move || {
                let mut rounds = 0;
                while rounds < 2 || !done.load(Ordering::Relaxed) {
                    let found = scan(node, "stable:*", count);
                    let distinct: BTreeSet<_> = found.iter().collect();
                    assert_eq!(distinct.len(), STABLE, "{}", node.name);
                    assert_eq!(found.len(), STABLE, "none twice");
                    rounds += 1;
                }
            });
        }
        let mut random = Random(0x5eed_0002);
        for _ in 0..60 {
            let mut changes = pipe();
            for _ in 0..50 {
                let key = format!("fleeting:{}", random.below(500));
                if random.below(2) == 0 {
                    changes.cmd("HSET").arg(&key).arg("n").arg(1).ignore();
                    model.insert(key);
                } else {
                    changes.del(&key).ignore();
                    model.remove(&key);
                }
            }
            changes.exec(&mut client).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let exact = |primary: &Node, replica: &Node| {
        replica.catch_up_with(primary);
        for node in [primary, replica] {
            let size: usize = cmd("DBSIZE").query(&mut connect(node)).unwrap();
            assert_eq!(size, STABLE + model.len(), "{}", node.name);
            let found: BTreeSet<_> = scan(node, "fleeting:*", 1000).into_iter().collect();
            assert_eq!(found, model, "{}", node.name);
        }
    };
    exact(&primary, &replica);
    let mut typed = cmd("SCAN");
    typed.arg(0).arg("COUNT").arg(10_000).arg("TYPE").arg("hash");
    let (_, hashes): (u64, Vec<String>) = typed.query(&mut client).unwrap();
    assert_eq!(hashes.len(), model.len());
    primary.kill();
    replica.kill();
    primary.start();
    replica.follow(&primary.replication_address());
    replica.start();
    exact(&primary, &replica);
    assert_identical(&primary, &replica);
}

#[test]
fn strings_hashes_and_keys_of_every_kind_come_back_as_they_were() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &["--tables-max", "8"]);
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
fn a_hot_row_and_uniform_rows_keep_lag_bounded() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    primary.until("streaming", |status| status["replicas"][0]["state"] == "streaming");
    for keys in [1, 2000] {
        let done = AtomicU64::new(0);
        let mut lag_bytes_max = 0;
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (primary, done) = (&primary, &done);
                scope.spawn(move || {
                    let mut client = connect(primary);
                    let mut random = Random(0x5eed_0010 + writer);
                    for _ in 0..40 {
                        let mut some = pipe();
                        for _ in 0..25 {
                            some.incr(format!("hot{keys}:{}", random.below(keys)), 1).ignore();
                        }
                        some.exec(&mut client).unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            while done.load(Ordering::Relaxed) < 4 {
                let lag = primary.status()["replicas"][0]["lag_bytes"].as_u64().unwrap();
                lag_bytes_max = lag_bytes_max.max(lag);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        replica.catch_up_with(&primary);
        let mut client = connect(&replica);
        let keys: Vec<String> = (0..keys).map(|key| format!("hot{keys}:{key}")).collect();
        let values: Vec<Option<u64>> = client.mget(&keys).unwrap();
        assert_eq!(values.into_iter().flatten().sum::<u64>(), 4000);
        // 100 writes in flight, and what a busy machine adds: far below all that was written.
        println!("{} keys: lag at most {lag_bytes_max} bytes", keys.len());
        assert!(lag_bytes_max < 256 << 10, "{lag_bytes_max} bytes behind");
        assert_identical(&primary, &replica);
    }
}

#[test]
fn rows_on_disk_are_read_right_and_never_go_back() {
    const ROWS: u64 = 20_000;
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &["--cache-bytes", "64KiB"]);
    let seed = 0x5eed_0020;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let mut client = connect(&primary);
    let mut model = BTreeMap::new();
    for _ in 0..ROWS / 500 {
        let mut some = pipe();
        for _ in 0..500 {
            let (key, value) = (format!("cold:{}", random.below(ROWS)), noise(&mut random, 100));
            some.set(&key, &value).ignore();
            model.insert(key, value);
        }
        some.exec(&mut client).unwrap();
    }
    replica.catch_up_with(&primary);
    for node in [&primary, &replica] {
        let mut client = connect(node);
        let keys: Vec<&String> = model.keys().collect();
        for keys in keys.chunks(500) {
            let values: Vec<Vec<u8>> = client.mget(keys).unwrap();
            for (key, value) in keys.iter().zip(values) {
                assert_eq!(model[*key], value, "{key} on {}", node.name);
            }
        }
        let cold = node.status()["counters"]["cold_reads"].as_u64().unwrap();
        assert!(cold > ROWS / 10, "{}: only {cold} reads were cold", node.name);
    }

    // One writer, several readers: nobody reads less than what was acknowledged before, or than
    // what anybody has read before.
    const KEYS: usize = 40;
    let floors: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (primary, floors, done) = (&primary, &floors, &done);
            scope.spawn(move || {
                let mut client = connect(primary);
                let mut random = Random(seed + 1 + reader);
                while !done.load(Ordering::Relaxed) {
                    let key = random.below(KEYS as u64) as usize;
                    let floor = floors[key].load(Ordering::SeqCst);
                    let value: Option<String> = client.get(format!("line:{key}")).unwrap();
                    let value = value
                        .map_or(0, |text| text.split(' ').next().unwrap().parse::<u64>().unwrap());
                    assert!(value >= floor, "line:{key} went back from {floor} to {value}");
                    floors[key].fetch_max(value, Ordering::SeqCst);
                }
            });
        }
        let padding = "x".repeat(800);
        for round in 1..=4000 {
            let key = random.below(KEYS as u64) as usize;
            let written =
                client.set::<_, _, ()>(format!("line:{key}"), format!("{round} {padding}"));
            if written.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            written.unwrap();
            floors[key].fetch_max(round, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
    });
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
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
    assert!(error.contains("reply_bytes_max (16777216 bytes)"), "{error}");
    let mut many = vec![set("a:other", "1")];
    many.extend((0..20_000).map(|_| cmd("GET").arg("a:large").clone()));
    let error = refusal(transaction(&mut client, &many));
    assert!(error.contains("reply_bytes_max (16777216 bytes)"), "{error}");
    assert_eq!(client.get::<_, Option<String>>("a:other"), Ok(None), "refused whole");
    let fits: Vec<String> = client.mget(&keys[..1000]).unwrap();
    assert_eq!(fits.len(), 1000);
    let after = primary.status()["memory"]["resident_bytes"].as_u64().unwrap();
    assert!(after < before + (128 << 20), "from {before} to {after} bytes");
}

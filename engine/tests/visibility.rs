//! What readers see while writers write: whole transactions, nothing old, nothing missing; with
//! rows in memory, on disk, hot and cold, on primary and replica.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::{Commands, cmd, pipe};
use support::{Node, Random, assert_identical, connect, noise, pair};

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
fn reads_of_very_many_rows_show_one_position() {
    let scratch = tempfile::tempdir().unwrap();
    let (primary, replica) = pair(&scratch, &[]);
    // Far more than one piece of a long read, most of them missing; first and last always equal.
    let keys: Vec<String> = (0..20_000).map(|key| format!("wide:{key}")).collect();
    let (first, last) = (&keys[0], keys.last().unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = connect(&primary);
            for n in 0_u64.. {
                let set = pipe().atomic().set(first, n).set(last, n).exec(&mut client);
                set.unwrap();
                if done.load(Ordering::Relaxed) {
                    return n;
                }
            }
            0
        });
        let mut torn = Vec::new();
        let mut seen = BTreeSet::new();
        for node in [&primary, &replica] {
            let mut client = connect(node);
            for _ in 0..30 {
                let values: Vec<Option<u64>> = client.mget(&keys).unwrap();
                let (first, last) = (values[0], values[keys.len() - 1]);
                seen.insert(first);
                if first != last {
                    torn.push((&node.name, first, last));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 100 && seen.len() > 10, "written meanwhile: {seen:?}");
        assert!(torn.is_empty(), "{torn:?}");
    });
    let mut client = connect(&primary);
    let found: u64 = cmd("EXISTS").arg(&keys).arg(first).query(&mut client).unwrap();
    assert_eq!(found, 3, "a key that is named twice counts twice");
    let mut mset = cmd("MSET");
    keys.iter().for_each(|key| {
        mset.arg(key).arg("");
    });
    let error = mset.query::<()>(&mut client).unwrap_err().to_string();
    assert!(error.contains("20000 keys") && error.contains("16384"), "{error}");
}

/// All keys that SCAN returns, in its order.
fn scan(node: &Node, pattern: &str, count: usize) -> Vec<String> {
    let mut client = connect(node);
    let mut scan = cmd("SCAN");
    scan.cursor_arg(0).arg("MATCH").arg(pattern).arg("COUNT").arg(count);
    let found = scan.iter::<String>(&mut client).unwrap();
    found.map(|key| key.unwrap()).collect()
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
    assert_eq!(scan(&primary, "*", 100).len(), STABLE, "just after the writes");
    replica.catch_up_with(&primary);
    let done = AtomicBool::new(false);
    let mut model = BTreeSet::new();
    std::thread::scope(|scope| {
        for (node, count) in [(&primary, 7), (&replica, 100)] {
            let done = &done;
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

//! The same bytes to a real Redis and to this module must give the same bytes back.
//!
//! Runs when `ROWSHIP_TEST_REDIS=host:port` names a Redis 7 whose data may be wiped; otherwise
//! `script.txt`, recorded from such a Redis, stands alone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::testing::{Random, TestClient, multibulk};

/// Ends every batch, so that the reader knows when it has everything.
const END: &[u8] = b"$18\r\nthe end of a batch\r\n";

/// One test, since its parts share one Redis.
#[test]
fn answers_are_those_of_redis() {
    if RealRedis::connect().is_some() {
        fixed_scripts();
        protocol_errors();
        random_commands();
        random_patterns();
    }
}

struct RealRedis(TcpStream);

impl RealRedis {
    fn connect() -> Option<RealRedis> {
        let address = std::env::var("ROWSHIP_TEST_REDIS").ok()?;
        let stream = TcpStream::connect(address).expect("ROWSHIP_TEST_REDIS answers");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
        Some(RealRedis(stream))
    }

    fn send(&mut self, input: &[u8]) -> Vec<u8> {
        self.0.write_all(input).expect("redis takes the batch");
        let (mut out, mut part) = (Vec::new(), [0; 4096]);
        while !out.ends_with(END) {
            let len = self.0.read(&mut part).expect("redis answers in time");
            if len == 0 {
                break;
            }
            out.extend_from_slice(&part[..len]);
        }
        out
    }
}

/// What differs in the replies to `command`, if anything.
fn compare(redis: &mut RealRedis, client: &mut TestClient, command: &[u8]) -> Option<String> {
    let mut batch = command.to_vec();
    batch.extend(multibulk(&[b"ECHO", b"the end of a batch"]));
    let (theirs, ours) = (redis.send(&batch), client.send(&batch));
    let text = String::from_utf8_lossy;
    let differs =
        || format!("{:?}\nours  {:?}\nredis {:?}", text(command), text(&ours), text(&theirs));
    (ours != theirs).then(differs)
}

fn fixed_scripts() {
    let Some(mut redis) = RealRedis::connect() else { return };
    redis.send(b"FLUSHALL\r\nECHO \"the end of a batch\"\r\n");
    let mut client = TestClient::new();
    let mut differences = Vec::new();
    for (commands, _) in super::tests::script() {
        differences.extend(compare(&mut redis, &mut client, &commands));
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

fn protocol_errors() {
    for input in super::tests::MALFORMED {
        let mut redis = RealRedis::connect().expect("it answered before");
        let theirs = redis.send(input.as_bytes());
        let ours = TestClient::new().send(input.as_bytes());
        assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&theirs), "{input:?}");
    }
}

fn random_commands() {
    let Some(mut redis) = RealRedis::connect() else { return };
    for version in ["2", "3"] {
        redis.send(b"FLUSHALL\r\nECHO \"the end of a batch\"\r\n");
        let mut client = TestClient::new();
        redis.send(format!("HELLO {version}\r\nECHO \"the end of a batch\"\r\n").as_bytes());
        client.send(format!("HELLO {version}\r\n").as_bytes());
        let mut random = Random(0x5eed_0000 + u64::from(version.as_bytes()[0]));
        for _ in 0..40_000 {
            let command = random_command(&mut random);
            let args: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
            let difference = compare(&mut redis, &mut client, &multibulk(&args));
            assert_eq!(difference, None);
        }
    }
}

fn random_command(random: &mut Random) -> Vec<&'static str> {
    const NAMES: &[&str] = &[
        "SET", "SETNX", "GETSET", "GET", "GETDEL", "DEL", "UNLINK", "EXISTS", "MSET", "MSETNX",
        "MGET", "INCR", "DECR", "INCRBY", "DECRBY", "APPEND", "STRLEN", "GETRANGE", "HSET",
        "HSETNX", "HMSET", "HGET", "HMGET", "HGETALL", "HKEYS", "HVALS", "HEXISTS", "HSTRLEN",
        "HDEL", "HLEN", "HINCRBY", "TYPE", "hset", "Set", "nosuch", "PING",
    ];
    const KEYS: &[&str] = &["a", "b", "t:1", "t:2", ""];
    const WORDS: &[&str] = &[
        "0",
        "1",
        "-1",
        "7",
        "01",
        "+1",
        " 1",
        "-0",
        "",
        "x",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "999999999999999999",
        "3.5",
        "f",
        "g",
        "NX",
        "XX",
        "GET",
        "nx",
        "a\r\nb",
        "long long long value",
        "-3",
        "2",
    ];
    let mut command = vec![random.pick(NAMES), random.pick(KEYS)];
    for _ in 0..random.below(5) {
        command.push(random.pick(WORDS));
    }
    if random.below(20) == 0 {
        command.truncate(1);
    }
    command
}

/// KEYS tells what SCAN's MATCH would match.
fn random_patterns() {
    let mut redis = RealRedis::connect().expect("it answered before");
    let mut random = Random(7);
    let word = |random: &mut Random, alphabet: &[&str]| {
        (0..random.below(8)).map(|_| random.pick(alphabet)).collect::<String>()
    };
    for _ in 0..20_000 {
        let text = word(&mut random, &["a", "b", "c", "-", "]", "^", "\\", "["]);
        if text.is_empty() {
            // Redis 7.0 takes "**" not to match it, though "*" does.
            continue;
        }
        let pattern =
            word(&mut random, &["a", "b", "c", "*", "*", "?", "[", "]", "^", "-", "\\", "a-c"]);
        let mut batch = b"FLUSHALL\r\n".to_vec();
        batch.extend(multibulk(&[b"SET", text.as_bytes(), b"v"]));
        batch.extend(multibulk(&[b"KEYS", pattern.as_bytes()]));
        batch.extend(multibulk(&[b"ECHO", b"the end of a batch"]));
        let matches = redis.send(&batch).starts_with(b"+OK\r\n+OK\r\n*1\r\n");
        let ours = super::glob_matches(pattern.as_bytes(), text.as_bytes());
        assert_eq!(ours, matches, "{pattern:?} on {text:?}, ours then redis's");
    }
}

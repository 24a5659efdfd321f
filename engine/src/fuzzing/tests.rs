//! Replays the seeds and regressions of the engine's fuzz targets, on stable Rust. The seeds are
//! written by real encoders and real text: `cargo test -p rowship --lib fuzzing -- --ignored`
//! writes them anew. Inputs that fuzzing found a defect with lie in `fuzz/regressions`.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use rowship_proto::{Epoch, LogId, Lsn};

use super::{commands, config, csv, recovery, state_file, windows};
use crate::log::node_state::STATE_FILE;
use crate::log::testing::{MemoryDisk, next_random};
use crate::log::{Checkpoint, NodeState, Role};

/// Name, bytes, and what the body answers.
type Seeds<T> = Vec<(&'static str, Vec<u8>, T)>;

/// All inputs of a target together; beyond this they are no longer small.
const INPUT_BYTES_MAX: usize = 50 << 10;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target)
}

fn replay<T: PartialEq + Debug>(target: &str, body: fn(&[u8]) -> T, seeds: Seeds<T>) {
    let mut inputs = Vec::new();
    for kind in ["corpus", "regressions"] {
        // Most targets have no regressions.
        let Ok(entries) = fs::read_dir(folder(kind, target)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            inputs.push((name, fs::read(&path).unwrap()));
        }
    }
    let bytes: usize = inputs.iter().map(|(_, input)| input.len()).sum();
    assert!(bytes <= INPUT_BYTES_MAX, "the inputs of {target} have {bytes} bytes");
    inputs.iter().for_each(|(_, input)| drop(body(input)));
    let mut wrong = Vec::new();
    for (name, seed, expected) in seeds {
        let input = inputs.iter().find(|(input, _)| input == name);
        let (_, input) = input.unwrap_or_else(|| panic!("no {target}/{name}: write it anew"));
        assert!(*input == seed, "{target}/{name} is not what is written today: a new format?");
        let answer = body(input);
        if answer != expected {
            wrong.push(format!("{target}/{name}: {answer:?}, not {expected:?}"));
        }
        bend(body, &seed);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// No body may depend on its input being whole.
fn bend<T>(body: fn(&[u8]) -> T, seed: &[u8]) {
    for at in (0..seed.len()).step_by(1 + seed.len() / 16) {
        body(&seed[..at]);
        let mut flipped = seed.to_vec();
        flipped[at] ^= 1 << (at % 8);
        body(&flipped);
    }
}

fn write<T>(target: &str, seeds: Seeds<T>) {
    fs::create_dir_all(folder("corpus", target)).unwrap();
    for (name, seed, _) in seeds {
        fs::write(folder("corpus", target).join(name), seed).unwrap();
    }
}

#[test]
#[ignore = "writes the seeds anew"]
fn write_the_seeds() {
    write("recovery", recovery_seeds());
    write("state_file", state_seeds());
    write("commands", command_seeds());
    write("config", config_seeds());
    write("csv", csv_seeds());
    write("windows", window_seeds());
}

#[test]
fn recoveries_of_the_corpus_replay() {
    replay("recovery", recovery, recovery_seeds());
}

#[test]
fn state_files_of_the_corpus_replay() {
    replay("state_file", state_file, state_seeds());
}

#[test]
fn commands_of_the_corpus_replay() {
    replay("commands", commands, command_seeds());
}

#[test]
fn configurations_of_the_corpus_replay() {
    replay("config", config, config_seeds());
}

#[test]
fn csv_files_of_the_corpus_replay() {
    replay("csv", csv, csv_seeds());
}

#[test]
fn windows_of_the_corpus_replay() {
    replay("windows", windows, window_seeds());
}

/// Decisions as `log/fuzzing.rs` reads them: which log, which checkpoint, a power failure, then
/// changes: a file, what, where, and its arguments.
fn recovery_seeds() -> Seeds<Option<Lsn>> {
    let last_file_zeroed = [1, 0, 0, 1, 4, 0, 0x3c, 40];
    let body_bent = [1, 0, 0, 0, 0, 3, 0, 100, 0, 8];
    let tail_bent = [3, 0, 5, 0, 0, 69, 0, 120, 0, 8];
    let moved = [1, 2, 9, 1, 6, 0, 0x40, 0, 0x10, 60];
    let removed = [3, 0, 0, 2, 8, 0, 0, 0, 0];
    vec![
        ("young", vec![0, 0, 0], Some(Lsn(5160))),
        ("rolled", vec![1, 0, 0], Some(Lsn(81760))),
        ("at_a_roll", vec![2, 2, 200, 0], Some(Lsn(135168))),
        ("power_lost", vec![3, 2, 3, 4], Some(Lsn(138352))),
        ("last_file_zeroed", last_file_zeroed.to_vec(), Some(Lsn(78608))),
        ("body_bent", body_bent.to_vec(), None),
        ("tail_bent", tail_bent.to_vec(), None),
        ("moved", moved.to_vec(), Some(Lsn(81760))),
        ("removed", removed.to_vec(), Some(Lsn(135168))),
    ]
}

fn state_seeds() -> Seeds<bool> {
    let epoch = Epoch { counter: 3, node_id: 1, nonce: 5 };
    let mut state = NodeState::new(Role::Replica, 7, 9, "north");
    (state.log_id, state.epoch_highest) = (LogId([1, 2]), epoch);
    assert!(state.history.push(epoch, Lsn(4096)));
    state.checkpoint = Some(Checkpoint { lsn: Lsn(8192), chain: 77, epoch });
    let disk = MemoryDisk::new();
    state.store(&disk).unwrap();
    let file = disk.contents()[STATE_FILE].clone();
    let slot = &file[file.len() / 2..][..256];
    let bent = [&slot[..40], &[9; 4], &slot[44..]].concat();
    vec![
        ("whole", [slot, slot].concat(), true),
        ("one_slot", [&[0; 256][..], slot].concat(), true),
        ("bent", bent, true),
    ]
}

fn command_seeds() -> Seeds<u64> {
    let speak = |commands: &[&[&str]]| {
        let mut bytes = String::new();
        for words in commands {
            bytes += &format!("*{}\r\n", words.len());
            words.iter().for_each(|word| bytes += &format!("${}\r\n{word}\r\n", word.len()));
        }
        bytes.into_bytes()
    };
    let rows: &[&[&str]] = &[
        &["HELLO", "3"],
        &["HSET", "planes:N14228", "year", "1999", "seats", "149"],
        &["HGETALL", "planes:N14228"],
        &["HINCRBY", "planes:N14228", "seats", "1"],
        &["HDEL", "planes:N14228", "year", "seats"],
        &["SET", "a", "1", "GET"],
        &["INCR", "a"],
        &["DEL", "a", "a"],
    ];
    let transaction: &[&[&str]] =
        &[&["WATCH", "a"], &["MULTI"], &["MSET", "a", "1", "b", "2"], &["INCR", "a"], &["EXEC"]];
    let inline = b"PING\r\nset a \"x\\x00 y\"\r\nget a\nCOMMAND DOCS get\r\n*0\r\nquit\r\n";
    vec![
        ("rows", speak(rows), 19),
        ("transaction", speak(transaction), 8),
        ("inline", inline.to_vec(), 5),
        ("cut_short", speak(rows)[..50].to_vec(), 1),
        ("no_protocol", b"*2\r\n$3\r\nGET\r\n:1\r\n".to_vec(), 0),
        ("chosen", noise(200, 1), 3),
    ]
}

fn config_seeds() -> Seeds<bool> {
    let cluster = "[cluster]\npreset = \"tiny\"\nack = \"semi-sync\"\nreplicas = \"ANY 1 (a,b)\"\n";
    let node = "[node]\nname = \"north\"\nlisten = \"127.0.0.1:0\"\nlanes = 2\n";
    let wrong = "[node]\nlanse = 3\nlanes = [3]\n[nodes]\n";
    vec![
        ("both", [cluster, node].concat().into_bytes(), true),
        ("wrong", wrong.as_bytes().to_vec(), false),
        ("torn", b"[node]\n\nlanes = = 3".to_vec(), false),
        ("chosen", noise(60, 7), false),
    ]
}

fn csv_seeds() -> Seeds<usize> {
    let flights = "\0b,a,c\r\nN14228,1999,\"149\"\r\n\r\n\"a \"\"b\"\",\",x,\n,1,2\n1,2\n";
    let lines = "\u{80}1,2,3\n\"x\ny\",\"\"\"\",z\n";
    vec![
        ("flights", flights.as_bytes().to_vec(), 3),
        ("lines", lines.as_bytes()[1..].to_vec(), 2),
        ("two_columns", b"\x011:2,3\nb,a\n1-2,3\n".to_vec(), 0),
    ]
}

fn window_seeds() -> Seeds<Lsn> {
    vec![
        ("few", noise(80, 2), Lsn(4352)),
        ("many", noise(600, 3), Lsn(5792)),
        ("other", noise(900, 5), Lsn(6416)),
    ]
}

/// Decisions without a meaning of their own.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let next = |random: &u64| Some(next_random(*random));
    let random = std::iter::successors(Some(next_random(seed)), next);
    random.take(len).map(|random| (random >> 40) as u8).collect()
}

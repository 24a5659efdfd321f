//! The real binary: exit codes and complaints that scripts and people rely on.

use std::path::PathBuf;
use std::process::{Command, Output};

fn rowship(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rowship")).args(arguments).output().expect("the binary runs")
}

/// Exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = rowship(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal"), text(&output.stdout), text(&output.stderr))
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rowship-cli-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn help_documents_commands_and_exit_codes() {
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for expected in ["demo", "serve", "load", "status", "diff", "log", "promote", "Exit codes:"] {
        assert!(out.contains(expected), "no '{expected}' in\n{out}");
    }
}

#[test]
fn usage_and_configuration_are_code_2() {
    assert_eq!(run(&["serve", "--no-such-flag"]).0, 2);
    let (code, _, err) = run(&["serve"]);
    assert!(code == 2 && err.contains("--data-dir"), "{err}");
    let (code, _, err) = run(&["serve", "--data-dir", "x", "--lanes", "0"]);
    assert!(code == 2 && err.contains("--lanes 0 is not allowed: 1 to 64"), "{err}");
    assert_eq!(run(&["load", "x.csv", "--table", "a:b", "--key", "k"]).0, 2);
}

#[test]
fn printed_configuration_can_be_given_back() {
    let path = scratch("config").join("node.toml");
    let flags = ["--ack", "semi-sync", "--replicas", "2", "--listen=127.0.0.1:9"];
    let (code, first, err) = run(&[&["config", "--print"], &flags[..]].concat());
    assert_eq!(code, 0, "{err}");
    std::fs::write(&path, &first).unwrap();
    let file = path.to_str().unwrap();
    let (code, second, err) = run(&["config", "--print", "--config", file]);
    assert_eq!(code, 0, "{err}");
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap().trim().to_owned()).collect()
    };
    assert_eq!(values(&first), values(&second));
    assert!(second.contains(&format!("# {file}:3")), "{second}");
    std::fs::write(&path, "[node]\n\nlisten = 3\n").unwrap();
    let (code, _, err) = run(&["serve", "--data-dir", "x", "--config", file]);
    assert_eq!(code, 2);
    assert!(err.contains(&format!("{file}:3: [node] listen = 3 is not allowed")), "{err}");
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn hosts_that_cannot_be_reached_are_code_9_and_named() {
    // Port 1 of loopback: nobody listens there.
    for arguments in [
        &["call", "127.0.0.1:1", "PING"][..],
        &["status", "--at", "127.0.0.1:1"],
        &["diff", "127.0.0.1:1", "127.0.0.1:1"],
        &["log", "retire", "--at", "127.0.0.1:1", "--to", "1"],
    ] {
        let (code, _, err) = run(arguments);
        assert!(code == 9 && err.contains("127.0.0.1:1"), "{arguments:?}: {code} {err}");
    }
}

#[test]
fn directories_that_hold_no_log_are_code_4_and_named() {
    let empty = scratch("empty");
    let empty = empty.to_str().unwrap();
    for directory in [empty, "/nonexistent/rowship"] {
        for command in [&["log", "verify"][..], &["log", "dump"], &["promote"]] {
            let (code, _, err) = run(&[command, &[directory]].concat());
            assert!(code == 4 && err.contains(directory), "{command:?}: {code} {err}");
        }
    }
    std::fs::remove_dir_all(empty).unwrap();
}

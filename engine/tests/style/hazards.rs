//! Habits that are wrong in this house: unsafe code without a reason, panics on what came from
//! outside, and whatever a simulator with virtual time could not replay.

use crate::arrows::paths;
use crate::lists::{HASH_MAP_FILES, SYSTEM_FILES, UNSAFE_FILES, named};
use crate::source::{Finding, Source};

/// Modules of std that reach the system.
const SYSTEM_MODULES: &[&str] = &["fs", "net", "thread"];
/// Types and libraries that read a clock or draw random numbers.
const CLOCKS_AND_DICE: &[&str] =
    &["Instant", "SystemTime", "rand", "fastrand", "getrandom", "RandomState", "thread_rng"];
const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// All hazard rules.
pub fn check(source: &Source) -> Vec<Finding> {
    let rules = [
        check_unsafe,
        check_macros,
        check_unwrap,
        check_select,
        check_hash_maps,
        check_clocks,
        check_system,
        check_proto,
    ];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

/// Reports words for which `wrong` holds, with its message.
fn report(source: &Source, wrong: impl Fn(usize, &str) -> Option<String>) -> Vec<Finding> {
    let findings = source.words().filter_map(|(at, word)| {
        let message = wrong(at, word)?;
        Some(source.finding(at, message))
    });
    findings.collect()
}

fn check_unsafe(source: &Source) -> Vec<Finding> {
    report(source, |at, word| {
        if word != "unsafe" {
            None
        } else if !named(UNSAFE_FILES, &source.path) {
            Some("unsafe code outside the files named in engine/tests/style/lists.rs".to_owned())
        } else if !has_safety_note(source, at) {
            Some("unsafe without a `SAFETY:` comment on it or directly above".to_owned())
        } else {
            None
        }
    })
}

/// On the same line, or in the comments and attributes above the statement.
fn has_safety_note(source: &Source, offset: usize) -> bool {
    let line = source.line_of(offset);
    let note = |text: &str| {
        let comment = text.find("//").map_or("", |at| &text[at..]);
        comment.contains("SAFETY:") || comment.starts_with("/// # Safety")
    };
    if note(source.line(line)) {
        return true;
    }
    let above = (1..line).rev().map(|line| source.line(line).trim());
    above
        .take_while(|text| {
            let ends_another = text.ends_with([';', '{', '}', ',']) || text.is_empty();
            text.starts_with("//") || text.starts_with("#[") || !ends_another
        })
        .any(|text| text.starts_with("//") && note(text))
}

fn check_macros(source: &Source) -> Vec<Finding> {
    report(source, |at, word| {
        let called = source.code[at + word.len()..].starts_with('!');
        (called && MACROS.contains(&word)).then(|| format!("{word}! is for work in progress"))
    })
}

fn check_unwrap(source: &Source) -> Vec<Finding> {
    report(source, |at, word| {
        let called = word == "unwrap"
            && source.before(at).ends_with('.')
            && source.after(at + word.len()).starts_with("()");
        (called && !source.is_test(at)).then(|| {
            "unwrap outside tests: return an error, or `expect` with the invariant".to_owned()
        })
    })
}

fn check_select(source: &Source) -> Vec<Finding> {
    report(source, |at, word| {
        let rest = &source.code[at + word.len()..];
        if word != "select" || !rest.starts_with('!') {
            return None;
        }
        let inside: String = rest.chars().filter(|c| !c.is_whitespace()).take(9).collect();
        (!inside[2..].starts_with("biased;"))
            .then(|| "select! without `biased;` picks its branch at random".to_owned())
    })
}

fn check_hash_maps(source: &Source) -> Vec<Finding> {
    report(source, |at, word| {
        let hazard = matches!(word, "HashMap" | "HashSet")
            && source.path.starts_with("engine/src/node/")
            && !named(HASH_MAP_FILES, &source.path)
            && !source.is_test(at);
        hazard.then(|| {
            format!(
                "{word} in an agent: its order is random; use a BTree, or name the file in \
                 engine/tests/style/lists.rs"
            )
        })
    })
}

/// Engine code that must get time, numbers and system calls through the edge.
fn lives_behind_the_edge(source: &Source) -> bool {
    let outside = ["engine/src/edge/", "engine/src/cli/", "engine/src/main.rs", "engine/tests/"];
    source.path.starts_with("engine/") && !outside.iter().any(|at| source.path.starts_with(at))
}

fn check_clocks(source: &Source) -> Vec<Finding> {
    if !lives_behind_the_edge(source) {
        return Vec::new();
    }
    report(source, |at, word| {
        (CLOCKS_AND_DICE.contains(&word) && !source.is_test(at)).then(|| {
            format!("{word} outside edge and cli: time and random numbers come from the edge")
        })
    })
}

fn check_system(source: &Source) -> Vec<Finding> {
    let is_proto = source.path.starts_with("engine/proto/");
    if !lives_behind_the_edge(source) || is_proto || named(SYSTEM_FILES, &source.path) {
        return Vec::new();
    }
    let wrong = paths(source).into_iter().filter(|path| {
        let system = path.names[0] == "std" && SYSTEM_MODULES.contains(&path.names[1].as_str());
        let tokio = path.names[0] == "tokio" && matches!(path.names[1].as_str(), "net" | "fs");
        (system || tokio) && !source.is_test(path.offset)
    });
    let message = |names: &[String]| format!("{}::{} outside edge and cli", names[0], names[1]);
    wrong.map(|path| source.finding(path.offset, message(&path.names))).collect()
}

/// proto, its tests included, has no clock, no sockets, no files, no threads.
fn check_proto(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("engine/proto/src/") {
        return Vec::new();
    }
    let wrong = paths(source).into_iter().filter(|path| {
        let module = path.names[1].as_str();
        let system =
            SYSTEM_MODULES.contains(&module) || matches!(module, "time" | "env" | "os" | "process");
        (path.names[0] == "std" && system) || path.names[0].starts_with("tokio")
    });
    let message = |names: &[String]| {
        format!("proto uses {}::{}: time and bytes are arguments here", names[0], names[1])
    };
    wrong.map(|path| source.finding(path.offset, message(&path.names))).collect()
}

fn messages(path: &str, text: &str) -> Vec<String> {
    check(&Source::parse(path, text)).into_iter().map(|finding| finding.to_string()).collect()
}

fn assert_count(path: &str, text: &str, expected: usize) {
    let found = messages(path, text);
    assert_eq!(found.len(), expected, "{path}: {text}: {found:?}");
}

#[test]
fn unsafe_needs_a_note_and_a_named_file() {
    let edge = "engine/src/edge/uring.rs";
    assert_count(edge, "fn f() {\n    let x =\n        unsafe { g() };\n}", 1);
    assert_count(edge, "// SAFETY: for another.\nfn f() {}\nunsafe impl Send for X {}", 1);
    assert_count(edge, "// SAFETY: it is.\n\nfn f() { unsafe { g() } }", 1);
    assert_count(edge, "/// Doc.\npub unsafe fn f() {}", 1);
    assert_count(edge, "fn f() {\n    // SAFETY: it is\n    // open.\n    unsafe { g() }\n}", 0);
    assert_count(edge, "fn f() {\n    // SAFETY: s.\n    let x =\n        unsafe { g() };\n}", 0);
    assert_count(edge, "// SAFETY: it is.\n#[allow(x)]\nunsafe impl Send for X {}", 0);
    assert_count(edge, "/// # Safety\n/// Call it once.\npub unsafe fn f() {}", 0);
    assert_count(edge, "fn f() { g(); // unsafe\n}", 0);
    assert_count("engine/src/node/x.rs", "// SAFETY: s.\nunsafe impl Send for X {}", 1);
    assert_count("engine/src/node/x.rs", "#![forbid(unsafe_code)]", 0);
}

#[test]
fn unfinished_code_is_reported() {
    assert_count("bench/src/x.rs", "fn f() { todo!() }", 1);
    assert_count("fuzz/x.rs", "fn f() { unimplemented!(); dbg!(1); }", 2);
    assert_count("bench/src/x.rs", "fn f() { // todo!()\n todo(\"dbg!\") }", 0);
}

#[test]
fn unwrap_is_for_tests() {
    let text = "fn f() { g()\n.unwrap(); }";
    assert_count("engine/src/cli/x.rs", text, 1);
    assert_count("engine/tests/x.rs", text, 0);
    assert_count("engine/src/cli/x.rs", &format!("#[cfg(test)]\nmod tests {{ {text} }}"), 0);
    assert_count("engine/src/cli/x.rs", "fn f() { g().unwrap_or(1); }", 0);
}

#[test]
fn select_must_be_biased() {
    let node = "engine/src/node/x.rs";
    assert_count(node, "fn f() { tokio::select! { a = b => {} } }", 1);
    assert_count(node, "fn f() { tokio::select! {} }", 1);
    assert_count(node, "fn f() { select! { // biased;\n a = b => {} } }", 1);
    assert_count(node, "fn f() { tokio::select! {\n // why\n biased;\n a = b => {} } }", 0);
}

#[test]
fn unordered_maps_of_agents_are_reported() {
    assert_count("engine/src/node/x.rs", "struct S { a: HashMap<u8, u8>, b: HashSet<u8> }", 2);
    assert_count("engine/src/node/pending.rs", "struct S { a: HashMap<u8, u8> }", 0);
    assert_count("engine/src/node/x.rs", "struct S { a: BTreeMap<u8, u8> }", 0);
}

#[test]
fn clocks_and_dice_outside_the_edge_are_reported() {
    let text = "use std::time::Instant;\nfn f() { SystemTime::now(); rand::random(); }";
    for path in ["engine/src/node/x.rs", "engine/src/log/x.rs", "engine/sync/src/x.rs"] {
        assert_count(path, text, 3);
    }
    for path in ["engine/src/edge/x.rs", "engine/src/cli/x.rs", "bench/src/x.rs"] {
        assert_count(path, text, 0);
    }
    assert_count("engine/src/node/x.rs", &format!("#[cfg(test)]\nmod t {{ {text} }}"), 0);
}

#[test]
fn system_calls_outside_the_edge_are_reported() {
    let text =
        "use std::{fs::File, net};\nfn f() { tokio::fs::read(1); std::thread::yield_now(); }";
    assert_count("engine/src/log/x.rs", text, 4);
    assert_count("engine/src/edge/x.rs", text, 0);
}

#[test]
fn proto_has_no_clock_sockets_files_or_threads() {
    let proto = "engine/proto/src/x.rs";
    for module in ["time::Duration", "net::TcpStream", "fs", "thread", "{fmt, thread::spawn}"] {
        assert_count(proto, &format!("use std::{module};"), 1);
        let test = format!("#[cfg(test)]\nmod tests {{ use std::{module}; }}");
        assert_count(proto, &test, 1);
    }
    assert_count(proto, "fn f() { tokio::spawn(1); }", 1);
    assert_count(proto, "use std::{fmt, ops::Range, str::FromStr};", 0);
}

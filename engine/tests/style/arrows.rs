//! Which part of the house may name which: the arrows of the design.
//!
//! proto and sync depend on nothing of ours; log and apply on proto and sync, log also on edge's
//! traits; intake on proto; edge knows no protocol; node may use all of these, and edge only
//! through its traits except where it is wired; cli wires everything.

use crate::lists::{LIBRARIES, WIRING_FILES, named};
use crate::source::{Finding, Source, is_word_char};

/// A part of the house.
struct Layer {
    name: &'static str,
    /// Where its files are: a folder, and for a module in one file that file.
    places: &'static [&'static str],
    /// Other parts that it may name.
    may_use: &'static [&'static str],
}

const LAYERS: &[Layer] = &[
    Layer { name: "proto", places: &["engine/proto/"], may_use: &[] },
    Layer { name: "sync", places: &["engine/sync/"], may_use: &[] },
    Layer {
        name: "log",
        places: &["engine/src/log/", "engine/src/log.rs"],
        may_use: &["proto", "sync", "edge"],
    },
    Layer {
        name: "apply",
        places: &["engine/src/apply/", "engine/src/apply.rs"],
        may_use: &["proto", "sync"],
    },
    Layer {
        name: "intake",
        places: &["engine/src/intake/", "engine/src/intake.rs"],
        may_use: &["proto"],
    },
    Layer {
        name: "edge",
        places: &["engine/src/edge/", "engine/src/edge.rs"],
        may_use: &["proto"],
    },
    Layer {
        name: "node",
        places: &["engine/src/node/", "engine/src/node.rs"],
        may_use: &["proto", "sync", "log", "apply", "intake", "edge"],
    },
    Layer {
        name: "cli",
        places: &["engine/src/cli/", "engine/src/cli.rs"],
        may_use: &["proto", "sync", "log", "apply", "intake", "edge", "node"],
    },
];

/// What the edge may know of proto: plain types, no protocol.
const PLAIN_TYPES: &[&str] = &["Nanos"];
/// Implementations of the edge's traits, as modules.
const IMPLEMENTATIONS: &[&str] = &["uring", "disk", "sim"];

/// A path in the code, with groups (`a::{b, c}`) multiplied out.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPath {
    /// Where it starts.
    pub offset: usize,
    /// Its names; `*` for a glob.
    pub names: Vec<String>,
}

/// All arrow rules.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = check_libraries(source);
    let places = |layer: &&Layer| layer.places.iter().any(|place| source.path.starts_with(place));
    let Some(layer) = LAYERS.iter().find(places) else { return findings };
    for path in paths(source) {
        let Some(target) = target(source, &path) else { continue };
        if let Some(message) = judge(source, layer, &target, path.offset) {
            findings.push(source.finding(path.offset, message));
        }
    }
    findings
}

/// What is wrong with `layer` naming `target`, whose first name is a layer or `*`.
fn judge(source: &Source, layer: &Layer, target: &[String], offset: usize) -> Option<String> {
    let Layer { name, may_use, .. } = layer;
    let to = target[0].as_str();
    if to == "*" {
        return Some(format!("{name} takes in everything at the root of the crate"));
    }
    if to == *name || !LAYERS.iter().any(|layer| layer.name == to) {
        return None;
    }
    if !may_use.contains(&to) {
        return Some(format!("{name} must not use {to} (it may use: {})", may_use.join(", ")));
    }
    let second = target.get(1).map_or("", String::as_str);
    if *name == "edge" && !PLAIN_TYPES.contains(&second) {
        let allowed = PLAIN_TYPES.join(", ");
        return Some(format!("the edge knows no protocol; of proto it may name only {allowed}"));
    }
    let wired = *name == "cli" || named(WIRING_FILES, &source.path) || source.is_test(offset);
    if to == "edge" && !wired && (IMPLEMENTATIONS.contains(&second) || second == "*") {
        return Some(format!("{name} uses the edge through its traits, never edge::{second}"));
    }
    None
}

/// The layer that a path leads to, and the names below it; `None` when it leads elsewhere.
fn target(source: &Source, path: &NamedPath) -> Option<Vec<String>> {
    let below = |layer: &str, rest: &[String]| {
        let mut names = vec![layer.to_owned()];
        names.extend_from_slice(rest);
        Some(names)
    };
    let rest = &path.names[1..];
    match path.names[0].as_str() {
        "rowship_proto" => below("proto", rest),
        "rowship_sync" => below("sync", rest),
        "rowship" => (!rest.is_empty()).then(|| rest.to_vec()),
        // proto and sync are packages: what they call `crate` is their own.
        "crate" | "super" if !source.path.starts_with("engine/src/") => None,
        "crate" => (!rest.is_empty()).then(|| rest.to_vec()),
        "super" => {
            let ups = path.names.iter().take_while(|name| *name == "super").count();
            let mut module = module_path(source, path.offset);
            module.truncate(module.len().saturating_sub(ups));
            module.extend_from_slice(&path.names[ups..]);
            (!module.is_empty()).then_some(module)
        }
        // `use crate::edge;` and then `edge::uring`: the first name is the layer's.
        "edge" if path.names.len() > 1 => Some(path.names.clone()),
        _ => None,
    }
}

/// Names of the modules around an offset of a file in `engine/src`.
fn module_path(source: &Source, offset: usize) -> Vec<String> {
    let inside = source.path.trim_start_matches("engine/src/").trim_end_matches(".rs");
    let mut names: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main")) {
        names.pop();
    }
    let mut words = source.words().peekable();
    while let Some((_, word)) = words.next() {
        let Some((at, name)) = words.peek().copied() else { break };
        let open = source.body_or_end(at);
        if word == "mod"
            && source.after(at + name.len()).starts_with('{')
            && (open..source.closing(open)).contains(&offset)
        {
            names.push(name.to_owned());
        }
    }
    names
}

fn check_libraries(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let libraries = LIBRARIES.iter().filter(|(_, places, _)| {
        source.path.starts_with("engine/")
            && !places.iter().any(|place| source.path.starts_with(place))
    });
    for (library, places, reason) in libraries {
        let named = source.words().filter(|(at, word)| {
            word == library && source.after(at + word.len()).starts_with("::")
        });
        for (at, _) in named {
            let places = places.join(", ");
            let message = format!("{library} is only named in {places}: {reason}");
            findings.push(source.finding(at, message));
        }
    }
    findings
}

/// All paths of two names or more in the code; those in groups are given in full.
pub fn paths(source: &Source) -> Vec<NamedPath> {
    let (mut paths, mut end) = (Vec::new(), 0);
    for (offset, word) in source.words() {
        if offset >= end && source.after(offset + word.len()).starts_with("::") {
            end = read_tree(source, offset, &mut Vec::new(), &mut paths);
        }
    }
    paths.retain(|path| path.names.len() > 1);
    paths
}

/// Reads the path or group at `at` into `paths`, below `prefix`; returns the offset behind it.
fn read_tree(
    source: &Source,
    at: usize,
    prefix: &mut Vec<String>,
    paths: &mut Vec<NamedPath>,
) -> usize {
    let (mut at, depth) = (at, prefix.len());
    let offset = at;
    loop {
        let rest = source.after(at);
        at = source.code.len() - rest.len();
        if rest.starts_with('{') {
            let end = source.closing(at);
            at += 1;
            while at + 1 < end {
                let item = source.after(at);
                at = source.code.len() - item.len();
                if at + 1 >= end {
                    break;
                }
                at = read_tree(source, at, prefix, paths);
                at += source.code[at..end].find(',').map_or(end - at, |comma| comma + 1);
            }
            prefix.truncate(depth);
            return end;
        }
        let len = rest.find(|c| !is_word_char(c)).unwrap_or(rest.len());
        let name = if rest.starts_with('*') { "*" } else { &rest[..len] };
        at += name.len();
        if !name.is_empty() {
            prefix.push(name.to_owned());
        }
        let rest = source.after(at);
        if name.is_empty() || !rest.starts_with("::") {
            paths.push(NamedPath { offset, names: prefix.clone() });
            prefix.truncate(depth);
            return at;
        }
        at = source.code.len() - rest.len() + 2;
    }
}

fn messages(path: &str, text: &str) -> Vec<String> {
    check(&Source::parse(path, text)).into_iter().map(|finding| finding.to_string()).collect()
}

#[test]
fn groups_are_read_in_full() {
    let source = Source::parse("x.rs", "use a::{b::{self, c as d}, e::*};\nf::<g::H>(i::j);");
    let names = |path: &NamedPath| path.names.join(" ");
    let all: Vec<String> = paths(&source).iter().map(names).collect();
    for expected in ["a b self", "a b c", "a e *", "g H", "i j"] {
        assert!(all.iter().any(|path| path == expected), "{expected} not in {all:?}");
    }
}

#[test]
fn arrows_that_point_the_wrong_way_are_reported() {
    let wrong = [
        ("engine/proto/src/x.rs", "use rowship_sync::Watermark;"),
        ("engine/proto/src/x.rs", "use rowship::node;"),
        ("engine/sync/src/x.rs", "use rowship_proto::Lsn;"),
        ("engine/src/log/x.rs", "use crate::apply::plan;"),
        ("engine/src/log/x.rs", "use crate::edge::uring::UringEdge;"),
        ("engine/src/log/x.rs", "use crate::{edge::{Map, disk::FileDisk}};"),
        ("engine/src/log/x.rs", "use crate::edge;\nfn f() { edge::uring::probe(); }"),
        ("engine/src/apply/x.rs", "fn f() { crate::edge::offload(); }"),
        ("engine/src/apply/lsm/x.rs", "use super::super::super::log::Layout;"),
        ("engine/src/apply/mod.rs", "mod t { use super::super::cli; }"),
        ("engine/src/apply/mod.rs", "use super::*;"),
        ("engine/src/intake/x.rs", "use rowship_sync::Watermark;"),
        ("engine/src/intake/x.rs", "use crate::node::state;"),
        ("engine/src/edge/uring.rs", "use rowship_proto::{Nanos, frame::FrameHeader};"),
        ("engine/src/edge/uring.rs", "use crate::log::Layout;"),
        ("engine/src/node/x.rs", "use crate::cli::exit::Exit;"),
        ("engine/src/node/x.rs", "use crate::edge::uring::UringEdge;"),
    ];
    for (path, text) in wrong {
        assert_eq!(messages(path, text).len(), 1, "{path}: {text}: {:?}", messages(path, text));
    }
}

#[test]
fn arrows_of_the_design_pass() {
    let right = [
        ("engine/proto/src/x.rs", "use crate::frame::Log; use super::log; // rowship_sync::X"),
        ("engine/src/log/x.rs", "use crate::edge::{Disk, Map}; use rowship_sync::Watermark;"),
        ("engine/src/log/x.rs", "#[cfg(test)]\nmod tests { use crate::edge::disk::map_file; }"),
        ("engine/src/log/mod.rs", "mod tests { use super::*; }"),
        ("engine/src/apply/lsm/x.rs", "use super::super::table::Table; use super::files;"),
        ("engine/src/edge/uring.rs", "use rowship_proto::Nanos; use super::Edge;"),
        ("engine/src/node/x.rs", "use crate::{apply::plan, log, edge::{Edge, offload}};"),
        ("engine/src/node/start.rs", "use crate::edge::uring::UringEdge;"),
        ("engine/src/cli/x.rs", "use crate::edge::uring; use crate::node::run;"),
        ("engine/src/lib.rs", "pub mod cli; pub mod log;"),
        ("bench/src/main.rs", "use rowship::cli;"),
    ];
    for (path, text) in right {
        assert_eq!(messages(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn libraries_outside_their_folder_are_reported() {
    assert_eq!(messages("engine/src/edge/x.rs", "use tokio_uring::net::TcpStream;").len(), 1);
    assert_eq!(messages("engine/src/node/x.rs", "use io_uring::IoUring;").len(), 1);
    assert_eq!(messages("engine/src/apply/plan.rs", "fn f() { lsm_tree::x(); }").len(), 1);
    assert_eq!(messages("engine/src/apply/lsm/x.rs", "use lsm_tree::Guard;").len(), 0);
}

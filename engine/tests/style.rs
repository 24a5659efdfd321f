//! The house style, as far as a machine can check it: lengths, layer arrows, notes on unsafe
//! code, and habits that would break the simulator. It reads every `.rs` file of the workspace
//! and reports all findings at once, as `file:line: message`.
//!
//! Each rule stands in one of the modules below, beside a test with a snippet that it must report;
//! exceptions are named in [`lists`], each with its reason.

#[path = "style/arrows.rs"]
mod arrows;
#[path = "style/hazards.rs"]
mod hazards;
#[path = "style/lists.rs"]
mod lists;
#[path = "style/shape.rs"]
mod shape;
#[path = "style/source.rs"]
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use source::{Finding, Source};

/// Folders that are read, from the workspace's root.
const FOLDERS: &[&str] = &["engine", "bench", "fuzz", "loom-tests"];
/// Folders in them that are not ours, or not source.
const FOLDERS_SKIPPED: &[&str] = &["target", "corpus", "artifacts", "coverage"];

/// All rules, on one file.
fn check(source: &Source) -> Vec<Finding> {
    let rules = [shape::check, arrows::check, hazards::check];
    let mut findings: Vec<Finding> = rules.iter().flat_map(|rule| rule(source)).collect();
    findings.sort_by_key(|finding| finding.line);
    findings
}

fn root() -> PathBuf {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    engine.parent().expect("the engine lies in the workspace").to_path_buf()
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder of the workspace can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !FOLDERS_SKIPPED.contains(&name.as_str()) {
            collect(root, &path, found);
        } else if name.ends_with(".rs") {
            let shown = path.strip_prefix(root).expect("it lies below the root").to_string_lossy();
            let text = fs::read_to_string(&path).expect("a source file can be read as UTF-8");
            found.push((shown.into_owned(), text));
        }
    }
}

fn workspace() -> Vec<Source> {
    let root = root();
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root, &root.join(folder), &mut files);
    }
    files.sort();
    Source::parse_all(files)
}

#[test]
fn the_workspace_keeps_the_house_style() {
    let sources = workspace();
    let findings: Vec<String> =
        sources.iter().flat_map(check).map(|finding| finding.to_string()).collect();
    let count = findings.len();
    assert!(findings.is_empty(), "{count} findings:\n{}\n", findings.join("\n"));
}

/// A scanner that reads nothing, or misreads what it reads, finds nothing either.
#[test]
fn the_scanner_sees_what_is_there() {
    let sources = workspace();
    assert!(sources.len() > 60, "only {} files found", sources.len());
    let find = |path: &str| {
        sources.iter().find(|source| source.path == path).unwrap_or_else(|| panic!("no {path}"))
    };
    let frame = find("engine/proto/src/frame.rs");
    assert!(shape::functions(frame).iter().any(|function| function.name == "seal"));
    assert!(arrows::paths(frame).iter().any(|path| path.names == ["rowship_proto", "position"]
        || path.names.starts_with(&["crate".to_owned(), "position".to_owned()])));
    assert!(frame.is_test(frame.text.len() - 10), "the tests at the end are test code");
    assert!(!frame.is_test(1000), "what stands before them is not");
    assert!(find("engine/src/intake/testing.rs").is_test(0), "declared under cfg(test)");
    let edge = find("engine/src/edge/uring.rs");
    assert!(edge.words().any(|(_, word)| word == "unsafe"));
}

/// What a finding looks like: an editor can jump to it.
#[test]
fn a_finding_names_file_line_and_remedy() {
    let long = format!("//! Doc.\n// {}\n", "x".repeat(100));
    let findings = check(&Source::parse("engine/src/cli/long.rs", &long));
    assert_eq!(findings.len(), 1);
    let text = findings[0].to_string();
    assert_eq!(text, "engine/src/cli/long.rs:2: line of 103 characters, 100 at most");
}

//! Lengths of lines, functions and files, and a doc at the head of every file.

use crate::lists::LONG_FILES;
use crate::source::{Finding, Source};

/// Characters in a line.
const LINE_CHARS_MAX: usize = 100;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a file without the test module at its end.
const FILE_LINES_MAX: usize = 500;
/// Lines of a file with everything.
const FILE_LINES_HARD_MAX: usize = 800;

/// A function with a body.
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where its `fn` stands.
    pub start: usize,
    /// Behind its closing brace.
    pub end: usize,
}

/// All shape rules.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut offset = 0;
    for line in source.text.split_inclusive('\n') {
        let chars = line.trim_end_matches('\n').chars().count();
        if chars > LINE_CHARS_MAX {
            let message = format!("line of {chars} characters, {LINE_CHARS_MAX} at most");
            findings.push(source.finding(offset, message));
        }
        offset += line.len();
    }
    for function in functions(source) {
        let lines = source.line_of(function.end - 1) - source.line_of(function.start) + 1;
        if lines > FUNCTION_LINES_MAX {
            let name = function.name;
            let message = format!("function {name} of {lines} lines, {FUNCTION_LINES_MAX} at most");
            findings.push(source.finding(function.start, message));
        }
    }
    findings.extend(check_file_length(source, LONG_FILES));
    // What `tests.rs` is about stands at the head of the module that it tests.
    let needs_doc = !source.path.ends_with("/tests.rs");
    if needs_doc && !source.text.starts_with("//!") {
        findings.push(source.finding(0, "begins without a module doc (`//!`)"));
    }
    findings
}

fn check_file_length(source: &Source, allowed: &[(&str, &str)]) -> Option<Finding> {
    let (total, lines) = (source.text.lines().count(), source.lines_before_tests());
    let named = allowed.iter().any(|(path, _)| *path == source.path);
    let message = if total > FILE_LINES_HARD_MAX {
        format!("file of {total} lines, {FILE_LINES_HARD_MAX} at most, tests included")
    } else if lines > FILE_LINES_MAX && !named {
        format!(
            "file of {lines} lines before its tests, {FILE_LINES_MAX} at most: split it, or name \
             it with a reason in engine/tests/style/lists.rs"
        )
    } else if lines <= FILE_LINES_MAX && named {
        "no longer needs its exception in engine/tests/style/lists.rs".to_owned()
    } else {
        return None;
    };
    Some(source.finding(0, message))
}

/// All functions that have a body.
pub fn functions(source: &Source) -> Vec<Function<'_>> {
    let mut functions = Vec::new();
    let mut words = source.words().peekable();
    while let Some((start, word)) = words.next() {
        // `fn(u8) -> u8` is a type.
        let is_type = source.after(start + word.len()).starts_with('(');
        if word != "fn" || is_type {
            continue;
        }
        let Some((at, name)) = words.peek().copied() else { break };
        let body = source.body_or_end(at + name.len());
        if source.code[body..].starts_with('{') {
            functions.push(Function { name, start, end: source.closing(body) });
        }
    }
    functions
}

fn messages(text: &str) -> Vec<String> {
    check(&Source::parse("engine/src/cli/x.rs", text)).into_iter().map(|f| f.message).collect()
}

#[test]
fn long_lines_are_counted_in_characters() {
    let at_limit = format!("//! {}\n", "é".repeat(96));
    assert!(messages(&at_limit).is_empty());
    assert_eq!(messages(&format!("//! {}\n", "é".repeat(97))).len(), 1);
}

#[test]
fn long_functions_are_reported_and_declarations_are_not() {
    let function = |lines: usize| {
        let body = "    // }\n".repeat(lines - 2);
        format!("//! D.\ntrait T {{\n    fn g(a: [u8; 4], b: fn(u8));\n}}\nfn f() {{\n{body}}}\n")
    };
    assert!(messages(&function(70)).is_empty());
    assert_eq!(messages(&function(71)), ["function f of 71 lines, 70 at most"]);
}

#[test]
fn long_files_are_reported_unless_their_tests_make_them_long() {
    let file = |before: usize, tests: usize| {
        let before = "// x\n".repeat(before - 1);
        format!("//! D.\n{before}#[cfg(test)]\nmod tests {{\n{}}}\n", "// x\n".repeat(tests - 3))
    };
    let check = |text: &str, allowed: &[(&str, &str)]| {
        check_file_length(&Source::parse("a.rs", text), allowed).map(|finding| finding.message)
    };
    assert_eq!(check(&file(500, 300), &[]), None);
    assert!(check(&file(500, 301), &[]).unwrap().starts_with("file of 801 lines"));
    assert!(check(&file(501, 10), &[]).unwrap().starts_with("file of 501 lines before"));
    assert_eq!(check(&file(501, 10), &[("a.rs", "why")]), None);
    assert!(check(&file(500, 10), &[("a.rs", "why")]).unwrap().starts_with("no longer"));
    assert!(check(&file(790, 11), &[("a.rs", "why")]).unwrap().starts_with("file of 801"));
}

#[test]
fn a_file_without_a_doc_is_reported() {
    assert_eq!(messages("// x\nfn f() {}\n"), ["begins without a module doc (`//!`)"]);
}

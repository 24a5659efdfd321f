//! A Rust source file, cut into code, comments and literals well enough for style rules.
//!
//! Not a parser: a scanner that knows comments, strings, characters and brackets. Everything works
//! on byte offsets into the file; [`Source::code`] has the length of the file, with comments and
//! literals blanked, so that an offset means the same place in both.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

/// Something that is not in the house style.
#[derive(Debug)]
pub struct Finding {
    /// The file, from the workspace's root.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// One file.
pub struct Source {
    /// From the workspace's root, with `/`.
    pub path: String,
    /// All of it.
    pub text: String,
    /// The same bytes with comments and literals blanked.
    pub code: String,
    line_starts: Vec<usize>,
    test_ranges: Vec<Range<usize>>,
    test_file: bool,
    /// Modules declared by `#[cfg(test)] mod name;`.
    test_modules: Vec<String>,
}

impl Source {
    /// Parses files given as (path, text), and finds out which are only compiled for tests.
    pub fn parse_all(files: Vec<(String, String)>) -> Vec<Source> {
        let mut sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::parse(path, text)).collect();
        let test_stems: BTreeSet<String> = sources.iter().flat_map(Source::test_stems).collect();
        for source in &mut sources {
            let path = source.path.trim_end_matches(".rs");
            source.test_file |=
                test_stems.iter().any(|stem| path == stem || path.starts_with(&format!("{stem}/")));
        }
        sources
    }

    /// Parses one file on its own.
    pub fn parse(path: &str, text: &str) -> Source {
        let code = blank(text);
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        let mut source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            line_starts,
            test_ranges: Vec::new(),
            test_file: path.split('/').any(|part| part == "tests" || part == "loom-tests"),
            test_modules: Vec::new(),
        };
        source.find_tests();
        source
    }

    /// A finding in this file at a byte offset.
    pub fn finding(&self, offset: usize, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: self.line_of(offset), message: message.into() }
    }

    /// The line of a byte offset, from 1.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// The text of a line, counted from 1.
    pub fn line(&self, line: usize) -> &str {
        self.text.lines().nth(line - 1).unwrap_or_default()
    }

    /// Whether the code at an offset is only compiled for tests.
    pub fn is_test(&self, offset: usize) -> bool {
        self.test_file || self.test_ranges.iter().any(|range| range.contains(&offset))
    }

    /// Lines before the test module that ends the file, or all lines where there is none.
    pub fn lines_before_tests(&self) -> usize {
        let last = self.test_ranges.iter().max_by_key(|range| range.end);
        match last {
            Some(range) if self.code[range.end..].trim().is_empty() => {
                self.line_of(range.start) - 1
            }
            _ => self.text.lines().count(),
        }
    }

    /// All identifiers and keywords of the code, with their offsets.
    pub fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at + self.code[at..].find(is_word_char)?;
            let rest = &self.code[start..];
            at = start + rest.find(|c| !is_word_char(c)).unwrap_or(rest.len());
            Some((start, &self.code[start..at]))
        })
    }

    /// The code from an offset on, without leading space.
    pub fn after(&self, offset: usize) -> &str {
        self.code[offset..].trim_start()
    }

    /// The code before an offset, without trailing space.
    pub fn before(&self, offset: usize) -> &str {
        self.code[..offset].trim_end()
    }

    /// The offset behind the bracket that closes the one at `open`.
    pub fn closing(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (at, byte) in self.code.bytes().enumerate().skip(open) {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => continue,
            }
            if depth == 0 {
                return at + 1;
            }
        }
        self.code.len()
    }

    /// Offset of the `{` or `;` that comes next outside other brackets.
    pub fn body_or_end(&self, from: usize) -> usize {
        let bytes = self.code.as_bytes();
        let mut at = from;
        while at < bytes.len() {
            match bytes[at] {
                b'{' | b';' => return at,
                b'(' | b'[' => at = self.closing(at),
                _ => at += 1,
            }
        }
        at
    }

    fn find_tests(&mut self) {
        let mut from = 0;
        while let Some(found) = self.code[from..].find("#[cfg(") {
            let start = from + found;
            let attribute_end = self.closing(start + 1);
            let condition: String =
                self.code[start..attribute_end].split_whitespace().collect::<String>();
            from = attribute_end;
            let names_test = condition
                .split(|c| !is_word_char(c))
                .any(|word| word == "test" && !condition.contains("not(test"));
            if !names_test {
                continue;
            }
            let body = self.body_or_end(attribute_end);
            if self.code[body..].starts_with('{') {
                from = self.closing(body);
                self.test_ranges.push(start..from);
            } else {
                from = body;
                let item = self.code[attribute_end..body].trim();
                self.test_ranges.push(start..body);
                if let Some((_, name)) = item.rsplit_once("mod ") {
                    self.test_modules.push(name.trim().to_owned());
                }
            }
        }
    }

    /// Paths without `.rs` of the modules that this file declares for tests only.
    fn test_stems(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        let (folder, stem) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = if matches!(stem, "mod" | "lib" | "main") { folder } else { path };
        self.test_modules.iter().map(|name| format!("{folder}/{name}")).collect()
    }
}

/// What identifiers are made of.
pub fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `text` with comments, strings and characters turned into spaces, newlines kept.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal_or_comment(&text[at..]);
        if end > at {
            code.extend(bytes[at..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
            at = end;
            continue;
        }
        // Whole words and whole characters, so that a string's prefix is only seen at its start.
        let mut step = text[at..].find(|c| !is_word_char(c)).unwrap_or(text.len() - at);
        if step == 0 {
            step = text[at..].chars().next().map_or(1, char::len_utf8);
        }
        code.extend_from_slice(&bytes[at..at + step]);
        at += step;
    }
    String::from_utf8(code).expect("whole characters are blanked or kept")
}

/// Bytes of the comment or literal at the start of `text`, 0 when there is none.
fn literal_or_comment(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    let prefix = text.find(|c| !matches!(c, 'b' | 'c' | 'r')).unwrap_or(0).min(2);
    let (prefix, rest) = text.split_at(prefix);
    if prefix.contains('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        if rest[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 1;
            let len = rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len());
            return prefix.len() + len;
        }
        return 0;
    }
    match rest.chars().next() {
        Some('"') => prefix.len() + quoted(rest, '"'),
        Some('\'') => character(rest).map_or(0, |len| prefix.len() + len),
        _ => 0,
    }
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// Bytes up to and with the closing quote, which a backslash before it hides.
fn quoted(text: &str, quote: char) -> usize {
    let mut hidden = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if hidden => hidden = false,
            '\\' => hidden = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of the character literal at the start of `text`; `None` for a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        return Some(quoted(text, '\''));
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

#[test]
fn comments_and_literals_are_blanked_and_offsets_stay() {
    let text = "a /* b /* c */ d */ e // f\n\"g\\\"h\" i r#\"j\"k\"# l b'\\'' 'm' 'n: o 'é'";
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "i", "l", "'n:", "o"]);
    assert_eq!(code.find('\n'), text.find('\n'));
    assert_eq!(blank("r#type ab\"x\" 'static"), "r#type ab    'static");
}

#[test]
fn test_code_is_told_from_the_rest() {
    let lib =
        "#[cfg(test)]\nmod fakes;\nfn a() {}\n#[cfg(all(test, not(loom)))]\nmod t { fn b() {} }\n";
    let not_test = "#[cfg(not(test))]\nfn c() {}\n";
    let files = [("p/src/lib.rs", lib), ("p/src/fakes.rs", "x"), ("p/src/c.rs", not_test)];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned())).to_vec();
    let sources = Source::parse_all(files);
    assert!(!sources[0].is_test(lib.find("fn a").unwrap()));
    assert!(sources[0].is_test(lib.find("fn b").unwrap()));
    assert_eq!(sources[0].lines_before_tests(), 3);
    assert!(sources[1].is_test(0), "declared by the library for tests only");
    assert!(!sources[2].is_test(not_test.find("fn c").unwrap()));
}

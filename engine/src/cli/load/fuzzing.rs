//! CSV files of any bytes: the body of the fuzz target `csv`.

use std::io::Read;

use bytes::Bytes;

use super::rows::{CsvRows, KeyPlan, RowError};
use crate::intake::{Form, QueryLimits, Scan, Scanner, decode};

/// A file of any bytes, arriving in pieces of any size. The rows that are sent are the rows that a
/// plain reader of the format finds, column by column; each bad line is reported with its number
/// as an editor counts it; every command sent is one whole HSET. Returns how many were sent.
pub fn csv(data: &[u8]) -> usize {
    let (choice, text) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    let columns: &[&str] = [&["a"][..], &["b", "a"], &["a", "b", "c"]][usize::from(choice % 3)];
    let plan = KeyPlan {
        table: "t".to_owned(),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        separator: [":", "-", "::"][usize::from(choice / 3 % 3)].to_owned(),
    };
    // Half of the inputs are only lines: few bytes make a header with the right columns.
    let text = if choice >= 128 { [b"a,b,c\n", text].concat() } else { text.to_vec() };
    let found = as_loaded(&text, &plan, usize::from(choice % 7) + 1);
    assert_eq!(found, as_drawn(&text, &plan), "in {:?}", String::from_utf8_lossy(&text));
    found.map_or(0, |lines| lines.iter().filter(|line| line.is_ok()).count())
}

/// A line that is sent, with its number and the command's arguments; or the number of a bad one.
type Line = Result<(u64, Vec<Vec<u8>>), u64>;

/// `None` when there is no header that makes a key.
fn as_loaded(text: &[u8], plan: &KeyPlan, piece_bytes: usize) -> Option<Vec<Line>> {
    let pieces = Pieces { rest: text, piece_bytes };
    let mut rows = CsvRows::new(pieces, plan.clone()).ok()?;
    let mut lines = Vec::new();
    loop {
        match rows.next_line() {
            Ok(None) => return Some(lines),
            Ok(Some(line)) => {
                let mut command = Vec::new();
                rows.encode(&line, &mut command);
                lines.push(Ok((line.line, arguments(command, &line.key))));
            }
            Err(RowError::Line { line, .. }) => lines.push(Err(line)),
            Err(error) => panic!("nothing here is too large: {error}"),
        }
        assert!(lines.len() <= text.len(), "more lines than bytes");
    }
}

fn arguments(command: Vec<u8>, key: &[u8]) -> Vec<Vec<u8>> {
    let command = Bytes::from(command);
    let complete = Scan::Complete { len: command.len(), form: Form::Multibulk };
    assert_eq!(Scanner::new(QueryLimits::default()).scan(&command), Ok(complete));
    let args = decode(&command, Form::Multibulk).expect("one whole command");
    assert_eq!((&args[0][..], &args[1][..]), (&b"HSET"[..], key));
    args[1..].iter().map(|arg| arg.to_vec()).collect()
}

struct Pieces<'a> {
    rest: &'a [u8],
    piece_bytes: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.piece_bytes.min(buffer.len()).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(len);
        buffer[..len].copy_from_slice(piece);
        self.rest = rest;
        Ok(len)
    }
}

fn as_drawn(text: &[u8], plan: &KeyPlan) -> Option<Vec<Line>> {
    let mut records = records(text).into_iter();
    let (_, header, header_open) = records.next().unwrap_or_default();
    let shown: Vec<String> =
        header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut sorted = shown.clone();
    sorted.sort();
    sorted.dedup();
    if header_open || sorted.len() < shown.len() || shown.iter().any(String::is_empty) {
        return None;
    }
    let place = |name: &String| shown.iter().position(|column| column == name);
    let keys: Vec<usize> = plan.columns.iter().map(place).collect::<Option<_>>()?;
    let line = |(line, fields, open): (u64, Vec<Vec<u8>>, bool)| {
        if open {
            return Err(line);
        }
        let parts: Vec<&[u8]> =
            keys.iter().map(|at| fields.get(*at).map_or(&[][..], Vec::as_slice)).collect();
        let separator = plan.separator.as_bytes();
        let splits = |part: &&[u8]| part.windows(separator.len()).any(|at| at == separator);
        let ambiguous = parts.len() > 1 && parts.iter().any(splits);
        if fields.len() != header.len() || parts.iter().any(|part| part.is_empty()) || ambiguous {
            return Err(line);
        }
        let mut args = vec![[b"t:", &parts.join(separator)[..]].concat()];
        for (name, field) in header.iter().zip(fields) {
            args.extend([name.clone(), field]);
        }
        Ok((line, args))
    };
    Some(records.map(line).collect())
}

/// Records with the lines on which they start. A quote opens at the start of a field and closes at
/// the next one that is not doubled; what follows up to the field's end is taken as it stands.
/// Records end with CR, LF or both; empty lines are none; a byte order mark is skipped. With each
/// record: whether its last quote was still open at the end.
fn records(text: &[u8]) -> Vec<(u64, Vec<Vec<u8>>, bool)> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let (mut records, mut at) = (Vec::new(), 0);
    loop {
        while text.get(at).is_some_and(|byte| b"\r\n".contains(byte)) {
            at += 1;
        }
        if at == text.len() {
            return records;
        }
        let feeds = text[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
        let mut fields = Vec::new();
        let open = loop {
            let (next, open) = field(text, &mut at);
            fields.push(next);
            if text.get(at) != Some(&b',') {
                break open;
            }
            at += 1;
        };
        records.push((feeds + 1, fields, open));
    }
}

fn field(text: &[u8], at: &mut usize) -> (Vec<u8>, bool) {
    let mut field = Vec::new();
    if text.get(*at) == Some(&b'"') {
        *at += 1;
        loop {
            match text.get(*at..).unwrap_or_default() {
                [] => return (field, true),
                [b'"', b'"', ..] => {
                    field.push(b'"');
                    *at += 2;
                }
                [b'"', ..] => {
                    *at += 1;
                    break;
                }
                [byte, ..] => {
                    field.push(*byte);
                    *at += 1;
                }
            }
        }
    }
    while let Some(byte) = text.get(*at).filter(|byte| !b",\r\n".contains(byte)) {
        field.push(*byte);
        *at += 1;
    }
    (field, false)
}

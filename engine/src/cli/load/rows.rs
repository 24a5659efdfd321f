//! CSV lines as `HSET` commands.

use std::collections::VecDeque;
use std::io::{self, Read};

use csv::ByteRecord;

/// One record of a CSV file. Real ones have at most some KiB; a quote that is never closed would
/// swallow the rest of the file.
const RECORD_BYTES_MAX: u64 = 16 << 20;
/// A byte order mark, which some programs put before the header, and one byte behind it. The CSV
/// reader looks for the mark in its first read only, and takes a read that ends with it for the
/// file's end.
const FIRST_READ_BYTES_MIN: usize = 4;

/// How lines become keys.
#[derive(Clone, Debug)]
pub struct KeyPlan {
    /// Prefix of all keys.
    pub table: String,
    /// Columns whose values make the key.
    pub columns: Vec<String>,
    /// Between their values.
    pub separator: String,
}

/// What stops a load, or at least one line of it.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The file itself cannot be read; nothing after it either.
    #[error("{0}")]
    File(String),
    /// The header or the key do not fit together.
    #[error("{0}")]
    Header(String),
    /// One line is bad; the next may be good.
    #[error("line {line}: {problem}")]
    Line {
        /// Where the record starts, counted from one.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// One good line.
#[derive(Debug)]
pub struct Line {
    /// Where the record starts, counted from one.
    pub line: u64,
    /// The row's key, table prefix included.
    pub key: Vec<u8>,
}

/// Reads CSV and checks each line against the header.
pub struct CsvRows<R> {
    reader: csv::Reader<RecordGuard<R>>,
    /// For each column: its name as a bulk string.
    names: Vec<Vec<u8>>,
    key_columns: Vec<usize>,
    plan: KeyPlan,
    record: ByteRecord,
}

impl<R: Read> CsvRows<R> {
    /// Reads the header line.
    ///
    /// # Errors
    /// An unreadable file, or a header without the key's columns.
    pub fn new(input: R, plan: KeyPlan) -> Result<CsvRows<R>, RowError> {
        let guard = RecordGuard {
            input,
            read: 0,
            record_start: 0,
            line_breaks: VecDeque::new(),
            lines_before: 0,
            input_end: None,
        };
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(guard);
        let header = reader.byte_headers().map_err(|error| RowError::File(error.to_string()))?;
        let header = header.clone();
        let end = reader.position().byte();
        if !header.is_empty() && reader.get_ref().is_quote_open(end) {
            return Err(RowError::Header("line 1: a quote is not closed".to_owned()));
        }
        let columns: Vec<String> =
            header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        for (at, name) in columns.iter().enumerate() {
            if name.is_empty() || columns[..at].contains(name) {
                return Err(RowError::Header(format!(
                    "line 1: column {} is called '{name}': names must differ and not be empty",
                    at + 1
                )));
            }
        }
        let mut key_columns = Vec::new();
        for name in &plan.columns {
            let at = columns.iter().position(|column| column == name).ok_or_else(|| {
                let columns = columns.join(", ");
                RowError::Header(format!("no column '{name}' for the key; there are: {columns}"))
            })?;
            key_columns.push(at);
        }
        let names = header.iter().map(bulk).collect();
        Ok(CsvRows { reader, names, key_columns, plan, record: ByteRecord::new() })
    }

    /// The next line, `None` at the end. After [`RowError::Line`] it goes on with the next one.
    ///
    /// # Errors
    /// [`RowError::File`] is final.
    pub fn next_line(&mut self) -> Result<Option<Line>, RowError> {
        let start = self.reader.position().byte();
        self.reader.get_mut().record_start = start;
        let result = self.reader.read_byte_record(&mut self.record);
        let line = self.reader.get_mut().line_at(start);
        match result {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(RowError::File(format!("line {line}: {error}"))),
        }
        let bad = |problem: String| RowError::Line { line, problem };
        if self.reader.get_ref().is_quote_open(self.reader.position().byte()) {
            return Err(bad("a quote is not closed: the rest of the file is in it".to_owned()));
        }
        if self.record.len() != self.names.len() {
            let (found, expected) = (self.record.len(), self.names.len());
            return Err(bad(format!("{found} columns, the header has {expected}")));
        }
        let mut key = format!("{}:", self.plan.table).into_bytes();
        for (at, column) in self.key_columns.iter().enumerate() {
            let value = &self.record[*column];
            let name = &self.plan.columns[at];
            if value.is_empty() {
                return Err(bad(format!("key column '{name}' is empty")));
            }
            if at > 0 {
                key.extend_from_slice(self.plan.separator.as_bytes());
            }
            let separator = self.plan.separator.as_bytes();
            let ambiguous = value.windows(separator.len()).any(|part| part == separator);
            if self.key_columns.len() > 1 && ambiguous {
                return Err(bad(format!(
                    "key column '{name}' holds '{}', which separates the parts of a key: choose \
                     another --separator",
                    self.plan.separator
                )));
            }
            key.extend_from_slice(value);
        }
        Ok(Some(Line { line, key }))
    }

    /// Appends `HSET key column value ...` for the line read last, all columns included.
    pub fn encode(&self, line: &Line, output: &mut Vec<u8>) {
        let arguments = 2 + 2 * self.names.len();
        output.extend_from_slice(format!("*{arguments}\r\n$4\r\nHSET\r\n").as_bytes());
        output.extend_from_slice(&bulk(&line.key));
        for (name, value) in self.names.iter().zip(&self.record) {
            output.extend_from_slice(name);
            output.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
            output.extend_from_slice(value);
            output.extend_from_slice(b"\r\n");
        }
    }
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// Ends a record that does not end by itself before it fills the memory, and knows in which line
/// a record starts. (The CSV reader's own count is one short after CR LF, and for blank lines.)
struct RecordGuard<R> {
    input: R,
    /// Bytes handed out.
    read: u64,
    /// Where the record that is being read starts.
    record_start: u64,
    /// Offsets of line feeds and carriage returns behind the last record's start, and whether each
    /// is a feed. Bounded by the record's size and the reader's buffer.
    line_breaks: VecDeque<(u64, bool)>,
    /// Line feeds before those.
    lines_before: u64,
    /// Where the input ended. Behind it come [`AFTER_INPUT`] line breaks of our own.
    input_end: Option<u64>,
}

/// Line breaks handed out behind the input. A record takes one of them at most, unless a quote is
/// open; the CSV reader alone would close that quote silently.
const AFTER_INPUT: usize = 4;

impl<R> RecordGuard<R> {
    /// Whether the record that ends at `position` has run on beyond the end of the input.
    fn is_quote_open(&self, position: u64) -> bool {
        self.input_end.is_some_and(|end| position >= end + AFTER_INPUT as u64)
    }

    /// The line, counted from one, of the first byte at or after `offset` that is no line break.
    fn line_at(&mut self, mut offset: u64) -> u64 {
        while let Some(&(at, is_feed)) = self.line_breaks.front().filter(|found| found.0 <= offset)
        {
            offset = offset.max(at + 1);
            self.line_breaks.pop_front();
            self.lines_before += u64::from(is_feed);
        }
        self.lines_before + 1
    }
}

impl<R: Read> Read for RecordGuard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read.saturating_sub(self.record_start) > RECORD_BYTES_MAX {
            return Err(io::Error::other(format!(
                "a record of more than {RECORD_BYTES_MAX} bytes starts here: is a quote not closed?"
            )));
        }
        let mut len = match self.input_end {
            None => self.input.read(buffer)?,
            Some(_) => 0,
        };
        while self.read == 0 && (1..FIRST_READ_BYTES_MIN.min(buffer.len())).contains(&len) {
            match self.input.read(&mut buffer[len..])? {
                0 => break,
                more => len += more,
            }
        }
        if len == 0 && self.input_end.is_none() && buffer.len() >= AFTER_INPUT {
            self.input_end = Some(self.read);
            len = AFTER_INPUT;
            buffer[..len].fill(b'\n');
        }
        for byte in &buffer[..len] {
            if matches!(byte, b'\n' | b'\r') {
                self.line_breaks.push_back((self.read, *byte == b'\n'));
            }
            self.read += 1;
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(columns: &[&str]) -> KeyPlan {
        let columns = columns.iter().map(|name| (*name).to_owned()).collect();
        KeyPlan { table: "t".to_owned(), columns, separator: ":".to_owned() }
    }

    fn keys(text: &[u8], columns: &[&str]) -> Vec<Result<(u64, String), String>> {
        let mut rows = CsvRows::new(text, plan(columns)).unwrap();
        let mut found = Vec::new();
        loop {
            match rows.next_line() {
                Ok(None) => return found,
                Ok(Some(line)) => {
                    found.push(Ok((line.line, String::from_utf8_lossy(&line.key).into_owned())));
                }
                Err(error) => found.push(Err(error.to_string())),
            }
        }
    }

    #[test]
    fn keys_are_the_values_of_the_key_columns_in_their_order() {
        let found = keys(b"a,b,c\n1,2,3\n4,5,6\n", &["c", "a"]);
        assert_eq!(found, [Ok((2, "t:3:1".to_owned())), Ok((3, "t:6:4".to_owned()))]);
    }

    #[test]
    fn bad_lines_are_named_and_the_next_one_is_read() {
        let text = b"a,b\r\n1\r\n,2\r\n\"x\ny\",3\r\n4,5,6\r\n7,8\r\n";
        let found = keys(text, &["a"]);
        assert_eq!(found[0], Err("line 2: 1 columns, the header has 2".to_owned()));
        assert_eq!(found[1], Err("line 3: key column 'a' is empty".to_owned()));
        assert_eq!(found[2], Ok((4, "t:x\ny".to_owned())));
        assert_eq!(found[3], Err("line 6: 3 columns, the header has 2".to_owned()));
        assert_eq!(found[4], Ok((7, "t:7".to_owned())));
        assert_eq!(found.len(), 5);
    }

    #[test]
    fn a_quote_that_is_not_closed_is_a_bad_line() {
        for end in ["", "\n", "\n\n\n\n\n\n"] {
            let found = keys(format!("a,b\n1,2\n4,\"x\n5,y{end}").as_bytes(), &["a"]);
            assert_eq!(found[0], Ok((2, "t:1".to_owned())));
            assert!(found[1].as_ref().is_err_and(|error| error.starts_with("line 3: a quote")));
            assert_eq!(found.len(), 2, "{found:?}");
            let found = keys(format!("a,b\n1,2\n4,\"x\n5,y\"{end}").as_bytes(), &["a"]);
            assert_eq!(found[1], Ok((3, "t:4".to_owned())));
            assert_eq!(found.len(), 2, "{found:?}");
        }
        let open = CsvRows::new(&b"a,\"b\n1,2\n"[..], plan(&["a"]));
        assert!(open.is_err_and(|error| error.to_string().contains("not closed")));
    }

    #[test]
    fn lines_are_counted_like_an_editor_does() {
        for end in ["\n", "\r\n"] {
            let text = ["a,b", "", "1,2", "", "", "x,\"y", "z\"", "3,4"].join(end);
            let lines: Vec<_> =
                keys(text.as_bytes(), &["a"]).into_iter().map(|line| line.unwrap().0).collect();
            assert_eq!(lines, [3, 6, 8], "{end:?}");
        }
        // A file that went through one conversion too many: only line feeds are lines to an editor.
        let lines: Vec<_> =
            keys(b"a\n1\r\n\r\r\n2\n", &["a"]).into_iter().map(|line| line.unwrap().0).collect();
        assert_eq!(lines, [2, 4]);
    }

    #[test]
    fn two_lines_never_share_a_key_by_accident() {
        let found = keys(b"a,b\n1:2,3\n1,2:3\n", &["a", "b"]);
        assert!(found.iter().all(|line| line.as_ref().is_err_and(|e| e.contains("--separator"))));
        let single = keys(b"a,b\n1:2,3\n", &["a"]);
        assert_eq!(single, [Ok((2, "t:1:2".to_owned()))]);
    }

    #[test]
    fn rows_keep_every_column_and_any_bytes() {
        let mut rows = CsvRows::new(&b"a,b\n1,\xff\xfe\n"[..], plan(&["a"])).unwrap();
        let line = rows.next_line().unwrap().unwrap();
        let mut command = Vec::new();
        rows.encode(&line, &mut command);
        let expected = b"*6\r\n$4\r\nHSET\r\n$3\r\nt:1\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$2\r\n\
            \xff\xfe\r\n";
        assert_eq!(command, expected);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_however_its_bytes_arrive() {
        for first in 0..5 {
            let (head, rest) = b"\xef\xbb\xbfa,b\n1,2\n".split_at(first);
            let mut rows = CsvRows::new(head.chain(rest), plan(&["a"])).unwrap();
            assert_eq!(rows.next_line().unwrap().unwrap().key, b"t:1");
        }
    }

    #[test]
    fn headers_that_cannot_make_a_key_are_refused() {
        let error = |text: &'static str| CsvRows::new(text.as_bytes(), plan(&["a"])).err().unwrap();
        assert!(error("b,c\n").to_string().contains("there are: b, c"));
        assert!(error("a,a\n").to_string().contains("column 2"));
        assert!(error("a,\n").to_string().contains("column 2"));
        assert!(error("").to_string().contains("no column 'a'"));
    }

    #[test]
    fn quote_that_is_never_closed_does_not_fill_the_memory() {
        let endless = io::Read::chain(&b"a,b\n1,\"x"[..], io::repeat(b'y'));
        let mut rows = CsvRows::new(endless, plan(&["a"])).unwrap();
        let error = rows.next_line().unwrap_err();
        assert!(matches!(&error, RowError::File(text) if text.contains("quote")), "{error}");
    }
}

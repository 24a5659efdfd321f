//! The comparison itself: two streams of rows that should be the same sequence.
//!
//! A row waits in its side's map until the other side shows the same key. In equal tables nothing
//! waits longer than one step; a row that one side lacks waits to the end.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use rowship_proto::value::Image;

use super::super::client::printable;
use super::super::config::units::human_count;

/// Rows that may wait for their counterpart: beyond it the tables are not "almost the same", and
/// listing would not help. Bounds memory together with the next one.
pub const WAITING_ROWS_MAX: usize = 200_000;
/// Bytes of rows that may wait.
pub const WAITING_BYTES_MAX: usize = 512 << 20;
/// Keys listed per kind.
pub const KEYS_SHOWN_MAX: usize = 20;
/// Keys whose columns are compared one by one.
const COLUMNS_SHOWN_MAX: usize = 3;
/// Longest text of a value in a listing, in characters.
const VALUE_CHARS_MAX: usize = 60;

/// What differs between A and B.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// Keys that only A or only B has: count and the first few.
    pub only: [(u64, Vec<String>); 2],
    /// Keys with two images: count and the first few.
    pub changed: (u64, Vec<String>),
    /// Column by column, for the first few of `changed`.
    pub columns: Vec<String>,
    /// Too many to go on.
    pub cut_short: bool,
}

/// A comparison under way; sides are 0 for A and 1 for B.
#[derive(Debug, Default)]
pub struct Comparison {
    waiting: [HashMap<Bytes, Bytes>; 2],
    waiting_bytes: usize,
    ended: [bool; 2],
    differences: Differences,
}

impl Comparison {
    /// The side whose next row is wanted; `None` when all is said.
    pub fn wants(&self) -> Option<usize> {
        if self.differences.cut_short || self.ended == [true, true] {
            return None;
        }
        // The side that has shown less: its rows are what those of the other wait for.
        let behind = usize::from(self.waiting[0].len() > self.waiting[1].len());
        Some(if self.ended[behind] { 1 - behind } else { behind })
    }

    /// The next row of `side`.
    pub fn add(&mut self, side: usize, key: Bytes, image: Bytes) {
        if let Some(other) = self.waiting[1 - side].remove(&key) {
            self.waiting_bytes -= key.len() + other.len();
            if other != image {
                let images = if side == 0 { [image, other] } else { [other, image] };
                self.differences.add_changed(&key, &images);
            }
            return;
        }
        // Pages are shared buffers: a row that waits must not keep its whole page alive.
        let (key, image) = (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&image));
        self.waiting_bytes += key.len() + image.len();
        if let Some(twice) = self.waiting[side].insert(key.clone(), image) {
            self.waiting_bytes -= key.len() + twice.len();
        }
        let rows = self.waiting[0].len() + self.waiting[1].len();
        self.differences.cut_short =
            rows > WAITING_ROWS_MAX || self.waiting_bytes > WAITING_BYTES_MAX;
    }

    /// `side` has no more rows.
    pub fn end(&mut self, side: usize) {
        self.ended[side] = true;
    }

    /// What differs.
    pub fn finish(self) -> Differences {
        let mut differences = self.differences;
        for (only, waiting) in differences.only.iter_mut().zip(self.waiting) {
            only.0 = waiting.len() as u64;
            let mut keys: Vec<_> = waiting.into_keys().collect();
            keys.sort_unstable();
            only.1 = keys.iter().take(KEYS_SHOWN_MAX).map(|key| printable(key)).collect();
        }
        differences
    }
}

impl Differences {
    /// Whether the tables are identical.
    #[must_use]
    pub fn none(&self) -> bool {
        self.only[0].0 + self.only[1].0 + self.changed.0 == 0 && !self.cut_short
    }

    fn add_changed(&mut self, key: &Bytes, images: &[Bytes; 2]) {
        self.changed.0 += 1;
        if self.changed.1.len() < KEYS_SHOWN_MAX {
            self.changed.1.push(printable(key));
        }
        if self.changed.0 <= COLUMNS_SHOWN_MAX as u64 {
            self.columns.push(describe(key, images));
        }
    }

    /// A listing for people.
    #[must_use]
    pub fn text(&self, a: &str, b: &str) -> String {
        let mut text = String::new();
        if self.cut_short {
            let _ = writeln!(
                text,
                "stopped: more than {} rows, or {} MiB, have no counterpart; what follows is \
                 what was seen until then, and may be only a difference in order",
                human_count(WAITING_ROWS_MAX as u64),
                WAITING_BYTES_MAX >> 20
            );
        }
        let kinds = [
            (format!("only in {a}"), &self.only[0]),
            (format!("only in {b}"), &self.only[1]),
            ("different".to_owned(), &self.changed),
        ];
        for (what, (count, keys)) in kinds {
            if *count == 0 {
                continue;
            }
            let _ = writeln!(text, "{what}: {} rows", human_count(*count));
            for key in keys {
                let _ = writeln!(text, "  {key}");
            }
            if *count > keys.len() as u64 {
                let _ = writeln!(text, "  and {} more", human_count(count - keys.len() as u64));
            }
        }
        for columns in &self.columns {
            text.push_str(columns);
        }
        text
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let kind =
            |(count, keys): &(u64, Vec<String>)| serde_json::json!({"count": count, "keys": keys});
        serde_json::json!({
            "only_a": kind(&self.only[0]),
            "only_b": kind(&self.only[1]),
            "changed": kind(&self.changed),
            "cut_short": self.cut_short,
        })
    }
}

/// Which columns of a row differ.
fn describe(key: &Bytes, images: &[Bytes; 2]) -> String {
    let mut text = format!("{}:\n", printable(key));
    let parsed = images.each_ref().map(|image| Image::parse(image));
    match parsed {
        [Ok(Image::Columns(a)), Ok(Image::Columns(b))] => {
            for (name, value) in a.iter() {
                let other = b.get(name);
                if other != Some(value) {
                    let (name, other) = (printable(name), other.map_or("missing".into(), shown));
                    let _ = writeln!(text, "  {name}: {} | {other}", shown(value));
                }
            }
            for (name, value) in b.iter().filter(|(name, _)| a.get(name).is_none()) {
                let _ = writeln!(text, "  {}: missing | {}", printable(name), shown(value));
            }
            if text.lines().count() == 1 {
                text.push_str("  the same columns in another order\n");
            }
        }
        [Ok(Image::String(a)), Ok(Image::String(b))] => {
            let _ = writeln!(text, "  {} | {}", shown(a), shown(b));
        }
        [a, b] => {
            let kind = |image| match image {
                Ok(Image::String(_)) => "a string".to_owned(),
                Ok(Image::Columns(_)) => "columns".to_owned(),
                Err(error) => format!("{error}"),
            };
            let _ = writeln!(text, "  {} | {}", kind(a), kind(b));
        }
    }
    text
}

fn shown(value: &[u8]) -> String {
    let text = printable(&value[..value.len().min(VALUE_CHARS_MAX * 4)]);
    if text.chars().count() <= VALUE_CHARS_MAX {
        return format!("'{text}'");
    }
    let start: String = text.chars().take(VALUE_CHARS_MAX).collect();
    format!("'{start}'... ({} bytes)", value.len())
}

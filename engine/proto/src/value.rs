//! Images: the value of a row, in the form in which it lies in the log and in the table.
//!
//! ```text
//! string   | 1 | 0 0 0 | bytes ...
//! columns  | 2 | 0 | count: u16 | count x (name_end: u32, value_end: u32) | names and values ...
//! ```
//!
//! Ends are offsets into the data behind the index; a column's name starts where the value before
//! it ended, and its value where its name ended. Columns keep the order in which they were first
//! written. Everything is read in place.

use std::ops::Range;

/// Most columns that one row can have.
pub const COLUMNS_MAX: usize = u16::MAX as usize;

const KIND_STRING: u8 = 1;
const KIND_COLUMNS: u8 = 2;
const PREFIX_BYTES: usize = 4;
const INDEX_ENTRY_BYTES: usize = 8;

/// A checked image, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image<'a> {
    /// One unnamed value.
    String(&'a [u8]),
    /// Named values, in order of first writing.
    Columns(Columns<'a>),
}

/// A checked list of columns, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'a> {
    index: &'a [u8],
    data: &'a [u8],
}

/// The bytes are not an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a row image: {0}")]
pub struct InvalidImage(&'static str);

impl<'a> Image<'a> {
    /// Checks every offset once; reading afterwards cannot fail.
    ///
    /// # Errors
    /// [`InvalidImage`] with what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>, InvalidImage> {
        let Some((prefix, rest)) = bytes.split_at_checked(PREFIX_BYTES) else {
            return Err(InvalidImage("shorter than its prefix"));
        };
        match prefix[0] {
            KIND_STRING if prefix[1..] == [0, 0, 0] => Ok(Image::String(rest)),
            KIND_COLUMNS if prefix[1] == 0 => {
                let count = usize::from(u16::from_le_bytes([prefix[2], prefix[3]]));
                Columns::parse(count, rest).map(Image::Columns)
            }
            _ => Err(InvalidImage("unknown kind")),
        }
    }
}

impl<'a> Columns<'a> {
    fn parse(count: usize, rest: &'a [u8]) -> Result<Columns<'a>, InvalidImage> {
        if count == 0 {
            return Err(InvalidImage("no columns"));
        }
        let Some((index, data)) = rest.split_at_checked(count * INDEX_ENTRY_BYTES) else {
            return Err(InvalidImage("index is cut short"));
        };
        let mut end = 0;
        for entry in index.chunks_exact(4) {
            let next = u32::from_le_bytes(entry.try_into().expect("chunks of four")) as usize;
            if next < end || next > data.len() {
                return Err(InvalidImage("offset out of order"));
            }
            end = next;
        }
        if end != data.len() {
            return Err(InvalidImage("bytes behind the last column"));
        }
        Ok(Columns { index, data })
    }

    /// How many columns, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a row without columns does not exist")]
    pub fn len(&self) -> usize {
        self.index.len() / INDEX_ENTRY_BYTES
    }

    /// Name and value of column `at`.
    ///
    /// # Panics
    /// When there is no such column.
    #[must_use]
    pub fn at(&self, at: usize) -> (&'a [u8], &'a [u8]) {
        let (name, value) = self.ranges(at);
        (&self.data[name], &self.data[value])
    }

    /// All columns in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> {
        (0..self.len()).map(move |at| self.at(at))
    }

    /// The value of the column called `name`.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter().find(|column| column.0 == name).map(|column| column.1)
    }

    fn ranges(&self, at: usize) -> (Range<usize>, Range<usize>) {
        let end = |slot: usize| {
            let bytes = &self.index[slot * 4..slot * 4 + 4];
            u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize
        };
        let start = if at == 0 { 0 } else { end(at * 2 - 1) };
        (start..end(at * 2), end(at * 2)..end(at * 2 + 1))
    }
}

/// Encodes a string image.
#[must_use]
pub fn encode_string(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + value.len());
    bytes.extend_from_slice(&[KIND_STRING, 0, 0, 0]);
    bytes.extend_from_slice(value);
    bytes
}

/// Encodes columns in the given order; names must differ from one another.
///
/// # Panics
/// With no columns, more than [`COLUMNS_MAX`], or more than 4 GiB: callers check their limits.
#[must_use]
pub fn encode_columns(columns: &[(&[u8], &[u8])]) -> Vec<u8> {
    assert!(!columns.is_empty());
    let count = u16::try_from(columns.len()).expect("at most COLUMNS_MAX columns");
    let data_bytes: usize = columns.iter().map(|(name, value)| name.len() + value.len()).sum();
    let mut bytes =
        Vec::with_capacity(PREFIX_BYTES + columns.len() * INDEX_ENTRY_BYTES + data_bytes);
    bytes.extend_from_slice(&[KIND_COLUMNS, 0]);
    bytes.extend_from_slice(&count.to_le_bytes());
    let mut end = 0usize;
    for (name, value) in columns {
        for part in [name, value] {
            end += part.len();
            let offset = u32::try_from(end).expect("an image is below 4 GiB");
            bytes.extend_from_slice(&offset.to_le_bytes());
        }
    }
    for (name, value) in columns {
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_round_trip() {
        for value in [&b""[..], b"x", b"1999"] {
            assert_eq!(Image::parse(&encode_string(value)), Ok(Image::String(value)));
        }
    }

    #[test]
    fn columns_round_trip_in_order_and_by_name() {
        let columns: [(&[u8], &[u8]); 3] = [(b"year", b"1999"), (b"", b""), (b"seats", b"149")];
        let bytes = encode_columns(&columns);
        let Ok(Image::Columns(read)) = Image::parse(&bytes) else { panic!("columns") };
        assert_eq!(read.iter().collect::<Vec<_>>(), columns);
        assert_eq!(read.get(b"seats"), Some(&b"149"[..]));
        assert_eq!(read.get(b"none"), None);
    }

    #[test]
    fn hostile_offsets_are_refused() {
        let bytes = encode_columns(&[(b"a", b"1"), (b"b", b"2")]);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut hostile = bytes.clone();
                hostile[at] ^= flip;
                if let Ok(Image::Columns(read)) = Image::parse(&hostile) {
                    assert!(read.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() <= 4);
                }
            }
            assert!(at == 0 || Image::parse(&bytes[..at]).is_err());
        }
    }
}

//! Commands on rows with named columns. Columns keep the order of their first writing.

use std::collections::HashMap;

use bytes::Bytes;
use rowship_proto::value::{COLUMNS_MAX, Columns, encode_columns};

use super::execute::{
    IMAGE_PREFIX_BYTES, OVERFLOW, Rows, View, check_image_bytes, count, parse_columns,
};
use super::reply::Reply;
use super::scan::parse_integer;

/// Name and value.
type Column<'a> = (&'a [u8], &'a [u8]);

/// Reads the row and hands its columns, `None` for a missing row, to `use_columns`.
fn with_columns<R: Rows, T>(
    key: &Bytes,
    view: View,
    rows: &mut R,
    use_columns: impl FnOnce(Option<(&Bytes, Columns<'_>)>) -> T,
) -> Result<T, Reply> {
    let Some(image) = rows.read(key, view)? else { return Ok(use_columns(None)) };
    let columns = parse_columns(&image)?;
    Ok(use_columns(Some((&image, columns))))
}

pub(super) fn get(
    key: &Bytes,
    name: &[u8],
    view: View,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    with_columns(key, view, rows, |row| {
        let value = row.and_then(|(image, columns)| Some(image.slice_ref(columns.get(name)?)));
        value.map_or(Reply::Null, Reply::Bulk)
    })
}

pub(super) fn get_many(
    key: &Bytes,
    names: &[Bytes],
    view: View,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    with_columns(key, view, rows, |row| {
        let Some((image, columns)) = row else {
            return Reply::Array(vec![Reply::Null; names.len()]);
        };
        let finder = Finder::new(columns.iter(), names.len());
        let value = |name: &Bytes| {
            let value = finder.find(name).map(|at| image.slice_ref(columns.at(at).1));
            value.map_or(Reply::Null, Reply::Bulk)
        };
        Reply::Array(names.iter().map(value).collect())
    })
}

pub(super) fn get_all(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    with_columns(key, view, rows, |row| {
        let Some((image, columns)) = row else { return Reply::Map(Vec::new()) };
        let bulk = |part| Reply::Bulk(image.slice_ref(part));
        Reply::Map(columns.iter().map(|(name, value)| (bulk(name), bulk(value))).collect())
    })
}

pub(super) fn names(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    one_part(key, view, rows, |(name, _)| name)
}

pub(super) fn values(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    one_part(key, view, rows, |(_, value)| value)
}

fn one_part(
    key: &Bytes,
    view: View,
    rows: &mut impl Rows,
    part: for<'a> fn(Column<'a>) -> &'a [u8],
) -> Result<Reply, Reply> {
    with_columns(key, view, rows, |row| {
        let Some((image, columns)) = row else { return Reply::Array(Vec::new()) };
        let bulk = |column| Reply::Bulk(image.slice_ref(part(column)));
        Reply::Array(columns.iter().map(bulk).collect())
    })
}

pub(super) fn exists(
    key: &Bytes,
    name: &[u8],
    view: View,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    let value_bytes = value_bytes(key, name, view, rows)?;
    Ok(count(usize::from(value_bytes.is_some())))
}

pub(super) fn strlen(
    key: &Bytes,
    name: &[u8],
    view: View,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    Ok(count(value_bytes(key, name, view, rows)?.unwrap_or(0)))
}

fn value_bytes(
    key: &Bytes,
    name: &[u8],
    view: View,
    rows: &mut impl Rows,
) -> Result<Option<usize>, Reply> {
    with_columns(key, view, rows, |row| row.and_then(|(_, columns)| Some(columns.get(name)?.len())))
}

pub(super) fn len(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    with_columns(key, view, rows, |row| count(row.map_or(0, |(_, columns)| columns.len())))
}

/// Sets columns, the last value of a repeated name, and returns how many of them are new.
pub(super) fn set(
    key: &Bytes,
    pairs: &[(Bytes, Bytes)],
    rows: &mut impl Rows,
) -> Result<usize, Reply> {
    let old = rows.read(key, View::Latest)?;
    let mut columns = columns_of(old.as_ref())?;
    let old_len = columns.len();
    let mut finder = Finder::new(columns.iter().copied(), pairs.len());
    for (name, value) in pairs {
        match finder.find(name) {
            Some(at) => columns[at].1 = value,
            None => {
                finder.push(name);
                columns.push((name, value));
            }
        }
    }
    let added = columns.len() - old_len;
    write_columns(key, &columns, rows)?;
    Ok(added)
}

pub(super) fn set_nx(
    key: &Bytes,
    name: &Bytes,
    value: &Bytes,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    let old = rows.read(key, View::Latest)?;
    let mut columns = columns_of(old.as_ref())?;
    if columns.iter().any(|column| column.0 == name) {
        return Ok(count(0));
    }
    columns.push((name, value));
    write_columns(key, &columns, rows)?;
    Ok(count(1))
}

/// Removes columns; with the last one goes the row.
pub(super) fn del(key: &Bytes, names: &[Bytes], rows: &mut impl Rows) -> Result<Reply, Reply> {
    let old = rows.read(key, View::Latest)?;
    let mut columns = columns_of(old.as_ref())?;
    let old_len = columns.len();
    let finder = Finder::new(names.iter().map(|name| (&name[..], &[][..])), old_len);
    columns.retain(|(name, _)| finder.find(name).is_none());
    let deleted = old_len - columns.len();
    if columns.is_empty() && deleted > 0 {
        rows.write(key, None)?;
    } else if deleted > 0 {
        write_columns(key, &columns, rows)?;
    }
    Ok(count(deleted))
}

pub(super) fn add(
    key: &Bytes,
    name: &[u8],
    delta: i64,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    let old = rows.read(key, View::Latest)?;
    let mut columns = columns_of(old.as_ref())?;
    let at = columns.iter().position(|column| column.0 == name);
    let before = match at {
        Some(at) => parse_integer(columns[at].1)
            .ok_or_else(|| Reply::error("ERR hash value is not an integer"))?,
        None => 0,
    };
    let sum = before.checked_add(delta).ok_or(OVERFLOW)?;
    let digits = sum.to_string();
    match at {
        Some(at) => columns[at].1 = digits.as_bytes(),
        None => columns.push((name, digits.as_bytes())),
    }
    write_columns(key, &columns, rows)?;
    Ok(Reply::Integer(sum))
}

fn columns_of(image: Option<&Bytes>) -> Result<Vec<Column<'_>>, Reply> {
    match image {
        Some(image) => Ok(parse_columns(image)?.iter().collect()),
        None => Ok(Vec::new()),
    }
}

fn write_columns(key: &Bytes, columns: &[Column<'_>], rows: &mut impl Rows) -> Result<(), Reply> {
    if columns.len() > COLUMNS_MAX {
        let text = format!("ERR row would have more than {COLUMNS_MAX} columns");
        return Err(Reply::error(text));
    }
    let data_bytes: usize = columns.iter().map(|(name, value)| name.len() + value.len()).sum();
    let index_bytes = columns.len() * INDEX_ENTRY_BYTES;
    check_image_bytes(IMAGE_PREFIX_BYTES + index_bytes + data_bytes, rows)?;
    rows.write(key, Some(encode_columns(columns)))
}

/// Finds columns by name: in one pass for few look-ups, by hash for many, so that thousands of
/// names against a row of thousands of columns do not take millions of comparisons.
struct Finder<'a> {
    by_hash: Option<HashMap<&'a [u8], usize>>,
    names: Vec<&'a [u8]>,
}

impl<'a> Finder<'a> {
    fn new(columns: impl Iterator<Item = Column<'a>>, look_ups: usize) -> Finder<'a> {
        let names: Vec<&[u8]> = columns.map(|column| column.0).collect();
        let by_hash = (look_ups > LINEAR_LOOK_UPS_MAX)
            .then(|| names.iter().enumerate().map(|(at, name)| (*name, at)).collect());
        Finder { by_hash, names }
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        match &self.by_hash {
            Some(by_hash) => by_hash.get(name).copied(),
            None => self.names.iter().position(|known| *known == name),
        }
    }

    fn push(&mut self, name: &'a [u8]) {
        if let Some(by_hash) = &mut self.by_hash {
            by_hash.insert(name, self.names.len());
        }
        self.names.push(name);
    }
}

/// Up to here a pass over the columns for each name is cheaper than hashing them all.
const LINEAR_LOOK_UPS_MAX: usize = 8;
/// Bytes of one column in an image's index.
const INDEX_ENTRY_BYTES: usize = 8;

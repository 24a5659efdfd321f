//! Commands on rows with one unnamed value.

use bytes::Bytes;

use super::execute::{
    Condition, IMAGE_PREFIX_BYTES, OVERFLOW, Rows, View, check_image_bytes, check_reply_bytes,
    count, parse_string, string_image,
};
use super::parse::NOT_AN_INTEGER;
use super::reply::Reply;
use super::scan::parse_integer;

/// The value as a slice of its image.
fn value_of(image: &Bytes) -> Result<Bytes, Reply> {
    parse_string(image).map(|value| image.slice_ref(value))
}

fn value_or_null(image: Option<&Bytes>) -> Result<Reply, Reply> {
    image.map_or(Ok(Reply::Null), |image| value_of(image).map(Reply::Bulk))
}

pub(super) fn get(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    value_or_null(rows.read(key, view)?.as_ref())
}

pub(super) fn get_del(key: &Bytes, rows: &mut impl Rows) -> Result<Reply, Reply> {
    let old = rows.read(key, View::Latest)?;
    let reply = value_or_null(old.as_ref())?;
    if old.is_some() {
        rows.write(key, None)?;
    }
    Ok(reply)
}

pub(super) fn set(
    key: &Bytes,
    value: &[u8],
    condition: Condition,
    get: bool,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    let old = match condition {
        Condition::Always if !get => None,
        _ => rows.read(key, View::Latest)?,
    };
    let old_value = if get { value_or_null(old.as_ref())? } else { Reply::Null };
    let allowed = match condition {
        Condition::Always => true,
        Condition::Missing => old.is_none(),
        Condition::Present => old.is_some(),
    };
    if !allowed {
        return Ok(old_value);
    }
    let image = string_image(value, rows)?;
    rows.write(key, Some(image))?;
    Ok(if get { old_value } else { Reply::OK })
}

pub(super) fn set_nx(key: &Bytes, value: &[u8], rows: &mut impl Rows) -> Result<Reply, Reply> {
    let reply = set(key, value, Condition::Missing, false, rows)?;
    Ok(count(usize::from(reply == Reply::OK)))
}

pub(super) fn mset(pairs: &[(Bytes, Bytes)], rows: &mut impl Rows) -> Result<Reply, Reply> {
    for (_, value) in pairs {
        check_image_bytes(IMAGE_PREFIX_BYTES + value.len(), rows)?;
    }
    for (key, value) in pairs {
        let image = string_image(value, rows)?;
        rows.write(key, Some(image))?;
    }
    Ok(Reply::OK)
}

pub(super) fn mset_nx(pairs: &[(Bytes, Bytes)], rows: &mut impl Rows) -> Result<Reply, Reply> {
    for (key, _) in pairs {
        if rows.read(key, View::Latest)?.is_some() {
            return Ok(count(0));
        }
    }
    mset(pairs, rows).map(|_| count(1))
}

/// Rows of another type read as null, as in Redis.
pub(super) fn mget(keys: &[Bytes], view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    let mut values = Vec::with_capacity(keys.len());
    let mut reply_bytes = 0;
    for key in keys {
        let image = rows.read(key, view)?;
        reply_bytes += image.as_ref().map_or(0, Bytes::len);
        check_reply_bytes(reply_bytes, rows)?;
        values.push(match value_or_null(image.as_ref()) {
            Err(error) if error == super::execute::WRONG_TYPE => Reply::Null,
            value => value?,
        });
    }
    Ok(Reply::Array(values))
}

pub(super) fn add(key: &Bytes, delta: i64, rows: &mut impl Rows) -> Result<Reply, Reply> {
    let old = match rows.read(key, View::Latest)? {
        Some(image) => parse_integer(parse_string(&image)?).ok_or(NOT_AN_INTEGER)?,
        None => 0,
    };
    let sum = old.checked_add(delta).ok_or(OVERFLOW)?;
    let image = string_image(sum.to_string().as_bytes(), rows)?;
    rows.write(key, Some(image))?;
    Ok(Reply::Integer(sum))
}

pub(super) fn append(key: &Bytes, tail: &[u8], rows: &mut impl Rows) -> Result<Reply, Reply> {
    let image = rows.read(key, View::Latest)?;
    let old = image.as_deref().map_or(Ok(&[][..]), parse_string)?;
    check_image_bytes(IMAGE_PREFIX_BYTES + old.len() + tail.len(), rows)?;
    if image.is_none() || !tail.is_empty() {
        let whole = [old, tail].concat();
        rows.write(key, Some(string_image(&whole, rows)?))?;
    }
    Ok(count(old.len() + tail.len()))
}

pub(super) fn strlen(key: &Bytes, view: View, rows: &mut impl Rows) -> Result<Reply, Reply> {
    let image = rows.read(key, view)?;
    Ok(count(image.as_deref().map_or(Ok(&[][..]), parse_string)?.len()))
}

pub(super) fn get_range(
    key: &Bytes,
    first: i64,
    last: i64,
    view: View,
    rows: &mut impl Rows,
) -> Result<Reply, Reply> {
    let empty = Reply::Bulk(Bytes::new());
    let Some(image) = rows.read(key, view)? else { return Ok(empty) };
    let value = value_of(&image)?;
    let len = i64::try_from(value.len()).expect("a value's length fits 63 bits");
    if len == 0 || (first < 0 && last < 0 && first > last) {
        return Ok(empty);
    }
    let from_end = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (first, last) = (from_end(first), from_end(last).min(len - 1));
    if first > last {
        return Ok(empty);
    }
    let at = |at: i64| usize::try_from(at).expect("both ends are within the value");
    Ok(Reply::Bulk(value.slice(at(first)..=at(last))))
}

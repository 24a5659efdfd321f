//! SCAN and DUMP: pages of the table at one position, read on the reader thread.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::value::Image;

use super::state::Node;
use crate::apply::table::{ScanLimits, ScanPage};
use crate::edge::{Edge, offload};
use crate::intake::glob::glob_matches;
use crate::intake::parse::SCAN_COUNT_MAX;
use crate::intake::reply::Reply;
use crate::intake::session::{RowType, ScanOptions};

/// Most bytes of one page.
const PAGE_BYTES_MAX: usize = 4 << 20;

async fn page<E: Edge>(
    node: &Rc<Node<E>>,
    cursor: u64,
    rows: u64,
) -> Result<(u64, ScanPage), Reply> {
    let pin = node.table.pin();
    let page = page_at(node, pin.at(), cursor, rows, PAGE_BYTES_MAX).await?;
    Ok((pin.at().0, page))
}

/// The page at a position that the caller has pinned.
async fn page_at<E: Edge>(
    node: &Rc<Node<E>>,
    at: Lsn,
    cursor: u64,
    rows: u64,
    bytes_max: usize,
) -> Result<ScanPage, Reply> {
    let rows_max = usize::try_from(rows.clamp(1, SCAN_COUNT_MAX)).expect("a few thousand");
    let (table, limits) = (node.table.clone(), ScanLimits { rows_max, bytes_max });
    match offload(&node.reader, move || table.scan(at, cursor, limits)).await {
        Ok(Ok(page)) => Ok(page),
        Ok(Err(error)) => Err(Reply::error(format!("ERR cannot scan: {error}"))),
        Err(error) => Err(Reply::error(format!("ERR the node is stopping: {error}"))),
    }
}

fn cursor_reply(next_hash: Option<u64>) -> Reply {
    Reply::text(next_hash.unwrap_or(0).to_string())
}

/// SCAN: `[cursor, [key ...]]`. The cursor is the hash at which to go on, so it needs no memory
/// here and every key that stays is returned.
pub async fn scan<E: Edge>(node: &Rc<Node<E>>, options: &ScanOptions) -> Reply {
    match page(node, options.cursor, options.count).await {
        Ok((_, page)) => reply(list(node, options, &page), options, BTreeMap::new()),
        Err(reply) => reply,
    }
}

/// What SCAN wants of a page: keys without their rows.
pub struct Listed {
    keys: Vec<Bytes>,
    /// Where to go on; `None` at the end.
    pub next_hash: Option<u64>,
}

/// The keys of a page that are asked for.
fn list<E: Edge>(node: &Node<E>, options: &ScanOptions, page: &ScanPage) -> Listed {
    let dictionary = node.dictionary.borrow();
    let mut keys = Vec::new();
    for row in &page.rows {
        let key = Bytes::from(dictionary.client_key(row.table, &row.key));
        if is_asked_for(options, &key, &row.value) {
            keys.push(key);
        }
    }
    Listed { keys, next_hash: page.next_hash }
}

/// One of `parts` SCANs inside EXEC, at a position that the caller has pinned: all of them
/// together hold what a page may hold.
///
/// # Errors
/// The reply instead.
pub async fn listed_at<E: Edge>(
    node: &Rc<Node<E>>,
    at: Lsn,
    options: &ScanOptions,
    parts: usize,
) -> Result<Listed, Reply> {
    let rows = options.count.min(SCAN_COUNT_MAX / parts as u64);
    let page = page_at(node, at, options.cursor, rows, PAGE_BYTES_MAX / parts).await?;
    Ok(list(node, options, &page))
}

/// What SCAN answers of a stretch, and of rows in it that are `newer` than the table: their images
/// by client key, `None` for deleted ones.
pub fn reply(
    listed: Listed,
    options: &ScanOptions,
    newer: BTreeMap<Bytes, Option<Bytes>>,
) -> Reply {
    let mut keys = listed.keys;
    keys.retain(|key| !newer.contains_key(key));
    for (key, image) in newer {
        if image.is_some_and(|image| is_asked_for(options, &key, &image)) {
            keys.push(key);
        }
    }
    let keys = keys.into_iter().map(Reply::Bulk).collect();
    Reply::Array(vec![cursor_reply(listed.next_hash), Reply::Array(keys)])
}

fn is_asked_for(options: &ScanOptions, key: &[u8], image: &[u8]) -> bool {
    let of_type = match options.row_type {
        None => true,
        Some(wanted) => match Image::parse(image) {
            Ok(Image::String(_)) => wanted == RowType::String,
            Ok(Image::Columns(_)) => wanted == RowType::Hash,
            Err(_) => false,
        },
    };
    of_type && options.pattern.as_ref().is_none_or(|pattern| glob_matches(pattern, key))
}

/// ROWSHIP.DUMP: `[position, cursor, [key, image ...]]` in order of hash, table and key.
pub async fn dump<E: Edge>(node: &Rc<Node<E>>, cursor: u64, count: u64) -> Reply {
    let (at, page) = match page(node, cursor, count).await {
        Ok(page) => page,
        Err(reply) => return reply,
    };
    let lsn = rowship_proto::Lsn(at);
    let position = rowship_proto::Position { epoch: node.epoch_below(lsn).await, lsn };
    let cursor = cursor_reply(page.next_hash);
    let dictionary = node.dictionary.borrow();
    let mut rows = Vec::with_capacity(page.rows.len() * 2);
    for row in page.rows {
        rows.push(Reply::Bulk(Bytes::from(dictionary.client_key(row.table, &row.key))));
        rows.push(Reply::Bulk(row.value));
    }
    Reply::Array(vec![Reply::text(position.to_string()), cursor, Reply::Array(rows)])
}

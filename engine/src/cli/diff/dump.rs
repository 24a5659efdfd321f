//! All rows of one node, page by page.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::client::Client;
use super::super::exit::Failure;
use super::super::reply::Reply;

/// Rows asked for at once: large enough to hide a round trip, small enough that a page of large
/// rows stays below the limit of a reply.
const PAGE_ROWS: &str = "256";
/// Pages without a row in a row: a node that never gets anywhere is not believed.
const EMPTY_PAGES_MAX: usize = 1_000_000;

/// Why a dump ended early.
#[derive(Debug)]
pub enum DumpError {
    /// The node's position moved: start over.
    Moved,
    /// It cannot go on.
    Failed(Failure),
}

/// Reads all rows of one node.
pub struct Dump<'a> {
    node: &'a mut Client,
    cursor: Option<String>,
    position: Option<String>,
    page: VecDeque<(Bytes, Bytes)>,
    rows: u64,
}

impl<'a> Dump<'a> {
    /// From the first row of `node`.
    pub fn new(node: &'a mut Client) -> Dump<'a> {
        let cursor = Some("0".to_owned());
        Dump { node, cursor, position: None, page: VecDeque::new(), rows: 0 }
    }

    /// The position of all pages, once there was one.
    pub fn position(&self) -> Option<&str> {
        self.position.as_deref()
    }

    /// Rows handed out.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Key and image of the next row, `None` at the end.
    pub fn next_row(&mut self) -> Result<Option<(Bytes, Bytes)>, DumpError> {
        for _ in 0..EMPTY_PAGES_MAX {
            if let Some(row) = self.page.pop_front() {
                self.rows += 1;
                return Ok(Some(row));
            }
            let Some(cursor) = self.cursor.take() else { return Ok(None) };
            self.read_page(&cursor)?;
        }
        Err(self.node.unexpected("ROWSHIP.DUMP").into())
    }

    fn read_page(&mut self, cursor: &str) -> Result<(), DumpError> {
        let reply = self.node.ask(&["ROWSHIP.DUMP", cursor, PAGE_ROWS])?;
        let unexpected = |node: &Client| DumpError::from(node.unexpected("ROWSHIP.DUMP"));
        let Reply::Array(parts) = reply else { return Err(unexpected(self.node)) };
        let Ok([position, next, rows]) = <[Reply; 3]>::try_from(parts) else {
            return Err(unexpected(self.node));
        };
        let (Some(position), Some(next), Reply::Array(rows)) = (position.text(), next.text(), rows)
        else {
            return Err(unexpected(self.node));
        };
        if self.position.get_or_insert_with(|| position.clone()) != &position {
            return Err(DumpError::Moved);
        }
        if next == cursor || rows.len() % 2 != 0 {
            return Err(unexpected(self.node));
        }
        let mut rows = rows.into_iter();
        while let (Some(Reply::Bulk(key)), Some(Reply::Bulk(image))) = (rows.next(), rows.next()) {
            self.page.push_back((key, image));
        }
        if rows.len() > 0 {
            return Err(unexpected(self.node));
        }
        self.cursor = (next != "0").then_some(next);
        Ok(())
    }
}

//! One page of a scan: memtables and files merged.

use std::sync::Arc;

use lsm_tree::{AbstractTree, AnyTree, Guard, Slice};
use rowship_proto::Lsn;

use super::super::table::{PageBuilder, RowId, ScanLimits, ScanPage};
use super::memtable::Memtable;
use super::versions;

type Entry = (Slice, Slice);
type Source<'a> = Box<dyn Iterator<Item = lsm_tree::Result<Entry>> + 'a>;

/// A page at `at`, from `from_hash` on.
pub fn page(
    tree: &AnyTree,
    memtables: &[Arc<Memtable>],
    at: Lsn,
    from_hash: u64,
    limits: ScanLimits,
) -> lsm_tree::Result<ScanPage> {
    let from = from_hash.to_be_bytes();
    let mut sources: Vec<Source<'_>> = memtables
        .iter()
        .map(|memtable| Box::new(memtable.newest_from(&from, at).map(Ok)) as Source<'_>)
        .collect();
    let files = tree.range(from.as_slice().., at.0, None);
    sources.push(Box::new(files.map(|entry| entry.into_inner())));
    let mut merged = Merged::new(sources)?;
    let mut builder = PageBuilder::new(limits);
    while let Some((key, value)) = merged.next()? {
        let malformed = lsm_tree::Error::InvalidHeader("storage key of a row");
        let row = RowId::from_storage_key(&key).ok_or(malformed)?;
        if !builder.push(row, versions::parse(&value)?.1) {
            break;
        }
    }
    Ok(builder.finish())
}

/// Merges sources of ascending keys; of several versions of a key, the newest.
struct Merged<'a> {
    sources: Vec<(Source<'a>, Option<Entry>)>,
}

impl<'a> Merged<'a> {
    fn new(sources: Vec<Source<'a>>) -> lsm_tree::Result<Merged<'a>> {
        let primed = sources.into_iter().map(|mut source| {
            let head = source.next().transpose()?;
            Ok((source, head))
        });
        Ok(Merged { sources: primed.collect::<lsm_tree::Result<_>>()? })
    }

    fn next(&mut self) -> lsm_tree::Result<Option<Entry>> {
        // A handful of sources: looking at all heads beats a heap.
        let heads = self.sources.iter().filter_map(|(_, head)| head.as_ref());
        let Some(key) = heads.map(|(key, _)| key).min().cloned() else { return Ok(None) };
        let mut newest: Option<(Lsn, Slice)> = None;
        for (source, head) in &mut self.sources {
            let Some((_, value)) = head.take_if(|(head_key, _)| *head_key == key) else { continue };
            *head = source.next().transpose()?;
            let (lsn, _) = versions::parse(&value)?;
            if newest.as_ref().is_none_or(|(newest_lsn, _)| *newest_lsn < lsn) {
                newest = Some((lsn, value));
            }
        }
        Ok(newest.map(|(_, value)| (key, value)))
    }
}

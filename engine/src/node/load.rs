//! What a sender sends next: frames of the tip, lent, or of the maps, read ahead.

use bytes::Bytes;
use rowship_proto::sim::{Mark, mark};
use rowship_proto::{FrameHeader, Lsn};
use zerocopy::FromBytes;

use super::lent::Loan;
use super::state::Node;
use super::tip::Run;
use crate::edge::Edge;
use crate::log::LogError;

/// Frames to send.
pub(super) struct Load {
    pub(super) parts: Vec<Bytes>,
    /// Where the frame behind them starts.
    pub(super) to: Lsn,
    /// What the last of them says is committed.
    pub(super) committed: Lsn,
    /// Buffers of the pool among them.
    pub(super) loans: Vec<Loan>,
}

impl Load {
    pub(super) fn lent<E: Edge>(node: &Node<E>, runs: Vec<Run>) -> Load {
        let lent = &node.primary().expect("only primaries ship").lent;
        let last = runs.last().expect("never empty");
        let committed = last_committed(&last.bytes).unwrap_or_default();
        let (parts, loans): (_, Vec<_>) = runs.iter().map(|run| lent.lend(run)).unzip();
        Load { to: last.next, committed, parts, loans: loans.into_iter().flatten().collect() }
    }
}

/// `committed` in the only frame of a primary's run.
fn last_committed(run: &[u8]) -> Option<Lsn> {
    let (header, _) = FrameHeader::read_from_prefix(run).ok()?;
    Some(header.committed)
}

/// A load from the maps, read and checked while the one before it is sent.
#[derive(Default)]
pub(super) struct Ahead {
    load: Option<(Lsn, Load)>,
}

impl Ahead {
    /// Durable frames behind the tip, from `from` on.
    ///
    /// # Errors
    /// [`LogError`] when they cannot be read, or are not there.
    pub(super) async fn take<E: Edge>(
        &mut self,
        node: &Node<E>,
        from: Lsn,
    ) -> Result<Load, LogError> {
        match self.load.take() {
            Some((at, load)) if at == from => Ok(load),
            _ => from_maps(node, from).await,
        }
    }

    /// Reads what [`Ahead::take`] will be asked for. An error is met again by then.
    pub(super) async fn read<E: Edge>(&mut self, node: &Node<E>, from: Lsn) {
        if from < node.durable.get() {
            self.load = from_maps(node, from).await.ok().map(|load| (from, load));
        }
    }
}

/// Frames of the maps, checked: what has rotted here must not look like the network's fault over
/// there.
async fn from_maps<E: Edge>(node: &Node<E>, from: Lsn) -> Result<Load, LogError> {
    mark(Mark::ShippedFromMaps);
    let (range, bytes_max) = ((from, node.durable.get()), node.settings.node.transfer_bytes);
    match node.segments.read(&node.disk, &node.reader, range, bytes_max).await? {
        // What its frames say is old: a notice follows where it matters.
        Some(run) => {
            let (parts, loans) = (vec![run.bytes], Vec::new());
            Ok(Load { parts, to: run.next, committed: Lsn::ZERO, loans })
        }
        None => Err(LogError::NotHeld { lsn: from }),
    }
}

//! Reads of very many rows: piece by piece, so that nobody waits for all of it, and all of them at
//! one position.

use std::rc::Rc;

use bytes::Bytes;

use super::client::Client;
use super::fetch::Fetched;
use super::outbox::Needs;
use super::rows::TransactionRows;
use super::state::Node;
use crate::edge::Edge;
use crate::intake::execute::{DataCommand, Keys, View, execute};
use crate::intake::reply::Reply;

/// Rows that one piece has: well below a millisecond of the ring thread's time.
pub const PIECE_KEYS: usize = 1024;

/// The pieces of a command that only reads rows, if it has more than one.
#[must_use]
pub fn pieces(command: &DataCommand) -> Option<Vec<DataCommand>> {
    let (keys, piece): (_, fn(Vec<Bytes>) -> DataCommand) = match command {
        DataCommand::MGet(keys) => (keys, DataCommand::MGet),
        DataCommand::Exists(keys) => (keys, DataCommand::Exists),
        _ => return None,
    };
    let all = || keys.chunks(PIECE_KEYS).map(|keys| piece(keys.to_vec())).collect();
    (keys.len() > PIECE_KEYS).then(all)
}

/// Runs the pieces one after the other; between them others have their turn.
pub async fn run<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Client<E>,
    pieces: &[DataCommand],
) -> (Reply, Needs) {
    let mut fetched = node.snapshot();
    let done = run_at(node, client, pieces, &mut fetched).await;
    node.release(fetched);
    done.unwrap_or_else(|error| (error, Needs::default()))
}

async fn run_at<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Client<E>,
    pieces: &[DataCommand],
    fetched: &mut Fetched,
) -> Result<(Reply, Needs), Reply> {
    let bytes_max = node.reply_bytes_max();
    let (mut whole, mut needs, mut bytes) = (None, Needs::default(), 0);
    for piece in pieces {
        let keys = Keys::of(std::slice::from_ref(piece));
        node.fetch_next(fetched, &keys, &client.limits).await?;
        let rows = TransactionRows::new(node, client.id, client.limits, fetched);
        let mut rows = rows.at_the_fetch();
        let reply = execute(piece, View::Plain, &mut rows);
        needs = needs.and(super::transaction::needs_of(client, &rows));
        bytes += reply.encoded_bytes_max();
        if bytes > bytes_max {
            let text = format!("ERR reply is larger than replies_bytes_max ({bytes_max} bytes)");
            return Err(Reply::error(text));
        }
        whole = match (whole, reply) {
            (_, Reply::Error(text)) => return Err(Reply::Error(text)),
            (None, reply) => Some(reply),
            (Some(Reply::Integer(sum)), Reply::Integer(more)) => Some(Reply::Integer(sum + more)),
            (Some(Reply::Array(mut all)), Reply::Array(more)) => {
                all.extend(more);
                Some(Reply::Array(all))
            }
            (Some(all), _) => Some(all),
        };
    }
    Ok((whole.unwrap_or(Reply::Null), needs))
}

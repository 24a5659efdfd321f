//! Batches of rows over several connections. A key always takes the same connection, so that of
//! two lines with one key the later one wins.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use super::super::client::Client;
use super::super::exit::{Exit, Failure};
use super::super::reply::Reply;

/// Batches that wait for one connection: one, so that it never idles while the file is read.
const WAITING_MAX: usize = 1;

/// Commands that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Encoded commands.
    pub commands: Vec<u8>,
    /// For each command the line it comes from.
    pub lines: Vec<u64>,
}

/// What all threads of a load share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Rows acknowledged by the node.
    pub rows: AtomicU64,
    /// Error replies.
    pub errors: AtomicU64,
    /// Something failed: all stop.
    pub stop: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl Shared {
    /// Keeps a failure; of several the first counts. What is on its way is still sent.
    pub fn note(&self, failure: Failure) {
        let mut slot = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(failure);
    }

    /// Keeps a failure and stops the load.
    pub fn fail(&self, failure: Failure) {
        self.note(failure);
        self.stop.store(true, Ordering::Release);
    }

    /// The first failure.
    pub fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One connection and its thread.
pub struct Sender {
    batches: SyncSender<Batch>,
}

impl Sender {
    /// Starts a thread that sends batches on `client` until the sender is dropped.
    pub fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        client: Client,
        transaction: bool,
        shared: &'env Shared,
    ) -> Sender {
        let (batches, queue) = sync_channel(WAITING_MAX);
        scope.spawn(move || {
            if let Err(failure) = run(client, &queue, transaction, shared) {
                shared.fail(failure);
            }
        });
        Sender { batches }
    }

    /// Hands a batch over; false when the connection has failed.
    pub fn send(&self, batch: Batch) -> bool {
        self.batches.send(batch).is_ok()
    }
}

fn run(
    mut client: Client,
    queue: &Receiver<Batch>,
    transaction: bool,
    shared: &Shared,
) -> Result<(), Failure> {
    while let Ok(batch) = queue.recv() {
        if shared.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let (Some(first), Some(last)) = (batch.lines.first(), batch.lines.last()) else {
            continue;
        };
        let lost = |error: super::super::client::ClientError| {
            let hint = "their rows may or may not be written; loading again is harmless";
            let failure = Failure::from(error);
            let message = format!("lines {first} to {last}: {failure}; {hint}");
            Failure { code: failure.code, message }
        };
        send_batch(&mut client, &batch, transaction).map_err(lost)?;
        let mut refused = None;
        if transaction {
            let mut texts = Vec::new();
            for _ in 0..batch.lines.len() + 2 {
                texts.push(client.receive().map_err(lost)?);
            }
            refused = texts.iter().find_map(nested_error).map(|text| {
                shared.errors.fetch_add(1, Ordering::Relaxed);
                format!("transaction of lines {first} to {last}: {text}")
            });
            if refused.is_none() {
                shared.rows.fetch_add(batch.lines.len() as u64, Ordering::Relaxed);
            }
        } else {
            for line in &batch.lines {
                match client.receive().map_err(lost)?.error() {
                    None => {
                        shared.rows.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(text) => {
                        shared.errors.fetch_add(1, Ordering::Relaxed);
                        refused.get_or_insert(format!("line {line}: {text}"));
                    }
                }
            }
        }
        if let Some(text) = refused {
            let message = format!("{} refused {text}", client.address());
            return Err(Failure::new(Exit::Failed, message));
        }
    }
    Ok(())
}

fn send_batch(
    client: &mut Client,
    batch: &Batch,
    transaction: bool,
) -> Result<(), super::super::client::ClientError> {
    if transaction {
        client.queue(&["MULTI"]);
    }
    client.queue_encoded(&batch.commands);
    if transaction {
        client.queue(&["EXEC"]);
    }
    client.flush()
}

/// An error reply, or one in the reply of EXEC; a nil reply of EXEC is one as well.
fn nested_error(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Array(items) => items.iter().find_map(nested_error),
        Reply::Null => Some("the transaction was given up".to_owned()),
        other => other.error(),
    }
}

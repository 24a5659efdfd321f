//! Rows that are written once and never again, with a record of which were acknowledged.
//!
//! Rows that are written over and over are healed by the replay of the log's last part. These are
//! not: what a flush or a compaction has lost, or a log that was cut too far, stays lost. Once the
//! log before them is retired they are in the table alone.

use std::time::Duration;

use rowship::cli::client::{Client, ClientError};
use rowship::cli::reply::Reply;

use crate::support::{Node, Random};

/// Rows in one pipeline at most.
const PIPELINE_MAX: u64 = 24;
/// Rows asked for at once.
const LOOK_ROWS: usize = 256;
/// A node whose disk is gone never answers; one that is only slow is asked again.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// All rows sent so far, by number: whether each was acknowledged.
#[derive(Default)]
pub struct Archive {
    acknowledged: Vec<bool>,
    client: Option<Client>,
}

fn key(row: usize) -> String {
    format!("cold:{row}")
}

/// Different lengths: sectors and blocks begin anywhere.
fn value(row: usize) -> String {
    format!("{row:0>width$}", width = 40 + row * 37 % 200)
}

impl Archive {
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.iter().filter(|acknowledged| **acknowledged).count()
    }

    /// Writes one pipeline of rows; false when not all of it was acknowledged.
    pub fn write_some(&mut self, address: &str, random: &mut Random) -> bool {
        let count = 1 + random.below(PIPELINE_MAX) as usize;
        let first = self.acknowledged.len();
        self.acknowledged.resize(first + count, false);
        let done = self.pipeline(address, first, count).is_ok();
        if !done {
            self.client = None;
        }
        done
    }

    fn pipeline(&mut self, address: &str, first: usize, count: usize) -> Result<(), ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let mut client = Client::connect(address)?;
                client.set_reply_timeout(REPLY_TIMEOUT)?;
                client
            }
        };
        for row in first..first + count {
            client.queue(&["SET", &key(row), &value(row)]);
        }
        client.flush()?;
        for row in first..first + count {
            let reply = client.receive()?;
            self.acknowledged[row] = reply.error().is_none();
        }
        self.client = Some(client);
        Ok(())
    }

    /// Forgets the connection: its node is about to die.
    pub fn disconnect(&mut self) {
        self.client = None;
    }

    /// How many rows there are on `node`.
    ///
    /// # Errors
    /// Which acknowledged row is missing, or which row holds what nobody has written.
    pub fn check(&self, node: &Node) -> Result<i64, String> {
        let mut client = node.client();
        let mut rows = 0;
        let numbers: Vec<usize> = (0..self.acknowledged.len()).collect();
        for chunk in numbers.chunks(LOOK_ROWS) {
            let keys: Vec<String> = chunk.iter().map(|row| key(*row)).collect();
            let command: Vec<&str> =
                std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
            let Reply::Array(found) = client.ask(&command).map_err(|error| error.to_string())?
            else {
                return Err("MGET did not answer with an array".to_owned());
            };
            for (row, found) in chunk.iter().zip(found) {
                match found.text() {
                    Some(found) if found == value(*row) => rows += 1,
                    Some(found) => return Err(format!("{}: row {row} is {found}", node.name)),
                    None if self.acknowledged[*row] => {
                        return Err(format!("{}: acknowledged row {row} is lost", node.name));
                    }
                    None => {}
                }
            }
        }
        Ok(rows)
    }
}

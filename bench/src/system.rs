//! A primary with a replica, ours or a peer's, as the scenarios see it.

use std::time::Instant;

use anyhow::Result;

use crate::client::Client;

/// A running primary with at least one replica that follows it.
#[expect(async_fn_in_trait, reason = "all of a load runs on one thread")]
pub trait System {
    /// Its connections.
    type Client: Client + 'static;

    /// What figures call it, such as `redis AOF always`.
    fn name(&self) -> &str;

    /// What a reply promises, on the primary and on the replica.
    fn durability(&self) -> &str;

    /// A connection to the primary.
    ///
    /// # Errors
    /// When it refuses.
    async fn writer(&self) -> Result<Self::Client>;

    /// A connection to the primary for what must only be there: durable or not.
    ///
    /// # Errors
    /// When it refuses.
    async fn backlog_writer(&self) -> Result<Self::Client> {
        self.writer().await
    }

    /// A connection to a replica, from 0.
    ///
    /// # Errors
    /// When it refuses.
    async fn reader(&self, replica: usize) -> Result<Self::Client>;

    /// Replica 0 stops following; returns when it has.
    ///
    /// # Errors
    /// When that fails.
    async fn detach(&mut self) -> Result<()>;

    /// Replica 0 follows again; returns at once, with the moment from which catching up counts.
    ///
    /// # Errors
    /// When that fails.
    async fn attach(&mut self) -> Result<Instant>;

    /// Waits until replica 0's disk has all that the primary's log has now: for systems whose
    /// replicas show rows before that, and can tell.
    ///
    /// # Errors
    /// When that fails.
    async fn await_replica_log(&self) -> Result<()> {
        Ok(())
    }

    /// Process ids of the primary and of the replicas (their descendants count with them).
    fn pids(&self) -> (u32, Vec<u32>);

    /// Stops all of it.
    ///
    /// # Errors
    /// When something did not end well.
    async fn stop(self) -> Result<()>;
}

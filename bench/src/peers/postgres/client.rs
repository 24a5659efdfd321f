//! A connection to PostgreSQL with prepared statements.

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio_postgres::{Client as Raw, Config, NoTls, Statement};

use crate::client::Client;
use crate::rows::Row;

/// Connects over TCP.
pub(super) async fn connect(port: u16) -> Result<Raw> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    // It ends when the client is dropped; its errors are those of the client's requests.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(client)
}

/// Runs a statement on a connection of its own.
pub(super) async fn execute(port: u16, statement: &str) -> Result<()> {
    let client = connect(port).await?;
    client.batch_execute(statement).await.with_context(|| statement.to_owned())
}

/// The first column of the first row, a text.
pub(super) async fn text(port: u16, query: &str) -> Result<Option<String>> {
    let client = connect(port).await?;
    let row = client.query_opt(query, &[]).await.with_context(|| query.to_owned())?;
    Ok(row.and_then(|row| row.get(0)))
}

/// A connection.
pub struct Connection {
    raw: Raw,
    one: Statement,
    many: Statement,
    read: Statement,
}

fn id(key: u64) -> i64 {
    key.cast_signed()
}

impl Connection {
    pub(super) async fn open(port: u16) -> Result<Connection> {
        let raw = connect(port).await?;
        let upsert = "ON CONFLICT (id) DO UPDATE SET value = EXCLUDED.value";
        let one = format!("INSERT INTO rows VALUES ($1, $2) {upsert}");
        let one = raw.prepare(&one).await?;
        let many = "SELECT * FROM unnest($1::bigint[], $2::bytea[])";
        let many = raw.prepare(&format!("INSERT INTO rows {many} {upsert}")).await?;
        let read = raw.prepare("SELECT value FROM rows WHERE id = $1").await?;
        Ok(Connection { raw, one, many, read })
    }

    pub(super) async fn set(&self, setting: &str) -> Result<()> {
        self.raw.batch_execute(&format!("SET {setting}")).await.with_context(|| setting.to_owned())
    }

    /// One statement, and so one transaction.
    async fn upsert(&self, rows: &[Row]) -> Result<()> {
        if let [row] = rows {
            self.raw.execute(&self.one, &[&id(row.key), &row.value.as_slice()]).await?;
            return Ok(());
        }
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        for (at, row) in rows.iter().enumerate() {
            // An upsert must not meet a key twice: of equal ones, which lie together, the last.
            if rows.get(at + 1).is_none_or(|next| next.key != row.key) {
                ids.push(id(row.key));
                values.push(row.value.as_slice());
            }
        }
        self.raw.execute(&self.many, &[&ids, &values]).await?;
        Ok(())
    }
}

impl Client for Connection {
    async fn write(&mut self, rows: &[Row]) -> Result<()> {
        self.upsert(rows).await
    }

    async fn write_together(
        &mut self,
        transactions: &[&[Row]],
        answered: &mut dyn FnMut(usize),
    ) -> Result<()> {
        // Requests go out in the order in which they are first polled, without waiting.
        let sent = transactions.iter().map(|rows| self.upsert(rows));
        let mut replies: FuturesOrdered<_> = sent.collect();
        let mut at = 0;
        while let Some(reply) = replies.next().await {
            reply?;
            answered(at);
            at += 1;
        }
        Ok(())
    }

    async fn read(&mut self, key: u64) -> Result<Option<Bytes>> {
        let row = self.raw.query_opt(&self.read, &[&id(key)]).await?;
        Ok(row.map(|row| Bytes::copy_from_slice(row.get(0))))
    }
}

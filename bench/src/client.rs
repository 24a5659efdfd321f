//! One connection of a load: writes transactions, reads rows. The same code speaks to rowship and
//! to Redis, so that neither has the faster client.

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes_mut;
use redis_protocol::resp2::types::BytesFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rows::Row;

/// What a load needs of a connection, whatever stands at the other end.
#[expect(async_fn_in_trait, reason = "all of a load runs on one thread")]
pub trait Client {
    /// Writes the rows as one transaction; returns when it is acknowledged.
    ///
    /// # Errors
    /// When it is refused, or the connection fails.
    async fn write(&mut self, rows: &[Row]) -> Result<()>;

    /// Writes several transactions, sent together where the protocol allows it; tells the place of
    /// each when it is acknowledged.
    ///
    /// # Errors
    /// As [`Client::write`].
    async fn write_together(
        &mut self,
        transactions: &[&[Row]],
        answered: &mut dyn FnMut(usize),
    ) -> Result<()> {
        for (at, rows) in transactions.iter().enumerate() {
            self.write(rows).await?;
            answered(at);
        }
        Ok(())
    }

    /// The row's value.
    ///
    /// # Errors
    /// When it is refused, or the connection fails.
    async fn read(&mut self, key: u64) -> Result<Option<Bytes>>;
}

/// A connection that speaks RESP2.
pub struct Resp {
    stream: TcpStream,
    send: Vec<u8>,
    received: BytesMut,
    /// Sends `WAIT 1` behind each transaction.
    waits: bool,
}

/// Milliseconds of a `WAIT`: far beyond any lag, so that a replica that is lost is an error.
const WAIT_MS: &str = "60000";

/// Bytes of a key on the wire: eight hexadecimal digits. (Binary ones could hold a colon, which
/// ends a table's name.)
fn key_text(key: u64) -> String {
    format!("{key:08x}")
}

impl Resp {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(address: &str) -> Result<Resp> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let received = BytesMut::with_capacity(64 << 10);
        Ok(Resp { stream, send: Vec::new(), received, waits: false })
    }

    /// Counts a transaction as acknowledged when Redis says that a replica has received it.
    #[must_use]
    pub fn waiting_for_a_replica(self) -> Resp {
        Resp { waits: true, ..self }
    }

    fn begin(&mut self, words: usize) {
        self.send.extend_from_slice(format!("*{words}\r\n").as_bytes());
    }

    fn word(&mut self, word: &[u8]) {
        self.send.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        self.send.extend_from_slice(word);
        self.send.extend_from_slice(b"\r\n");
    }

    /// Adds a transaction to what `flush` sends: SET for one row, MSET for several.
    fn queue_write(&mut self, rows: &[Row]) {
        self.begin(1 + 2 * rows.len());
        self.word(if rows.len() == 1 { b"SET" } else { b"MSET" });
        for row in rows {
            self.word(key_text(row.key).as_bytes());
            self.word(&row.value);
        }
        if self.waits {
            self.begin(3);
            ["WAIT", "1", WAIT_MS].iter().for_each(|word| self.word(word.as_bytes()));
        }
    }

    /// The replies to one transaction.
    async fn acknowledged(&mut self) -> Result<()> {
        self.reply().await?;
        if self.waits {
            let replicas = self.reply().await?;
            ensure!(replicas == BytesFrame::Integer(1), "WAIT 1 {WAIT_MS}: {replicas:?}");
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.send).await?;
        self.send.clear();
        Ok(())
    }

    /// The next reply; an error of the server is an error.
    ///
    /// # Errors
    /// The server's, or when the connection fails.
    pub async fn reply(&mut self) -> Result<BytesFrame> {
        loop {
            if let Some((frame, _, _)) = decode_bytes_mut(&mut self.received)? {
                if let BytesFrame::Error(text) = frame {
                    bail!("the server answers: {text}");
                }
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                bail!("the server closed the connection");
            }
        }
    }

    /// Asks a command.
    ///
    /// # Errors
    /// As [`Resp::reply`].
    pub async fn ask(&mut self, words: &[&str]) -> Result<BytesFrame> {
        self.begin(words.len());
        words.iter().for_each(|word| self.word(word.as_bytes()));
        self.flush().await?;
        self.reply().await.with_context(|| words.join(" "))
    }

    /// Asks a command whose reply is text.
    ///
    /// # Errors
    /// As [`Resp::reply`], and when the reply is not text.
    pub async fn ask_text(&mut self, words: &[&str]) -> Result<String> {
        match self.ask(words).await? {
            BytesFrame::BulkString(text) | BytesFrame::SimpleString(text) => {
                Ok(String::from_utf8(text.into())?)
            }
            other => bail!("{}: not a text: {other:?}", words.join(" ")),
        }
    }
}

impl Client for Resp {
    async fn write(&mut self, rows: &[Row]) -> Result<()> {
        self.queue_write(rows);
        self.flush().await?;
        self.acknowledged().await
    }

    async fn write_together(
        &mut self,
        transactions: &[&[Row]],
        answered: &mut dyn FnMut(usize),
    ) -> Result<()> {
        transactions.iter().for_each(|rows| self.queue_write(rows));
        self.flush().await?;
        for at in 0..transactions.len() {
            self.acknowledged().await?;
            answered(at);
        }
        Ok(())
    }

    async fn read(&mut self, key: u64) -> Result<Option<Bytes>> {
        self.begin(2);
        self.word(b"GET");
        self.word(key_text(key).as_bytes());
        self.flush().await?;
        match self.reply().await? {
            BytesFrame::BulkString(value) => Ok(Some(value)),
            BytesFrame::Null => Ok(None),
            other => bail!("GET: {other:?}"),
        }
    }
}

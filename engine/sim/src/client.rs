//! A client's connection: RESP over the simulated network, to the node's real port.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rowship::cli::reply::{Reply, ReplyEnd};
use rowship::edge::sim::trace::{self, Kind};
use rowship::edge::sim::{Process, SimStream};
use rowship::edge::{Edge, Stream};

/// One connection. Commands may be sent ahead; replies come in order.
pub struct Connection {
    stream: SimStream,
    buffer: BytesMut,
    /// Replies that have been asked for and not read yet.
    pub owed: usize,
}

/// Room for one read.
const READ_BYTES: usize = 16 << 10;

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// In words.
    pub async fn open(process: &Rc<Process>, address: &str) -> Result<Connection, String> {
        let stream = process.edge().connect(address).await.map_err(|error| error.to_string())?;
        Ok(Connection { stream, buffer: BytesMut::with_capacity(READ_BYTES), owed: 0 })
    }

    /// The host at the other end.
    #[must_use]
    pub fn host(&self) -> String {
        let peer = self.stream.peer();
        peer.rsplit_once(':').map_or(peer.clone(), |(host, _)| host.to_owned())
    }

    /// Sends commands, each a list of words, in one go.
    ///
    /// # Errors
    /// In words: the connection is of no more use.
    pub async fn send(&mut self, commands: &[Vec<Vec<u8>>]) -> Result<(), String> {
        let mut bytes = BytesMut::new();
        for words in commands {
            bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
            for word in words {
                bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend_from_slice(word);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        self.owed += commands.len();
        self.stream.write_all(bytes.freeze()).await.map_err(|error| error.to_string())
    }

    /// The next reply.
    ///
    /// # Errors
    /// In words: the connection is of no more use.
    pub async fn reply(&mut self) -> Result<Reply, String> {
        let mut end = ReplyEnd::default();
        loop {
            let found = end.find(&self.buffer).map_err(|error| error.to_string())?;
            if let Some(len) = found {
                let bytes = Bytes::copy_from_slice(&self.buffer[..len]);
                self.buffer.advance(len);
                self.owed -= 1;
                trace::note(Kind::Reply, &[trace::digest(&bytes)]);
                return Reply::decode(bytes).map_err(|error| error.to_string());
            }
            self.buffer.reserve(READ_BYTES);
            let (read, buffer) = self.stream.read(std::mem::take(&mut self.buffer)).await;
            self.buffer = buffer;
            match read {
                Ok(0) => return Err("the connection was closed".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The next reply, if it comes in time.
    ///
    /// # Errors
    /// In words: the connection is of no more use.
    pub async fn reply_within(&mut self, timeout: Duration) -> Result<Reply, String> {
        match tokio::time::timeout(timeout, self.reply()).await {
            Ok(reply) => reply,
            Err(_) => Err(TIMEOUT.to_owned()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.shutdown();
    }
}

/// What a client says whose patience has ended.
pub const TIMEOUT: &str = "no reply in time";

/// A command as words.
#[must_use]
pub fn words(text: &str) -> Vec<Vec<u8>> {
    text.split_whitespace().map(|word| word.as_bytes().to_vec()).collect()
}

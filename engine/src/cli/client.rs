//! A small blocking RESP client for all commands: timeouts on everything, pipelining, replies of
//! bounded size, errors that name the node and say what to do.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::BytesMut;

use super::exit::{Exit, Failure};
use super::reply::{InvalidReply, Reply, ReplyEnd};

/// Largest reply taken. A page of `ROWSHIP.DUMP` is the largest one there is: it holds a few
/// hundred rows, and a row is at most a frame body (16 MiB), rarely more than a few KiB.
pub const REPLY_BYTES_MAX: usize = 256 << 20;
const READ_BYTES: usize = 64 << 10;
/// A host that does not answer for this long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A reply waits for the node's ack policy; a policy that waits for a missing replica waits long.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to one node.
#[derive(Debug)]
pub struct Client {
    address: String,
    stream: TcpStream,
    output: Vec<u8>,
    input: BytesMut,
    reply_timeout: Duration,
}

/// Why a call got no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Name does not resolve, or nobody listens.
    #[error("cannot connect to {address}: {error}; is the node running, and is the address right?")]
    Connect {
        /// `host:port`.
        address: String,
        /// What the system says.
        error: io::Error,
    },
    /// The connection broke.
    #[error("connection to {address} is lost: {error}; see the log of that node")]
    Lost {
        /// `host:port`.
        address: String,
        /// What the system says.
        error: io::Error,
    },
    /// No reply in time.
    #[error(
        "{address} did not answer within {seconds} s: it may wait for a missing replica (see \
         `rowship status --at {address}`), or be stuck"
    )]
    Timeout {
        /// `host:port`.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// What answered does not speak RESP.
    #[error("{address} does not speak RESP ({error}); is this the client address of a node?")]
    NotResp {
        /// `host:port`.
        address: String,
        /// What is wrong.
        error: InvalidReply,
    },
    /// The reply is larger than this client takes.
    #[error("reply of {address} is larger than {REPLY_BYTES_MAX} bytes; ask for less at once")]
    TooLarge {
        /// `host:port`.
        address: String,
    },
    /// The node answered with an error where only a value makes sense.
    #[error("{address} answered: {text}")]
    Refused {
        /// `host:port`.
        address: String,
        /// Its error.
        text: String,
    },
    /// The reply has another shape than this version expects.
    #[error("{address} gave an unexpected answer to {command}; is it of another version?")]
    Unexpected {
        /// `host:port`.
        address: String,
        /// The command.
        command: String,
    },
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let exit = match error {
            ClientError::Refused { .. } | ClientError::Unexpected { .. } => Exit::Failed,
            _ => Exit::Unreachable,
        };
        Failure::new(exit, error.to_string())
    }
}

impl Client {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(address: &str) -> Result<Client, ClientError> {
        let failed = |error| ClientError::Connect { address: address.to_owned(), error };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for target in address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&target, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    let mut client = Client {
                        address: address.to_owned(),
                        stream,
                        output: Vec::new(),
                        input: BytesMut::new(),
                        reply_timeout: REPLY_TIMEOUT,
                    };
                    client.stream.set_nodelay(true).map_err(failed)?;
                    client.set_reply_timeout(REPLY_TIMEOUT)?;
                    return Ok(client);
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// How long to wait for each part of a reply; at least a millisecond.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when the system refuses.
    pub fn set_reply_timeout(&mut self, timeout: Duration) -> Result<(), ClientError> {
        let timeout = timeout.max(Duration::from_millis(1));
        self.reply_timeout = timeout;
        let set = self.stream.set_read_timeout(Some(timeout));
        set.and_then(|()| self.stream.set_write_timeout(Some(timeout)))
            .map_err(|error| ClientError::Connect { address: self.address.clone(), error })
    }

    /// `host:port` as given.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Adds a command to the pipeline; nothing is sent before [`Client::flush`].
    pub fn queue<A: AsRef<[u8]>>(&mut self, arguments: &[A]) {
        encode_command(arguments, &mut self.output);
    }

    /// Adds commands that [`encode_command`], or something like it, has encoded.
    pub fn queue_encoded(&mut self, commands: &[u8]) {
        self.output.extend_from_slice(commands);
    }

    /// Bytes that are queued.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.output.len()
    }

    /// Sends what is queued. Callers bound a pipeline so that its replies fit the socket buffers
    /// and the node's limit for waiting replies.
    ///
    /// # Errors
    /// [`ClientError::Lost`] or [`ClientError::Timeout`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let sent = self.stream.write_all(&self.output);
        self.output.clear();
        sent.map_err(|error| self.broken(error))
    }

    /// The next reply.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is of no further use.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        let mut finder = ReplyEnd::default();
        let not_resp =
            |address: &str, error| ClientError::NotResp { address: address.into(), error };
        loop {
            match finder.find(&self.input) {
                Err(error) => return Err(not_resp(&self.address, error)),
                Ok(Some(end)) => {
                    let whole = self.input.split_to(end).freeze();
                    return Reply::decode(whole).map_err(|error| not_resp(&self.address, error));
                }
                Ok(None) if self.input.len() >= REPLY_BYTES_MAX => {
                    return Err(ClientError::TooLarge { address: self.address.clone() });
                }
                Ok(None) => self.fill()?,
            }
        }
    }

    fn fill(&mut self) -> Result<(), ClientError> {
        let filled = self.input.len();
        self.input.resize(filled + READ_BYTES, 0);
        let result = loop {
            match self.stream.read(&mut self.input[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.input.truncate(filled + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => {
                let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the node");
                Err(self.broken(closed))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, error: io::Error) -> ClientError {
        let address = self.address.clone();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Timeout { address, seconds: self.reply_timeout.as_secs() }
            }
            _ => ClientError::Lost { address, error },
        }
    }

    /// Sends one command and waits for its reply, which may be an error reply.
    ///
    /// # Errors
    /// When there is no reply.
    pub fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Result<Reply, ClientError> {
        self.queue(arguments);
        self.flush()?;
        self.receive()
    }

    /// Like [`Client::call`], but an error reply is an error.
    ///
    /// # Errors
    /// No reply, or an error reply.
    pub fn ask<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Result<Reply, ClientError> {
        let reply = self.call(arguments)?;
        match reply.error() {
            Some(text) => Err(ClientError::Refused { address: self.address.clone(), text }),
            None => Ok(reply),
        }
    }

    /// `ROWSHIP.STATUS` as JSON.
    ///
    /// # Errors
    /// No reply, an error reply, or one that is not JSON.
    pub fn status(&mut self) -> Result<serde_json::Value, ClientError> {
        let reply = self.ask(&["ROWSHIP.STATUS"])?;
        let parsed = reply.bytes().and_then(|bytes| serde_json::from_slice(bytes).ok());
        parsed.ok_or_else(|| self.unexpected("ROWSHIP.STATUS"))
    }

    /// The error for a reply of another shape than expected.
    #[must_use]
    pub fn unexpected(&self, command: &str) -> ClientError {
        ClientError::Unexpected { address: self.address.clone(), command: command.to_owned() }
    }
}

/// A command as RESP writes it: an array of bulk strings.
pub fn encode_command<A: AsRef<[u8]>>(arguments: &[A], output: &mut Vec<u8>) {
    let header = |kind: char, len: usize, output: &mut Vec<u8>| {
        // Writing to a vector cannot fail.
        let _ = write!(output, "{kind}{len}\r\n");
    };
    header('*', arguments.len(), output);
    for argument in arguments {
        let argument = argument.as_ref();
        header('$', argument.len(), output);
        output.extend_from_slice(argument);
        output.extend_from_slice(b"\r\n");
    }
}

/// Bytes as a person reads them: printable characters as they are, others escaped.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

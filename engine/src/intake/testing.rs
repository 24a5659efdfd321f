//! For tests: rows in memory, and a client that takes bytes all the way to bytes.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use super::*;

/// Rows in a map; there are no pending images, so both views are one.
#[derive(Default)]
pub(super) struct MemoryRows {
    pub(super) rows: HashMap<Bytes, Bytes>,
    pub(super) writes: usize,
    pub(super) views: Vec<View>,
    pub(super) value_bytes_max: Option<usize>,
    pub(super) reply_bytes_max: Option<usize>,
}

impl Rows for MemoryRows {
    fn read(&mut self, key: &Bytes, view: View) -> Result<Option<Bytes>, Reply> {
        self.views.push(view);
        Ok(self.rows.get(key).cloned())
    }

    fn write(&mut self, key: &Bytes, image: Option<Vec<u8>>) -> Result<(), Reply> {
        self.writes += 1;
        match image {
            Some(image) => self.rows.insert(key.clone(), Bytes::from(image)),
            None => self.rows.remove(key),
        };
        Ok(())
    }

    fn value_bytes_max(&self) -> usize {
        self.value_bytes_max.unwrap_or(1 << 20)
    }

    fn reply_bytes_max(&self) -> usize {
        self.reply_bytes_max.unwrap_or(1 << 20)
    }
}

/// One connection to one set of rows.
pub(super) struct TestClient {
    pub(super) session: Session,
    pub(super) rows: MemoryRows,
}

impl TestClient {
    pub(super) fn new() -> TestClient {
        TestClient::with(SessionLimits::default())
    }

    pub(super) fn with(limits: SessionLimits) -> TestClient {
        let session = Session::new(7, NodeRole::Primary, limits);
        TestClient { session, rows: MemoryRows::default() }
    }

    /// The bytes of the replies to `input`, which holds whole commands.
    pub(super) fn send(&mut self, input: &[u8]) -> Vec<u8> {
        let mut scanner = Scanner::new(QueryLimits::default());
        let (mut input, mut out) = (BytesMut::from(input), BytesMut::new());
        while !input.is_empty() {
            let args = match scanner.scan(&input) {
                Ok(Scan::Complete { len, form }) => decode(&input.split_to(len).freeze(), form),
                Ok(Scan::Incomplete { .. }) => panic!("tests send whole commands"),
                Err(error) => Err(error),
            };
            match args {
                Ok(args) => {
                    let action = self.session.handle(args);
                    let version = self.session.version();
                    if let Some(reply) = self.perform(action) {
                        reply.encode(version, &mut out);
                    }
                }
                Err(error) => {
                    error.reply().encode(self.session.version(), &mut out);
                    break;
                }
            }
        }
        out.to_vec()
    }

    /// Sends an inline command; the reply as text.
    pub(super) fn say(&mut self, line: &str) -> String {
        let reply = self.send(format!("{line}\r\n").as_bytes());
        String::from_utf8_lossy(&reply).into_owned()
    }

    fn perform(&mut self, action: Action) -> Option<Reply> {
        Some(match action {
            Action::Nothing => return None,
            Action::Reply(reply) | Action::Close(reply) => reply,
            Action::Reset(reply) | Action::Unwatch(reply) => reply,
            Action::Watch(_) => Reply::OK,
            Action::Run(command) => execute(&command, View::Plain, &mut self.rows),
            Action::Transaction(commands) => {
                let version = self.session.version();
                let mut run = |command: &Queued| {
                    let reply = match command {
                        Queued::Data(command) => execute(command, View::Latest, &mut self.rows),
                        Queued::Session(words) => self.session.answer(words),
                        Queued::Act(action) => Reply::error(format!("ERR test: {action:?}")),
                    };
                    match self.session.version() {
                        same if same == version => reply,
                        other => Reply::In(other, Box::new(reply)),
                    }
                };
                Reply::Array(commands.iter().map(&mut run).collect())
            }
            other => Reply::error(format!("ERR test: {other:?}")),
        })
    }
}

/// A multibulk command.
pub(super) fn multibulk(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A small generator of random numbers (xorshift64*), the same for the same seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % end
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

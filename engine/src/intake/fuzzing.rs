//! Clients that send anything: the body of the fuzz target `commands`.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use rowship_proto::fuzzing::Input;
use rowship_proto::value::Image;

use super::table::COMMANDS;
use super::*;

/// What a client sends, as it is and as commands that the bytes choose, in pieces of any size. The
/// answer does not depend on the pieces; replies are well-formed and within their limits; what is
/// buffered, queued and stored is within its limits; a command whose reply is an error has written
/// nothing. Returns how many commands were carried out.
pub fn commands(data: &[u8]) -> u64 {
    let sent = same_in_any_pieces(data, data);
    sent + same_in_any_pieces(&spoken(data), data)
}

const QUERY: QueryLimits = QueryLimits {
    query_bytes_max: 4096,
    bulk_bytes_max: 512,
    args_max: 160,
    inline_bytes_max: 256,
};
const ROWS: RowLimits = RowLimits { key_bytes_max: 64, value_bytes_max: 1024 };
const SESSION: SessionLimits = SessionLimits {
    rows: ROWS,
    queued_commands_max: 16,
    queued_bytes_max: 4096,
    queued_acts_max: 8,
};
const REPLY_BYTES_MAX: usize = 2048;
/// Inputs up to here are sent byte by byte as well.
const SLOW_BYTES_MAX: usize = 1024;

fn same_in_any_pieces(sent: &[u8], cuts: &[u8]) -> u64 {
    let whole = Connection::receive_all(sent, std::iter::once(sent.len().max(1)));
    let sizes = cuts.iter().map(|cut| usize::from(cut % 23) + 1).cycle();
    let pieces = Connection::receive_all(sent, sizes.chain(std::iter::repeat(1)));
    whole.assert_same(&pieces);
    if sent.len() <= SLOW_BYTES_MAX {
        whole.assert_same(&Connection::receive_all(sent, std::iter::repeat(1)));
    }
    whole.carried_out
}

/// A connection to rows of its own.
struct Connection {
    scanner: Scanner,
    session: Session,
    rows: CheckedRows,
    unread: BytesMut,
    out: BytesMut,
    closed: bool,
    carried_out: u64,
}

impl Connection {
    fn receive_all(mut sent: &[u8], sizes: impl Iterator<Item = usize>) -> Connection {
        let mut connection = Connection {
            scanner: Scanner::new(QUERY),
            session: Session::new(7, NodeRole::Primary, SESSION),
            rows: CheckedRows::default(),
            unread: BytesMut::new(),
            out: BytesMut::new(),
            closed: false,
            carried_out: 0,
        };
        for size in sizes {
            let (piece, rest) = sent.split_at(size.min(sent.len()));
            connection.receive(piece);
            sent = rest;
            if sent.is_empty() {
                break;
            }
        }
        connection
    }

    fn receive(&mut self, piece: &[u8]) {
        self.unread.extend_from_slice(piece);
        while !self.closed {
            match self.scanner.scan(&self.unread) {
                Ok(Scan::Complete { len, form }) => {
                    assert!(len <= QUERY.query_bytes_max);
                    let command = self.unread.split_to(len).freeze();
                    self.command(&command, form);
                }
                Ok(Scan::Incomplete { bytes_needed_min }) => {
                    assert!(bytes_needed_min > 0, "waits for nothing");
                    let held = self.unread.len();
                    assert!(held <= QUERY.query_bytes_max, "{held} bytes are buffered");
                    assert!(held + bytes_needed_min <= QUERY.query_bytes_max + 1);
                    break;
                }
                Err(error) => self.close(&error.reply()),
            }
        }
    }

    fn command(&mut self, command: &Bytes, form: Form) {
        let args = match decode(command, form) {
            Ok(args) => args,
            Err(error) => return self.close(&error.reply()),
        };
        match form {
            Form::Empty => assert!(args.is_empty()),
            // Every number has one spelling, so a command has one too.
            Form::Multibulk => assert_eq!(&multibulk(&args)[..], &command[..]),
            Form::Inline if args.is_empty() => {}
            Form::Inline => {
                let again = Bytes::from(multibulk(&args));
                let complete = Scan::Complete { len: again.len(), form: Form::Multibulk };
                assert_eq!(Scanner::new(QUERY).scan(&again), Ok(complete));
                assert_eq!(decode(&again, Form::Multibulk).as_ref(), Ok(&args));
            }
        }
        let action = self.session.handle(args);
        let version = self.session.version();
        self.perform(action, version);
    }

    fn perform(&mut self, action: Action, version: RespVersion) {
        let reply = match action {
            Action::Nothing => return,
            Action::Close(reply) => return self.close(&reply),
            Action::Reply(reply) | Action::Reset(reply) | Action::Unwatch(reply) => reply,
            Action::Run(command) => self.run(&command, View::Plain),
            Action::Transaction(commands) => {
                assert!(commands.len() <= SESSION.queued_commands_max);
                let mut run = |command: &Queued| match command {
                    Queued::Data(command) => self.run(command, View::Latest),
                    Queued::Act(action) => Reply::error(format!("ERR {action:?}")),
                    Queued::Session(words) => {
                        let reply = self.session.answer(words);
                        Reply::In(self.session.version(), Box::new(reply))
                    }
                };
                Reply::Array(commands.iter().map(&mut run).collect())
            }
            other => Reply::error(format!("ERR {other:?}")),
        };
        self.answer(&reply, version);
    }

    fn run(&mut self, command: &DataCommand, view: View) -> Reply {
        self.carried_out += 1;
        let before = self.rows.writes;
        let reply = execute(command, view, &mut self.rows);
        let wrote = self.rows.writes > before;
        assert!(!wrote || command.is_write(), "{command:?} is no write");
        assert!(!wrote || !reply.is_error(), "{command:?} wrote, then said {reply:?}");
        assert!(reply.encoded_bytes_max() <= REPLY_BYTES_MAX, "{command:?}: too large a reply");
        reply
    }

    fn close(&mut self, reply: &Reply) {
        self.answer(reply, self.session.version());
        self.closed = true;
    }

    fn answer(&mut self, reply: &Reply, version: RespVersion) {
        let start = self.out.len();
        reply.encode(version, &mut self.out);
        let encoded = &self.out[start..];
        assert!(encoded.len() <= reply.encoded_bytes_max());
        // Only what HELLO does inside EXEC mixes them.
        let mixed = contains_version(reply);
        let [resp2, resp3] =
            [RespVersion::Resp2, RespVersion::Resp3].map(|one| mixed || one == version);
        let rest = read_reply(encoded, Forms { resp2, resp3 }, 0);
        assert!(rest == Some(&[][..]), "not one reply: {:?}", String::from_utf8_lossy(encoded));
    }

    fn assert_same(&self, other: &Connection) {
        assert!(self.out == other.out, "the replies depend on how the bytes were cut");
        assert_eq!(self.closed, other.closed);
        assert_eq!(self.rows.images, other.rows.images);
        assert_eq!(self.session.in_transaction(), other.session.in_transaction());
        assert!(self.closed || self.unread == other.unread);
    }
}

/// Rows that take only what rows may be.
#[derive(Default)]
struct CheckedRows {
    images: BTreeMap<Bytes, Bytes>,
    writes: u64,
}

impl Rows for CheckedRows {
    fn read(&mut self, key: &Bytes, _: View) -> Result<Option<Bytes>, Reply> {
        Ok(self.images.get(key).cloned())
    }

    fn write(&mut self, key: &Bytes, image: Option<Vec<u8>>) -> Result<(), Reply> {
        self.writes += 1;
        assert!(split_key(key, &ROWS).is_ok(), "a key that is too long");
        match image {
            None => assert!(self.images.remove(key).is_some(), "deletes what is not there"),
            Some(image) => {
                assert!(image.len() <= ROWS.value_bytes_max);
                assert!(Image::parse(&image).is_ok(), "writes what is no image");
                self.images.insert(key.clone(), Bytes::from(image));
            }
        }
        Ok(())
    }

    fn value_bytes_max(&self) -> usize {
        ROWS.value_bytes_max
    }

    fn reply_bytes_max(&self) -> usize {
        REPLY_BYTES_MAX
    }
}

/// Which versions' forms a reply may have.
#[derive(Clone, Copy)]
struct Forms {
    resp2: bool,
    resp3: bool,
}

fn contains_version(reply: &Reply) -> bool {
    match reply {
        Reply::In(..) => true,
        Reply::Array(items) => items.iter().any(contains_version),
        _ => false,
    }
}

/// Reads one reply as the protocol's text describes it; what stands behind it.
fn read_reply(bytes: &[u8], forms: Forms, depth: usize) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let (kind, text) = line.split_first()?;
    let one_line = !text.contains(&b'\r') && !text.contains(&b'\n');
    let number = || std::str::from_utf8(text).ok()?.parse::<i64>().ok();
    let canonical = || number().filter(|number| number.to_string().as_bytes() == text);
    let Forms { resp2, resp3 } = forms;
    let items =
        |count: i64| (0..count).try_fold(rest, |rest, _| read_reply(rest, forms, depth + 1));
    match (kind, canonical()) {
        _ if depth > DEPTH_MAX => None,
        (b'+' | b'-', _) => one_line.then_some(rest),
        (b':', Some(_)) => Some(rest),
        (b'$' | b'*', Some(-1)) => resp2.then_some(rest),
        (b'$', Some(bytes @ 0..)) | (b'=', Some(bytes @ 4..)) => {
            let bytes = usize::try_from(bytes).ok()?;
            let plain = *kind == b'$' || (resp3 && rest.get(3) == Some(&b':'));
            rest.get(bytes..)?.strip_prefix(b"\r\n").filter(|_| plain)
        }
        (b'*', Some(count @ 0..)) => items(count),
        (b'~', Some(count @ 0..)) if resp3 => items(count),
        (b'%', Some(count @ 0..)) if resp3 => items(count * 2),
        (b'_', _) => (resp3 && text.is_empty()).then_some(rest),
        _ => None,
    }
}

/// Lists in lists: COMMAND DOCS goes deepest.
const DEPTH_MAX: usize = 6;

fn multibulk(args: &[Bytes]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Commands by their names, with words that mean something, and with any bytes.
fn spoken(data: &[u8]) -> Vec<u8> {
    let mut input = Input::new(data);
    let mut sent = Vec::new();
    while !input.is_done() {
        let name = COMMANDS[input.below(COMMANDS.len())].name;
        let mut args = vec![Bytes::from_static(name.as_bytes())];
        for _ in 0..input.below(6) {
            args.push(match input.byte() {
                len @ 0xe0.. => Bytes::copy_from_slice(input.bytes(usize::from(len & 0x1f))),
                byte => Bytes::from_static(WORDS[usize::from(byte) % WORDS.len()]),
            });
        }
        sent.extend(multibulk(&args));
    }
    sent
}

const WORDS: &[&[u8]] = &[
    b"a",
    b"b",
    b"t:1",
    b"t:2",
    b"",
    b"0",
    b"1",
    b"-1",
    b"7",
    b"01",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"3",
    b"2",
    b"NX",
    b"XX",
    b"GET",
    b"MATCH",
    b"COUNT",
    b"TYPE",
    b"hash",
    b"SETNAME",
    b"AUTH",
    b"LIST",
    b"DOCS",
    b"INFO",
    b"ID",
    b"*",
    b"async",
    b"a\r\nb",
    b"1-0000000000000001-0000000000000001:8192",
    &[b'v'; 300],
];

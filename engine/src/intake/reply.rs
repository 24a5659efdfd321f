//! Replies, and their form in the two versions of the protocol.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::encode::extend_encode_borrowed;
use redis_protocol::resp2::types::BorrowedFrame;
use redis_protocol::resp3::encode::complete::extend_encode_borrowed as extend_encode_resp3;
use redis_protocol::resp3::types::{BorrowedFrame as Resp3Frame, VerbatimStringFormat};

/// The version of the protocol that a connection speaks; `HELLO` changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RespVersion {
    /// What every connection starts with.
    #[default]
    Resp2,
    /// With maps, sets and a null of its own.
    Resp3,
}

/// What a client is told. Shapes that RESP2 lacks become what Redis makes of them there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+text`; one line.
    Simple(Cow<'static, str>),
    /// `-CODE text`; one line.
    Error(Cow<'static, str>),
    /// A number.
    Integer(i64),
    /// A string of bytes.
    Bulk(Bytes),
    /// No such value: a null bulk string in RESP2.
    Null,
    /// No such list: a null array in RESP2. EXEC answers it when a watched key has changed.
    NullArray,
    /// A list.
    Array(Vec<Reply>),
    /// Pairs in order: a flat list in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// Distinct values in order: a list in RESP2.
    Set(Vec<Reply>),
    /// Text for people (INFO): a bulk string in RESP2.
    Verbatim(String),
    /// Encoded in this version, whatever the reply around it is encoded in: what follows HELLO
    /// inside EXEC.
    In(RespVersion, Box<Reply>),
}

impl Reply {
    /// `+OK`.
    pub const OK: Reply = Reply::Simple(Cow::Borrowed("OK"));
    /// `+QUEUED`: taken up into a transaction.
    pub const QUEUED: Reply = Reply::Simple(Cow::Borrowed("QUEUED"));

    /// An error from text that starts with its code. Line ends in it become spaces, so text that
    /// a client sent can be part of it.
    #[must_use]
    pub fn error(text: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Error(one_line(text.into()))
    }

    /// A bulk string of text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Reply {
        Reply::Bulk(Bytes::from(text.into()))
    }

    /// Whether it is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// Appends its bytes to `out`.
    pub fn encode(&self, version: RespVersion, out: &mut BytesMut) {
        let resp3 = version == RespVersion::Resp3;
        match self {
            Reply::Simple(text) => {
                let line = one_line(Cow::Borrowed(text.as_ref()));
                encode_leaf(&BorrowedFrame::SimpleString(line.as_bytes()), out);
            }
            Reply::Error(text) => {
                let line = one_line(Cow::Borrowed(text.as_ref()));
                encode_leaf(&BorrowedFrame::Error(&line), out);
            }
            // Not by the library: redis-protocol 6.0 counts digits in floating point, and leaves a
            // zero byte behind numbers such as 999999999999999999.
            Reply::Integer(number) => write_line(out, ':', number),
            Reply::Bulk(bytes) => encode_leaf(&BorrowedFrame::BulkString(bytes), out),
            Reply::Null if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::Null => encode_leaf(&BorrowedFrame::Null, out),
            Reply::NullArray if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::NullArray => out.extend_from_slice(b"*-1\r\n"),
            Reply::Array(items) => encode_list('*', items, version, out),
            Reply::Set(items) => encode_list(if resp3 { '~' } else { '*' }, items, version, out),
            // Not by the library: its maps have no order, and hash every key.
            Reply::Map(pairs) => {
                let (kind, count) = if resp3 { ('%', pairs.len()) } else { ('*', pairs.len() * 2) };
                write_line(out, kind, count);
                for (key, value) in pairs {
                    key.encode(version, out);
                    value.encode(version, out);
                }
            }
            Reply::Verbatim(text) if resp3 => {
                let (data, format) = (text.as_bytes(), VerbatimStringFormat::Text);
                let frame = Resp3Frame::VerbatimString { data, format, attributes: None };
                extend_encode_resp3(out, &frame, false).expect(EXTENDED);
            }
            Reply::Verbatim(text) => encode_leaf(&BorrowedFrame::BulkString(text.as_bytes()), out),
            Reply::In(version, reply) => reply.encode(*version, out),
        }
    }

    /// Upper bound of its encoded size in bytes, in either version.
    #[must_use]
    pub fn encoded_bytes_max(&self) -> usize {
        // A kind, a 64-bit number and CR LF need at most 23 bytes.
        const LINE_BYTES: usize = 24;
        let sum = |items: &[Reply]| items.iter().map(Reply::encoded_bytes_max).sum::<usize>();
        LINE_BYTES
            + match self {
                Reply::Simple(text) | Reply::Error(text) => text.len(),
                Reply::Integer(_) | Reply::Null | Reply::NullArray => 0,
                Reply::Bulk(bytes) => bytes.len() + 2,
                Reply::Array(items) | Reply::Set(items) => sum(items),
                Reply::Map(pairs) => pairs
                    .iter()
                    .map(|(key, value)| key.encoded_bytes_max() + value.encoded_bytes_max())
                    .sum(),
                Reply::Verbatim(text) => text.len() + "txt:\r\n".len(),
                Reply::In(_, reply) => reply.encoded_bytes_max(),
            }
    }
}

fn encode_leaf(frame: &BorrowedFrame<'_>, out: &mut BytesMut) {
    extend_encode_borrowed(out, frame, false).expect(EXTENDED);
}

fn encode_list(kind: char, items: &[Reply], version: RespVersion, out: &mut BytesMut) {
    write_line(out, kind, items.len());
    for item in items {
        item.encode(version, out);
    }
}

fn write_line(out: &mut BytesMut, kind: char, number: impl std::fmt::Display) {
    write!(out, "{kind}{number}\r\n").expect("a growing buffer takes every write");
}

fn one_line(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains(['\r', '\n']) {
        return Cow::Owned(text.replace(['\r', '\n'], " "));
    }
    text
}

const EXTENDED: &str = "the encoder extends the buffer by what it then writes";

#[cfg(test)]
mod tests {
    use super::*;

    fn both(reply: &Reply) -> (String, String) {
        let encode = |version| {
            let mut out = BytesMut::from(&b"before "[..]);
            reply.encode(version, &mut out);
            let bytes = out.split_off(b"before ".len());
            assert!(bytes.len() <= reply.encoded_bytes_max(), "{reply:?}");
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        (encode(RespVersion::Resp2), encode(RespVersion::Resp3))
    }

    fn same(reply: &Reply) -> String {
        let (resp2, resp3) = both(reply);
        assert_eq!(resp2, resp3);
        resp2
    }

    #[test]
    fn scalars_look_the_same_in_both_versions() {
        assert_eq!(same(&Reply::OK), "+OK\r\n");
        assert_eq!(same(&Reply::error("ERR no")), "-ERR no\r\n");
        assert_eq!(same(&Reply::text("")), "$0\r\n\r\n");
        assert_eq!(same(&Reply::text("a\r\nb")), "$4\r\na\r\nb\r\n");
    }

    #[test]
    fn integers_are_exact_at_every_width() {
        let mut numbers = vec![0, -1, i64::MIN, i64::MAX];
        for power in 0..19 {
            let ten = 10i64.pow(power);
            numbers.extend([ten - 1, ten, ten + 1, -ten, 1 - ten]);
        }
        for number in numbers {
            assert_eq!(same(&Reply::Integer(number)), format!(":{number}\r\n"));
        }
    }

    #[test]
    fn what_resp2_lacks_becomes_what_redis_makes_of_it() {
        let pair = |version: (&str, &str)| (version.0.to_owned(), version.1.to_owned());
        assert_eq!(both(&Reply::Null), pair(("$-1\r\n", "_\r\n")));
        assert_eq!(both(&Reply::NullArray), pair(("*-1\r\n", "_\r\n")));
        let map = Reply::Map(vec![
            (Reply::text("b"), Reply::Integer(1)),
            (Reply::text("a"), Reply::Array(vec![Reply::Null])),
        ]);
        assert_eq!(
            both(&map),
            pair((
                "*4\r\n$1\r\nb\r\n:1\r\n$1\r\na\r\n*1\r\n$-1\r\n",
                "%2\r\n$1\r\nb\r\n:1\r\n$1\r\na\r\n*1\r\n_\r\n"
            ))
        );
        let set = Reply::Set(vec![Reply::OK]);
        assert_eq!(both(&set), pair(("*1\r\n+OK\r\n", "~1\r\n+OK\r\n")));
        let text = Reply::Verbatim("role:x".into());
        assert_eq!(both(&text), pair(("$6\r\nrole:x\r\n", "=10\r\ntxt:role:x\r\n")));
    }

    #[test]
    fn client_text_in_an_error_cannot_start_another_reply() {
        assert_eq!(same(&Reply::error("ERR 'a\r\n+OK'")), "-ERR 'a  +OK'\r\n");
        assert_eq!(same(&Reply::Error("ERR a\nb".into())), "-ERR a b\r\n");
    }
}

//! Replies of a node (RESP2 and RESP3): a decoder that a hostile or broken server cannot hurt.
//!
//! [`ReplyEnd`] finds the end of a reply without recursion and without reading a byte twice;
//! [`Reply::decode`] then takes it apart, with a bounded depth. (The RESP library decodes maps
//! into an unordered container and refuses RESP2's nulls in RESP3; people want to see fields in
//! their order.) Format: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use bytes::{Buf, Bytes};

/// A reply nests arrays at most this deep; ours need three levels, and the decoder recurses.
const DEPTH_MAX: usize = 16;
/// Longest line of a reply that is not a bulk string; error texts are the longest ones.
const LINE_BYTES_MAX: usize = 64 << 10;

/// One reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+OK`.
    Status(Bytes),
    /// `-ERR ...`.
    Error(Bytes),
    /// A whole number.
    Integer(i64),
    /// A double or a big number, as the server spelled it.
    Number(Bytes),
    /// True or false.
    Boolean(bool),
    /// Bytes.
    Bulk(Bytes),
    /// Nil.
    Null,
    /// An array, a set or a push message.
    Array(Vec<Reply>),
    /// Pairs, in the server's order.
    Map(Vec<(Reply, Reply)>),
}

/// The bytes are not a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a RESP reply: {0}")]
pub struct InvalidReply(&'static str);

impl Reply {
    /// Takes one whole reply (see [`ReplyEnd`]) apart. Attributes are dropped.
    ///
    /// # Errors
    /// [`InvalidReply`].
    pub fn decode(mut bytes: Bytes) -> Result<Reply, InvalidReply> {
        decode_value(&mut bytes, 0)
    }

    /// The text of an error reply.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self {
            Reply::Error(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }

    /// The bytes of a bulk string or status.
    #[must_use]
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Reply::Bulk(bytes) | Reply::Status(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Bytes or a number as text, for replies that may come as either.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Reply::Integer(number) => Some(number.to_string()),
            other => other.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        }
    }
}

fn decode_value(bytes: &mut Bytes, depth: usize) -> Result<Reply, InvalidReply> {
    if depth > DEPTH_MAX {
        return Err(InvalidReply("nested too deep"));
    }
    let line = take_line(bytes)?;
    let (kind, rest) = (line[0], line.slice(1..));
    match kind {
        b'+' => Ok(Reply::Status(rest)),
        b'-' => Ok(Reply::Error(rest)),
        b':' => {
            let text = std::str::from_utf8(&rest).ok().and_then(|text| text.parse().ok());
            text.map(Reply::Integer).ok_or(InvalidReply("not an integer"))
        }
        b',' | b'(' => Ok(Reply::Number(rest)),
        b'#' => Ok(Reply::Boolean(&rest[..] == b"t")),
        b'_' => Ok(Reply::Null),
        b'$' | b'!' | b'=' => match parse_len(&rest)? {
            None => Ok(Reply::Null),
            Some(len) if bytes.len() < len + 2 => Err(InvalidReply("bulk string is cut short")),
            Some(len) => {
                let mut data = bytes.split_to(len);
                bytes.advance(2);
                // A verbatim string starts with its three-letter format and a colon.
                if kind == b'=' && data.get(3) == Some(&b':') {
                    data.advance(4);
                }
                Ok(if kind == b'!' { Reply::Error(data) } else { Reply::Bulk(data) })
            }
        },
        b'*' | b'~' | b'>' => match parse_len(&rest)? {
            None => Ok(Reply::Null),
            Some(len) => {
                // Every element takes three bytes or more: the length cannot lie upwards.
                let mut items = Vec::with_capacity(len.min(bytes.len() / 3));
                for _ in 0..len {
                    items.push(decode_value(bytes, depth + 1)?);
                }
                Ok(Reply::Array(items))
            }
        },
        b'%' | b'|' => {
            let len = parse_len(&rest)?.ok_or(InvalidReply("map without a length"))?;
            let mut pairs = Vec::with_capacity(len.min(bytes.len() / 6));
            for _ in 0..len {
                let name = decode_value(bytes, depth + 1)?;
                pairs.push((name, decode_value(bytes, depth + 1)?));
            }
            if kind == b'|' { decode_value(bytes, depth + 1) } else { Ok(Reply::Map(pairs)) }
        }
        _ => Err(InvalidReply("unknown kind of reply")),
    }
}

fn take_line(bytes: &mut Bytes) -> Result<Bytes, InvalidReply> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(InvalidReply("no end of line"))?;
    if end < 2 || bytes[end - 1] != b'\r' {
        return Err(InvalidReply("line without a kind or carriage return"));
    }
    let line = bytes.split_to(end - 1);
    bytes.advance(2);
    Ok(line)
}

/// A length, `None` for -1.
fn parse_len(text: &[u8]) -> Result<Option<usize>, InvalidReply> {
    if text == b"-1" {
        return Ok(None);
    }
    let digits = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    // Far above any limit of a reply, and far below what could overflow an addition.
    let len = digits.and_then(|text| text.parse::<u32>().ok());
    len.map(|len| Some(len as usize)).ok_or(InvalidReply("bad length"))
}

/// Finds the end of the reply at the start of a buffer that grows.
#[derive(Clone, Debug)]
pub struct ReplyEnd {
    /// Values still to come on each level, outermost first.
    pending: Vec<usize>,
    /// Everything before is walked.
    at: usize,
    /// No line break between `at` and here.
    searched: usize,
}

impl Default for ReplyEnd {
    fn default() -> Self {
        ReplyEnd { pending: vec![1], at: 0, searched: 0 }
    }
}

impl ReplyEnd {
    /// Walks on in `buffer`, which only grew since the last call; its length once the reply is
    /// whole.
    ///
    /// # Errors
    /// [`InvalidReply`] as soon as no reply can start like this.
    pub fn find(&mut self, buffer: &[u8]) -> Result<Option<usize>, InvalidReply> {
        loop {
            while self.pending.last() == Some(&0) {
                self.pending.pop();
            }
            let Some(level) = self.pending.last_mut() else {
                // The bytes of the last bulk string may still be on their way.
                return Ok((self.at <= buffer.len()).then_some(self.at));
            };
            self.searched = self.searched.max(self.at);
            let Some(rest) = buffer.get(self.searched..) else { return Ok(None) };
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                self.searched = buffer.len();
                if self.searched - self.at > LINE_BYTES_MAX {
                    return Err(InvalidReply("line is too long"));
                }
                return Ok(None);
            };
            let line_end = self.searched + end + 1;
            let line = &buffer[self.at..line_end];
            if line.len() < 3 || line[line.len() - 2] != b'\r' {
                return Err(InvalidReply("line without a kind or carriage return"));
            }
            let rest = &line[1..line.len() - 2];
            *level -= 1;
            self.at = line_end;
            match line[0] {
                b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_' => {}
                b'$' | b'!' | b'=' => self.at += parse_len(rest)?.map_or(0, |len| len + 2),
                b'*' | b'~' | b'>' => self.pending.push(parse_len(rest)?.unwrap_or(0)),
                b'%' => self.pending.push(parse_len(rest)?.unwrap_or(0) * 2),
                // Attributes come before the value that they describe.
                b'|' => self.pending.push(parse_len(rest)?.unwrap_or(0) * 2 + 1),
                _ => return Err(InvalidReply("unknown kind of reply")),
            }
            if self.pending.len() > DEPTH_MAX {
                return Err(InvalidReply("nested too deep"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &[u8]) -> Result<Reply, InvalidReply> {
        let end = ReplyEnd::default().find(text)?.expect("whole");
        assert_eq!(end, text.len());
        Reply::decode(Bytes::copy_from_slice(text))
    }

    fn bulk(text: &'static str) -> Reply {
        Reply::Bulk(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn replies_of_both_protocols_are_read() {
        assert_eq!(decode(b"$-1\r\n"), Ok(Reply::Null));
        assert_eq!(decode(b"_\r\n"), Ok(Reply::Null));
        assert_eq!(decode(b"$4\r\na\r\nb\r\n"), Ok(bulk("a\r\nb")));
        assert_eq!(decode(b"=5\r\ntxt:x\r\n"), Ok(bulk("x")));
        assert_eq!(decode(b":-7\r\n"), Ok(Reply::Integer(-7)));
        assert_eq!(decode(b"-ERR no\r\n").unwrap().error().as_deref(), Some("ERR no"));
        let map = b"%2\r\n$1\r\nz\r\n:1\r\n$1\r\na\r\n*2\r\n#t\r\n*0\r\n";
        let inner = Reply::Array(vec![Reply::Boolean(true), Reply::Array(vec![])]);
        assert_eq!(
            decode(map),
            Ok(Reply::Map(vec![(bulk("z"), Reply::Integer(1)), (bulk("a"), inner)]))
        );
        assert_eq!(decode(b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n"), Ok(bulk("v")));
    }

    #[test]
    fn end_is_found_however_the_bytes_arrive() {
        let last_is_a_line: &[u8] = b"*3\r\n$3\r\nabc\r\n%1\r\n+k\r\n$-1\r\n*1\r\n:5\r\n";
        for text in [last_is_a_line, b"*2\r\n:1\r\n$3\r\nabc\r\n", b"$3\r\nabc\r\n"] {
            let mut finder = ReplyEnd::default();
            for len in 0..text.len() {
                assert_eq!(finder.find(&text[..len]), Ok(None), "after {len} bytes");
            }
            let mut longer = text.to_vec();
            longer.extend_from_slice(b"+next\r\n");
            assert_eq!(finder.find(&longer), Ok(Some(text.len())));
        }
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let nested = b"*1\r\n".repeat(100_000);
        assert!(ReplyEnd::default().find(&nested).is_err());
        assert!(ReplyEnd::default().find(&vec![b'+'; LINE_BYTES_MAX + 2]).is_err());
        for text in [&b"HTTP/1.1 400\r\n"[..], b"$x\r\n", b"$-2\r\n", b"*99999999999\r\n", b"\r\n"]
        {
            assert!(ReplyEnd::default().find(text).is_err(), "{text:?}");
        }
        assert!(Reply::decode(Bytes::from_static(b"*4294967295\r\n")).is_err());
        assert!(Reply::decode(Bytes::from_static(b"$5\r\nab\r\n")).is_err());
    }
}

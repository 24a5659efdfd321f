//! Where does the next command in a query buffer end? A bounded look ahead of the decoder.
//!
//! The decoder re-parses partial input and recurses on nested arrays, so it only ever sees what
//! passed here: one flat array of bulk strings, whole, with every number below its limit.
//!
//! ```text
//! multibulk | *<count>\r\n | $<bytes>\r\n <bytes> \r\n | ... count times
//! inline    | anything that does not start with an asterisk, up to \n
//! ```
//!
//! The verdict depends on the bytes alone, never on how they were cut into reads. Stricter than
//! Redis in one place: the two bytes behind a length and behind a bulk string must be CR LF,
//! where Redis skips them unseen.

use super::reply::Reply;

/// Limits on what one client command may be. Beyond them the connection gets a protocol error
/// and is closed, since what follows cannot be told apart from the command's rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryLimits {
    /// Largest whole command in bytes: what one connection can make the node hold.
    pub query_bytes_max: usize,
    /// Largest single argument in bytes.
    pub bulk_bytes_max: usize,
    /// Most arguments, the command's name included. Each costs about a hundred bytes while it is
    /// decoded, so this, and not only `query_bytes_max`, bounds the memory of a command.
    pub args_max: usize,
    /// Longest inline command in bytes, its line end included.
    pub inline_bytes_max: usize,
}

impl Default for QueryLimits {
    /// Redis's own value for inline commands; as many arguments as the widest row needs in one
    /// HSET (Redis takes 1 Mi); sizes as wide as the largest frame body, since no larger value
    /// could ever be written.
    fn default() -> Self {
        QueryLimits {
            query_bytes_max: 32 << 20,
            bulk_bytes_max: 16 << 20,
            args_max: 2 + 2 * 65_535,
            inline_bytes_max: 64 << 10,
        }
    }
}

/// The client does not speak the protocol. Its connection is answered with [`Self::reply`], then
/// closed. Texts are Redis's where Redis has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The count behind an asterisk.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// The length behind a dollar sign, or larger than the limit.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An argument that is not a bulk string.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedBulk(u8),
    /// No line end within the limit.
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    /// An inline command with a quote that is not closed, or closed in the middle of a word.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The bytes behind a bulk string are not a line end.
    #[error("Protocol error: expected CRLF after bulk string")]
    BulkEnd,
    /// The whole command is larger than the limit in bytes.
    #[error("Protocol error: request is larger than {0} bytes (query_bytes_max)")]
    QueryTooBig(usize),
    /// The decoder refused what the scan let through.
    #[error("Protocol error: malformed request")]
    Malformed,
}

impl ProtocolError {
    /// What the client is told before its connection is closed.
    #[must_use]
    pub fn reply(&self) -> Reply {
        Reply::error(format!("ERR {self}"))
    }
}

/// The form of a complete command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An array of bulk strings.
    Multibulk,
    /// A line of words.
    Inline,
    /// An array of no or a negative number of strings: skipped without a reply, as in Redis.
    Empty,
}

/// What the buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The start of a command; at least `bytes_needed_min` more bytes (never 0) are to come. A
    /// hint for reading: it repeats what the client announced, so it is not to be allocated
    /// before bytes arrive.
    Incomplete {
        /// Lower bound of the bytes that are missing.
        bytes_needed_min: usize,
    },
    /// The first `len` bytes are one whole command.
    Complete {
        /// Bytes of the command.
        len: usize,
        /// How to decode it.
        form: Form,
    },
}

/// The scan of one connection. It remembers how far it got, so that each byte of a command is
/// looked at once (payloads are skipped unseen), however many reads it takes to arrive.
#[derive(Clone, Debug)]
pub struct Scanner {
    limits: QueryLimits,
    /// Bytes of the command that need no second look.
    position: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Start,
    Inline,
    Count,
    BulkLength { args_left: usize },
    Bulk { args_left: usize, bytes: usize },
}

impl Scanner {
    /// A scanner at the start of a command.
    #[must_use]
    pub fn new(limits: QueryLimits) -> Scanner {
        Scanner { limits, position: 0, stage: Stage::Start }
    }

    /// Scans `buffer`, whose first byte is the first of a command: the same bytes as in the last
    /// call when that said [`Scan::Incomplete`], and more. After [`Scan::Complete`] the caller
    /// takes the command out, and the next call starts with the bytes behind it.
    ///
    /// # Errors
    /// [`ProtocolError`]; the scanner is of no use after it.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Scan, ProtocolError> {
        debug_assert!(buffer.len() >= self.position, "the start of a command was taken out");
        loop {
            // Each round leaves or moves forward, so this ends within the buffer.
            let verdict = match self.stage {
                Stage::Start => match buffer.first() {
                    None => Some(Scan::Incomplete { bytes_needed_min: 1 }),
                    Some(b'*') => self.enter(1, Stage::Count),
                    Some(_) => self.enter(0, Stage::Inline),
                },
                Stage::Inline => Some(self.inline(buffer)?),
                Stage::Count => self.count(buffer)?,
                Stage::BulkLength { args_left } => self.bulk_length(buffer, args_left)?,
                Stage::Bulk { args_left, bytes } => self.bulk(buffer, args_left, bytes)?,
            };
            if let Some(scan) = verdict {
                if let Scan::Complete { .. } = scan {
                    (self.position, self.stage) = (0, Stage::Start);
                }
                return Ok(scan);
            }
        }
    }

    fn enter(&mut self, position: usize, stage: Stage) -> Option<Scan> {
        (self.position, self.stage) = (position, stage);
        None
    }

    fn inline(&mut self, buffer: &[u8]) -> Result<Scan, ProtocolError> {
        let line_max = self.limits.inline_bytes_max;
        let unseen = &buffer[self.position.min(buffer.len())..buffer.len().min(line_max)];
        if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
            return Ok(Scan::Complete { len: self.position + at + 1, form: Form::Inline });
        }
        if buffer.len() >= line_max {
            return Err(ProtocolError::InlineTooBig);
        }
        self.position = buffer.len();
        Ok(Scan::Incomplete { bytes_needed_min: 1 })
    }

    fn count(&mut self, buffer: &[u8]) -> Result<Option<Scan>, ProtocolError> {
        let invalid = ProtocolError::MultibulkLength;
        let Some((count, after)) = number_line(buffer, self.position).ok_or(invalid.clone())?
        else {
            return Ok(Some(Scan::Incomplete { bytes_needed_min: 1 }));
        };
        if count <= 0 {
            return Ok(Some(Scan::Complete { len: after, form: Form::Empty }));
        }
        let args_left = usize::try_from(count).map_err(|_| invalid.clone())?;
        if args_left > self.limits.args_max {
            return Err(invalid);
        }
        self.check_total(after, args_left)?;
        Ok(self.enter(after, Stage::BulkLength { args_left }))
    }

    fn bulk_length(
        &mut self,
        buffer: &[u8],
        args_left: usize,
    ) -> Result<Option<Scan>, ProtocolError> {
        let later = (args_left - 1) * ARG_BYTES_MIN;
        match buffer.get(self.position) {
            None => return Ok(Some(incomplete(ARG_BYTES_MIN + later))),
            Some(b'$') => {}
            Some(other) => return Err(ProtocolError::ExpectedBulk(*other)),
        }
        let line = number_line(buffer, self.position + 1).ok_or(ProtocolError::BulkLength)?;
        let Some((bytes, after)) = line else {
            let here = ARG_BYTES_MIN.saturating_sub(buffer.len() - self.position);
            return Ok(Some(incomplete(here.max(1) + later)));
        };
        let bytes = usize::try_from(bytes).map_err(|_| ProtocolError::BulkLength)?;
        if bytes > self.limits.bulk_bytes_max {
            return Err(ProtocolError::BulkLength);
        }
        self.check_total(after + bytes + LINE_END.len(), args_left - 1)?;
        Ok(self.enter(after, Stage::Bulk { args_left, bytes }))
    }

    fn bulk(
        &mut self,
        buffer: &[u8],
        args_left: usize,
        bytes: usize,
    ) -> Result<Option<Scan>, ProtocolError> {
        let (end, later) = (self.position + bytes, (args_left - 1) * ARG_BYTES_MIN);
        let line_end = buffer.get(end..).unwrap_or_default();
        let line_end = &line_end[..line_end.len().min(LINE_END.len())];
        if !LINE_END.starts_with(line_end) {
            return Err(ProtocolError::BulkEnd);
        }
        if line_end.len() < LINE_END.len() {
            return Ok(Some(incomplete(end + LINE_END.len() - buffer.len() + later)));
        }
        let after = end + LINE_END.len();
        if args_left == 1 {
            return Ok(Some(Scan::Complete { len: after, form: Form::Multibulk }));
        }
        Ok(self.enter(after, Stage::BulkLength { args_left: args_left - 1 }))
    }

    /// Refuses a command as soon as what it announced cannot fit.
    fn check_total(&self, bytes: usize, args_left: usize) -> Result<(), ProtocolError> {
        if bytes + args_left * ARG_BYTES_MIN > self.limits.query_bytes_max {
            return Err(ProtocolError::QueryTooBig(self.limits.query_bytes_max));
        }
        Ok(())
    }
}

/// Reads the number from `start` to its line end. The outer `None` is "not a number", the inner
/// one "the line has not arrived"; otherwise the number and the offset behind the line.
fn number_line(buffer: &[u8], start: usize) -> Option<Option<(i64, usize)>> {
    let rest = buffer.get(start..).unwrap_or_default();
    let line = &rest[..rest.len().min(NUMBER_LINE_BYTES_MAX)];
    let Some(end) = line.iter().position(|byte| *byte == b'\r') else {
        let digits_only = line.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-');
        return (digits_only && line.len() < NUMBER_LINE_BYTES_MAX).then_some(None);
    };
    let number = parse_integer(&line[..end])?;
    match rest.get(end + 1) {
        None => Some(None),
        Some(b'\n') => Some(Some((number, start + end + 2))),
        Some(_) => None,
    }
}

/// Reads a decimal integer exactly as Redis does (`string2ll`): no sign but a minus, no leading
/// zero, no space, nothing beyond 64 bits; so every integer has one spelling.
#[must_use]
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => digits.len() == text.len(),
        [first, ..] => *first != b'0' && digits.iter().all(u8::is_ascii_digit),
        [] => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn incomplete(bytes_needed_min: usize) -> Scan {
    Scan::Incomplete { bytes_needed_min }
}

const LINE_END: &[u8] = b"\r\n";
/// Bytes of the smallest argument, `$0\r\n\r\n`.
const ARG_BYTES_MIN: usize = 6;
/// Digits and sign of any 64-bit number, and the CR: a longer line is not a number.
const NUMBER_LINE_BYTES_MAX: usize = 21;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::decode::decode;
    use super::super::testing::{Random, multibulk};
    use super::*;

    const TINY: QueryLimits =
        QueryLimits { query_bytes_max: 200, bulk_bytes_max: 50, args_max: 8, inline_bytes_max: 64 };

    type Verdict = Result<Option<(usize, Vec<Bytes>)>, ProtocolError>;

    /// The verdict on the first command of `bytes`, arriving in the given pieces.
    fn verdict(bytes: &[u8], ends: impl Iterator<Item = usize>) -> Verdict {
        let mut scanner = Scanner::new(TINY);
        for end in ends {
            match scanner.scan(&bytes[..end])? {
                Scan::Complete { len, form } => {
                    assert!(len <= end && len <= TINY.query_bytes_max);
                    let args = decode(&Bytes::copy_from_slice(&bytes[..len]), form)?;
                    assert!(args.len() <= TINY.args_max.max(TINY.inline_bytes_max / 2));
                    return Ok(Some((len, args)));
                }
                Scan::Incomplete { bytes_needed_min } => {
                    assert!(bytes_needed_min > 0);
                    assert!(end + bytes_needed_min <= TINY.query_bytes_max + 1);
                    assert!(end <= TINY.query_bytes_max, "more is buffered than is allowed");
                }
            }
        }
        Ok(None)
    }

    /// Bytes that look enough like commands to get far: good ones, bent in a few places.
    fn hostile(random: &mut Random) -> Vec<u8> {
        const PARTS: &[&[u8]] = &[
            b"*",
            b"$",
            b"\r\n",
            b"\r",
            b"\n",
            b"1",
            b"2",
            b"-1",
            b"0",
            b"51",
            b"999999999999",
            b"\"",
            b"'",
            b" ",
            b"\\x41",
            b"*1\r\n$4\r\nPING\r\n",
            b"*2\r\n$1\r\na\r\n$0\r\n\r\n",
            b"GET a\r\n",
        ];
        let mut bytes = Vec::new();
        if random.below(2) == 0 {
            bytes =
                multibulk(&[b"SET", &vec![b'k'; random.below(60)], &vec![b'v'; random.below(60)]]);
            for _ in 0..random.below(3) {
                let at = random.below(bytes.len());
                let part = PARTS[random.below(PARTS.len())];
                bytes[at] = part[0];
            }
        }
        for _ in 0..random.below(12) {
            bytes.extend_from_slice(PARTS[random.below(PARTS.len())]);
        }
        bytes
    }

    #[test]
    fn the_verdict_does_not_depend_on_how_bytes_were_cut() {
        let mut random = Random(42);
        let mut kinds = [0; 3];
        for _ in 0..30_000 {
            let bytes = hostile(&mut random);
            let each = verdict(&bytes, 0..=bytes.len());
            let whole = verdict(&bytes, std::iter::once(bytes.len()));
            assert_eq!(each, whole, "{}", bytes.escape_ascii());
            let cut = random.below(bytes.len() + 1);
            let two = verdict(&bytes, [cut, bytes.len()].into_iter());
            assert_eq!(two, whole, "{} cut at {cut}", bytes.escape_ascii());
            kinds[match whole {
                Ok(Some(_)) => 0,
                Ok(None) => 1,
                Err(_) => 2,
            }] += 1;
        }
        assert!(kinds.iter().all(|count| *count > 1000), "{kinds:?}");
    }

    #[test]
    fn every_prefix_is_incomplete_and_says_a_true_lower_bound() {
        let commands: [&[&[u8]]; 4] =
            [&[b"PING"], &[b"SET", b"k", b"\r\n$3\r\n"], &[b""], &[b"MSET", b"", b"", b"a", b"b"]];
        for args in commands {
            let bytes = multibulk(args);
            for end in 0..bytes.len() {
                let scan = Scanner::new(TINY).scan(&bytes[..end]);
                let Ok(Scan::Incomplete { bytes_needed_min }) = scan else { panic!("{scan:?}") };
                assert!(end + bytes_needed_min <= bytes.len(), "{}", bytes.escape_ascii());
            }
            let Ok(Some((len, parsed))) = verdict(&bytes, 0..=bytes.len()) else { panic!() };
            assert_eq!(len, bytes.len());
            assert!(parsed.iter().zip(args).all(|(parsed, arg)| parsed == arg));
        }
        let pending = Scanner::new(TINY).scan(b"*2\r\n$3\r\nGET\r\n$40\r\n");
        assert_eq!(pending, Ok(incomplete(42)));
    }

    #[test]
    fn announcements_beyond_a_limit_are_refused_before_their_bytes_arrive() {
        let scan = |bytes: &[u8]| Scanner::new(TINY).scan(bytes);
        assert_eq!(scan(b"*9\r\n"), Err(ProtocolError::MultibulkLength));
        assert_eq!(scan(b"*1\r\n$51\r\n"), Err(ProtocolError::BulkLength));
        assert_eq!(scan(b"*1\r\n$2147483648\r\n"), Err(ProtocolError::BulkLength));
        assert_eq!(scan(b"*1\r\n$-1\r\n"), Err(ProtocolError::BulkLength));
        assert_eq!(scan(&[b'x'; 64]), Err(ProtocolError::InlineTooBig));
        assert_eq!(
            scan(&[b"*"[..].to_vec(), vec![b'1'; 30]].concat()),
            Err(ProtocolError::MultibulkLength)
        );
        assert_eq!(scan(b"*1\r\n$1\r\naXX"), Err(ProtocolError::BulkEnd));
        let mut three = multibulk(&[&[b'a'; 50], &[b'b'; 50], &[b'c'; 50]]);
        three[1] = b'4';
        assert!(matches!(scan(&three), Ok(Scan::Incomplete { .. })));
        three.extend_from_slice(b"$50\r\n");
        assert_eq!(scan(&three), Err(ProtocolError::QueryTooBig(200)));
    }

    #[test]
    fn inline_and_empty_commands_end_where_redis_ends_them() {
        let args = |bytes: &[u8]| verdict(bytes, std::iter::once(bytes.len()));
        let words = |words: &[&'static [u8]]| -> Vec<Bytes> {
            words.iter().map(|word| Bytes::from_static(word)).collect()
        };
        assert_eq!(args(b"GET  a\r\nrest"), Ok(Some((8, words(&[b"GET", b"a"])))));
        assert_eq!(args(b" GET\ta\n"), Ok(Some((7, words(&[b"GET", b"a"])))));
        assert_eq!(args(b"\r\n"), Ok(Some((2, words(&[])))));
        assert_eq!(args(b"*0\r\n*1"), Ok(Some((4, words(&[])))));
        assert_eq!(args(b"*-5\r\n"), Ok(Some((5, words(&[])))));
        let quoted = b"'a\\'b' \"\\x41\\n\\q\" c\"d\"\n";
        let expected = words(&[b"a'b", b"A\nq", b"cd"]);
        assert_eq!(args(quoted), Ok(Some((quoted.len(), expected))));
        assert_eq!(args(b"a \"b\n"), Err(ProtocolError::UnbalancedQuotes));
        assert_eq!(args(b"'a'b\n"), Err(ProtocolError::UnbalancedQuotes));
    }

    #[test]
    fn arguments_are_slices_of_the_command() {
        let command = Bytes::from(multibulk(&[b"SET", b"k", b"value"]));
        let args = decode(&command, Form::Multibulk).unwrap();
        let inside = command.as_ptr_range();
        assert!(args.iter().all(|arg| inside.contains(&arg.as_ptr())));
        let longer = Bytes::from([&command[..], b"x"].concat());
        assert_eq!(decode(&longer, Form::Multibulk), Err(ProtocolError::Malformed));
        assert_eq!(decode(&command.slice(..8), Form::Multibulk), Err(ProtocolError::Malformed));
        let nested = Bytes::from_static(b"*1\r\n*1\r\n$1\r\na\r\n");
        assert_eq!(decode(&nested, Form::Multibulk), Err(ProtocolError::Malformed));
    }

    #[test]
    fn integers_have_one_spelling() {
        for good in [0, 7, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(parse_integer(good.to_string().as_bytes()), Some(good));
        }
        for bad in ["", "-", "+1", "01", "-0", "-01", " 1", "1 ", "1.0", "9223372036854775808"] {
            assert_eq!(parse_integer(bad.as_bytes()), None, "{bad}");
        }
    }
}

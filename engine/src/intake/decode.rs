//! From the bytes of one whole command to its arguments.

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::BytesFrame;

use super::scan::{Form, ProtocolError};

/// Arguments of a command that the scan found complete; the first is its name. Empty when there
/// is nothing to do (an empty line or array).
///
/// Arguments of a multibulk command are slices of `command`, which they keep alive whole:
/// whoever stores one for longer than the command runs copies it.
///
/// # Errors
/// [`ProtocolError::UnbalancedQuotes`] for an inline command.
pub fn decode(command: &Bytes, form: Form) -> Result<Vec<Bytes>, ProtocolError> {
    match form {
        Form::Empty => Ok(Vec::new()),
        Form::Inline => split_line(command),
        Form::Multibulk => decode_multibulk(command),
    }
}

fn decode_multibulk(command: &Bytes) -> Result<Vec<Bytes>, ProtocolError> {
    let Ok(Some((BytesFrame::Array(frames), len))) = decode_bytes(command) else {
        return Err(ProtocolError::Malformed);
    };
    if len != command.len() {
        return Err(ProtocolError::Malformed);
    }
    let argument = |frame| match frame {
        BytesFrame::BulkString(bytes) => Ok(bytes),
        _ => Err(ProtocolError::Malformed),
    };
    frames.into_iter().map(argument).collect()
}

/// Splits a line into words as Redis does (`sdssplitargs`): double quotes know the escapes
/// `\n \r \t \b \a \xHH`, single quotes only `\'`, and a closing quote ends its word.
fn split_line(line: &Bytes) -> Result<Vec<Bytes>, ProtocolError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut rest = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = Vec::new();
    loop {
        rest = rest.trim_ascii_start();
        // Vertical tab is a space to C, but not to Rust.
        while let [0x0b, after @ ..] = rest {
            rest = after.trim_ascii_start();
        }
        if rest.is_empty() {
            return Ok(words);
        }
        let mut word = BytesMut::new();
        rest = split_word(rest, &mut word)?;
        words.push(word.freeze());
    }
}

fn split_word<'a>(mut rest: &'a [u8], word: &mut BytesMut) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [b'"', quoted @ ..] => return split_quoted(quoted, b'"', word),
            [b'\'', quoted @ ..] => return split_quoted(quoted, b'\'', word),
            [byte, after @ ..] if !is_space(*byte) => {
                word.extend_from_slice(&[*byte]);
                rest = after;
            }
            _ => return Ok(rest),
        }
    }
}

fn split_quoted<'a>(
    mut rest: &'a [u8],
    quote: u8,
    word: &mut BytesMut,
) -> Result<&'a [u8], ProtocolError> {
    let double = quote == b'"';
    loop {
        let (byte, after) = match rest {
            [b'\\', b'x', high, low, after @ ..]
                if double && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (hex_digit(*high) << 4 | hex_digit(*low), after)
            }
            [b'\\', escaped, after @ ..] if double => (unescape(*escaped), after),
            [b'\\', b'\'', after @ ..] if !double => (b'\'', after),
            [byte, after @ ..] if *byte == quote => {
                let ends_word = after.first().is_none_or(|next| is_space(*next));
                return if ends_word { Ok(after) } else { Err(ProtocolError::UnbalancedQuotes) };
            }
            [byte, after @ ..] => (*byte, after),
            [] => return Err(ProtocolError::UnbalancedQuotes),
        };
        word.extend_from_slice(&[byte]);
        rest = after;
    }
}

fn unescape(escaped: u8) -> u8 {
    match escaped {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

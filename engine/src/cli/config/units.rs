//! Sizes and durations as people write them.

use std::fmt::Write as _;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes: `65536`, `64KiB`, `1GiB`.
    Bytes,
    /// Milliseconds: `500`, `500ms`, `2s`, `1m`.
    Millis,
    /// Microseconds: `200`, `200us`, `1ms`.
    Micros,
    /// Things.
    Count,
}

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DURATIONS: [(&str, u64); 3] = [("ms", 1), ("s", 1000), ("m", 60_000)];
const SHORT_DURATIONS: [(&str, u64); 2] = [("us", 1), ("ms", 1000)];

impl Unit {
    /// Reads `text`; the error says what is allowed.
    ///
    /// # Errors
    /// What a number of this unit looks like.
    pub fn parse(self, text: &str) -> Result<u64, &'static str> {
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let (digits, suffix) = text.split_at(digits_end);
        let digits: String = digits.chars().filter(|c| *c != '_').collect();
        let suffix = suffix.trim_start();
        let scales: &[(&str, u64)] = match self {
            Unit::Bytes => &SIZES,
            Unit::Millis => &DURATIONS,
            Unit::Micros => &SHORT_DURATIONS,
            Unit::Count => &[],
        };
        let scale = if suffix.is_empty() {
            Some(1)
        } else {
            let scale = scales.iter().find(|scale| scale.0.eq_ignore_ascii_case(suffix));
            scale.map(|scale| scale.1)
        };
        let number = digits.parse::<u64>().ok().zip(scale);
        number.and_then(|(number, scale)| number.checked_mul(scale)).ok_or(match self {
            Unit::Bytes => "a size is a number of bytes, or a number with KiB, MiB or GiB",
            Unit::Millis => "a time is a number of milliseconds, or a number with ms, s or m",
            Unit::Micros => "a short time is a number of microseconds, or a number with us or ms",
            Unit::Count => "a whole number is expected",
        })
    }

    /// The shortest exact spelling, which [`Unit::parse`] reads back.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        let exact = |scale: &&(&str, u64)| value >= scale.1 && value.is_multiple_of(scale.1);
        match self {
            Unit::Bytes => match SIZES[..3].iter().find(exact) {
                Some((name, scale)) => format!("{}{name}", value / scale),
                None => value.to_string(),
            },
            Unit::Millis | Unit::Micros | Unit::Count => value.to_string(),
        }
    }

    /// The unit in words, for comments and help.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Unit::Bytes => Some("bytes"),
            Unit::Millis => Some("milliseconds"),
            Unit::Micros => Some("microseconds"),
            Unit::Count => None,
        }
    }
}

/// Bytes with a binary unit and one decimal, for tables.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    for (name, scale) in &SIZES[..3] {
        if bytes >= *scale {
            #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
            return format!("{:.1} {name}", bytes as f64 / *scale as f64);
        }
    }
    format!("{bytes} B")
}

/// A whole number with thousands separated by commas.
#[must_use]
pub fn human_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds with the unit that keeps them short.
#[must_use]
pub fn human_micros(micros: u64) -> String {
    let mut text = String::new();
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let micros_float = micros as f64;
    // Writing to a string cannot fail.
    let _ = match micros {
        0..10_000 => write!(text, "{micros} us"),
        10_000..10_000_000 => write!(text, "{:.1} ms", micros_float / 1e3),
        _ => write!(text, "{:.1} s", micros_float / 1e6),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        assert_eq!(Unit::Bytes.parse("64MiB"), Ok(64 << 20));
        assert_eq!(Unit::Bytes.parse("1 gib"), Ok(1 << 30));
        assert_eq!(Unit::Bytes.parse("65536"), Ok(65536));
        assert_eq!(Unit::Bytes.parse("1_000B"), Ok(1000));
        assert_eq!(Unit::Millis.parse("2s"), Ok(2000));
        assert_eq!(Unit::Millis.parse("500"), Ok(500));
        assert_eq!(Unit::Micros.parse("1ms"), Ok(1000));
        assert_eq!(Unit::Micros.parse("200us"), Ok(200));
        for text in ["", "MiB", "64MB", "-1", "1.5GiB", "99999999999GiB", "0x10"] {
            assert!(Unit::Bytes.parse(text).is_err(), "{text}");
        }
        assert!(Unit::Count.parse("3s").is_err());
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        for value in [0, 1, 1023, 1024, 1500, 64 << 10, 256 << 20, (1 << 30) + 1, 4 << 30] {
            assert_eq!(Unit::Bytes.parse(&Unit::Bytes.show(value)), Ok(value));
        }
        assert_eq!(Unit::Bytes.show(256 << 20), "256MiB");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(human_count(336_776), "336,776");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_micros(350), "350 us");
        assert_eq!(human_micros(12_300), "12.3 ms");
    }
}

//! Numbers as people read them.

/// Four digits that count, and commas between thousands.
#[must_use]
pub fn shown(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        return grouped(&format!("{value:.0}"));
    }
    let digits = match size {
        _ if size >= 100.0 => 1,
        _ if size >= 10.0 => 2,
        _ if size >= 1.0 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    // What is too small for four digits is not nothing.
    if text.trim_start_matches('-') == "0" && value != 0.0 {
        format!("{value:.1e}")
    } else {
        text.to_owned()
    }
}

/// A number and its unit.
#[must_use]
pub fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", shown(value))
}

/// From the lowest to the highest.
#[must_use]
pub fn range(min: f64, max: f64) -> String {
    format!("{} .. {}", shown(min), shown(max))
}

fn grouped(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        let behind = digits.len() - at;
        if at > 0 && behind.is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_or_commas() {
        let all = [0.0, 0.000_01, 0.018_943, 1.5, 12.3456, 999.96, 25_107.5, -123_456.0, 1e6];
        let shown: Vec<String> = all.into_iter().map(shown).collect();
        let expected =
            ["0", "1.0e-5", "0.0189", "1.5", "12.35", "1000", "25,108", "-123,456", "1,000,000"];
        assert_eq!(shown, expected);
    }
}

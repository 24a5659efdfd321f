//! Redis's glob patterns: `*`, `?`, `[a-z]`, `[^a]` and `\` before a character that means itself.
//!
//! Every part of a pattern but `*` takes exactly one byte of the text, so after a mismatch only
//! the last `*` needs another try: time is bounded by pattern times text, where the recursion of
//! the original is exponential in the number of stars. Source: R. Cox, "Glob Matching Can Be
//! Simple And Fast Too" (2017), <https://research.swtch.com/glob>. Ill-formed patterns mean what
//! they mean in Redis (`stringmatchlen`).

/// Longest pattern in bytes that commands take: it bounds the work per key.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Whether `pattern` matches all of `text`.
#[must_use]
pub fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to go on after a mismatch: behind the last star, which then takes one byte more.
    let mut retry: Option<(usize, usize)> = None;
    while pattern_at < pattern.len() || text_at < text.len() {
        if pattern.get(pattern_at) == Some(&b'*') {
            pattern_at += 1;
            retry = Some((pattern_at, text_at));
            continue;
        }
        if let Some(byte) = text.get(text_at)
            && let Some(part_len) = match_one(&pattern[pattern_at..], *byte)
        {
            pattern_at += part_len;
            text_at += 1;
            continue;
        }
        match retry {
            Some((behind_star, start)) if start < text.len() => {
                (pattern_at, text_at) = (behind_star, start + 1);
                retry = Some((behind_star, start + 1));
            }
            _ => return false,
        }
    }
    true
}

/// The length of the pattern's first part when it matches `byte`.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    let (matches, len) = match pattern {
        [] => return None,
        [b'?', ..] => (true, 1),
        [b'[', class @ ..] => {
            let (matches, len) = match_class(class, byte);
            (matches, len + 1)
        }
        [b'\\', escaped, ..] => (*escaped == byte, 2),
        [literal, ..] => (*literal == byte, 1),
    };
    matches.then_some(len)
}

/// Matches what follows a `[`; also returns its length, the `]` included (which may be missing).
fn match_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &class[at..] {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        glob_matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn well_formed_patterns_match_as_in_redis() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "anything"),
            ("h?llo", "hello"),
            ("h*llo", "heeeello"),
            ("h*llo", "hllo"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hallo"),
            ("h[a-b]llo", "hbllo"),
            ("h[b-a]llo", "hallo"),
            ("[\\]]", "]"),
            ("a\\*c", "a*c"),
            ("*a*b*", "xxaxxbxx"),
            ("*aab", "aaaab"),
            ("*ab*ab", "aababxab"),
            ("planes:*", "planes:N14228"),
            ("a**", "a"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("h[a-b]llo", "hcllo"),
            ("a\\*c", "abc"),
            ("*a*b", "xxaxxbx"),
            ("abc", "ABC"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn ill_formed_patterns_mean_what_they_mean_in_redis() {
        assert!(matches("[abc", "b"));
        assert!(matches("[a-", "-"));
        assert!(matches("a\\", "a\\"));
        assert!(matches("[^", "x"));
        assert!(!matches("[", "["));
        assert!(!matches("[]a]", "a"));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(200) + "b";
        assert!(!matches(&pattern, &"a".repeat(2000)));
        assert!(matches(&pattern, &("a".repeat(2000) + "b")));
    }
}

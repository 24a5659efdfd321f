//! How things are shown: replies as redis-cli does, and names of epochs and logs in short.

use rowship::cli::reply::Reply;

/// A reply in words.
pub(super) fn show(reply: &Reply) -> String {
    match reply {
        Reply::Status(text) => text_of(text),
        Reply::Error(text) => format!("(error) {}", text_of(text)),
        Reply::Integer(number) => format!("(integer) {number}"),
        Reply::Number(text) => text_of(text),
        Reply::Boolean(value) => format!("({value})"),
        Reply::Bulk(bytes) => format!("\"{}\"", text_of(bytes)),
        Reply::Null => "(nil)".to_owned(),
        Reply::Array(parts) => {
            let parts: Vec<String> = parts.iter().map(show).collect();
            format!("[{}]", parts.join(", "))
        }
        Reply::Map(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| format!("{}: {}", show(key), show(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).into_owned();
    if text.len() > 300 { format!("{}...", &text[..60]) } else { text }
}

/// Random names in short: an epoch `3-<node>-<nonce>` as `epoch 3`, a log's id as `LOG`.
pub(super) fn shorten(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word_len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let (word, behind) = rest.split_at(word_len.unwrap_or(rest.len()));
        out.push_str(&shorten_word(word));
        let mut chars = behind.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    out
}

fn shorten_word(word: &str) -> String {
    let hex = |part: &&str| part.len() == 16 && part.chars().all(|c| c.is_ascii_hexdigit());
    let parts: Vec<&str> = word.split('-').collect();
    match &parts[..] {
        [counter, node, nonce] if hex(node) && hex(nonce) => format!("E{counter}"),
        [id] if id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()) => "LOG".to_owned(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_and_logs_are_shown_in_short() {
        let text =
            "in 3-00000000000000aa-00000000000000bb:4096, of 0123456789abcdef0123456789abcdef.";
        assert_eq!(shorten(text), "in E3:4096, of LOG.");
        assert_eq!(shorten("semi-sync ANY 1"), "semi-sync ANY 1");
    }
}

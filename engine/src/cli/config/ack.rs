//! `ack` and `replicas` put together to one [`AckPolicy`].
//!
//! `ack` alone may be a whole policy. `replicas` adds to a bare one: `2` (any two), `a,b` (for
//! sync all of them, for semi-sync any one of them), `ANY k (a,b)` or `FIRST k (a,b)`.

use rowship_proto::ack::AckPolicy;

/// Whether `ack` needs nothing beside it.
pub fn is_whole(ack: &str) -> bool {
    ack.parse::<AckPolicy>().is_ok()
}

/// The policy; `replace` lets `replicas` take the place of the replicas that `ack` names.
///
/// # Errors
/// Whether the fault is in `replicas`, and what is allowed.
pub fn compose(
    ack: &str,
    replicas: Option<&str>,
    replace: bool,
) -> Result<AckPolicy, (bool, String)> {
    let Some(replicas) = replicas else {
        return ack.parse().map_err(|error: rowship_proto::ack::InvalidPolicy| {
            (false, format!("{error} (names may also stand in replicas)"))
        });
    };
    // `ack` without any quorum: its mode, and up to where the replicas must have gone.
    let head = ack.split('(').next().unwrap_or_default().to_ascii_lowercase();
    let is_quorum = |word: &&str| word.parse::<usize>().is_ok() || ["any", "first"].contains(word);
    let names_replicas = ack.contains('(') || head.split_whitespace().any(|word| is_quorum(&word));
    if names_replicas && !replace {
        return Err((true, "ack already says which replicas count; leave one of them".to_owned()));
    }
    let mut words = head.split_whitespace().filter(|word| !is_quorum(word));
    let mode = words.next().unwrap_or_default();
    let level = words.collect::<Vec<_>>().join(" ");
    let (quorum, list) = match replicas.split_once('(') {
        Some((quorum, list)) => (quorum.trim(), format!("({list}")),
        None if replicas.parse::<usize>().is_ok() => (replicas, String::new()),
        None => ("", format!("({replicas})")),
    };
    let text = match mode {
        "async" => {
            let hint = "nothing: async waits for no replica; semi-sync or sync do";
            return Err((true, hint.to_owned()));
        }
        "sync" if list.is_empty() || !quorum.is_empty() => {
            let hint = "names, such as a,b: sync waits for every one of them";
            return Err((true, hint.to_owned()));
        }
        "sync" => format!("sync {level} {list}"),
        "semi-sync" => format!("semi-sync {quorum} {level} {list}"),
        _ => return Err((false, "async | semi-sync | sync, or a whole policy".to_owned())),
    };
    text.parse().map_err(|error: rowship_proto::ack::InvalidPolicy| (true, error.to_string()))
}

//! From flags and a file to [`Settings`].
//!
//! The file is TOML with two sections, `[cluster]` and `[node]`; every setting is also a flag
//! (`segment_bytes` is `--segment-bytes`), and flags win. Nothing unknown passes: each complaint
//! names file, line, key, value and what is allowed.

mod ack;
mod flags;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod keys;
mod list;
pub mod print;
#[cfg(test)]
mod tests;
pub mod units;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rowship_proto::ack::{AckPolicy, NodeName};
use toml::de::{DeTable, DeValue};

use self::keys::{Draft, Field, KEYS, Key, Number, Section, split_address};
use crate::cli::exit::{Exit, Failure};
use crate::node::settings::Settings;

/// A configuration is a few pages of text; a larger file is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Names of flags without the dashes in front, one per entry of [`KEYS`]: clap wants them to live
/// as long as the program.
static FLAGS: LazyLock<Vec<String>> =
    LazyLock::new(|| KEYS.iter().map(|key| key.name.replace('_', "-")).collect());

/// `--config`, and a flag for every setting.
#[derive(Clone, Debug, Default)]
pub struct ConfigArgs {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Index into [`KEYS`] and the value as written.
    pub flags: Vec<(usize, String)>,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// `preset = "tiny"`.
    Preset,
    /// Line of a file.
    File(PathBuf, usize),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Preset => f.write_str("preset"),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Flag => f.write_str("flag"),
        }
    }
}

/// The settings in force, and where each comes from.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The settings with `ack` and `replicas` put together.
    pub draft: Draft,
    /// One per entry of [`KEYS`].
    pub origins: Vec<Origin>,
}

/// A value as it was written, not yet checked.
struct Given {
    key: usize,
    text: String,
    origin: Origin,
}

impl ConfigArgs {
    /// Reads the file, applies the flags, checks everything.
    ///
    /// # Errors
    /// All complaints, one per line, as a usage failure.
    pub fn load(&self) -> Result<Effective, Failure> {
        let mut problems = Vec::new();
        let mut given = Vec::new();
        if let Some(path) = &self.file {
            match read_bounded(path) {
                Ok(text) => parse_file(path, &text, &mut given, &mut problems),
                Err(problem) => problems.push(problem),
            }
        }
        for (key, text) in &self.flags {
            given.push(Given { key: *key, text: text.clone(), origin: Origin::Flag });
        }
        let effective = resolve(given, &mut problems);
        match effective {
            Some(effective) if problems.is_empty() => Ok(effective),
            _ => Err(Failure::new(Exit::Usage, problems.join("\n"))),
        }
    }
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(format!("{shown}: not a configuration: a file of at most 1 MiB is expected"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))
}

fn parse_file(path: &Path, text: &str, given: &mut Vec<Given>, problems: &mut Vec<String>) {
    let line_at = |offset: usize| text[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let place = |offset: usize| format!("{}:{}", path.display(), line_at(offset));
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let offset = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.lines().nth(line_at(offset) - 1).unwrap_or_default();
            problems.push(plain(format!(
                "{}: '{}' is not TOML: {}. Allowed: [section], name = number, name = \"text\" \
                 (sizes and times are text: \"64MiB\"), name = true or false, each name once",
                place(offset),
                clip(line.trim()),
                error.message()
            )));
            return;
        }
    };
    for (section_name, content) in document.get_ref() {
        let at = place(section_name.span().start);
        let section = match section_name.get_ref().as_ref() {
            "cluster" => Section::Cluster,
            "node" => Section::Node,
            other => {
                let place = known_place(other);
                problems.push(plain(format!("{at}: [{other}] is not known; {place}")));
                continue;
            }
        };
        let DeValue::Table(entries) = content.get_ref() else {
            problems.push(plain(format!("{at}: {} must be a section", section.name())));
            continue;
        };
        for (name, value) in entries {
            let at = place(name.span().start);
            let written = text.get(value.span()).unwrap_or_default();
            match read_entry(section, name.get_ref(), value.get_ref(), written) {
                Ok((key, text)) => {
                    let origin = Origin::File(path.to_owned(), line_at(name.span().start));
                    given.push(Given { key, text, origin });
                }
                Err(problem) => problems.push(plain(format!("{at}: {problem}"))),
            }
        }
    }
}

/// As much of a line as a message needs.
fn clip(line: &str) -> String {
    line.chars().take(80).collect()
}

fn known_place(name: &str) -> String {
    match keys::find(name) {
        Some(key) => format!("{name} belongs into section [{}]", KEYS[key].section.name()),
        None => "allowed: [cluster] and [node]".to_owned(),
    }
}

fn read_entry(
    section: Section,
    name: &str,
    value: &DeValue<'_>,
    written: &str,
) -> Result<(usize, String), String> {
    let in_section = section.name();
    let Some(key) = keys::find(name) else {
        let names = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
        let names: Vec<_> = names.collect();
        return Err(format!(
            "[{in_section}] {name} = {written} is not known; allowed: {}",
            names.join(", ")
        ));
    };
    if KEYS[key].section != section {
        let other = KEYS[key].section.name();
        return Err(format!("[{in_section}] {name} = {written} belongs into section [{other}]"));
    }
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        other => {
            let kind = other.type_str();
            return Err(format!(
                "[{in_section}] {name} = {written} is not allowed: {kind}; a string, a whole \
                 number or true/false is expected"
            ));
        }
    };
    Ok((key, text))
}

fn resolve(given: Vec<Given>, problems: &mut Vec<String>) -> Option<Effective> {
    let settings = Settings::defaults(PathBuf::new(), default_name());
    let ack = settings.cluster.ack.to_string();
    let mut draft = Draft { settings, ack, replicas: None, tiny: false };
    let mut origins = vec![Origin::Default; KEYS.len()];
    // Flags come last in `given`, so the last of a key is the one in force; the preset goes
    // first, because it is what the others start from.
    let preset = keys::find("preset");
    let in_order = given.iter().filter(|given| Some(given.key) == preset);
    let in_order = in_order.chain(given.iter().filter(|given| Some(given.key) != preset));
    for given in in_order {
        let key = &KEYS[given.key];
        let before = values(&draft);
        match set(key, &mut draft, &given.text) {
            Ok(()) => {
                origins[given.key] = given.origin.clone();
                for (at, value) in values(&draft).iter().enumerate() {
                    if Some(given.key) == preset && at != given.key && *value != before[at] {
                        origins[at] = Origin::Preset;
                    }
                }
            }
            Err(allowed) => problems.push(refusal(key, &given.text, &given.origin, &allowed)),
        }
    }
    if !problems.is_empty() {
        return None;
    }
    compose_ack(&mut draft, &mut origins, problems);
    let effective = Effective { draft, origins };
    check(&effective, problems);
    Some(effective)
}

fn compose_ack(draft: &mut Draft, origins: &mut [Origin], problems: &mut Vec<String>) {
    let [Some(ack), Some(replicas)] = [keys::find("ack"), keys::find("replicas")] else {
        return;
    };
    // A flag that is a whole policy wins over the file's list of replicas.
    let flag_wins = origins[ack] == Origin::Flag && origins[replicas] != Origin::Flag;
    let replicas_flag = origins[replicas] == Origin::Flag && origins[ack] != Origin::Flag;
    if flag_wins && ack::is_whole(&draft.ack) {
        draft.replicas = None;
    }
    match ack::compose(&draft.ack, draft.replicas.as_deref(), replicas_flag) {
        Ok(policy) => {
            if draft.replicas.take().is_some() && origins[ack] == Origin::Default {
                origins[ack] = origins[replicas].clone();
            }
            draft.ack = policy.to_string();
            draft.settings.cluster.ack = policy;
        }
        Err((about_replicas, allowed)) => {
            let at = if about_replicas { replicas } else { ack };
            let text = show(&KEYS[at], draft).unwrap_or_default();
            problems.push(refusal(&KEYS[at], &text, &origins[at], &allowed));
        }
    }
}

/// Parses and stores one value; the error says what is allowed.
fn set(key: &Key, draft: &mut Draft, text: &str) -> Result<(), String> {
    match &key.field {
        Field::Number(number) => {
            let value = number.unit.parse(text)?;
            let min = number.least(draft.tiny);
            if !(min..=number.max).contains(&value) {
                let (min, max) = (number.unit.show(min), number.unit.show(number.max));
                return Err(format!("{min} to {max} ({})", number.reason));
            }
            (number.set)(&mut draft.settings, value);
            Ok(())
        }
        Field::Text { set, .. } => set(draft, text),
        Field::Switch { set, .. } => match text {
            "true" => {
                set(draft, true);
                Ok(())
            }
            "false" => {
                set(draft, false);
                Ok(())
            }
            _ => Err("allowed: true | false".to_owned()),
        },
    }
}

impl Number {
    fn least(&self, tiny: bool) -> u64 {
        if tiny { self.min_tiny } else { self.min }
    }
}

/// The value in force as a person would write it, or `None` when it is not set.
fn show(key: &Key, draft: &Draft) -> Option<String> {
    match &key.field {
        Field::Number(number) => Some(number.unit.show((number.get)(&draft.settings))),
        Field::Text { get, .. } => get(draft),
        Field::Switch { get, .. } => Some(get(draft).to_string()),
    }
}

fn values(draft: &Draft) -> Vec<Option<String>> {
    KEYS.iter().map(|key| show(key, draft)).collect()
}

fn refusal(key: &Key, value: &str, origin: &Origin, allowed: &str) -> String {
    plain(match origin {
        Origin::Flag => format!("{} {value} is not allowed: {allowed}", key.flag()),
        _ => {
            let (section, name) = (key.section.name(), key.name);
            format!("{origin}: [{section}] {name} = {value} is not allowed: {allowed}")
        }
    })
}

/// A complaint is one line: what it quotes may hold line breaks, or bytes that steer a terminal.
fn plain(complaint: String) -> String {
    if !complaint.contains(char::is_control) {
        return complaint;
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    complaint.chars().map(escaped).collect()
}

impl Key {
    /// The setting as a flag.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }
}

/// The host's name with what a node name may not hold replaced by dashes.
fn default_name() -> NodeName {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = host.chars().take(64).map(allowed).collect();
    NodeName::new(&name)
        .or_else(|_| NodeName::new("node"))
        .expect("a constant name of plain letters is valid")
}

/// Rules between settings.
fn check(effective: &Effective, problems: &mut Vec<String>) {
    let cluster = &effective.draft.settings.cluster;
    let node = &effective.draft.settings.node;
    let mut rule = |holds: bool, name: &str, allowed: String| {
        if let Some(at) = keys::find(name).filter(|_| !holds) {
            let value = show(&KEYS[at], &effective.draft).unwrap_or_default();
            problems.push(refusal(&KEYS[at], &value, &effective.origins[at], &allowed));
        }
    };
    let bytes = |value: u64| units::Unit::Bytes.show(value);
    let body = cluster.frame_body_bytes_max as u64;
    let frame = body + rowship_proto::FRAME_HEADER_BYTES as u64;
    let quarter = cluster.segment_bytes / 4;
    rule(
        body <= quarter,
        "frame_body_bytes_max",
        format!("at most {}, a quarter of segment_bytes", bytes(quarter)),
    );
    rule(
        cluster.segment_bytes.is_multiple_of(4096),
        "segment_bytes",
        "a multiple of 4096, the size of a page".to_owned(),
    );
    rule(
        cluster.peer_timeout_ms >= 3 * cluster.heartbeat_ms,
        "peer_timeout_ms",
        format!("at least 3 x heartbeat_ms = {} ms", 3 * cluster.heartbeat_ms),
    );
    for (name, value) in [
        ("uncommitted_bytes_max", cluster.uncommitted_bytes_max),
        ("send_window_bytes", node.send_window_bytes),
        ("transfer_bytes", node.transfer_bytes as u64),
    ] {
        let reason = "it must hold the largest frame: frame_body_bytes_max and a header";
        rule(value >= frame, name, format!("at least {} ({reason})", bytes(frame)));
    }
    rule(
        node.query_bytes_max >= node.bulk_bytes_max,
        "query_bytes_max",
        format!("at least bulk_bytes_max = {}", bytes(node.bulk_bytes_max as u64)),
    );
    for (name, address) in
        [("listen", &node.listen), ("replication_listen", &node.replication_listen)]
    {
        rule(
            node.allow_unauthenticated || is_loopback(address),
            name,
            "only loopback without --allow-unauthenticated: whoever reaches another address \
             could read and write everything"
                .to_owned(),
        );
    }
    let free_port = split_address(&node.listen).is_some_and(|(_, port)| port == 0);
    rule(
        free_port || node.listen != node.replication_listen,
        "replication_listen",
        "another address than listen".to_owned(),
    );
    let waits_for_itself = node.replica_of.is_none() && named(&cluster.ack).contains(&node.name);
    rule(
        !waits_for_itself,
        "ack",
        format!("this node is called {}; only names of replicas are", node.name),
    );
}

fn named(policy: &AckPolicy) -> &[NodeName] {
    use rowship_proto::ack::Quorum;
    match policy {
        AckPolicy::Async | AckPolicy::SemiSync { quorum: Quorum::AnyReplica, .. } => &[],
        AckPolicy::SemiSync { quorum: Quorum::AnyOf(names) | Quorum::FirstOf(names), .. }
        | AckPolicy::Sync { names, .. } => names,
    }
}

fn is_loopback(address: &str) -> bool {
    let host = split_address(address).map_or("", |parts| parts.0);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

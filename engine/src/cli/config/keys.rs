//! What a setting is: the shape of the entries of [`KEYS`].

use super::units::Unit;
use crate::node::settings::Settings;

pub use super::list::KEYS;

/// The settings while they are being put together.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Everything that stands for itself.
    pub settings: Settings,
    /// `ack`, not yet put together with `replicas`.
    pub ack: String,
    /// `replicas`, when given.
    pub replicas: Option<String>,
    /// `preset = "tiny"`.
    pub tiny: bool,
}

/// Sections of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Settings that all nodes of a cluster should share.
    Cluster,
    /// Settings of one node.
    Node,
}

impl Section {
    /// Its name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Section::Cluster => "cluster",
            Section::Node => "node",
        }
    }
}

/// One setting.
pub struct Key {
    /// Where it stands in the file.
    pub section: Section,
    /// Its name in the file; the flag has dashes for underscores.
    pub name: &'static str,
    /// One line for `--help` and for comments.
    pub help: &'static str,
    /// What it holds.
    pub field: Field,
}

/// What a setting holds.
pub enum Field {
    /// A number within limits.
    Number(Number),
    /// Words, checked by `set`, which answers what is allowed.
    Text {
        /// `None` when it is not set.
        get: fn(&Draft) -> Option<String>,
        /// Checks and stores.
        set: fn(&mut Draft, &str) -> Result<(), String>,
    },
    /// Yes or no.
    Switch {
        /// Reads it.
        get: fn(&Draft) -> bool,
        /// Stores it.
        set: fn(&mut Draft, bool),
    },
}

/// A number within limits.
pub struct Number {
    /// What it counts.
    pub unit: Unit,
    /// Least value.
    pub min: u64,
    /// Least value with the tiny preset.
    pub min_tiny: u64,
    /// Greatest value.
    pub max: u64,
    /// Why these limits.
    pub reason: &'static str,
    /// Reads it.
    pub get: fn(&Settings) -> u64,
    /// Stores it; `max` fits the field's type.
    pub set: fn(&mut Settings, u64),
}

/// Looks a setting up by its name.
#[must_use]
pub fn find(name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.name == name)
}

/// The choice called `text`.
///
/// # Errors
/// What is allowed.
pub fn choose<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices.iter().find(|choice| choice.0 == text).map(|choice| choice.1).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|choice| choice.0).collect();
        format!("allowed: {}", names.join(" | "))
    })
}

/// Checks `host:port` (`[host]:port` for IPv6); port 0 only where a free one may be taken.
///
/// # Errors
/// What an address looks like.
pub fn address(text: &str, any_port: bool) -> Result<String, String> {
    let (host, port) = split_address(text)
        .ok_or("an address is host:port, such as 127.0.0.1:7401 or [::1]:7401")?;
    if host.is_empty() {
        return Err("the host is missing: 127.0.0.1 for loopback, 0.0.0.0 for all".to_owned());
    }
    if port == 0 && !any_port {
        return Err("port 0 cannot be connected to".to_owned());
    }
    Ok(text.to_owned())
}

/// Splits `host:port`; brackets around an IPv6 host are removed.
#[must_use]
pub fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let plain = !host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
    Some((host, port.parse().ok()?)).filter(|_| plain)
}

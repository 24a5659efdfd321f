//! node
pub mod settings;

/// Why a node ended: exit code (see `cli::exit::Exit`) and message.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// The exit code.
    pub exit: u8,
    /// What happened.
    pub message: String,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// Why it ended.
pub fn run(_settings: settings::Settings) -> Result<(), NodeError> {
    Err(NodeError { exit: 10, message: "this build has no node".to_owned() })
}

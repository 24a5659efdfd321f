//! node
pub mod settings;

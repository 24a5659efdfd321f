//! `Applied` and `Snapshots`: what the engine's lanes, readers and maintenance share.

#[expect(dead_code, reason = "the models use a part of it")]
#[path = "../../engine/src/apply/publish.rs"]
pub mod publish;
#[expect(dead_code, reason = "the models use a part of it")]
#[path = "../../engine/src/apply/snapshots.rs"]
pub mod snapshots;

#[path = "applied.rs"]
mod applied_models;
#[path = "snapshots.rs"]
mod snapshots_models;

/// Stands for the engine's: no model fails to apply.
#[derive(Debug)]
pub struct ApplyError;

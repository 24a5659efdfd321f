//! Deterministic simulation of whole clusters.
//!
//! The nodes are the real ones (`rowship::node`), on the simulated edge (`rowship::edge::sim`).
//! Everything random comes from a seed, all time is virtual, and everything runs on one thread:
//! the same seed gives the same run, bit for bit.
//!
//! - [`cluster`]: machines, and the processes on them; start, crash, promote.
//! - [`client`]: connections of clients, through the simulated network, speaking RESP.
//! - [`workload`]: what clients do; [`history`]: what they were told.
//! - [`faults`]: what goes wrong, and the operator who deals with it.
//! - [`ledger`]: every committed byte and row; [`probe`]: what must hold at every moment;
//!   [`checker`]: what must hold of what clients were told.
//! - [`run`]: one seed from start to verdict. [`scenario`]: situations as text files.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod faults;
pub mod history;
pub mod ledger;
pub mod operator;
pub mod probe;
pub mod run;
pub mod scenario;
pub mod workload;

//! Measures rowship, its peers, and what bounds all of them on this machine.
//!
//! A scenario (`scenarios/`) runs loads (`load`) on systems (`system`: `node` is rowship, `peers/`
//! the others), and gives figures (`figure`) to a `sink`. `report` makes a page of what sinks kept.

pub mod client;
pub mod clock;
pub mod figure;
pub mod load;
pub mod node;
pub mod peers;
pub mod process;
pub mod rows;
pub mod scenarios;
pub mod sink;
pub mod system;

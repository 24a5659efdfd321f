//! Measures rowship, its peers, and what bounds all of them on this machine.
//!
//! A scenario (`scenarios/`) runs loads (`load`) on systems (`system`: `node` is rowship, `peers/`
//! the others), and gives figures (`figure`) to a `sink`. `kept` reads them back: for `goals`,
//! which says what was reached, and for `report`, which makes a page.

pub mod client;
pub mod clock;
pub mod figure;
pub mod goals;
pub mod kept;
pub mod load;
pub mod node;
pub mod number;
pub mod peers;
pub mod process;
pub mod report;
pub mod rows;
pub mod scenarios;
pub mod sink;
pub mod system;

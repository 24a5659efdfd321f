//! Formats and protocol of rowship, free of input and output.
//!
//! Invariant: this crate has no clock, no sockets, no files and no threads. Time and bytes are
//! arguments; what is to be sent, written or waited for are return values. That is what lets the
//! same code run under production's io_uring and under a simulator's virtual time.
//!
//! Formats, inside out: [`value`] (one image) in [`row`] (rows and transactions) in [`frame`]
//! (what the log holds and the wire carries); [`control`] is the body of control frames;
//! [`message`] is what is sent beside frames and never stored. Protocol: [`ack`] (when is a byte
//! committed), [`primary`], [`replica`], [`verify`] (does this stream of bytes hold). [`sim`] is
//! what the simulator needs; it is empty in production.
#![forbid(unsafe_code)]

pub mod ack;
pub mod control;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod hlc;
pub mod message;
pub mod position;
pub mod primary;
pub mod replica;
pub mod row;
pub mod sim;
pub mod value;
pub mod verify;

pub use frame::{FRAME_HEADER_BYTES, FrameBuilder, FrameHeader, FrameKind};
pub use position::{Epoch, EpochHistory, LogId, Lsn, Nanos, Position};

//! What clients did, and what they were told.

use std::cell::{Cell, RefCell};

use rowship_proto::Position;

use crate::ledger::Value;

/// What a client asked for.
#[derive(Clone, Debug)]
pub enum Action {
    /// One transaction that puts this value, which nobody else ever writes, under all these keys.
    Write {
        /// The keys.
        keys: Vec<Vec<u8>>,
        /// The value, as readers will find it.
        value: Value,
    },
    /// INCR.
    Increment {
        /// The counter.
        key: Vec<u8>,
    },
    /// DEL.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// All these rows at once.
    Read {
        /// The keys.
        keys: Vec<Vec<u8>>,
        /// The connection has seen that this write is visible here.
        after: Option<Position>,
    },
    /// In one EXEC: how many rows there are, which ones, and whether each of them exists.
    Census,
    /// WAITPOS, about the write of this number.
    Wait {
        /// The write's place in the history.
        about: usize,
        /// What was asked for.
        token: Position,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing yet.
    Pending,
    /// Done, under the node's ack policy.
    Acked,
    /// The counter's value.
    Number(i64),
    /// The rows.
    Rows(Vec<Option<Value>>),
    /// Refused: it did not happen and never will.
    Refused(String),
    /// Left open, with a token if it was a write.
    Open(Option<Position>),
    /// The answer of WAITPOS.
    Answer(String),
    /// What a census found that does not fit together, if anything.
    Counted(Option<String>),
    /// Nobody knows: the connection broke, or no reply came in time.
    Unknown(String),
}

/// One thing that a client did.
#[derive(Clone, Debug)]
pub struct Op {
    /// The process that was asked.
    pub process: u64,
    /// Whether that was a primary.
    pub on_primary: bool,
    /// The connection.
    pub connection: u64,
    /// What.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// When it was sent: a number that grows with everything that clients send and get.
    pub invoked: u64,
    /// When the reply came.
    pub replied: u64,
}

/// Everything, in the order in which it was sent.
#[derive(Default)]
pub struct History {
    ops: RefCell<Vec<Op>>,
    clock: Cell<u64>,
    next_connection: Cell<u64>,
}

impl History {
    /// A number that grows.
    pub fn tick(&self) -> u64 {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        now
    }

    /// A number for a connection.
    pub fn connection(&self) -> u64 {
        let id = self.next_connection.get() + 1;
        self.next_connection.set(id);
        id
    }

    /// A client is about to send this; returns its place.
    pub fn invoke(&self, process: u64, on_primary: bool, connection: u64, action: Action) -> usize {
        let (outcome, invoked, replied) = (Outcome::Pending, self.tick(), u64::MAX);
        let mut ops = self.ops.borrow_mut();
        ops.push(Op { process, on_primary, connection, action, outcome, invoked, replied });
        ops.len() - 1
    }

    /// The client was told this.
    pub fn reply(&self, at: usize, outcome: Outcome) {
        let replied = self.tick();
        let mut ops = self.ops.borrow_mut();
        (ops[at].outcome, ops[at].replied) = (outcome, replied);
    }

    /// Everything so far.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        self.ops.borrow().clone()
    }
}

//! Scenario `frames`: how fast rows become sealed frames, and how fast frames are verified and
//! their rows checked, against copying and hashing the same bytes in the same run.

use std::hint::black_box;
use std::time::Instant;

use rowship_proto::frame::Seal;
use rowship_proto::hlc::Hlc;
use rowship_proto::row::{Existed, Operation, RowWrite, TableId, append_transaction, key_hash};
use rowship_proto::value::encode_string;
use rowship_proto::verify::{StreamVerifier, check_rows};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameBuilder, FrameKind, LogId, Lsn};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::figure::Figure;
use crate::rows::VALUE_BYTES;

const SCENARIO: &str = "frames";
const LOG: LogId = LogId([11, 12]);
const START: Lsn = Lsn(4096);
const EPOCH: Epoch = Epoch { counter: 1, node_id: 7, nonce: 9 };

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rows in a round.
    pub rows: usize,
    /// Different keys, uniform.
    pub keys: usize,
    /// Rows in a transaction.
    pub transaction_rows: usize,
    /// Bytes of a frame's body at most.
    pub body_bytes_max: usize,
    /// Rounds; each measures everything once, so that a slow moment hits all of it.
    pub rounds: usize,
}

impl Plan {
    /// Settings, for the figures.
    #[must_use]
    pub fn settings(&self) -> Value {
        json!({
            "rows": self.rows,
            "keys": self.keys,
            "key_bytes": 8,
            "value_bytes": VALUE_BYTES,
            "transaction_rows": self.transaction_rows,
            "frame_body_bytes_max": self.body_bytes_max,
            "threads": 1,
        })
    }
}

/// What a run gives.
pub struct Outcome {
    /// All figures.
    pub figures: Vec<Figure>,
    /// XXH3-64 of the whole stream: the same plan gives the same.
    pub result_hash: u64,
}

/// One row to be written.
struct Input {
    key: [u8; 8],
    image: Vec<u8>,
}

/// Runs the scenario.
///
/// # Errors
/// When a frame that was just sealed does not verify.
pub fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    let inputs = inputs(plan);
    let mut stream = Vec::new();
    encode(plan, &inputs, &mut stream);
    let mut copy = vec![0u8; stream.len()];
    let gigabytes = stream.len() as f64 / 1e9;
    let mut seconds: [Vec<f64>; 5] = Default::default();
    for _ in 0..plan.rounds {
        seconds[0].push(timed(|| copy.copy_from_slice(black_box(&stream))));
        black_box(&copy);
        seconds[1].push(timed(|| {
            // In pieces of a frame's size, as frames are.
            stream.chunks(plan.body_bytes_max).for_each(|piece| _ = black_box(xxh3_64(piece)));
        }));
        // Into the same memory again: the first touch of a page is not what is measured.
        seconds[2].push(timed(|| encode(plan, &inputs, &mut stream)));
        for (at, check) in [(3, false), (4, true)] {
            let mut rows = Ok(0);
            seconds[at].push(timed(|| rows = verify(plan, black_box(&stream), check)));
            let rows = rows?;
            anyhow::ensure!(!check || rows == plan.rows as u64, "{rows} rows verified");
        }
    }
    let rate = |figure, unit, amount: f64, at: usize| {
        Figure::new(SCENARIO, figure, unit, seconds[at].iter().map(|s| amount / s).collect())
    };
    let memcpy = rate("memcpy", "GB/s", gigabytes, 0);
    let hash = rate("XXH3", "GB/s", gigabytes, 1);
    let rows = plan.rows as f64 / 1e6;
    let figures = vec![
        rate("encode and seal", "GB/s", gigabytes, 2).with_limit(&memcpy),
        rate("encode and seal, rows", "M rows/s", rows, 2),
        rate("verify", "GB/s", gigabytes, 3).with_limit(&hash),
        rate("verify, rows checked", "GB/s", gigabytes, 4).with_limit(&hash),
        rate("verify, rows checked, rows", "M rows/s", rows, 4),
        memcpy,
        hash,
    ];
    Ok(Outcome { figures, result_hash: xxh3_64(&stream) })
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    // A clock that stood still would make a rate endless.
    start.elapsed().as_secs_f64().max(1e-9)
}

/// Rows with keys from a fixed sequence (SplitMix64): the same in every run.
fn inputs(plan: &Plan) -> Vec<Input> {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let row = |_| {
        let key = (random() % plan.keys as u64).to_be_bytes();
        let value: Vec<u8> = (0..VALUE_BYTES / 8).flat_map(|_| random().to_le_bytes()).collect();
        Input { key, image: encode_string(&value) }
    };
    (0..plan.rows).map(row).collect()
}

/// Encodes all rows into sealed frames, one behind the other; `stream` keeps its memory.
fn encode(plan: &Plan, inputs: &[Input], stream: &mut Vec<u8>) {
    let (seed, table) = (LOG.seed(), TableId(1));
    let mut seal = Seal { committed: START, ..Seal::first(LOG, EPOCH) };
    let mut buffer = vec![0; FRAME_HEADER_BYTES + plan.body_bytes_max];
    let mut lsn = START;
    let mut transactions = inputs.chunks(plan.transaction_rows).peekable();
    stream.clear();
    while transactions.peek().is_some() {
        let mut frame = FrameBuilder::new(buffer, FrameKind::Rows, 0, lsn);
        while let Some(rows) = transactions.peek() {
            let writes: Vec<RowWrite<'_>> = rows
                .iter()
                .map(|row| RowWrite {
                    key_hash: key_hash(seed, table, &row.key),
                    table,
                    operation: Operation::Put,
                    existed: Existed::Unknown,
                    key: &row.key,
                    value: &row.image,
                })
                .collect();
            let fits = rowship_proto::row::transaction_bytes(&writes) <= frame.room_bytes();
            assert!(fits || !frame.is_empty(), "a transaction fits an empty frame");
            if !fits {
                break;
            }
            append_transaction(&mut frame, 7, Hlc(1 << 16), &writes, |_, _| {});
            transactions.next();
        }
        let (header, sealed) = frame.seal(&seal);
        stream.extend_from_slice(&sealed[..header.frame_bytes()]);
        (lsn, seal.chain_previous, buffer) = (header.end(), header.chain(), sealed);
    }
}

/// Verifies the stream, and with `check` the structure, key hashes and images of all rows.
/// Returns the rows checked.
fn verify(plan: &Plan, stream: &[u8], check: bool) -> anyhow::Result<u64> {
    let (seed, body_max) = (LOG.seed(), plan.body_bytes_max);
    let mut verifier = StreamVerifier { seed, body_max, next: START, chain: 0, epoch: Epoch::NONE };
    let (mut rest, mut rows) = (stream, 0);
    while !rest.is_empty() {
        let header = verifier.header(rest)?;
        let (frame, behind) = rest.split_at(header.frame_bytes());
        let body = &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize];
        verifier.accept(&header, body)?;
        if check {
            rows += check_rows(&header, body, seed)?.rows;
        }
        rest = behind;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: Plan =
        Plan { rows: 500, keys: 50, transaction_rows: 3, body_bytes_max: 4096, rounds: 2 };

    #[test]
    fn runs_tiny_and_gives_the_same_hash_every_time() {
        let outcome = run(&TINY).unwrap();
        println!("result hash {:016x}", outcome.result_hash);
        assert_eq!(outcome.result_hash, run(&TINY).unwrap().result_hash);
        assert_ne!(outcome.result_hash, run(&Plan { rows: 501, ..TINY }).unwrap().result_hash);
        assert_eq!(outcome.figures.len(), 7);
    }

    #[test]
    fn a_stream_that_does_not_hold_fails_the_scenario() {
        let mut stream = Vec::new();
        encode(&TINY, &inputs(&TINY), &mut stream);
        assert_eq!(verify(&TINY, &stream, true).unwrap(), 500);
        stream[200] ^= 1;
        assert!(verify(&TINY, &stream, false).is_err());
    }
}

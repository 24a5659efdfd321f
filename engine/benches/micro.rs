//! Instructions, counted under callgrind: the same on a noisy machine, so that a regression shows.
//! `ci/micro.sh` runs them. Each has a limit, 10 % above what it took when it was last looked at:
//! beyond it the run fails. What got faster, or is meant to cost more, moves its limit here.

#![expect(missing_docs, reason = "the macros make public modules")]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use rowship::apply::lane::Lane;
use rowship::apply::memory::MemoryTable;
use rowship::apply::plan::{Share, Window, plan};
use rowship::apply::publish::{Applied, Mark};
use rowship::log::pool::FramePool;
use rowship_proto::frame::Seal;
use rowship_proto::hlc::Hlc;
use rowship_proto::row::{Existed, Operation, RowWrite, TableId, append_transaction, key_hash};
use rowship_proto::value::encode_string;
use rowship_proto::verify::{StreamVerifier, check_rows};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameBuilder, FrameKind, LogId, Lsn};

const LOG: LogId = LogId([11, 12]);
const START: Lsn = Lsn(4096);
const BODY_BYTES_MAX: usize = 64 << 10;
const VALUE_BYTES: usize = 120;
const ROWS: u64 = 10_000;

/// Keys of [`ROWS`] rows in a fixed, scattered order; `keys` of them are different.
fn keys(keys: u64) -> Vec<[u8; 8]> {
    (0..ROWS)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % keys)
        .map(u64::to_be_bytes)
        .collect()
}

/// Rows of these keys as sealed frames, in transactions of so many rows.
fn encode(keys: &[[u8; 8]], transaction_rows: usize) -> Vec<u8> {
    let (seed, table) = (LOG.seed(), TableId(1));
    let mut seal = Seal::first(LOG, Epoch { counter: 1, node_id: 7, nonce: 9 });
    let image = encode_string(&[7; VALUE_BYTES]);
    let mut stream = Vec::with_capacity(4 << 20);
    let (mut lsn, mut buffer) = (START, vec![0; FRAME_HEADER_BYTES + BODY_BYTES_MAX]);
    for some in keys.chunks(300) {
        let mut frame = FrameBuilder::new(buffer, FrameKind::Rows, 0, lsn);
        for rows in some.chunks(transaction_rows) {
            let writes: Vec<RowWrite<'_>> = rows
                .iter()
                .map(|key| RowWrite {
                    key_hash: key_hash(seed, table, key),
                    table,
                    operation: Operation::Put,
                    existed: Existed::Yes,
                    key,
                    value: &image,
                })
                .collect();
            append_transaction(&mut frame, 7, Hlc(1 << 16), &writes, |_, _| {});
        }
        let (header, sealed) = frame.seal(&seal);
        stream.extend_from_slice(&sealed[..header.frame_bytes()]);
        (lsn, seal.chain_previous, buffer) = (header.end(), header.chain(), sealed);
    }
    stream
}

fn stream(different: u64) -> Vec<u8> {
    encode(&keys(different), 100)
}

fn window(different: u64) -> Window {
    let stream = stream(different);
    let end = START.plus(stream.len() as u64);
    Window::new(START, end, vec![Bytes::from(stream)], 1)
}

fn lane(different: u64) -> (Lane<MemoryTable>, Arc<Window>) {
    let applied = Applied::new(Mark { lsn: START, rows: 0 }, Arc::new(|| ()));
    let lane = Lane::new(0, 1, LOG.seed(), Arc::new(MemoryTable::new()), Arc::new(applied));
    (lane, Arc::new(window(different)))
}

fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(config = at_most(8_470_000))]
#[bench::transactions_of_1(keys(ROWS), 1)]
fn encode_ones(keys: Vec<[u8; 8]>, transaction_rows: usize) -> Vec<u8> {
    encode(black_box(&keys), transaction_rows)
}

#[library_benchmark(config = at_most(5_260_000))]
#[bench::transactions_of_100(keys(ROWS), 100)]
fn encode_hundreds(keys: Vec<[u8; 8]>, transaction_rows: usize) -> Vec<u8> {
    encode(black_box(&keys), transaction_rows)
}

#[library_benchmark(config = at_most(3_390_000))]
#[bench::rows(stream(ROWS))]
fn verify(stream: Vec<u8>) -> u64 {
    let (seed, body_max) = (LOG.seed(), BODY_BYTES_MAX);
    let mut verifier = StreamVerifier { seed, body_max, next: START, chain: 0, epoch: Epoch::NONE };
    let (mut rest, mut rows) = (&stream[..], 0);
    while !rest.is_empty() {
        let header = verifier.header(rest).expect("just sealed");
        let (frame, behind) = rest.split_at(header.frame_bytes());
        let body = &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize];
        verifier.accept(&header, body).expect("just sealed");
        rows += check_rows(&header, body, seed).expect("just sealed").rows;
        rest = behind;
    }
    assert_eq!(rows, ROWS);
    rows
}

// All rows have keys of their own.
#[library_benchmark(config = at_most(7_260_000))]
#[bench::different_keys(window(u64::MAX))]
fn plan_window(window: Window) -> usize {
    plan(black_box(&window), Share { index: 0, count: 1 }, LOG.seed()).expect("valid").rows.len()
}

// Each key comes a hundred times: its last image stays.
#[library_benchmark(config = at_most(11_170_000))]
#[bench::hundred_keys(window(100))]
fn coalesce_window(window: Window) -> usize {
    let rows =
        plan(black_box(&window), Share { index: 0, count: 1 }, LOG.seed()).expect("valid").rows;
    assert_eq!(rows.len(), 100);
    rows.len()
}

// A lane's whole turn, into the plain table.
#[library_benchmark(config = at_most(34_520_000))]
#[bench::different_keys(lane(u64::MAX))]
fn turn((mut lane, window): (Lane<MemoryTable>, Arc<Window>)) -> bool {
    lane.turn(black_box(&window)).expect("valid").is_some()
}

fn pool() -> FramePool {
    FramePool::new(4, BODY_BYTES_MAX, || ()).expect("memory")
}

// Buffers out of the pool, shared as readers have them, and back.
#[library_benchmark(config = at_most(4_770_000))]
#[bench::ten_thousand(pool())]
fn frame_ring(pool: FramePool) -> usize {
    for _ in 0..ROWS {
        let frozen = pool.take().expect("all come back").freeze(4096);
        drop(black_box((frozen.clone(), frozen)));
    }
    pool.free()
}

library_benchmark_group!(
    name = micro;
    benchmarks =
        encode_ones, encode_hundreds, verify, plan_window, coalesce_window, turn, frame_ring
);

main!(library_benchmark_groups = micro);

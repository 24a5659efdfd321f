//! Each peer that is installed, tiny: it takes writes, is left, comes back and catches up.

use std::time::{Duration, Instant};

use bench::load::{self, Input, Span};
use bench::node::await_number;
use bench::peers::{Kind, Peer, mariadb, postgres, redis, settle};
use bench::rows::{Keys, MARKER_KEY};
use tokio::task::LocalSet;

const TIMEOUT: Duration = Duration::from_secs(60);
const KEYS: u64 = 200;
const BACKLOG: u64 = 300;

fn input(transaction_rows: usize) -> Input {
    Input { keys: KEYS, pick: Keys::Uniform, transaction_rows }
}

/// Loads until a transaction ends: on a disk that others keep busy a single one can take longer
/// than a load.
async fn takes_writes<P: Peer>(peer: &P, clients: usize, depth: usize, input: Input) {
    let span = Span { warm_up: Duration::ZERO, measured: Duration::from_millis(300) };
    let began = Instant::now();
    while load::closed(peer, clients, depth, input, span).await.unwrap().transactions == 0 {
        assert!(began.elapsed() < TIMEOUT, "{}: no transaction in {TIMEOUT:?}", peer.name());
    }
}

async fn try_peer<P: Peer>(mode: P::Mode, catches_up: bool, ships: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let mut peer = P::start(scratch.path(), mode).await.unwrap();
    load::preload(&peer, KEYS).await.unwrap();
    for (clients, depth, rows) in [(2, 1, 1), (1, 1, 100), (1, 4, 1)] {
        takes_writes(&peer, clients, depth, input(rows)).await;
    }
    settle(&peer, 7, TIMEOUT).await.unwrap();
    if ships {
        peer.begin_ship().await.unwrap();
    }
    if catches_up {
        for (number, rows) in [(8, 1), (9, 100)] {
            peer.detach().await.unwrap();
            load::backlog(&peer, BACKLOG / rows, input(rows as usize), number).await.unwrap();
            let began: Instant = peer.attach().await.unwrap();
            let mut reader = peer.reader(0).await.unwrap();
            await_number(&mut reader, MARKER_KEY, number, TIMEOUT).await.unwrap();
            println!("{}: caught up in {:?}", peer.name(), began.elapsed());
        }
    }
    if ships {
        for _ in 0..2 {
            let (bytes, taken) = peer.ship(scratch.path()).await.unwrap();
            println!("{}: shipped {bytes} bytes in {taken:?}", peer.name());
            assert!(bytes > 2 * BACKLOG * 128);
        }
        peer.end_ship().await.unwrap();
    }
    peer.stop().await.unwrap();
}

/// Runs it where the peer is installed.
fn run(kind: Kind, test: impl Future<Output = ()>) {
    if let Some(missing) = kind.missing() {
        println!("{missing}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn redis_catches_up() {
    run(Kind::Redis, async {
        try_peer::<redis::Redis>(redis::Mode::Always, true, false).await;
        try_peer::<redis::Redis>(redis::Mode::EverySecond, true, false).await;
        try_peer::<redis::Redis>(redis::Mode::AlwaysAndWait, false, false).await;
    });
}

#[test]
fn postgresql_streaming_catches_up_and_ships() {
    run(Kind::Postgres, async {
        try_peer::<postgres::Postgres>(postgres::Mode::PhysicalAsync, true, true).await;
    });
}

#[test]
fn postgresql_commits_on_both() {
    run(Kind::Postgres, async {
        try_peer::<postgres::Postgres>(postgres::Mode::PhysicalSync, false, false).await;
    });
}

#[test]
fn a_postgresql_subscriber_catches_up() {
    run(Kind::Postgres, async {
        try_peer::<postgres::Postgres>(postgres::Mode::LogicalAsync, true, false).await;
    });
}

#[test]
fn mariadb_catches_up_and_ships() {
    run(Kind::Mariadb, async {
        try_peer::<mariadb::Mariadb>(mariadb::Mode::Async, true, true).await;
    });
}

#[test]
fn mariadb_commits_on_both() {
    run(Kind::Mariadb, async {
        try_peer::<mariadb::Mariadb>(mariadb::Mode::SemiSync, false, false).await;
    });
}

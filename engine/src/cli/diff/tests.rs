use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rowship_proto::value::{encode_columns, encode_string};

use super::super::fake_server::{FakeServer, bulk};
use super::compare::WAITING_ROWS_MAX;
use super::*;

type Rows = Vec<(String, Vec<u8>)>;

fn rows(keys: impl IntoIterator<Item = u32>) -> Rows {
    keys.into_iter().map(|key| (format!("t:{key}"), encode_string(b"x"))).collect()
}

fn compare(a: &Rows, b: &Rows) -> (Differences, usize) {
    let mut sides = [a.iter(), b.iter()];
    let mut comparison = Comparison::default();
    let mut steps = 0;
    while let Some(side) = comparison.wants() {
        steps += 1;
        match sides[side].next() {
            Some((key, image)) => {
                let key = Bytes::copy_from_slice(key.as_bytes());
                comparison.add(side, key, Bytes::copy_from_slice(image));
            }
            None => comparison.end(side),
        }
    }
    (comparison.finish(), steps)
}

/// A node with these rows, in pages of `page`, at a position that `moves` with every page.
fn node(rows: Rows, page: usize, moves: bool) -> FakeServer {
    let lsn = AtomicU64::new(4096);
    FakeServer::start(move |command| {
        let lsn = lsn.fetch_add(u64::from(moves) * 8, Ordering::Relaxed);
        match &command[0][..] {
            b"ROWSHIP.STATUS" => {
                bulk(format!(r#"{{"log": {{"epoch": "1-1-1", "visible": {}}}}}"#, lsn.min(4096)))
            }
            _ => {
                let cursor: usize = std::str::from_utf8(&command[1]).unwrap().parse().unwrap();
                let end = (cursor + page).min(rows.len());
                let next = if end == rows.len() { 0 } else { end };
                let mut reply = b"*3\r\n".to_vec();
                reply.extend(bulk(format!("1-1-1:{lsn}")));
                reply.extend(bulk(next.to_string()));
                reply.extend(format!("*{}\r\n", 2 * (end - cursor)).into_bytes());
                for (key, image) in &rows[cursor..end] {
                    reply.extend(bulk(key));
                    reply.extend(bulk(image));
                }
                reply
            }
        }
    })
}

const TIMEOUT: Duration = Duration::from_millis(200);

#[test]
fn equal_tables_are_identical_whatever_their_pages() {
    let (a, b) = (node(rows(0..100), 7, false), node(rows(0..100), 30, false));
    let outcome = diff(&a.address, &b.address, TIMEOUT).unwrap();
    assert!(outcome.differences.none());
    assert_eq!((outcome.rows, outcome.position.as_str()), ([100, 100], "1-1-1:4096"));
    assert!(outcome.text("a", "b").contains("identical: 100 rows at position 1-1-1:4096"));
}

#[test]
fn every_kind_of_difference_is_found_and_named() {
    let mut a = rows(0..50);
    let mut b = rows(1..50);
    b.insert(20, ("t:extra".to_owned(), encode_string(b"y")));
    a[30].1 = encode_columns(&[(b"year", b"1999"), (b"seats", b"149")]);
    b[30].1 = encode_columns(&[(b"year", b"2000"), (b"engine", b"jet")]);
    b[30].0 = a[30].0.clone();
    let (a, b) = (node(a, 7, false), node(b, 30, false));
    let outcome = diff(&a.address, &b.address, TIMEOUT).unwrap();
    let found = &outcome.differences;
    assert_eq!(found.only[0], (1, vec!["t:0".to_owned()]));
    assert_eq!(found.only[1], (1, vec!["t:extra".to_owned()]));
    assert_eq!(found.changed, (1, vec!["t:30".to_owned()]));
    let text = outcome.text("a", "b");
    for expected in [
        "only in a: 1 rows\n  t:0",
        "only in b: 1 rows\n  t:extra",
        "year: '1999' | '2000'",
        "seats: '149' | missing",
        "engine: missing | 'jet'",
    ] {
        assert!(text.contains(expected), "no '{expected}' in\n{text}");
    }
}

#[test]
fn many_missing_rows_are_counted_and_few_are_listed() {
    let (differences, _) = compare(&rows(0..1000), &rows((0..1000).filter(|key| key % 2 == 0)));
    assert_eq!((differences.only[0].0, differences.only[1].0), (500, 0));
    assert_eq!(differences.only[0].1.len(), 20);
    assert!(differences.text("a", "b").contains("and 480 more"));
    let (differences, _) = compare(&rows(0..0), &rows(0..3));
    assert_eq!(differences.only[1].0, 3);
}

#[test]
fn tables_that_share_nothing_do_not_fill_the_memory() {
    let many = u32::try_from(WAITING_ROWS_MAX).unwrap();
    let (differences, steps) = compare(&rows(0..many), &rows(many..2 * many));
    assert!(differences.cut_short && !differences.none());
    assert!(steps <= WAITING_ROWS_MAX + 1);
    assert!(differences.text("a", "b").contains("stopped: more than 200,000 rows"));
}

#[test]
fn writes_during_the_dump_start_it_over_and_are_named_in_the_end() {
    // Both move in step, so that only the difference between pages shows it.
    let (a, b) = (node(rows(0..100), 7, true), node(rows(0..100), 7, true));
    let failure = diff(&a.address, &b.address, TIMEOUT).unwrap_err();
    assert!(failure.message.contains("writes went on during 3 comparisons"), "{failure}");
    assert_eq!(failure.code, 1);
}

#[test]
fn nodes_at_different_positions_are_waited_for_but_not_for_ever() {
    let visible = Arc::new(AtomicU64::new(1));
    let shared = visible.clone();
    let behind = FakeServer::start(move |_| {
        let visible = shared.fetch_add(1, Ordering::Relaxed);
        bulk(format!(r#"{{"log": {{"epoch": "1", "visible": {}}}}}"#, visible.min(5)))
    });
    let at = |visible| {
        FakeServer::start(move |_| {
            bulk(format!(r#"{{"log": {{"epoch": "1", "visible": {visible}}}}}"#))
        })
    };
    let connect = |server: &FakeServer| Client::connect(&server.address).unwrap();
    let ahead = at(5);
    let mut nodes = [connect(&behind), connect(&ahead)];
    assert_eq!(wait_for_same_position(&mut nodes, TIMEOUT).unwrap(), Value::from(5));
    let further = at(9);
    let mut nodes = [connect(&ahead), connect(&further)];
    let failure = wait_for_same_position(&mut nodes, TIMEOUT).unwrap_err();
    assert!(failure.message.contains("nothing moves") && failure.message.contains("visible 9"));
}

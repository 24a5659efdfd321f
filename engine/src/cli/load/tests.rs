use std::io::Write;

use bytes::Bytes;

use super::super::fake_server::FakeServer;
use super::*;

fn plan(to: &str, key: &[&str]) -> LoadPlan {
    let columns = key.iter().map(|name| (*name).to_owned()).collect();
    LoadPlan {
        to: to.to_owned(),
        key: KeyPlan { table: "t".to_owned(), columns, separator: ":".to_owned() },
        on_error: OnError::Stop,
        batch: 3,
        connections: 1,
        transaction: false,
        ack_policy: None,
    }
}

fn accepting() -> FakeServer {
    FakeServer::start(|_| b":1\r\n".to_vec())
}

#[test]
fn every_line_becomes_one_row_in_order() {
    let server = accepting();
    let text = (0..10).map(|n| format!("{n},v{n}\n")).collect::<String>();
    let (result, summary) =
        load(format!("k,v\n{text}").as_bytes(), &plan(&server.address, &["k"]), None);
    result.unwrap();
    assert_eq!((summary.rows, summary.skipped, summary.errors), (10, 0, 0));
    let commands = server.commands("HSET");
    assert_eq!(commands[9], ["HSET", "t:9", "k", "9", "v", "v9"]);
    assert_eq!(commands.len(), 10);
}

#[test]
fn gzip_is_read_as_what_it_holds() {
    let path = std::env::temp_dir().join(format!("rowship-load-{}.csv.gz", std::process::id()));
    let file = File::create(&path).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    encoder.write_all(b"k,v\na,1\n").unwrap();
    encoder.finish().unwrap();
    let (mut input, read, total) = open(&path).unwrap();
    let mut text = String::new();
    input.read_to_string(&mut text).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(text, "k,v\na,1\n");
    assert_eq!(read.load(Ordering::Relaxed), total);
}

#[test]
fn stop_at_a_bad_line_keeps_the_rows_before_it() {
    let server = accepting();
    let input = &b"k,v\na,1\nb\nc,3\n"[..];
    let (result, summary) = load(input, &plan(&server.address, &["k"]), None);
    let failure = result.unwrap_err();
    assert_eq!(failure.code, 1);
    assert_eq!(failure.message, "line 3: 1 columns, the header has 2");
    assert_eq!(summary.rows, 1);
    assert_eq!(server.commands("HSET").len(), 1);
}

#[test]
fn skipped_lines_are_counted() {
    let server = accepting();
    let plan = LoadPlan { on_error: OnError::Skip, ..plan(&server.address, &["k"]) };
    let (result, summary) = load(&b"k,v\na,1\nb\n,\nc,3\n"[..], &plan, None);
    result.unwrap();
    assert_eq!((summary.rows, summary.skipped), (2, 2));
}

#[test]
fn error_reply_stops_with_its_line_and_text() {
    let server = FakeServer::start(|command: &[Bytes]| match &command[1][..] {
        b"t:e" => b"-READONLY this is a replica\r\n".to_vec(),
        _ => b":1\r\n".to_vec(),
    });
    let text = "k,v\na,1\nb,1\nc,1\nd,1\ne,1\nf,1\ng,1\nh,1\ni,1\nj,1\nk,1\nl,1\nm,1\n";
    let (result, summary) = load(text.as_bytes(), &plan(&server.address, &["k"]), None);
    let failure = result.unwrap_err();
    assert_eq!(failure.code, 1);
    assert!(failure.message.ends_with("refused line 6: READONLY this is a replica"), "{failure}");
    assert_eq!((summary.rows, summary.errors), (5, 1));
}

#[test]
fn what_is_no_node_is_named_with_the_lines_in_doubt() {
    let server = FakeServer::start(|_| b"HTTP/1.1 400 Bad Request\r\n".to_vec());
    let (result, _) = load(&b"k\na\n"[..], &plan(&server.address, &["k"]), None);
    let failure = result.unwrap_err();
    assert_eq!(failure.code, 9);
    assert!(failure.message.starts_with("lines 2 to 2: "), "{failure}");
    assert!(failure.message.contains("does not speak RESP"), "{failure}");
}

#[test]
fn nobody_listening_is_a_code_of_its_own() {
    let (result, _) = load(&b"k\na\n"[..], &plan("127.0.0.1:1", &["k"]), None);
    let failure = result.unwrap_err();
    assert_eq!(failure.code, 9);
    assert!(failure.message.contains("127.0.0.1:1"), "{failure}");
}

#[test]
fn batches_become_transactions_and_exec_errors_count() {
    let mut transactions = 0;
    let server = FakeServer::start(move |command: &[Bytes]| match &command[0][..] {
        b"MULTI" => b"+OK\r\n".to_vec(),
        b"EXEC" => {
            transactions += 1;
            if transactions == 2 {
                b"-EXECABORT too large\r\n".to_vec()
            } else {
                b"*0\r\n".to_vec()
            }
        }
        _ => b"+QUEUED\r\n".to_vec(),
    });
    let plan = LoadPlan { transaction: true, ..plan(&server.address, &["k"]) };
    let (result, summary) = load(&b"k\na\nb\nc\nd\ne\n"[..], &plan, None);
    let failure = result.unwrap_err();
    assert!(failure.message.contains("lines 5 to 6: EXECABORT too large"), "{failure}");
    assert_eq!(summary.rows, 3);
}

#[test]
fn error_inside_a_transaction_counts() {
    let server = FakeServer::start(|command: &[Bytes]| match &command[0][..] {
        b"EXEC" => b"*2\r\n:1\r\n-WRONGTYPE no\r\n".to_vec(),
        _ => b"+OK\r\n".to_vec(),
    });
    let plan = LoadPlan { transaction: true, ..plan(&server.address, &["k"]) };
    let (result, summary) = load(&b"k\na\nb\n"[..], &plan, None);
    let failure = result.unwrap_err();
    assert!(failure.message.contains("lines 2 to 3: WRONGTYPE no"), "{failure}");
    assert_eq!((summary.rows, summary.errors), (0, 1));
}

#[test]
fn one_key_stays_on_one_connection() {
    let server = accepting();
    let plan = LoadPlan {
        connections: 4,
        batch: 1,
        ack_policy: Some("async".to_owned()),
        ..plan(&server.address, &["k"])
    };
    let text: String = (0..400).map(|n| format!("{},{n}\n", n % 5)).collect();
    let (result, summary) = load(format!("k,v\n{text}").as_bytes(), &plan, None);
    result.unwrap();
    assert_eq!(summary.rows, 400);
    assert_eq!(server.commands("ROWSHIP.ACK"), vec![vec!["ROWSHIP.ACK", "async"]; 4]);
    for key in 0..5 {
        let of_key = server.commands("HSET").into_iter().filter(|c| c[1] == format!("t:{key}"));
        let values: Vec<u32> = of_key.map(|c| c[5].parse().unwrap()).collect();
        assert!(values.len() == 80 && values.is_sorted(), "{values:?}");
    }
}

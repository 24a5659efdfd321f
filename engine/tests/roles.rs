//! Who may be primary of what: roles are stored, promotions begin a new epoch, copies and old
//! primaries are refused by replicas, uncommitted tails are cut without a trace.

mod support;

use std::path::Path;
use std::process::Command;

use rowship::cli::client::Client;
use rowship::cli::reply::Reply;
use support::{Node, assert_identical, free_address, rowship};

fn primary(scratch: &Path, name: &str, flags: &[&str]) -> Node {
    let mut node = Node::primary(scratch, name, flags);
    node.start();
    node
}

fn replica(scratch: &Path, name: &str, of: &Node) -> Node {
    let mut node = Node::replica(scratch, name, of, &["--reconnect-ms", "20"]);
    node.start();
    node
}

/// Starts a node that must refuse: its exit code and what it said.
fn refused(node: &mut Node) -> (Option<i32>, String) {
    let before = node.log().len();
    node.spawn();
    let status = node.wait_for_end();
    (status.code(), node.log()[before..].to_owned())
}

fn get(node: &Node, key: &str) -> Option<String> {
    node.call(&["GET", key]).text()
}

fn set(node: &Node, key: &str, value: &str) {
    node.client().ask(&["SET", key, value]).unwrap();
}

fn appended(node: &Node) -> u64 {
    node.status()["log"]["appended"].as_u64().unwrap()
}

fn epoch(node: &Node) -> String {
    node.status()["log"]["epoch"].as_str().unwrap().to_owned()
}

/// Makes the directory of a stopped replica a primary's, and starts it as one.
fn promote(node: &mut Node, flags: &[&str]) {
    let (code, out, err) = rowship(&["promote", node.directory.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{err}");
    node.lead();
    node.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    node.start();
}

/// Waits until `node` is refused by the primary that it is pointed at, and returns the reason.
fn refusal(node: &Node) -> String {
    let status = node.until("refused", |status| status["upstream"]["state"] == "refused");
    status["upstream"]["last_error"].as_str().unwrap().to_owned()
}

fn streaming(node: &Node) {
    node.until("streaming", |status| status["upstream"]["state"] == "streaming");
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}

/// A connection whose writes are answered at once, committed or not.
fn hasty(node: &Node) -> Client {
    let mut client = node.client();
    client.ask(&["ROWSHIP.ACK", "memory"]).unwrap();
    client
}

fn token(client: &mut Client) -> String {
    let Reply::Array(parts) = client.ask(&["ROWSHIP.POSITION"]).unwrap() else { panic!() };
    parts[0].text().unwrap()
}

fn fate(node: &Node, token: &str) -> String {
    let Reply::Array(parts) = node.call(&["ROWSHIP.WAITPOS", token, "20000"]) else { panic!() };
    parts[0].text().unwrap()
}

#[test]
fn a_directory_keeps_its_role_and_says_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let mut first = primary(scratch.path(), "primary", &[]);
    let mut second = replica(scratch.path(), "r1", &first);
    set(&first, "k", "v");
    second.catch_up_with(&first);
    let (code, _, err) = rowship(&["promote", second.directory.to_str().unwrap()]);
    assert_eq!(code, 4, "a running node is not promoted: {err}");
    let address = first.replication_address();
    second.stop();
    first.stop();

    second.lead();
    let (code, said) = refused(&mut second);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("--replica-of") && said.contains("rowship promote"), "{said}");

    let (code, _, err) = rowship(&["promote", first.directory.to_str().unwrap()]);
    assert_eq!(code, 4, "a primary is not promoted: {err}");
    first.follow(&address);
    let (code, said) = refused(&mut first);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("belongs to a primary"), "{said}");

    // Neither refusal has changed anything.
    first.lead();
    first.start();
    second.follow(&first.replication_address());
    second.start();
    set(&first, "k", "w");
    second.catch_up_with(&first);
    assert_eq!(get(&second, "k").as_deref(), Some("w"));
}

#[test]
fn a_promoted_replica_leads_and_the_old_primary_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut old = primary(scratch.path(), "old", &[]);
    let mut r1 = replica(scratch.path(), "r1", &old);
    let mut r2 = replica(scratch.path(), "r2", &old);
    for row in 0..300 {
        set(&old, &format!("rows:{row}"), &row.to_string());
    }
    r1.catch_up_with(&old);
    r2.catch_up_with(&old);
    let epoch_before = epoch(&old);
    old.kill();
    r1.stop();
    r2.kill();
    promote(&mut r1, &[]);
    let counter = |epoch: &str| epoch.split('.').next().unwrap().to_owned();
    assert_ne!(counter(&epoch(&r1)), counter(&epoch_before), "{}", epoch(&r1));
    r2.follow(&r1.replication_address());
    r2.start();
    set(&r1, "after", "promotion");
    r2.catch_up_with(&r1);
    assert_eq!(get(&r2, "after").as_deref(), Some("promotion"));
    assert_eq!(get(&r2, "rows:299").as_deref(), Some("299"));
    assert_identical(&r1, &r2);

    // The old primary knows nothing of that and goes on; nobody follows it.
    old.start();
    set(&old, "after", "the end");
    let end = appended(&r2);
    r2.stop();
    r2.follow(&old.replication_address());
    r2.start();
    let why = refusal(&r2);
    assert!(why.contains("epoch"), "{why}");
    assert_eq!(appended(&r2), end);
    assert_eq!(get(&r2, "after").as_deref(), Some("promotion"));
    r2.stop();
    r2.follow(&r1.replication_address());
    r2.start();
    set(&r1, "after", "all");
    r2.catch_up_with(&r1);
    assert_identical(&r1, &r2);
    assert_eq!(r2.verify_log().0, 0);
}

#[test]
fn a_copied_primary_that_writes_the_same_epoch_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut original = primary(scratch.path(), "original", &[]);
    let mut follower = replica(scratch.path(), "r1", &original);
    set(&original, "k", "before");
    follower.catch_up_with(&original);
    original.stop();
    let mut twin = Node::primary(scratch.path(), "twin", &[]);
    copy(&original.directory, &twin.directory);
    original.start();
    twin.start();
    follower.stop();
    follower.follow(&original.replication_address());
    follower.start();
    set(&original, "k", "original");
    set(&twin, "k", "twin");
    follower.catch_up_with(&original);
    let end = appended(&follower);

    follower.stop();
    follower.follow(&twin.replication_address());
    follower.start();
    let why = refusal(&follower);
    assert!(why.contains("copy"), "{why}");
    let status = follower.status();
    let events = status["events"].to_string();
    assert!(events.contains("copy"), "{events}");
    assert_eq!(appended(&follower), end, "nothing of the twin is written");
    assert_eq!(get(&follower, "k").as_deref(), Some("original"));
    let seen = twin.log();
    assert!(seen.contains("ForkedEpoch") || seen.contains("copy"), "{seen}");

    follower.stop();
    follower.follow(&original.replication_address());
    follower.start();
    streaming(&follower);
    set(&original, "k", "again");
    follower.catch_up_with(&original);
    assert_identical(&original, &follower);
}

#[test]
fn a_primary_restored_from_an_older_copy_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut original = primary(scratch.path(), "original", &[]);
    let mut follower = replica(scratch.path(), "r1", &original);
    set(&original, "k", "old");
    follower.catch_up_with(&original);
    original.stop();
    let mut restored = Node::primary(scratch.path(), "restored", &[]);
    copy(&original.directory, &restored.directory);
    for round in 0..3 {
        original.start();
        set(&original, "k", &format!("round {round}"));
        follower.stop();
        follower.follow(&original.replication_address());
        follower.start();
        follower.catch_up_with(&original);
        original.stop();
    }
    let end = appended(&follower);
    // The restored one catches up in epochs, one per start, and passes the replica's: by then
    // their logs have parted below what the replica shows.
    for start in 0..5 {
        restored.start();
        set(&restored, "k", "restored");
        follower.stop();
        follower.follow(&restored.replication_address());
        follower.start();
        let why = refusal(&follower);
        assert!(!why.is_empty(), "start {start}");
        assert_eq!(appended(&follower), end, "start {start}: {why}");
        assert_eq!(get(&follower, "k").as_deref(), Some("round 2"), "start {start}: {why}");
        restored.stop();
    }
    assert_eq!(follower.verify_log().0, 0);
}

/// Segment files that a node holds a descriptor of.
fn segments_open(node: &Node) -> usize {
    let all = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().flatten();
    let targets = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("segment-")).count()
}

/// The files of written segments are closed; a cut needs one of them again.
#[test]
fn a_running_replica_cuts_its_tail_back_into_a_segment_that_it_had_closed() {
    let scratch = tempfile::tempdir().unwrap();
    let address = free_address();
    let listen = ["--replication-listen", address.as_str()];
    let mut old =
        primary(scratch.path(), "old", &[&listen[..], &["--ack", "semi-sync ANY 2"]].concat());
    let ahead = replica(scratch.path(), "ahead", &old);
    let mut behind = replica(scratch.path(), "behind", &old);
    let filler = "x".repeat(400);
    let segment_bytes = old.status()["log"]["segment_bytes"].as_u64().unwrap();
    // Several segments, and most of one more.
    let mut row = 0;
    while appended(&old) < 8 * segment_bytes || appended(&old) % segment_bytes < segment_bytes / 2 {
        set(&old, &format!("rows:{}", row % 120), &filler);
        row += 1;
    }
    ahead.catch_up_with(&old);
    behind.catch_up_with(&old);
    for node in [&old, &ahead, &behind] {
        let open = segments_open(node);
        // The one that is written, the next one, and one that has just been left.
        assert!((1..=3).contains(&open), "{}: {open} segments are open", node.name);
    }
    behind.stop();
    let committed = appended(&old);
    let mut client = hasty(&old);
    for row in 0..80 {
        client.ask(&["SET", &format!("rows:{row}"), &format!("tail {filler}")]).unwrap();
    }
    let goal = appended(&old);
    assert!(goal / segment_bytes > committed / segment_bytes, "the tail reaches into another");
    ahead.until("received", |status| status["log"]["durable"].as_u64().unwrap() >= goal);
    old.kill();
    promote(&mut behind, &[&listen[..], &["--ack", "async"]].concat());
    for row in 0..400 {
        set(&behind, &format!("rows:{}", row % 120), "new");
    }
    ahead.catch_up_with(&behind);
    let events = ahead.status()["events"].to_string();
    assert!(events.contains("cut the uncommitted tail"), "{events}");
    assert_identical(&behind, &ahead);
    for node in [&ahead, &behind] {
        assert_eq!(node.verify_log().0, 0, "{:?}", node.verify_log());
        assert!(segments_open(node) <= 3, "{}: too many are open", node.name);
    }
}

#[test]
fn a_tail_that_was_never_committed_is_cut_without_a_trace() {
    let scratch = tempfile::tempdir().unwrap();
    let mut old = primary(scratch.path(), "old", &["--ack", "semi-sync ANY 2"]);
    let mut ahead = replica(scratch.path(), "ahead", &old);
    let mut behind = replica(scratch.path(), "behind", &old);
    let filler = "x".repeat(400);
    for row in 0..120 {
        set(&old, &format!("rows:{row}"), &filler);
    }
    ahead.catch_up_with(&old);
    behind.catch_up_with(&old);
    behind.stop();
    // Only one of two replicas is left: nothing more commits, but it is shipped. The tail defines
    // tables, overwrites rows, deletes some, and reaches into another segment.
    let mut client = hasty(&old);
    for row in 0..70 {
        client.ask(&["SET", &format!("rows:{row}"), &format!("tail {filler}")]).unwrap();
    }
    client.ask(&["DEL", "rows:80", "rows:81"]).unwrap();
    client.ask(&["SET", "ghosts:1", "boo"]).unwrap();
    let lost = token(&mut client);
    let goal = appended(&old);
    ahead.until("received", |status| status["log"]["durable"].as_u64().unwrap() >= goal);
    let unchanged = |node: &Node| {
        assert_eq!(get(node, "rows:0").as_deref(), Some(filler.as_str()), "{}", node.name);
        assert!(get(node, "rows:80").is_some(), "{}", node.name);
        assert_eq!(get(node, "ghosts:1"), None, "{}", node.name);
    };
    unchanged(&ahead);
    old.kill();
    ahead.kill();
    promote(&mut behind, &["--ack", "async"]);
    // The new primary's first new table takes the number that the tail had given to `ghosts`.
    set(&behind, "people:1", "alive");
    set(&behind, "rows:1", "new");
    ahead.follow(&behind.replication_address());
    ahead.start();
    ahead.catch_up_with(&behind);
    let events = ahead.status()["events"].to_string();
    assert!(events.contains("cut the uncommitted tail"), "{events}");
    unchanged(&ahead);
    assert_eq!(get(&ahead, "people:1").as_deref(), Some("alive"));
    assert_eq!(fate(&ahead, &lost), "lost");
    assert_eq!(fate(&behind, &lost), "lost");
    assert_identical(&behind, &ahead);
    assert_eq!(ahead.verify_log().0, 0, "{:?}", ahead.verify_log());
    // And the cut survives a crash.
    ahead.kill();
    ahead.start();
    streaming(&ahead);
    unchanged(&ahead);
    set(&behind, "rows:2", "newer");
    ahead.catch_up_with(&behind);
    assert_identical(&behind, &ahead);
}

#[test]
fn what_a_primary_never_shipped_dies_with_it_when_a_replica_is_promoted() {
    let scratch = tempfile::tempdir().unwrap();
    let mut old = primary(scratch.path(), "old", &["--ack", "semi-sync ANY 1"]);
    let mut heir = replica(scratch.path(), "heir", &old);
    set(&old, "k", "acknowledged");
    heir.catch_up_with(&old);
    heir.stop();
    let mut client = hasty(&old);
    client.ask(&["SET", "k", "never shipped"]).unwrap();
    let lost = token(&mut client);
    // A plain read of another connection shows only what is committed.
    assert_eq!(get(&old, "k").as_deref(), Some("acknowledged"));
    old.kill();
    promote(&mut heir, &["--ack", "async"]);
    assert_eq!(get(&heir, "k").as_deref(), Some("acknowledged"));
    set(&heir, "k", "new");
    assert_eq!(fate(&heir, &lost), "lost");
    old.follow(&heir.replication_address());
    let (code, said) = refused(&mut old);
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(get(&heir, "k").as_deref(), Some("new"));
}

#[test]
fn acknowledged_rows_are_not_hidden_while_a_restarted_primary_waits_for_replicas() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = primary(scratch.path(), "primary", &["--ack", "semi-sync ANY 1"]);
    let mut follower = replica(scratch.path(), "r1", &node);
    set(&node, "k", "old");
    set(&node, "k", "acknowledged");
    follower.kill();
    node.kill();
    node.start();
    // Whether the last write was committed cannot be known before a replica is back. A read must
    // not answer with the image before it meanwhile: it waits.
    let mut client = node.client();
    client.queue(&["GET", "k"]);
    client.flush().unwrap();
    follower.follow(&node.replication_address());
    follower.start();
    assert_eq!(client.receive().unwrap().text().as_deref(), Some("acknowledged"));
    follower.catch_up_with(&node);
    assert_eq!(get(&follower, "k").as_deref(), Some("acknowledged"));
}

#[test]
fn the_second_of_two_replicas_with_one_name_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), "primary", &[]);
    let first = replica(scratch.path(), "same", &node);
    streaming(&first);
    let other = tempfile::tempdir().unwrap();
    let second = replica(other.path(), "same", &node);
    let why = refusal(&second);
    assert!(why.contains("'same'") && why.contains("--name"), "{why}");
    assert_eq!(first.status()["upstream"]["connects"], 1);
    set(&node, "k", "v");
    first.catch_up_with(&node);
    assert_eq!(get(&first, "k").as_deref(), Some("v"));
    assert_eq!(get(&second, "k"), None);
    assert_eq!(first.status()["upstream"]["connects"], 1, "the first one's link was cut");
}

#[test]
fn a_wiped_replica_comes_back_as_a_new_incarnation_and_catches_up() {
    let scratch = tempfile::tempdir().unwrap();
    let node = primary(scratch.path(), "primary", &["--ack", "sync visible (r1)"]);
    let mut follower = replica(scratch.path(), "r1", &node);
    for row in 0..500 {
        set(&node, &format!("rows:{row}"), &row.to_string());
    }
    let incarnation = |node: &Node| node.status()["node"]["incarnation"].clone();
    let before = incarnation(&follower);
    follower.kill();
    std::fs::remove_dir_all(&follower.directory).unwrap();
    follower.start();
    assert_ne!(incarnation(&follower), before);
    set(&node, "rows:500", "500");
    assert_eq!(get(&follower, "rows:500").as_deref(), Some("500"));
    assert_eq!(get(&follower, "rows:0").as_deref(), Some("0"));
    assert_identical(&node, &follower);
    assert_eq!(node.status()["replicas"][0]["incarnation"], incarnation(&follower));
}

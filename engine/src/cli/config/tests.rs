use std::path::{Path, PathBuf};

use super::keys::{self, KEYS};
use super::{ConfigArgs, Effective, Origin, values};

fn load(file: &str, flags: &[(&str, &str)]) -> Result<Effective, String> {
    let flags = flags.iter().map(|(name, text)| (keys::find(name).unwrap(), (*text).to_owned()));
    let mut problems = Vec::new();
    let mut given = Vec::new();
    super::parse_file(Path::new("node.toml"), file, &mut given, &mut problems);
    given.extend(flags.map(|(key, text)| super::Given { key, text, origin: Origin::Flag }));
    let effective = super::resolve(given, &mut problems);
    effective.filter(|_| problems.is_empty()).ok_or_else(|| problems.join("\n"))
}

fn origin(effective: &Effective, name: &str) -> String {
    effective.origins[keys::find(name).unwrap()].to_string()
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = "[cluster]\nsegment_bytes = \"64MiB\"\n[node]\nlisten = \"127.0.0.1:1\"\n";
    let effective = load(file, &[("listen", "127.0.0.1:2")]).unwrap();
    let settings = &effective.draft.settings;
    assert_eq!(settings.cluster.segment_bytes, 64 << 20);
    assert_eq!(settings.node.listen, "127.0.0.1:2");
    assert_eq!(origin(&effective, "segment_bytes"), "node.toml:2");
    assert_eq!(origin(&effective, "listen"), "flag");
    assert_eq!(origin(&effective, "lanes"), "default");
}

#[test]
fn complaints_name_file_line_key_value_and_what_is_allowed() {
    let complaint = |file: &str| load(file, &[]).unwrap_err();
    let text = complaint("[cluster]\n\nsegment_bytes = \"1MiB\"");
    assert!(text.starts_with("node.toml:3: [cluster] segment_bytes = 1MiB is not allowed: 64MiB"));
    let text = complaint("[node]\nlanse = 3");
    assert!(text.starts_with("node.toml:2: [node] lanse = 3 is not known; allowed: data_dir, "));
    let text = complaint("[node]\nsegment_bytes = 3");
    assert!(text.contains("belongs into section [cluster]"), "{text}");
    let text = complaint("lanes = 3");
    assert!(text.contains("lanes belongs into section [node]"), "{text}");
    let text = complaint("[nodes]\n");
    assert!(text.contains("node.toml:1: [nodes] is not known; allowed: [cluster]"), "{text}");
    let text = complaint("[node]\nlanes = [3]");
    assert!(text.contains("node.toml:2: [node] lanes = [3] is not allowed: array"), "{text}");
    let text = complaint("[node]\nlanes = 2.5");
    assert!(text.contains("float"), "{text}");
    let text = complaint("[node]\n\nlanes = = 3");
    assert!(text.starts_with("node.toml:3: "), "{text}");
    let text = complaint("[node]\nlanes = 1\nlanes = 2");
    assert!(text.contains("duplicate key"), "{text}");
}

#[test]
fn all_complaints_come_at_once() {
    let text = load("[node]\nlanes = 0\nname = \"a b\"", &[("heartbeat_ms", "1h")]).unwrap_err();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("--heartbeat-ms 1h is not allowed: a time is"), "{text}");
}

#[test]
fn complaints_stay_on_their_line_whatever_they_quote() {
    let text = load("[node]\ntable = \"a\\n\\u001b[2J\"\nlanes = [\n3]", &[]).unwrap_err();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("\nnode.toml:2: [node] table = a\\n\\u{1b}[2J is not"), "{text}");
}

#[test]
fn every_number_refuses_what_is_outside_its_limits() {
    for key in KEYS {
        let keys::Field::Number(number) = &key.field else { continue };
        assert!(number.min_tiny <= number.min && number.min < number.max, "{}", key.name);
        let over = (number.max + 1).to_string();
        let text = load("", &[(key.name, &over)]).unwrap_err();
        assert!(text.contains(number.reason) && text.contains(&key.flag()), "{text}");
        if number.min > 0 {
            let under = (number.min - 1).to_string();
            assert!(load("", &[(key.name, &under)]).is_err(), "{}", key.name);
        }
    }
}

#[test]
fn rules_between_settings_hold() {
    let refused = |flags: &[(&str, &str)]| load("", flags).unwrap_err();
    let text = refused(&[("segment_bytes", "64MiB"), ("frame_body_bytes_max", "16777217")]);
    assert!(text.contains("16MiB"), "{text}");
    let text = refused(&[("preset", "tiny"), ("frame_body_bytes_max", "17KiB")]);
    assert!(text.contains("at most 16KiB, a quarter of segment_bytes"), "{text}");
    let text = refused(&[("heartbeat_ms", "2s")]);
    assert!(text.contains("peer_timeout_ms = 5000") && text.contains("6000 ms"), "{text}");
    let text = refused(&[("frame_body_bytes_max", "2MiB")]);
    assert!(text.contains("transfer_bytes"), "{text}");
    let text = refused(&[("listen", "0.0.0.0:7401")]);
    assert!(text.contains("--allow-unauthenticated"), "{text}");
    load("", &[("listen", "0.0.0.0:7401"), ("allow_unauthenticated", "true")]).unwrap();
    load("", &[("listen", "[::1]:7401"), ("replication_listen", "localhost:7402")]).unwrap();
    refused(&[("listen", "127.0.0.1:7402")]);
    load("", &[("listen", "127.0.0.1:0"), ("replication_listen", "127.0.0.1:0")]).unwrap();
    for bad in ["7401", ":7401", "::1:7401", "127.0.0.1:x", "127.0.0.1:70000", "a b:1"] {
        refused(&[("listen", bad)]);
    }
    refused(&[("replica_of", "127.0.0.1:0")]);
}

#[test]
fn tiny_preset_shrinks_sizes_wherever_it_stands() {
    let file = "[cluster]\nsegment_bytes = \"128KiB\"\npreset = \"tiny\"\n";
    let effective = load(file, &[]).unwrap();
    assert_eq!(effective.draft.settings.cluster.segment_bytes, 128 << 10);
    assert_eq!(effective.draft.settings.cluster.frame_body_bytes_max, 4 << 10);
    assert_eq!(origin(&effective, "frame_body_bytes_max"), "preset");
    assert_eq!(origin(&effective, "segment_bytes"), "node.toml:2");
    assert_eq!(origin(&effective, "lanes"), "default");
}

#[test]
fn ack_and_replicas_make_one_policy() {
    let policy = |flags: &[(&str, &str)]| {
        load("", flags).map(|effective| effective.draft.settings.cluster.ack.to_string())
    };
    let both = |ack: &str, replicas: &str| policy(&[("ack", ack), ("replicas", replicas)]);
    assert_eq!(policy(&[]).unwrap(), "async");
    assert_eq!(policy(&[("ack", "semi-sync")]).unwrap(), "semi-sync ANY 1 durable");
    assert_eq!(both("semi-sync", "2").unwrap(), "semi-sync ANY 2 durable");
    assert_eq!(both("semi-sync received", "2").unwrap(), "semi-sync ANY 2 received");
    assert_eq!(both("semi-sync", "a,b").unwrap(), "semi-sync ANY 1 durable (a, b)");
    assert_eq!(both("semi-sync", "ANY 2 (a,b)").unwrap(), "semi-sync ANY 2 durable (a, b)");
    assert_eq!(both("semi-sync", "FIRST 1 (a,b)").unwrap(), "semi-sync FIRST 1 durable (a, b)");
    assert_eq!(both("sync", "a,b").unwrap(), "sync visible (a, b)");
    assert_eq!(both("sync committed", "a").unwrap(), "sync committed (a)");
    assert_eq!(policy(&[("ack", "sync (x)")]).unwrap(), "sync visible (x)");
    for (ack, replicas) in
        [("async", "2"), ("sync", "2"), ("sync", "ANY 1 (a)"), ("sync (a)", "b"), ("rsync", "a")]
    {
        assert!(both(ack, replicas).is_err(), "{ack} with {replicas}");
    }
    assert!(policy(&[("ack", "sync")]).unwrap_err().contains("needs the names"));
    assert!(policy(&[("ack", "sync (me)"), ("name", "me")]).is_err());
    policy(&[("ack", "sync (me)"), ("name", "me"), ("replica_of", "h:1")]).unwrap();
}

#[test]
fn flag_of_either_half_wins_over_the_file() {
    let policy = |file: &str, flags: &[(&str, &str)]| {
        load(file, flags).map(|effective| effective.draft.settings.cluster.ack.to_string())
    };
    let file = "[cluster]\nack = \"semi-sync\"\nreplicas = \"2\"\n";
    assert_eq!(policy(file, &[("ack", "async")]).unwrap(), "async");
    assert_eq!(policy(file, &[("replicas", "3")]).unwrap(), "semi-sync ANY 3 durable");
    let file = "[cluster]\nack = \"sync committed (a)\"\n";
    assert_eq!(policy(file, &[("replicas", "b,c")]).unwrap(), "sync committed (b, c)");
}

#[test]
fn printed_settings_have_the_same_effect() {
    let cases: [&[(&str, &str)]; 4] = [
        &[],
        &[("preset", "tiny"), ("segment_bytes", "68KiB"), ("data_dir", "/srv/a \"b\"\\c\n#")],
        &[("ack", "semi-sync received"), ("replicas", "FIRST 2 (a,b,c)"), ("replica_of", "h:1")],
        &[("listen", "0.0.0.0:1"), ("allow_unauthenticated", "true"), ("cache_bytes", "9000001")],
    ];
    for flags in cases {
        let first = load("", flags).unwrap();
        let printed = first.print();
        let second = load(&printed, &[]).unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(values(&second.draft), values(&first.draft), "{printed}");
        assert_eq!(
            format!("{:?}", second.draft.settings),
            format!("{:?}", first.draft.settings),
            "{printed}"
        );
    }
}

#[test]
fn file_that_is_missing_or_a_directory_is_refused() {
    for path in ["/nonexistent/rowship.toml", "/tmp"] {
        let args = ConfigArgs { file: Some(PathBuf::from(path)), flags: Vec::new() };
        let failure = args.load().unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.message.contains(path), "{failure}");
    }
}

#[test]
fn default_name_is_valid_and_every_flag_is_known_once() {
    assert!(!super::default_name().as_str().is_empty());
    for (at, key) in KEYS.iter().enumerate() {
        assert_eq!(keys::find(key.name), Some(at), "{} stands twice", key.name);
    }
}

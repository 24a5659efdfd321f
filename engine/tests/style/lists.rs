//! Every exception to the house style, named, with its reason.

/// Files longer than 500 lines before their tests: (path, why it is one thing).
pub const LONG_FILES: &[(&str, &str)] =
    &[("engine/proto/src/primary.rs", "one state machine, read from top to bottom")];

/// Files that may hold `unsafe`: (path, what for).
pub const UNSAFE_FILES: &[(&str, &str)] = &[
    ("engine/src/edge/ring.rs", "memory that the kernel uses while an operation is under way"),
    ("engine/src/edge/uring.rs", "what each operation on sockets points to"),
    ("engine/src/edge/uring/file.rs", "what each operation on a segment's file points to"),
    ("engine/src/edge/disk/map.rs", "memory maps of segments, and what of them is in memory"),
    ("loom-tests/src/row.rs", "memory whose accesses loom checks, for the models"),
];

/// Files of `node` that wire it to production's edge, and so may name its implementations.
pub const WIRING_FILES: &[(&str, &str)] = &[
    ("engine/src/node/start.rs", "opens the disk and starts the ring"),
    ("engine/src/node/state.rs", "holds the ring's report for status"),
];

/// Files outside `edge` and `cli` that may name `std::fs`, `std::net` or
/// `std::thread`.
pub const SYSTEM_FILES: &[(&str, &str)] = &[
    ("engine/src/node/settings.rs", "a default counts the cores"),
    ("engine/src/apply/lsm/files.rs", "the table's own files, beside those of lsm-tree"),
    ("engine/sim/src/main.rs", "simulations on several threads, each with seeds of its own"),
];

/// Files of `node` that may hold a `HashMap` or `HashSet`: only looked up by key, never walked in
/// an order that could be seen.
pub const HASH_MAP_FILES: &[(&str, &str)] = &[
    ("engine/src/node/pending.rs", "images by row: looked up for every read and write"),
    ("engine/src/node/dictionary.rs", "table ids by name: looked up for every key"),
    ("engine/src/node/rows.rs", "rows of one command: filled, looked up, dropped"),
    ("engine/src/node/fetch.rs", "rows of one command: filled, looked up, dropped"),
];

/// Where a library may be named: (library, folders or files, why only there).
pub const LIBRARIES: &[(&str, &[&str], &str)] = &[
    ("io_uring", &["engine/src/edge/"], "replacing it must stay a change of one folder"),
    (
        "tokio_uring",
        &["bench/"],
        "the engine has a ring of its own; the bench measures what the library would reach",
    ),
    (
        "memmap2",
        &["engine/src/edge/", "engine/src/log/pool.rs"],
        "maps are the edge's; the pool's are anonymous, for pages that are aligned",
    ),
    (
        "lsm_tree",
        &["engine/src/apply/lsm/", "bench/"],
        "the table stands behind a trait; the bench measures the library without the engine",
    ),
    (
        "redis_protocol",
        &["engine/src/intake/", "engine/src/cli/", "bench/"],
        "it may only see input that a scan of ours has bounded; the bench's client reads replies",
    ),
    ("loom", &["engine/sync/src/sync.rs", "loom-tests/"], "one switch between std and loom"),
];

/// Whether `path` is named in a list of exceptions.
pub fn named(list: &[(&str, &str)], path: &str) -> bool {
    list.iter().any(|(named, _)| *named == path)
}

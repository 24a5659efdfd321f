//! What a node is told: the validated form of its configuration. How it is spelled in flags and
//! files is the command line's part (`cli/config.rs`); limits live here, with their reasons.

use std::path::PathBuf;

use rowship_proto::ack::{AckPolicy, NodeName};

/// What happens to writes while replicas that the ack policy needs are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// Writes are appended and wait for them; status names whom they wait for.
    Wait,
    /// Writes are refused with `-NOREPLICAS` before they are appended.
    Refuse,
}

/// Which table holds the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// On disk: a log-structured merge tree.
    Lsm,
    /// In memory: rebuilt from the log at every start; for tests.
    Memory,
    /// In memory, with images of it on the node's disk: for simulation.
    #[cfg(feature = "sim")]
    Imaged,
}

/// How log lines are written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings that all nodes of a cluster should share.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// When writes are committed.
    pub ack: AckPolicy,
    /// What to do while replicas are missing.
    pub on_missing: OnMissing,
    /// Size of new segments. 64 MiB to 4 GiB (64 KiB with the tiny preset).
    pub segment_bytes: u64,
    /// Largest body of a frame, at most 16 MiB and at most a quarter of a segment; also the
    /// largest transaction.
    pub frame_body_bytes_max: usize,
    /// Bytes that may be appended and not yet committed (or not yet applied here) before writes
    /// wait: bounds the pending images in memory.
    pub uncommitted_bytes_max: u64,
    /// Prefixes of keys: each is a table with an entry in every segment's head.
    pub tables_max: u32,
    /// Sent on idle replication links, both ways.
    pub heartbeat_ms: u64,
    /// A replication link with nothing heard for this long is dead. At least 3 heartbeats.
    pub peer_timeout_ms: u64,
    /// Idle time before TCP probes a client connection.
    pub client_keepalive_ms: u64,
}

/// Settings of one node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Everything this node keeps.
    pub data_dir: PathBuf,
    /// Its name among the nodes.
    pub name: NodeName,
    /// Where clients connect, `host:port`.
    pub listen: String,
    /// Where replicas connect, `host:port`.
    pub replication_listen: String,
    /// The primary's replication address; absent on a primary.
    pub replica_of: Option<String>,
    /// Addresses other than loopback may be listened on without authentication.
    pub allow_unauthenticated: bool,
    /// Where rows are kept.
    pub table: TableKind,
    /// Apply lanes: threads that insert rows. 1 to 64.
    pub lanes: usize,
    /// Size at which a memtable is flushed.
    pub memtable_bytes: u64,
    /// Cache for blocks of the on-disk table. A primary takes a quarter as much again to remember
    /// which rows exist.
    pub cache_bytes: u64,
    /// Bytes in flight to one replica: sent and not acknowledged as received.
    pub send_window_bytes: u64,
    /// Most bytes of one write or send when behind, and of one receive buffer.
    pub transfer_bytes: usize,
    /// Most bytes of log in one apply window.
    pub window_bytes_max: usize,
    /// Most bytes of log in a window that the ring thread applies by itself.
    pub small_window_bytes: usize,
    /// Frame buffers of the appender.
    pub frame_buffers: usize,
    /// Free space that the log never takes: the table's flushes need it. A segment that would leave
    /// less is not made, and writes are refused before the table is hurt.
    pub disk_reserve_bytes: u64,
    /// Retired segments kept as spares.
    pub spare_segments: usize,
    /// Least time between two attempts to reach the primary.
    pub reconnect_ms: u64,
    /// A replica gathers what it receives for so long before it writes it to its log, while nobody
    /// waits for that.
    pub replica_write_delay_ms: u64,
    /// Longest that the ring thread stays awake for something that is expected at once.
    pub busy_poll_us: u64,
    /// Period at which the checkpoint is renewed.
    pub checkpoint_ms: u64,
    /// Client connections; one more is told so and closed.
    pub clients_max: usize,
    /// Replicas connected at once.
    pub replicas_max: usize,
    /// Unparsed bytes of one client.
    pub query_bytes_max: usize,
    /// One argument of a command.
    pub bulk_bytes_max: usize,
    /// A client's key, without its prefix.
    pub key_bytes_max: usize,
    /// Replies of one client that wait to leave, in bytes; beyond it the client is not read.
    pub replies_bytes_max: usize,
    /// A client that takes none of its replies for this long is closed.
    pub client_write_timeout_ms: u64,
    /// How long a clean stop waits for replies in flight.
    pub stop_timeout_ms: u64,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shared by the cluster.
    pub cluster: ClusterSettings,
    /// This node's own.
    pub node: NodeSettings,
}

impl Settings {
    /// The defaults for a primary on loopback that keeps its data in `data_dir`.
    #[must_use]
    pub fn defaults(data_dir: PathBuf, name: NodeName) -> Settings {
        let lanes = std::thread::available_parallelism().map_or(1, |cores| cores.get() - 1);
        Settings {
            cluster: ClusterSettings {
                ack: AckPolicy::Async,
                on_missing: OnMissing::Wait,
                segment_bytes: 256 << 20,
                frame_body_bytes_max: 1 << 20,
                uncommitted_bytes_max: 64 << 20,
                tables_max: 1024,
                heartbeat_ms: 500,
                peer_timeout_ms: 5_000,
                client_keepalive_ms: 60_000,
            },
            node: NodeSettings {
                data_dir,
                name,
                listen: "127.0.0.1:7401".to_owned(),
                replication_listen: "127.0.0.1:7402".to_owned(),
                replica_of: None,
                allow_unauthenticated: false,
                table: TableKind::Lsm,
                lanes: lanes.clamp(1, 64),
                memtable_bytes: 64 << 20,
                cache_bytes: 64 << 20,
                send_window_bytes: 16 << 20,
                transfer_bytes: 2 << 20,
                window_bytes_max: 2 << 20,
                small_window_bytes: 4 << 10,
                frame_buffers: 16,
                disk_reserve_bytes: 128 << 20,
                spare_segments: 1,
                reconnect_ms: 200,
                replica_write_delay_ms: 10,
                busy_poll_us: 200,
                checkpoint_ms: 2_000,
                clients_max: 4_096,
                replicas_max: 64,
                query_bytes_max: 64 << 20,
                bulk_bytes_max: 16 << 20,
                key_bytes_max: 16 << 10,
                replies_bytes_max: 16 << 20,
                client_write_timeout_ms: 60_000,
                stop_timeout_ms: 5_000,
                log_format: LogFormat::Text,
                log_level: "info".to_owned(),
            },
        }
    }

    /// Shrinks every size, so that rolls, wrap-around and back-pressure happen all the time: for
    /// tests.
    #[must_use]
    pub fn tiny(mut self) -> Settings {
        self.cluster.segment_bytes = 64 << 10;
        self.cluster.frame_body_bytes_max = 4 << 10;
        self.cluster.uncommitted_bytes_max = 64 << 10;
        self.node.memtable_bytes = 64 << 10;
        self.node.cache_bytes = 1 << 20;
        self.node.send_window_bytes = 64 << 10;
        self.node.transfer_bytes = 16 << 10;
        self.node.window_bytes_max = 16 << 10;
        self.node.small_window_bytes = 1 << 10;
        self.node.frame_buffers = 4;
        self.node.disk_reserve_bytes = 1 << 20;
        self
    }
}

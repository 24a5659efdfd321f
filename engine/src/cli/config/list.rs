//! Every setting, once: its section, name, flag, unit, limits with their reasons, and where it
//! lives in [`Settings`](crate::node::settings::Settings). Flags, the file's reader, validation
//! and `config --print` all follow this list.

use std::path::PathBuf;

use rowship_proto::ack::NodeName;

use super::keys::{Draft, Field, Key, Number, Section, address, choose};
use super::units::Unit;
use crate::node::settings::{LogFormat, OnMissing, TableKind};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY_MS: u64 = 86_400_000;

macro_rules! number {
    ($section:ident.$name:ident as $kind:ty, $unit:ident, $min:expr, $tiny:expr, $max:expr,
     $help:expr, $reason:expr) => {
        Key {
            section: number!(@section $section),
            name: stringify!($name),
            help: $help,
            field: Field::Number(Number {
                unit: Unit::$unit,
                min: $min,
                min_tiny: $tiny,
                max: $max,
                reason: $reason,
                get: |settings| settings.$section.$name as u64,
                set: |settings, value| settings.$section.$name = value as $kind,
            }),
        }
    };
    (@section cluster) => { Section::Cluster };
    (@section node) => { Section::Node };
}

macro_rules! text {
    ($section:ident, $name:expr, $help:expr, $get:expr, $set:expr) => {
        Key {
            section: Section::$section,
            name: $name,
            help: $help,
            field: Field::Text { get: $get, set: $set },
        }
    };
}

/// All settings, in the order of `config --print`.
pub static KEYS: &[Key] = &[
    text!(
        Cluster,
        "preset",
        "Sizes to start from: standard, or tiny (for tests: rolls all the time)",
        |draft| Some(if draft.tiny { "tiny" } else { "standard" }.to_owned()),
        set_preset
    ),
    text!(
        Cluster,
        "ack",
        "When a write counts: async, semi-sync or sync; or a whole policy such as \
         \"semi-sync ANY 1 durable (a, b)\"",
        |draft| Some(draft.ack.clone()),
        |draft, text| {
            draft.ack = text.trim().to_owned();
            Ok(())
        }
    ),
    text!(
        Cluster,
        "replicas",
        "Replicas that `ack` counts: 2 | a,b | ANY 1 (a,b) | FIRST 1 (a,b)",
        |draft| draft.replicas.clone(),
        |draft, text| {
            draft.replicas = Some(text.trim().to_owned());
            Ok(())
        }
    ),
    text!(
        Cluster,
        "on_missing",
        "Writes while replicas that `ack` needs are missing: wait, or refuse (-NOREPLICAS)",
        |draft| Some(match draft.settings.cluster.on_missing {
            OnMissing::Wait => "wait".to_owned(),
            OnMissing::Refuse => "refuse".to_owned(),
        }),
        |draft, text| {
            draft.settings.cluster.on_missing =
                choose(text, &[("wait", OnMissing::Wait), ("refuse", OnMissing::Refuse)])?;
            Ok(())
        }
    ),
    number!(
        cluster.segment_bytes as u64,
        Bytes,
        64 * MIB,
        64 * KIB,
        4 * GIB,
        "Size of new segments of the log",
        "smaller ones roll too often, larger ones give space back too late"
    ),
    number!(
        cluster.frame_body_bytes_max as usize,
        Bytes,
        64 * KIB,
        4 * KIB,
        16 * MIB,
        "Largest body of a frame, and so the largest transaction",
        "the format's frames end at 16 MiB; small ones cost a header and a sync for few rows"
    ),
    number!(
        cluster.uncommitted_bytes_max as u64,
        Bytes,
        MIB,
        16 * KIB,
        4 * GIB,
        "Bytes of log that may wait for commit before writes wait",
        "their rows are held in memory"
    ),
    number!(
        cluster.tables_max as u32,
        Count,
        1,
        1,
        65_536,
        "Tables: prefixes of keys",
        "each has an entry at the head of every segment"
    ),
    number!(
        cluster.heartbeat_ms as u64,
        Millis,
        10,
        10,
        60_000,
        "Sent on idle replication links",
        "shorter ones only burn wake-ups, longer ones hide a dead peer"
    ),
    number!(
        cluster.peer_timeout_ms as u64,
        Millis,
        30,
        30,
        600_000,
        "A replication link with nothing heard for this long is dead",
        "at least 3 heartbeats, so that a late one does not cut a link"
    ),
    number!(
        cluster.client_keepalive_ms as u64,
        Millis,
        1000,
        1000,
        DAY_MS,
        "Idle time before TCP probes a client connection",
        "TCP counts it in whole seconds"
    ),
    text!(
        Node,
        "data_dir",
        "Directory that holds everything this node keeps (serve needs it)",
        |draft| {
            let path = &draft.settings.node.data_dir;
            (!path.as_os_str().is_empty()).then(|| path.to_string_lossy().into_owned())
        },
        |draft, text| {
            if text.is_empty() {
                return Err("a directory is expected".to_owned());
            }
            draft.settings.node.data_dir = PathBuf::from(text);
            Ok(())
        }
    ),
    text!(
        Node,
        "name",
        "Name of this node, unlike that of any other; ack policies call it by this name \
         [default: the host's name]",
        |draft| Some(draft.settings.node.name.to_string()),
        |draft, text| {
            draft.settings.node.name = NodeName::new(text).map_err(|error| error.to_string())?;
            Ok(())
        }
    ),
    text!(
        Node,
        "listen",
        "Address for clients; port 0 takes a free one (see addresses.json in the data directory)",
        |draft| Some(draft.settings.node.listen.clone()),
        |draft, text| {
            draft.settings.node.listen = address(text, true)?;
            Ok(())
        }
    ),
    text!(
        Node,
        "replication_listen",
        "Address for replicas",
        |draft| Some(draft.settings.node.replication_listen.clone()),
        |draft, text| {
            draft.settings.node.replication_listen = address(text, true)?;
            Ok(())
        }
    ),
    text!(
        Node,
        "replica_of",
        "Be a replica of the primary with this replication address",
        |draft| draft.settings.node.replica_of.clone(),
        |draft, text| {
            draft.settings.node.replica_of = Some(address(text, false)?);
            Ok(())
        }
    ),
    Key {
        section: Section::Node,
        name: "allow_unauthenticated",
        help: "Listen on other addresses than loopback although nothing asks for a password",
        field: Field::Switch {
            get: |draft| draft.settings.node.allow_unauthenticated,
            set: |draft, value| draft.settings.node.allow_unauthenticated = value,
        },
    },
    text!(
        Node,
        "table",
        "Where rows are kept: lsm (on disk), or memory (rebuilt from the log at every start)",
        |draft| Some(match draft.settings.node.table {
            TableKind::Lsm => "lsm".to_owned(),
            TableKind::Memory => "memory".to_owned(),
            #[cfg(feature = "sim")]
            TableKind::Imaged => "imaged".to_owned(),
        }),
        |draft, text| {
            draft.settings.node.table =
                choose(text, &[("lsm", TableKind::Lsm), ("memory", TableKind::Memory)])?;
            Ok(())
        }
    ),
    number!(
        node.lanes as usize,
        Count,
        1,
        1,
        64,
        "Threads that apply rows [default: cores minus one]",
        "more lanes than cores only take turns"
    ),
    number!(
        node.memtable_bytes as u64,
        Bytes,
        MIB,
        16 * KIB,
        4 * GIB,
        "Size at which a memtable is flushed",
        "it is held in memory, and replayed from the log after a crash"
    ),
    number!(
        node.cache_bytes as u64,
        Bytes,
        MIB,
        64 * KIB,
        1024 * GIB,
        "Cache for blocks of the on-disk table, and a quarter as much again for which rows exist",
        "reads and compactions need a few blocks at once"
    ),
    number!(
        node.send_window_bytes as u64,
        Bytes,
        MIB,
        16 * KIB,
        GIB,
        "Bytes in flight to one replica",
        "bounds what a slow replica can hold back in buffers"
    ),
    number!(
        node.transfer_bytes as usize,
        Bytes,
        256 * KIB,
        8 * KIB,
        64 * MIB,
        "Most bytes of one send when behind, and of a receive buffer",
        "it must hold a whole frame, and each link holds as much in memory"
    ),
    number!(
        node.window_bytes_max as usize,
        Bytes,
        64 * KIB,
        4 * KIB,
        GIB,
        "Most bytes of log in one apply window",
        "readers step from window to window, and its rows are held in memory"
    ),
    number!(
        node.small_window_bytes as usize,
        Bytes,
        0,
        0,
        64 * KIB,
        "Windows up to this size are applied without waking a lane up",
        "everything else waits meanwhile"
    ),
    number!(
        node.frame_buffers as usize,
        Count,
        2,
        2,
        1024,
        "Frame buffers of the appender",
        "one fills while another is written"
    ),
    number!(
        node.disk_reserve_bytes as u64,
        Bytes,
        16 * MIB,
        MIB,
        1024 * GIB,
        "Free space that the log never takes: writes are refused before it is touched",
        "flushes of the table need it, or reads and applies would be hurt too"
    ),
    number!(
        node.spare_segments as usize,
        Count,
        0,
        0,
        2,
        "Retired segments kept as spares, to become new ones without being zeroed",
        "each takes a whole segment of disk"
    ),
    number!(
        node.reconnect_ms as u64,
        Millis,
        10,
        10,
        60_000,
        "Least time between two attempts to reach the primary",
        "faster only burns sockets, slower makes an outage longer"
    ),
    number!(
        node.replica_write_delay_ms as u64,
        Millis,
        0,
        0,
        1_000,
        "How long a replica gathers what it receives before it writes its log, while nobody waits",
        "what is gathered must be fetched again after a crash"
    ),
    number!(
        node.busy_poll_us as u64,
        Micros,
        0,
        0,
        1_000,
        "Longest that the node looks for the end of a small write, for acks that replies wait for, \
         for its primary, or for clients about to write again, before it sleeps; 0 always sleeps",
        "it takes a core from others; beyond a millisecond waking up no longer matters"
    ),
    number!(
        node.checkpoint_ms as u64,
        Millis,
        100,
        10,
        600_000,
        "Period at which the recovery checkpoint is renewed",
        "it costs a sync each time, and recovery reads what lies above it"
    ),
    number!(
        node.clients_max as usize,
        Count,
        1,
        1,
        65_536,
        "Client connections",
        "each takes a file descriptor and buffers"
    ),
    number!(
        node.replicas_max as usize,
        Count,
        1,
        1,
        1024,
        "Replicas connected at once",
        "each is sent the whole stream"
    ),
    number!(
        node.query_bytes_max as usize,
        Bytes,
        64 * KIB,
        4 * KIB,
        GIB,
        "Unparsed bytes of one client",
        "a client could fill the memory with half a command"
    ),
    number!(
        node.bulk_bytes_max as usize,
        Bytes,
        KIB,
        KIB,
        512 * MIB,
        "Longest argument of a command",
        "it is held in memory as a whole"
    ),
    number!(
        node.key_bytes_max as usize,
        Bytes,
        16,
        16,
        65_523,
        "Longest key, without its prefix",
        "the table counts its keys, 12 bytes longer, in 16 bits"
    ),
    number!(
        node.replies_bytes_max as usize,
        Bytes,
        64 * KIB,
        4 * KIB,
        GIB,
        "Waiting replies of one client; beyond it the client is not read",
        "a client that does not read its replies would fill the memory"
    ),
    number!(
        node.client_write_timeout_ms as u64,
        Millis,
        100,
        100,
        DAY_MS,
        "A client that takes none of its replies for this long is closed",
        "it holds buffers"
    ),
    number!(
        node.stop_timeout_ms as u64,
        Millis,
        0,
        0,
        600_000,
        "How long a clean stop waits for replies in flight",
        "service managers kill what does not stop"
    ),
    text!(
        Node,
        "log_format",
        "Log lines on standard error: text, or json",
        |draft| Some(match draft.settings.node.log_format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        }),
        |draft, text| {
            draft.settings.node.log_format =
                choose(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])?;
            Ok(())
        }
    ),
    text!(
        Node,
        "log_level",
        "Least important log lines to write: error, warn, info, debug or trace",
        |draft| Some(draft.settings.node.log_level.clone()),
        |draft, text| {
            let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
            draft.settings.node.log_level = choose(text, &levels)?.to_owned();
            Ok(())
        }
    ),
];

fn set_preset(draft: &mut Draft, text: &str) -> Result<(), String> {
    draft.tiny = choose(text, &[("standard", false), ("tiny", true)])?;
    if draft.tiny {
        draft.settings = draft.settings.clone().tiny();
    }
    Ok(())
}

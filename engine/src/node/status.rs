//! What operators see: one JSON value, and its forms as INFO, ROLE and CONFIG GET.

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::ack::ClientPolicy;
use rowship_proto::primary::{LinkState, Replica};
use serde_json::{Value, json};

use super::settings::OnMissing;
use super::state::{Node, PrimaryRole, Role};
use crate::edge::Edge;
use crate::intake::glob::glob_matches;
use crate::intake::reply::Reply;

/// Everything, as `rowship status --json` prints it.
pub fn json<E: Edge>(node: &Node<E>) -> Value {
    let state = node.state.borrow();
    let mut value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": node_json(node, state.node_id, state.incarnation),
        "kernel": { "release": node.ring.kernel, "io_uring": node.ring.features },
        "log": log_json(node, &state.history.epoch().to_string()),
        "ack": ack_json(node),
        "table": table_json(node, state.table_durable.lsn),
        "clients": {
            "connected": node.counters.clients.get(),
            "total": node.counters.clients_total.get(),
            "refused": node.counters.clients_refused.get(),
            "clients_max": node.settings.node.clients_max,
        },
        "memory": { "resident_bytes": node.edge.resident_bytes() },
        "counters": counters_json(node),
        "events": node.events.borrow().iter().cloned().collect::<Vec<_>>(),
    });
    match &node.role {
        Role::Primary(primary) => value["replicas"] = replicas_json(node, primary),
        Role::Replica(_) => value["upstream"] = upstream_json(node),
    }
    value
}

fn role_name<E: Edge>(node: &Node<E>) -> &'static str {
    match node.role {
        Role::Primary(_) => "primary",
        Role::Replica(_) => "replica",
    }
}

fn node_json<E: Edge>(node: &Node<E>, node_id: u64, incarnation: u64) -> Value {
    let settings = &node.settings.node;
    json!({
        "name": settings.name.as_str(),
        "node_id": format!("{node_id:016x}"),
        "incarnation": format!("{incarnation:016x}"),
        "role": role_name(node),
        "pid": node.edge.process_id(),
        "data_dir": settings.data_dir.display().to_string(),
        "listen": *node.client_address.borrow(),
        "replication_listen": *node.replication_address.borrow(),
        "uptime_s": node.edge.now().saturating_sub(node.started) / 1_000_000_000,
        "allow_unauthenticated": settings.allow_unauthenticated,
        "lanes": settings.lanes,
    })
}

fn log_json<E: Edge>(node: &Node<E>, epoch: &str) -> Value {
    let maps = node.segments.maps.borrow();
    json!({
        "log_id": node.log_id.get().to_string(),
        "epoch": epoch,
        "oldest_lsn": maps.oldest().unwrap_or_default().0,
        "appended": node.appended.get().0,
        "durable": node.durable.get().0,
        "committed": node.committed.get().0,
        "applied": node.visible.get().0,
        "visible": node.visible.get().0,
        "segments": maps.bases().count(),
        "segment_bytes": node.settings.cluster.segment_bytes,
        "frame_body_bytes_max": node.frame_body_bytes_max.get(),
        "full": *node.segments.failure.borrow(),
    })
}

fn ack_json<E: Edge>(node: &Node<E>) -> Value {
    let on_missing = match node.settings.cluster.on_missing {
        OnMissing::Wait => "wait",
        OnMissing::Refuse => "refuse",
    };
    let Some(primary) = node.primary() else {
        return json!({ "policy": Value::Null, "on_missing": on_missing });
    };
    let machine = primary.machine.borrow();
    let end = primary.appender.borrow().end();
    json!({
        "policy": machine.policy().to_string(),
        "on_missing": on_missing,
        "waiting_for": machine.missing(&ClientPolicy::Node),
        "uncommitted_bytes": end.since(machine.committed()),
        "uncommitted_bytes_max": node.settings.cluster.uncommitted_bytes_max,
        "pending_images": primary.pending.borrow().len(),
        "refused_writes": node.counters.writes_refused.get(),
        "indeterminate_writes": node.counters.writes_indeterminate.get(),
    })
}

/// How long ago the oldest frame that this replica does not show was sealed, in milliseconds.
fn lag_ms<E: Edge>(node: &Node<E>, primary: &PrimaryRole<E>, visible: Lsn) -> u64 {
    if visible >= node.appended.get() {
        return 0;
    }
    let oldest = primary.stamps.borrow().oldest_above(visible);
    oldest.map_or(0, |sealed| node.edge.now().saturating_sub(sealed).div_ceil(1_000_000))
}

/// One for each replica of this reign, then those of earlier ones that have not come back.
fn replicas_json<E: Edge>(node: &Node<E>, primary: &PrimaryRole<E>) -> Value {
    let machine = primary.machine.borrow();
    let stages = primary.stages.borrow();
    let present = machine.replicas().iter().map(|(name, replica)| {
        let state = match replica.state {
            LinkState::Down => "down",
            LinkState::Joining => "joining",
            LinkState::Streaming => "streaming",
        };
        let acked = &replica.acked;
        json!({
            "name": name.as_str(),
            "state": state,
            "address": replica.address,
            "client_address": client_address(replica),
            "incarnation": format!("{:016x}", replica.incarnation),
            "shipped": replica.shipped.0,
            "received": acked.received.0,
            "durable": acked.durable.0,
            "applied": acked.applied.0,
            "visible": acked.visible.0,
            "lag_ms": lag_ms(node, primary, acked.visible),
            "lag_bytes": node.appended.get().since(acked.visible),
            "promises_broken": replica.promises_broken,
            "stages": stages.get(name.as_str()).map(super::latency::Stages::to_json),
        })
    });
    // What they show is not known; what they had made durable is.
    let absent = primary.known.unseen(&machine).into_iter().map(|(name, durable)| {
        json!({
            "name": name,
            "state": "down",
            "durable": durable.0,
            "lag_ms": lag_ms(node, primary, durable),
            "lag_bytes": node.appended.get().since(durable.min(node.appended.get())),
        })
    });
    Value::Array(present.chain(absent).collect())
}

/// Where clients reach a replica.
fn client_address(replica: &Replica) -> String {
    let host = replica.address.rsplit_once(':').map_or(replica.address.as_str(), |(host, _)| host);
    format!("{host}:{}", replica.client_port)
}

fn upstream_json<E: Edge>(node: &Node<E>) -> Value {
    let Some(replica) = node.replica() else { return Value::Null };
    let upstream = replica.upstream.borrow();
    json!({
        "address": node.settings.node.replica_of,
        "client_address": upstream.client_address,
        "state": upstream.state,
        "last_error": upstream.last_error,
        "connects": upstream.connects,
        "primary_appended": upstream.appended.0,
        "lag_bytes": upstream.appended.since(node.visible.get()),
        "heard_ms_ago": node.edge.now().saturating_sub(upstream.heard) / 1_000_000,
    })
}

fn table_json<E: Edge>(node: &Node<E>, durable: Lsn) -> Value {
    let (mark, status) = (node.applied.mark(), node.table.status());
    json!({
        "rows": mark.rows,
        "tables": node.dictionary.borrow().len(),
        "tables_max": node.settings.cluster.tables_max,
        "durable_lsn": durable.0,
        "memtable_bytes": status.memtable_bytes,
        "sealed_memtables": status.sealed_memtables,
        "disk_bytes": status.disk_bytes,
        "disk_tables": status.disk_tables,
        "pins": status.pins,
        "paused": status.paused.or_else(|| node.table_paused.borrow().clone()),
    })
}

fn counters_json<E: Edge>(node: &Node<E>) -> Value {
    let counters = &node.counters;
    json!({
        "commands": counters.commands.get(),
        "transactions": counters.transactions.get(),
        "rows": counters.rows.get(),
        "frames": counters.frames.get(),
        "log_writes": counters.log_writes.get(),
        "log_bytes": counters.log_bytes.get(),
        "cold_reads": counters.cold_reads.get(),
        "peers_refused": counters.peers_refused.get(),
        "protocol_errors": counters.protocol_errors.get(),
        "segments_retired": counters.segments_retired.get(),
    })
}

/// INFO: Redis's sections and names where there are any, then everything of ours under its path.
pub fn info<E: Edge>(node: &Node<E>, sections: &[String]) -> String {
    let value = json(node);
    let all = sections.is_empty()
        || sections
            .iter()
            .any(|section| matches!(section.as_str(), "all" | "everything" | "default"));
    let mut text = String::new();
    let mut section = |name: &str, lines: Vec<(String, String)>| {
        if all || sections.iter().any(|wanted| wanted == &name.to_ascii_lowercase()) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            text.push_str(&format!("# {name}\r\n"));
            for (key, value) in lines {
                text.push_str(&format!("{key}:{value}\r\n"));
            }
        }
    };
    let port = node.client_address.borrow().rsplit(':').next().unwrap_or("0").to_owned();
    section(
        "Server",
        lines(&[
            ("redis_version", json!("7.2.0")),
            ("redis_mode", json!("standalone")),
            ("rowship_version", value["version"].clone()),
            ("os", json!(format!("Linux {}", node.ring.kernel))),
            ("process_id", value["node"]["pid"].clone()),
            ("tcp_port", json!(port)),
            ("uptime_in_seconds", value["node"]["uptime_s"].clone()),
            ("uptime_in_days", json!(value["node"]["uptime_s"].as_u64().unwrap_or(0) / 86_400)),
        ]),
    );
    let clients = lines(&[
        ("connected_clients", value["clients"]["connected"].clone()),
        ("maxclients", value["clients"]["clients_max"].clone()),
    ]);
    section("Clients", [clients, flat(&value["clients"], "clients")].concat());
    let resident = value["memory"]["resident_bytes"].as_u64().unwrap_or(0);
    let shown = format!("{:.2}M", resident as f64 / f64::from(1 << 20));
    section(
        "Memory",
        lines(&[("used_memory", json!(resident)), ("used_memory_human", json!(shown))]),
    );
    let stats = lines(&[
        ("total_connections_received", value["clients"]["total"].clone()),
        ("total_commands_processed", value["counters"]["commands"].clone()),
        ("rejected_connections", value["clients"]["refused"].clone()),
    ]);
    section("Stats", [stats, flat(&value["counters"], "total")].concat());
    section("Replication", replication(&value));
    section("Log", flat(&value["log"], "log"));
    section("Table", flat(&value["table"], "table"));
    section(
        "Keyspace",
        lines(&[("db0", json!(format!("keys={},expires=0,avg_ttl=0", value["table"]["rows"])))]),
    );
    text
}

fn replication(value: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if value["node"]["role"] == "primary" {
        found.extend(lines(&[("role", json!("master"))]));
        let none = Vec::new();
        let replicas = value["replicas"].as_array().unwrap_or(&none);
        let live = replicas.iter().filter(|replica| replica["state"] == "streaming").count();
        found.extend(lines(&[("connected_slaves", json!(live))]));
        for (at, replica) in replicas.iter().enumerate() {
            let address = replica["client_address"].as_str().unwrap_or_default();
            let (ip, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            let offset = if replica["visible"].is_null() { "durable" } else { "visible" };
            let summary = format!(
                "ip={ip},port={port},state={},offset={},lag={},name={}",
                if replica["state"] == "streaming" { "online" } else { "down" },
                replica[offset],
                replica["lag_ms"].as_u64().unwrap_or(0) / 1000,
                replica["name"].as_str().unwrap_or_default(),
            );
            found.extend(lines(&[(&format!("slave{at}"), json!(summary))]));
            found.extend(flat(replica, &format!("replica{at}")));
        }
    } else {
        let upstream = &value["upstream"];
        let address = upstream["client_address"].as_str().unwrap_or_default();
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        let up = upstream["state"] == "streaming";
        found.extend(lines(&[
            ("role", json!("slave")),
            ("master_host", json!(host)),
            ("master_port", json!(port)),
            ("master_link_status", json!(if up { "up" } else { "down" })),
            ("slave_repl_offset", value["log"]["visible"].clone()),
            ("slave_read_only", json!(1)),
        ]));
        found.extend(flat(upstream, "upstream"));
    }
    found.extend(lines(&[
        ("master_replid", value["log"]["log_id"].clone()),
        ("master_repl_offset", value["log"]["appended"].clone()),
    ]));
    found.extend(flat(&value["ack"], "ack"));
    found
}

fn lines(pairs: &[(&str, Value)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), plain(value))).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace(['\r', '\n'], " "),
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Leaves of a value as `prefix_path:value`.
fn flat(value: &Value, prefix: &str) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, field)| flat(field, &format!("{prefix}_{name}")))
            .collect(),
        leaf => vec![(prefix.to_owned(), plain(leaf))],
    }
}

/// ROLE, in Redis's shape.
pub fn role<E: Edge>(node: &Node<E>) -> Reply {
    let offset = |lsn: Lsn| i64::try_from(lsn.0).unwrap_or(i64::MAX);
    match &node.role {
        Role::Primary(primary) => {
            let machine = primary.machine.borrow();
            let replicas = machine.replicas().values();
            let live = replicas.filter(|replica| replica.state == LinkState::Streaming);
            let rows = live.map(|replica| {
                let address = client_address(replica);
                let (ip, port) = address.rsplit_once(':').unwrap_or((&address, "0"));
                let acked = replica.acked.received.0.to_string();
                Reply::Array(vec![Reply::text(ip), Reply::text(port), Reply::text(acked)])
            });
            let rows = Reply::Array(rows.collect());
            let appended = Reply::Integer(offset(node.appended.get()));
            Reply::Array(vec![Reply::text("master"), appended, rows])
        }
        Role::Replica(replica) => {
            let upstream = replica.upstream.borrow();
            let address = &upstream.client_address;
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            let state = match upstream.state {
                "streaming" => "connected",
                "joining" => "sync",
                _ => "connecting",
            };
            Reply::Array(vec![
                Reply::text("slave"),
                Reply::text(host),
                Reply::Integer(port.parse().unwrap_or(0)),
                Reply::text(state),
                Reply::Integer(offset(node.appended.get())),
            ])
        }
    }
}

/// CONFIG GET: settings by glob pattern of their names, and those that Redis's clients ask for.
pub fn config_get<E: Edge>(node: &Node<E>, patterns: &[Bytes]) -> Reply {
    let (cluster, own) = (&node.settings.cluster, &node.settings.node);
    let settings = [
        ("save", String::new()),
        ("appendonly", "yes".to_owned()),
        ("appendfsync", "always".to_owned()),
        ("databases", "1".to_owned()),
        ("maxclients", own.clients_max.to_string()),
        ("proto-max-bulk-len", own.bulk_bytes_max.to_string()),
        ("dir", own.data_dir.display().to_string()),
        ("name", own.name.to_string()),
        ("ack", cluster.ack.to_string()),
        ("segment_bytes", cluster.segment_bytes.to_string()),
        ("frame_body_bytes_max", node.frame_body_bytes_max.get().to_string()),
        ("uncommitted_bytes_max", cluster.uncommitted_bytes_max.to_string()),
        ("tables_max", cluster.tables_max.to_string()),
        ("heartbeat_ms", cluster.heartbeat_ms.to_string()),
        ("peer_timeout_ms", cluster.peer_timeout_ms.to_string()),
        ("lanes", own.lanes.to_string()),
        ("memtable_bytes", own.memtable_bytes.to_string()),
        ("cache_bytes", own.cache_bytes.to_string()),
        ("send_window_bytes", own.send_window_bytes.to_string()),
        ("window_bytes_max", own.window_bytes_max.to_string()),
        ("transfer_bytes", own.transfer_bytes.to_string()),
        ("frame_buffers", own.frame_buffers.to_string()),
    ];
    let wanted = |name: &str| {
        patterns.iter().any(|pattern| glob_matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
    };
    let found = settings.into_iter().filter(|(name, _)| wanted(name));
    Reply::Map(found.map(|(name, value)| (Reply::text(name), Reply::text(value))).collect())
}

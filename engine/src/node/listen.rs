//! Opening for business: sockets, and the file that says where they are.

use std::rc::Rc;
use std::time::Duration;

use super::state::Node;
use super::supervise::spawn;
use super::{NodeError, client, receive, ship};
use crate::edge::{Disk, Edge, Listener, replace_file};

/// Listens, says where, and (on a replica) looks for the primary.
pub(super) async fn open_for_business<E: Edge>(node: &Rc<Node<E>>) -> Result<(), NodeError> {
    if node.is_stopping() {
        return Ok(());
    }
    let settings = &node.settings.node;
    let (clients, address) = listen(node, &settings.listen, "clients").await?;
    *node.client_address.borrow_mut() = address;
    if node.primary().is_some() {
        let (replicas, address) = listen(node, &settings.replication_listen, "replicas").await?;
        *node.replication_address.borrow_mut() = address;
        spawn(node, "replica acceptor", ship::accept(node.clone(), replicas));
    }
    write_addresses(node)?;
    spawn(node, "client acceptor", client::accept(node.clone(), clients));
    if let Some(primary) = &settings.replica_of {
        spawn(node, "receiver", receive::run(node.clone(), primary.clone()));
    }
    tracing::info!(
        name = %settings.name,
        role = if node.primary().is_some() { "primary" } else { "replica" },
        clients = *node.client_address.borrow(),
        replicas = *node.replication_address.borrow(),
        log_end = %node.appended.get(),
        "ready"
    );
    Ok(())
}

/// Listens on an address. One that is still taken is tried again for a while: the ring of a process
/// that was killed lets go of its sockets a moment after the process is gone.
async fn listen<E: Edge>(
    node: &Node<E>,
    address: &str,
    what: &str,
) -> Result<(E::Listener, String), NodeError> {
    let started = node.edge.now();
    let mut told = false;
    loop {
        let listener = node.edge.listen(address).and_then(|listener| {
            let local = listener.local_address()?;
            Ok((listener, local))
        });
        let waited = Duration::from_nanos(node.edge.now().saturating_sub(started));
        match listener {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse
                    && waited < LISTEN_PATIENCE
                    && !node.is_stopping() =>
            {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(address, "the address for {what} is still taken: trying again");
                }
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
            Ok(listener) => return Ok(listener),
            Err(error) => {
                let text = format!("cannot listen for {what} on {address}: {error}");
                return Err(NodeError::usage(&text));
            }
        }
    }
}

impl<E: Edge> Node<E> {
    /// The port that clients connect to; 0 before there is one.
    pub(super) fn client_port(&self) -> u16 {
        let address = self.client_address.borrow();
        address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
    }
}

/// How long an address may still be taken by a process that is going away.
const LISTEN_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two attempts to listen.
const LISTEN_PAUSE: Duration = Duration::from_millis(20);

/// For scripts that listen on port 0: where the node really listens.
const ADDRESSES_FILE: &str = "addresses.json";

fn write_addresses<E: Edge>(node: &Node<E>) -> Result<(), NodeError> {
    let text = serde_json::json!({
        "listen": *node.client_address.borrow(),
        "replication_listen": *node.replication_address.borrow(),
        "pid": node.edge.process_id(),
    });
    let text = format!("{text}\n");
    replace_file(&node.disk, ADDRESSES_FILE, text.as_bytes()).map_err(|error| {
        NodeError::directory(&format!("cannot write {}: {error}", node.disk.path(ADDRESSES_FILE)))
    })
}

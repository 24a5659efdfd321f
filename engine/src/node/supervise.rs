//! Agents are watched: one that panics takes the node down, loudly, instead of leaving it half
//! alive. A panic is a broken invariant; going on could acknowledge what is not there.

use std::future::Future;
use std::rc::Rc;

use super::NodeError;
use super::state::{Node, Stop};
use crate::edge::Edge;

/// Runs an agent of `node` on the ring thread.
pub fn spawn<E: Edge>(
    node: &Rc<Node<E>>,
    name: &'static str,
    agent: impl Future<Output = ()> + 'static,
) {
    let node = node.clone();
    tokio::task::spawn_local(async move {
        let ended = tokio::task::spawn_local(agent).await;
        if ended.is_err_and(|error| error.is_panic()) {
            let text = format!(
                "the {name} agent panicked: a fault of rowship. The node stops; its log is whole \
                 up to what was acknowledged, so start it again"
            );
            node.stop(Stop::Failed(NodeError::internal(&text)));
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_told_from_a_task_that_ends_with_its_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let panicked = tokio::task::spawn_local(async { panic!("on purpose") }).await;
            assert!(panicked.is_err_and(|error| error.is_panic()));
            let waiting = tokio::task::spawn_local(std::future::pending::<()>());
            waiting.abort();
            assert!(waiting.await.is_err_and(|error| !error.is_panic()));
        });
    }
}

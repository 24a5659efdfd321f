//! `log retire`: old segments go when the operator says so, and never while somebody needs them.

use std::rc::Rc;

use rowship_proto::Lsn;

use super::state::{Node, count};
use crate::edge::{Edge, offload};
use crate::intake::reply::Reply;
use crate::log::retire::{self, RetireFloors, SPARES_MAX};
use crate::log::segment::list_segments;

/// ROWSHIP.RETIRE: lets segments go that lie wholly below `to`, as far as nobody needs them.
/// Answers `[segments retired, oldest LSN left, what keeps more]`.
pub async fn retire<E: Edge>(node: &Rc<Node<E>>, to: Lsn) -> Reply {
    let (checkpoint, table_durable) = {
        let state = node.state.lock().await;
        (state.checkpoint.map(|end| end.lsn).unwrap_or_default(), state.table_durable.lsn)
    };
    let replicas = node.primary().map_or_else(Vec::new, |primary| {
        let machine = primary.machine.borrow();
        let need = machine.replicas().iter();
        need.map(|(name, replica)| (name.to_string(), replica.durable_promised)).collect()
    });
    let floors = RetireFloors { checkpoint, table_durable, replicas };
    let _changing = node.segments.changing.lock().await;
    let disk = node.disk.clone();
    let planned = offload(&node.preparation, move || {
        list_segments(&disk).map(|segments| retire::plan(&segments, to, &floors))
    });
    let plan = match planned.await {
        Ok(Ok(plan)) => plan,
        Ok(Err(error)) => return Reply::error(format!("ERR {error}")),
        Err(error) => return Reply::error(format!("ERR the node is stopping: {error}")),
    };
    for base in &plan.retire {
        node.segments.close(*base);
    }
    let (disk, going) = (node.disk.clone(), plan.clone());
    let spares = node.settings.node.spare_segments.min(SPARES_MAX);
    let done = offload(&node.preparation, move || retire::retire(&disk, &going, spares)).await;
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Reply::error(format!("ERR {error}")),
        Err(error) => return Reply::error(format!("ERR the node is stopping: {error}")),
    }
    count(&node.counters.segments_retired, plan.retire.len() as u64);
    if !plan.retire.is_empty() {
        node.event(format!(
            "retired {} segment(s): the log starts at LSN {}",
            plan.retire.len(),
            plan.oldest
        ));
    }
    let kept = plan.kept_by.map_or(Reply::Null, Reply::text);
    let retired = i64::try_from(plan.retire.len()).unwrap_or(i64::MAX);
    let oldest = i64::try_from(plan.oldest.0).unwrap_or(i64::MAX);
    Reply::Array(vec![Reply::Integer(retired), Reply::Integer(oldest), kept])
}

//! Tasks as Docker shows them.

use skep_core::model::task::Task;

use super::{spec_out, version};
use crate::api::time::rfc3339;
use crate::api::types::spec::Empty;
use crate::api::types::task as wire;

pub(in crate::api) fn task(task: &Task) -> wire::Task {
    let mut spec = spec_out::task_spec(&task.spec, &task.service_labels);
    spec.runtime.clear();
    let status = &task.status;
    wire::Task {
        id: task.id.to_string(),
        version: version(task.meta),
        created_at: rfc3339(task.meta.created),
        updated_at: rfc3339(task.meta.updated),
        labels: skep_core::model::Labels::new(),
        spec,
        service_id: task.service.to_string(),
        slot: task.slot,
        node_id: task.node.map(|id| id.to_string()).unwrap_or_default(),
        status: wire::TaskStatus {
            timestamp: rfc3339(status.at),
            state: status.state.word(),
            message: status.message.clone(),
            err: status.err.clone().unwrap_or_default(),
            container_status: status.container.as_ref().map(|c| wire::ContainerStatus {
                container_id: c.id.clone(),
                pid: c.pid,
                exit_code: c.exit_code,
            }),
            port_status: Empty {},
        },
        desired_state: task.desired.word(),
    }
}

//! What the control loop does at its bounds.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::sim::Sim;
use crate::codec;
use crate::command::{Command, TaskReport};
use crate::limits;
use crate::model::service::ServiceMode;
use crate::model::task::{RestartPolicy, Task, TaskState, TaskStatus};
use crate::testing::{description, id, service_spec};
use crate::time::Span;

fn swarm() -> Sim {
    let mut sim = Sim::new();
    let node = sim.world.node;
    sim.node_up(node, description("one"));
    sim
}

#[test]
fn a_heavy_template_makes_small_batches() {
    let mut sim = swarm();
    let mut spec = service_spec("heavy", 100);
    spec.labels.insert(String::from("text"), "x".repeat(200 << 10));
    sim.run(Command::ServiceCreate { id: id(100), spec });
    assert_eq!(sim.world.state.tasks().len(), 100);
    for command in &sim.proposed {
        assert!(codec::length(command) < limits::CONTROL_BATCH_BYTES + (512 << 10));
    }
}

#[test]
fn a_full_swarm_heals_and_fills_what_gets_free() {
    let mut sim = swarm();
    let mut most = service_spec("most", limits::TASKS as u64 - 5);
    let delay = Some(Span(0));
    most.task.make_mut().restart = Some(RestartPolicy { delay, ..RestartPolicy::default() });
    sim.run(Command::ServiceCreate { id: id(100), spec: most });
    sim.run(Command::ServiceCreate { id: id(101), spec: service_spec("more", 10) });
    let count = |sim: &Sim| sim.world.state.tasks().len();
    let more = |sim: &Sim| sim.world.state.tasks_of_service(&id(101)).count();
    assert_eq!((count(&sim), more(&sim)), (limits::TASKS, 5));

    // What fails is replaced, and leaves no history.
    for _ in 0..3 {
        let slot = |sim: &Sim| -> Vec<Arc<Task>> {
            sim.world.state.tasks_of_slot(&id(100), 7).cloned().collect()
        };
        let task = slot(&sim).iter().find(|task| !task.is_done()).unwrap().id;
        sim.report(task, TaskState::Failed);
        assert_eq!(slot(&sim).iter().filter(|task| !task.is_done()).count(), 1);
        assert!(count(&sim) <= limits::TASKS + 1);
    }

    sim.world.update_service(100, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: limits::TASKS as u64 - 50 };
    });
    sim.settle();
    let away = sim.world.state.tasks().filter(|task| task.desired == TaskState::Remove);
    let stopped = |task: &Arc<Task>| TaskReport {
        id: task.id,
        node: task.node.unwrap(),
        status: TaskStatus { state: TaskState::Shutdown, ..TaskStatus::default() },
    };
    let reports: Vec<_> = away.map(stopped).collect();
    assert_eq!(reports.len(), 45);
    sim.run(Command::TaskReport(reports));
    let until = sim.world.now + limits::ROOM_RETRY;
    sim.sleep_until(until, |_| {});
    assert_eq!(more(&sim), 10);
}

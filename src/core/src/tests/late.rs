//! Decisions that are applied when the swarm is no longer as it was when they were made.

use super::sim::Sim;
use crate::command::{Command, Decision};
use crate::control::{Control, Input};
use crate::model::task::TaskState;
use crate::testing::{description, id, service_spec};

#[test]
fn a_task_for_a_node_that_was_removed_meanwhile_runs_elsewhere() {
    let mut sim = Sim::new();
    let first = sim.world.node;
    let second = sim.add_node(2, "two");
    sim.node_up(second, description("two"));
    // Another leader places a task on the only node there is, which is removed before that counts.
    let mut other = Control::new([9; 32]);
    other.step(&sim.world.state, Input::Deadline, sim.world.now);
    sim.world.done(Command::ServiceCreate { id: id(100), spec: service_spec("web", 1) });
    let changes = [crate::apply::Change::Service(id(100))];
    let made = other.step(&sim.world.state, Input::Changes(&changes), sim.world.now);
    assert_eq!(made.len(), 1);
    sim.world.done(Command::NodeRemove { id: second, force: true });
    for command in made {
        sim.world.done(command);
    }
    let task = sim.world.state.tasks().next().unwrap();
    assert_eq!((task.node, task.status.state), (None, TaskState::Pending));
    sim.settle();
    assert_eq!(sim.world.state.tasks().len(), 1);
    sim.node_up(first, description("one"));
    let tasks = sim.world.state.tasks();
    assert!(tasks.len() == 1 && tasks.into_iter().all(|task| task.node == Some(first)));
}

#[test]
fn a_slot_that_is_wanted_again_is_filled_again() {
    let mut sim = Sim::new();
    sim.node_up(sim.world.node, description("one"));
    sim.run(Command::ServiceCreate { id: id(100), spec: service_spec("web", 3) });
    sim.agents();
    let task = sim.world.state.tasks().find(|task| task.slot == 2).unwrap().id;
    // A leader of the past wanted fewer.
    let desired = TaskState::Remove;
    sim.run(Command::Control([Decision::TaskDesire { id: task, desired }].into()));
    sim.agents();
    let tasks = sim.world.state.tasks().filter(|task| task.status.state == TaskState::Running);
    assert_eq!(tasks.map(|task| task.slot).sum::<u64>(), 1 + 2 + 3);
    assert!(sim.world.state.task(&task).is_none());
}

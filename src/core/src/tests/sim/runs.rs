//! The large swarm: 200 nodes and 2,000 tasks through 45 seconds of faults, then through their
//! end. `SKEP_SIM_SEED=N` plays one seed alone.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use std::env;

use super::check::brief;
use super::swarm::Swarm;
use crate::control::constraint;
use crate::control::{Control, Input, is_outdated};
use crate::limits;
use crate::model::node::{Availability, Node, NodeState};
use crate::model::service::{Service, ServiceMode, UpdateState};
use crate::model::task::{RestartCondition, Task, TaskState};
use crate::state::State;
use crate::time::Span;

const NODES: u64 = 200;
/// Ticks in which things go wrong: 45 seconds.
const FAULTY: u64 = 450;
/// Ticks in which the swarm has to find its rest: a quarter of an hour, since the slowest update
/// takes its slots one after another.
const HEALING: u64 = 9_000;

fn play(seeds: Range<u64>) {
    if let Ok(seed) = env::var("SKEP_SIM_SEED") {
        let seed: u64 = seed.parse().expect("SKEP_SIM_SEED is a number");
        if seeds.contains(&seed) || (seed >= 50 && seeds.start == 0) {
            run(seed);
        }
        return;
    }
    let turns: u64 = seeds.map(run).sum();
    assert!(turns > 0, "no manager was ever demoted");
}

#[test]
fn a_large_swarm_heals_01() {
    play(0..10);
}

#[test]
fn a_large_swarm_heals_02() {
    play(10..20);
}

#[test]
fn a_large_swarm_heals_03() {
    play(20..30);
}

#[test]
fn a_large_swarm_heals_04() {
    play(30..40);
}

#[test]
fn a_large_swarm_heals_05() {
    play(40..50);
}

/// Plays one seed. Gives how often the ring turned: each demotion turns it once.
fn run(seed: u64) -> u64 {
    let mut swarm = Swarm::new(seed, NODES);
    swarm.furnish();
    while swarm.step < FAULTY {
        swarm.tick();
        if swarm.step > 30 {
            if swarm.random.once_in(4) {
                swarm.use_it();
            }
            if swarm.random.once_in(2) {
                swarm.go_wrong();
            }
        }
        if swarm.step == FAULTY / 2 {
            swarm.checker.whole(&swarm.world.state);
        }
    }
    swarm.mend_all();
    let end = swarm.step + HEALING;
    loop {
        swarm.tick();
        if swarm.step.is_multiple_of(50) {
            match unrest(&swarm) {
                None => break,
                Some(why) => assert!(swarm.step < end, "the swarm finds no rest: {why}"),
            }
        }
    }
    swarm.checker.whole(&swarm.world.state);
    same_as_told(&swarm);
    // A new leader finds nothing to do either.
    let mut control = Control::new([99; 32]);
    let commands = control.step(&swarm.world.state, Input::Deadline, swarm.world.now);
    assert!(commands.is_empty(), "{commands:?}");
    swarm.world.state.cluster().map_or(0, |cluster| cluster.ring.current - 1)
}

/// Why the swarm is not as users want it, if it is not.
fn unrest(swarm: &Swarm) -> Option<String> {
    let state = &swarm.world.state;
    for service in state.services() {
        if let Some(why) = unrest_of(state, service) {
            return Some(format!("{why}: {service:#?}"));
        }
    }
    if let Some(task) = state.tasks().find(|task| state.service(&task.service).is_none()) {
        return Some(format!("its service is gone: {task:#?}"));
    }
    // The next deadline is a node's: it is heard of before.
    let wakes = swarm.deadline().is_none_or(|at| at < swarm.world.now + Span::from_millis(1_500));
    (!swarm.is_quiet() || wakes).then(|| String::from("not quiet"))
}

fn unrest_of(state: &State, service: &Service) -> Option<String> {
    let ServiceMode::Replicated { replicas } = service.spec.mode else { return None };
    let update = service.update.as_ref().map(|update| update.state);
    let mut is_paused = matches!(update, Some(UpdateState::Paused | UpdateState::RollbackPaused));
    if matches!(update, Some(UpdateState::Updating | UpdateState::RollbackStarted)) {
        // Only a task that finds no node may hold it up.
        let mut tasks = state.tasks_of_service(&service.id);
        is_paused = tasks.any(|task| task.node.is_none() && !task.is_done());
        if !is_paused {
            return Some(String::from("it is being updated"));
        }
    }
    let all = state.tasks_of_service(&service.id).filter(|task| task.desired < TaskState::Remove);
    let slots: BTreeSet<u64> = all.map(|task| task.slot).collect();
    if slots.len() as u64 != replicas {
        return Some(format!("{} slots of {replicas}", slots.len()));
    }
    for slot in slots {
        let tasks: Vec<_> = state.tasks_of_slot(&service.id, slot).collect();
        if let Some(why) = unrest_in(state, service, &tasks, is_paused) {
            return Some(format!("{why}:{}", brief(state, &tasks)));
        }
    }
    None
}

fn unrest_in(
    state: &State,
    service: &Service,
    tasks: &[&Arc<Task>],
    is_paused: bool,
) -> Option<&'static str> {
    let active: Vec<_> = tasks.iter().filter(|t| t.desired <= TaskState::Running).collect();
    let newest = tasks.iter().max_by_key(|task| task.age())?;
    if active.len() > 1 + usize::from(is_paused) {
        return Some("more than one is to run");
    }
    if active.is_empty() && !is_given_up(newest) {
        return Some("none is to run");
    }
    let history = tasks.len() - active.len();
    if history as u64 > limits::HISTORY_PER_SLOT {
        return Some("too much history");
    }
    for task in &active {
        if is_outdated(state, service, task) && !is_paused {
            return Some("it is of an old template, or of old versions");
        }
        let node = task.node.and_then(|id| state.node(&id));
        match (task.status.state, node) {
            (TaskState::Running, Some(node)) if fits(task, node) => {}
            (TaskState::Pending, None) if task.node.is_none() => {
                let err = task.status.err.as_deref().unwrap_or_default();
                if !err.starts_with("no suitable node") {
                    return Some("it does not say why it waits");
                }
                let has_room = |node: &Node| takes(state, task, node);
                if state.nodes().any(|node| has_room(node)) {
                    return Some("there is a node for it");
                }
            }
            _ => return Some("it does not run"),
        }
    }
    None
}

/// Whether a slot's policy has it end there.
fn is_given_up(task: &Task) -> bool {
    let policy = task.spec.restart.clone().unwrap_or_default();
    let ended = task.status.state.is_terminal();
    ended
        && match policy.condition.unwrap_or_default() {
            RestartCondition::None => true,
            RestartCondition::OnFailure if task.status.state == TaskState::Complete => true,
            _ => policy.max_attempts.is_some_and(|max| max > 0 && task.attempts >= max),
        }
}

/// Whether a task may be on a node that it is on.
fn fits(task: &Task, node: &Node) -> bool {
    let placement = task.spec.placement.clone().unwrap_or_default();
    let mut constraints = placement.constraints.iter();
    node.status.state == NodeState::Ready
        && node.spec.availability != Availability::Drain
        && constraints.all(|text| constraint::parse(text).unwrap().holds(node))
}

/// Whether a node could take a task; a second opinion on what the scheduler says.
fn takes(state: &State, task: &Task, node: &Node) -> bool {
    let (mut memory, mut count) = (0, 0);
    for other in state.tasks_of_node(&node.id).filter(|t| !t.status.state.is_terminal()) {
        memory += other.spec.reserved().map_or(0, |needs| needs.memory_bytes);
        count += u64::from(other.service == task.service && !other.is_done());
    }
    let max = task.spec.placement.as_ref().map_or(0, |placement| placement.max_replicas);
    let needs = task.spec.reserved().map_or(0, |needs| needs.memory_bytes);
    fits(task, node)
        && node.spec.availability == Availability::Active
        && memory + needs <= node.description.memory_bytes
        && (max == 0 || count < max)
}

/// What machines run is what the state says, and no machine holds what the state has forgotten.
fn same_as_told(swarm: &Swarm) {
    let state = &swarm.world.state;
    for agent in swarm.agents.values() {
        for (id, held) in &agent.held {
            let task =
                state.task(id).unwrap_or_else(|| panic!("{id} is held for nobody: {held:?}"));
            assert_eq!(task.node, Some(agent.node));
            assert_eq!(swarm.runs(agent.node, *id), task.status.state == TaskState::Running);
        }
    }
    let running = state.tasks().filter(|task| task.status.state == TaskState::Running);
    for task in running {
        assert!(task.node.is_some_and(|node| swarm.runs(node, task.id)), "{task:?} does not run");
    }
}

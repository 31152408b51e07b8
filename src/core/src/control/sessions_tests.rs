//! Who is found silent, and who is only looking for another manager.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::sessions::{Reports, SessionEvent, Sessions};
use crate::command::Command;
use crate::id::NodeId;
use crate::model::node::NodeState;
use crate::testing::{World, joiner};
use crate::time::{Span, Stamp};

const START: Stamp = Stamp(1_000_000_000_000);

struct Scene {
    world: World,
    sessions: Sessions,
    nodes: [NodeId; 3],
}

fn at(ms: u64) -> Stamp {
    START + Span::from_millis(ms)
}

impl Scene {
    /// Two managers and a worker, whose session is with the second.
    fn new() -> Self {
        let mut world = World::new();
        let nodes = [11, 12, 13].map(|n| {
            let join = joiner(n, "n");
            let id = join.id;
            world.done(Command::NodeJoin(Box::new(join)));
            world.turn(id, NodeState::Ready);
            id
        });
        Self { world, sessions: Sessions::default(), nodes }
    }

    fn hear(&mut self, events: &[SessionEvent], ms: u64) {
        self.sessions.take(&self.world.state, events, at(ms), &mut Reports::default());
    }

    fn up(&self, node: usize) -> SessionEvent {
        let node = self.nodes[node];
        let (addr, advertise) = (String::new(), String::new());
        SessionEvent::Up { node, addr, advertise, description: Box::default() }
    }

    fn heard(&self, node: usize, by: usize) -> SessionEvent {
        SessionEvent::Heard { node: self.nodes[node], by: self.nodes[by] }
    }

    /// Nodes that are found to be down.
    fn down(&mut self, ms: u64) -> Vec<usize> {
        let mut reports = Reports::default();
        self.sessions.expire(&self.world.state, at(ms), &mut reports);
        let news = reports.into_news();
        let down = news.iter().filter(|report| {
            report.status.as_ref().is_some_and(|status| status.state == NodeState::Down)
        });
        let place = |id| self.nodes.iter().position(|node| *node == id);
        down.filter_map(|report| place(report.id)).collect()
    }
}

#[test]
fn a_silent_node_is_down() {
    let mut scene = Scene::new();
    scene.hear(&[scene.heard(0, 0), scene.heard(1, 1), scene.heard(2, 1)], 0);
    scene.hear(&[scene.heard(0, 0), scene.heard(1, 1)], 2_000);
    assert_eq!(scene.down(2_999), []);
    assert_eq!(scene.down(3_000), [2]);
}

#[test]
fn one_whose_manager_is_gone_has_time_to_find_another() {
    let mut scene = Scene::new();
    scene.hear(&[scene.heard(0, 0), scene.heard(2, 1)], 0);
    scene.hear(&[scene.heard(1, 1)], 900);
    scene.hear(&[scene.heard(0, 0)], 3_000);
    assert_eq!(scene.down(3_000), []);
    // The manager itself is a silent node like any other.
    assert_eq!(scene.down(3_900), [1]);
    scene.hear(&[scene.heard(0, 0)], 6_000);
    assert_eq!(scene.down(6_500), []);
    scene.hear(&[scene.heard(0, 0)], 9_000);
    scene.hear(&[scene.heard(0, 0)], 10_800);
    assert_eq!(scene.down(10_899), []);
    // It never came.
    assert_eq!(scene.down(10_900), [2]);
}

#[test]
fn one_that_found_another_is_judged_by_that() {
    let mut scene = Scene::new();
    scene.hear(&[scene.heard(0, 0), scene.heard(1, 1), scene.heard(2, 1)], 0);
    scene.hear(&[scene.heard(0, 0)], 3_000);
    assert_eq!(scene.down(3_000), [1]);
    scene.hear(&[scene.up(2), scene.heard(2, 0), scene.heard(0, 0)], 4_000);
    scene.hear(&[scene.heard(0, 0)], 6_900);
    assert_eq!(scene.down(6_999), []);
    assert_eq!(scene.down(7_000), [2]);
}

/// Its agents notice that it was away later than the leader does.
#[test]
fn a_manager_that_restarts_at_once_has_lost_its_agents_too() {
    let mut scene = Scene::new();
    scene.hear(&[scene.heard(0, 0), scene.heard(1, 1), scene.heard(2, 1)], 0);
    scene.hear(&[scene.up(1), scene.heard(1, 1), scene.heard(0, 0)], 500);
    scene.hear(&[scene.heard(1, 1), scene.heard(0, 0)], 3_000);
    assert_eq!(scene.down(3_100), []);
    for ms in [6_000, 8_000, 10_400] {
        scene.hear(&[scene.heard(1, 1), scene.heard(0, 0)], ms);
    }
    assert_eq!(scene.down(10_499), []);
    assert_eq!(scene.down(10_500), [2]);
}

//! Which nodes are there: heartbeats come in as events, only transitions go out as reports.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use crate::command::NodeReport;
use crate::id::NodeId;
use crate::limits;
use crate::model::node::{Node, NodeDescription, NodeState, NodeStatus};
use crate::state::State;
use crate::time::{Span, Stamp};

/// Something that happened to a node's session, on whichever manager it sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// It opened a session.
    Up {
        /// Node.
        node: NodeId,
        /// Its address as its manager sees it, without port; empty for unknown.
        addr: String,
        /// What it says of itself.
        description: Box<NodeDescription>,
    },
    /// It was heard of.
    Heard(NodeId),
    /// It closed its session on purpose.
    Closed(NodeId),
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Stamp,
    /// Whether it has a session, as far as was reported.
    is_up: bool,
}

/// How late the loop may look before it must have slept itself.
const OVERSLEPT: Span = Span::from_secs(1);

/// When each node was last heard of.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    heard: BTreeMap<NodeId, Heard>,
    by_time: BTreeSet<(Stamp, NodeId)>,
}

impl Sessions {
    /// What a new leader does: a node that was there has time to find it.
    pub(super) fn count_all_as_heard(&mut self, state: &State, now: Stamp) {
        let latest = now + limits::RECONNECT_WITHIN - limits::NODE_DOWN_AFTER;
        for node in state.nodes() {
            match node.status.state {
                NodeState::Ready => self.hear(node.id, latest, true),
                NodeState::Disconnected => self.hear(node.id, latest, false),
                NodeState::Unknown | NodeState::Down => true,
            };
        }
    }

    pub(super) fn take(
        &mut self,
        state: &State,
        events: &[SessionEvent],
        now: Stamp,
        reports: &mut Vec<NodeReport>,
    ) {
        for event in events {
            match event {
                SessionEvent::Up { node: id, addr, description } => {
                    let Some(node) = state.node(id) else { continue };
                    self.hear(*id, now, true);
                    let status = turned(node, NodeState::Ready, "", addr, now);
                    let is_new = node.description != **description;
                    let description = is_new.then(|| NodeDescription::clone(description));
                    if status.is_some() || description.is_some() {
                        reports.push(NodeReport { id: *id, description, status });
                    }
                }
                SessionEvent::Heard(id) => {
                    let Some(node) = state.node(id) else { continue };
                    if !self.hear(*id, now, true) {
                        report(reports, node, NodeState::Ready, "", now);
                    }
                }
                SessionEvent::Closed(id) => {
                    let Some(node) = state.node(id) else { continue };
                    self.hear(*id, now, false);
                    report(reports, node, NodeState::Disconnected, "", now);
                }
            }
        }
    }

    /// Reports nodes that have been silent for too long. A loop that looks much later than it
    /// meant to has slept itself: then every node has its full time again.
    pub(super) fn expire(&mut self, state: &State, now: Stamp, reports: &mut Vec<NodeReport>) {
        let Some(due) = self.deadline() else { return };
        if due + OVERSLEPT < now {
            let all: Vec<(NodeId, bool)> =
                self.heard.iter().map(|(id, h)| (*id, h.is_up)).collect();
            for (id, is_up) in all {
                self.hear(id, now, is_up);
            }
        }
        while let Some((last, id)) = self.by_time.first().copied() {
            if last + limits::NODE_DOWN_AFTER > now {
                break;
            }
            self.forget(&id);
            if let Some(node) = state.node(&id) {
                report(reports, node, NodeState::Down, "heartbeat failure", now);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Stamp> {
        self.by_time.first().map(|(last, _)| *last + limits::NODE_DOWN_AFTER)
    }

    /// Notes when a node was heard of and whether it has a session; whether it had one before.
    fn hear(&mut self, id: NodeId, at: Stamp, is_up: bool) -> bool {
        let last = self.heard.insert(id, Heard { at, is_up });
        if let Some(last) = last {
            self.by_time.remove(&(last.at, id));
        }
        self.by_time.insert((at, id));
        last.is_some_and(|last| last.is_up)
    }

    fn forget(&mut self, id: &NodeId) {
        if let Some(last) = self.heard.remove(id) {
            self.by_time.remove(&(last.at, *id));
        }
    }
}

fn report(reports: &mut Vec<NodeReport>, node: &Node, to: NodeState, why: &str, now: Stamp) {
    if let Some(status) = turned(node, to, why, "", now) {
        reports.push(NodeReport { id: node.id, description: None, status: Some(status) });
    }
}

/// The status of a node in state `to`, if that is not the one it has.
fn turned(node: &Node, to: NodeState, why: &str, addr: &str, now: Stamp) -> Option<NodeStatus> {
    let old = &node.status;
    let addr = if addr.is_empty() { &old.addr } else { addr };
    let since = if old.state == to { old.since } else { now };
    let message = String::from(why);
    let new = NodeStatus { state: to, message, addr: String::from(addr), since };
    (new != *old).then_some(new)
}

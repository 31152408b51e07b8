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
        /// Where it says it is reached, with port; empty for unknown.
        advertise: String,
        /// What it says of itself.
        description: Box<NodeDescription>,
    },
    /// It was heard of.
    Heard(NodeId),
    /// It closed its session on purpose.
    Closed(NodeId),
}

/// How late the loop may look before it must have slept itself.
const OVERSLEPT: Span = Span::from_secs(1);

/// When each node was last heard of.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    heard: BTreeMap<NodeId, Stamp>,
    by_time: BTreeSet<(Stamp, NodeId)>,
}

impl Sessions {
    /// What a new leader does: a node that was there has time to find it.
    pub(super) fn count_all_as_heard(&mut self, state: &State, now: Stamp) {
        let latest = now + limits::RECONNECT_WITHIN - limits::NODE_DOWN_AFTER;
        for node in state.nodes().filter(|node| is_there(node)) {
            self.hear(node.id, latest);
        }
    }

    /// A node was written, maybe by what a leader of the past had proposed: one that is said to
    /// be there goes down if it stays silent.
    pub(super) fn notice(&mut self, state: &State, id: &NodeId, now: Stamp) {
        let node = state.node(id);
        if node.is_some_and(|node| is_there(node)) && !self.heard.contains_key(id) {
            self.hear(*id, now);
        }
    }

    pub(super) fn take(
        &mut self,
        state: &State,
        events: &[SessionEvent],
        now: Stamp,
        reports: &mut Reports,
    ) {
        for event in events {
            match event {
                SessionEvent::Up { node: id, addr, advertise, description } => {
                    let Some(node) = state.node(id) else { continue };
                    self.hear(*id, now);
                    reports.turn(node, NodeState::Ready, "", addr, now);
                    reports.describe(node, description);
                    reports.locate(node, advertise);
                }
                SessionEvent::Heard(id) => {
                    let Some(node) = state.node(id) else { continue };
                    self.hear(*id, now);
                    if node.status.state != NodeState::Ready || reports.0.contains_key(id) {
                        reports.turn(node, NodeState::Ready, "", "", now);
                    }
                }
                SessionEvent::Closed(id) => {
                    let Some(node) = state.node(id) else { continue };
                    self.hear(*id, now);
                    reports.turn(node, NodeState::Disconnected, "", "", now);
                }
            }
        }
    }

    /// Reports nodes that have been silent for too long. A loop that looks much later than it
    /// meant to has slept itself: then every node has its full time again.
    pub(super) fn expire(&mut self, state: &State, now: Stamp, reports: &mut Reports) {
        let Some(due) = self.deadline() else { return };
        if due + OVERSLEPT < now {
            let all: Vec<NodeId> = self.heard.keys().copied().collect();
            all.into_iter().for_each(|id| self.hear(id, now));
        }
        while let Some((last, id)) = self.by_time.first().copied() {
            if last + limits::NODE_DOWN_AFTER > now {
                break;
            }
            self.forget(&id);
            if let Some(node) = state.node(&id) {
                reports.turn(node, NodeState::Down, "heartbeat failure", "", now);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Stamp> {
        self.by_time.first().map(|(last, _)| *last + limits::NODE_DOWN_AFTER)
    }

    fn hear(&mut self, id: NodeId, at: Stamp) {
        if let Some(last) = self.heard.insert(id, at) {
            self.by_time.remove(&(last, id));
        }
        self.by_time.insert((at, id));
    }

    fn forget(&mut self, id: &NodeId) {
        if let Some(last) = self.heard.remove(id) {
            self.by_time.remove(&(last, *id));
        }
    }
}

/// Whether a node is said to be there, or to have left just now.
fn is_there(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Ready | NodeState::Disconnected)
}

/// What one step says of nodes: of each what holds at its end, if that is new.
#[derive(Debug, Default)]
pub(super) struct Reports(BTreeMap<NodeId, NodeReport>);

impl Reports {
    /// Those that say something.
    pub(super) fn into_news(self) -> Vec<NodeReport> {
        let is_news = |report: &NodeReport| {
            report.status.is_some() || report.description.is_some() || report.advertise.is_some()
        };
        self.0.into_values().filter(is_news).collect()
    }

    fn of(&mut self, node: &Node) -> &mut NodeReport {
        let empty = NodeReport { id: node.id, description: None, status: None, advertise: None };
        self.0.entry(node.id).or_insert(empty)
    }

    fn describe(&mut self, node: &Node, new: &NodeDescription) {
        self.of(node).description = (node.description != *new).then(|| new.clone());
    }

    fn locate(&mut self, node: &Node, advertise: &str) {
        let is_news = !advertise.is_empty() && node.advertise != advertise;
        self.of(node).advertise = is_news.then(|| String::from(advertise));
    }

    fn turn(&mut self, node: &Node, to: NodeState, why: &str, addr: &str, now: Stamp) {
        let old = &node.status;
        let addr = if addr.is_empty() { &old.addr } else { addr };
        let since = if old.state == to { old.since } else { now };
        let message = String::from(why);
        let new = NodeStatus { state: to, message, addr: String::from(addr), since };
        self.of(node).status = (new != *old).then_some(new);
    }
}

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
    Heard {
        /// Node.
        node: NodeId,
        /// The manager that has its session: its own node, if that is one.
        by: NodeId,
    },
    /// It closed its session on purpose.
    Closed(NodeId),
}

impl SessionEvent {
    /// A manager was heard of, whose session is with itself, or a node whose session cannot be
    /// lost with its manager.
    #[must_use]
    pub fn heard(node: NodeId) -> Self {
        Self::Heard { node, by: node }
    }
}

/// How late the loop may look before it must have slept itself.
const OVERSLEPT: Span = Span::from_secs(1);

/// When each node was last heard of, and since when those are down that are.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    heard: Times,
    down: Times,
    /// Which manager has each node's session, of those whose session is with another node.
    by: BTreeMap<NodeId, NodeId>,
}

/// One moment for each of some nodes.
#[derive(Debug, Default)]
struct Times {
    of: BTreeMap<NodeId, Stamp>,
    in_order: BTreeSet<(Stamp, NodeId)>,
}

impl Times {
    fn set(&mut self, id: NodeId, at: Stamp) {
        self.forget(&id);
        self.of.insert(id, at);
        self.in_order.insert((at, id));
    }

    fn forget(&mut self, id: &NodeId) {
        if let Some(last) = self.of.remove(id) {
            self.in_order.remove(&(last, *id));
        }
    }

    fn first(&self) -> Option<(Stamp, NodeId)> {
        self.in_order.first().copied()
    }
}

impl Sessions {
    /// What a new leader does: a node that was there has time to find it.
    pub(super) fn count_all_as_heard(&mut self, state: &State, now: Stamp) {
        let latest = now + limits::RECONNECT_WITHIN - limits::NODE_DOWN_AFTER;
        for node in state.nodes().filter(|node| is_there(node)) {
            self.heard.set(node.id, latest);
        }
        for node in state.nodes() {
            self.notice_down(state, &node.id);
        }
    }

    /// A node was written, maybe by what a leader of the past had proposed: one that is said to
    /// be there goes down if it stays silent.
    pub(super) fn notice(&mut self, state: &State, id: &NodeId, now: Stamp) {
        match state.node(id) {
            Some(node) if is_there(node) && !self.heard.of.contains_key(id) => {
                self.heard.set(*id, now);
            }
            Some(_) => {}
            None => {
                self.heard.forget(id);
                self.by.remove(id);
            }
        }
        self.notice_down(state, id);
    }

    fn notice_down(&mut self, state: &State, id: &NodeId) {
        match state.node(id).filter(|node| node.status.state == NodeState::Down) {
            Some(node) => self.down.set(*id, node.status.since),
            None => self.down.forget(id),
        }
    }

    /// A node that nobody expects any more, once each.
    pub(super) fn next_lost(&mut self, now: Stamp) -> Option<NodeId> {
        let (since, id) = self.down.first()?;
        if since + limits::NODE_LOST_AFTER > now {
            return None;
        }
        self.down.forget(&id);
        Some(id)
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
                    self.heard.set(*id, now);
                    self.by.remove(id);
                    self.await_agents_of(id, now);
                    reports.turn(node, NodeState::Ready, "", addr, now);
                    reports.describe(node, description);
                    reports.locate(node, advertise);
                }
                SessionEvent::Heard { node: id, by } => {
                    let Some(node) = state.node(id) else { continue };
                    self.heard.set(*id, now);
                    if by != id {
                        self.by.insert(*id, *by);
                    }
                    if node.status.state != NodeState::Ready || reports.0.contains_key(id) {
                        reports.turn(node, NodeState::Ready, "", "", now);
                    }
                }
                SessionEvent::Closed(id) => {
                    let Some(node) = state.node(id) else { continue };
                    self.heard.set(*id, now);
                    self.by.remove(id);
                    reports.turn(node, NodeState::Disconnected, "", "", now);
                }
            }
        }
    }

    /// Reports nodes that have been silent for too long. A loop that looks much later than it
    /// meant to has slept itself: then every node has its full time again.
    pub(super) fn expire(&mut self, state: &State, now: Stamp, reports: &mut Reports) {
        let Some((last, _)) = self.heard.first() else { return };
        if last + limits::NODE_DOWN_AFTER + OVERSLEPT < now {
            let all: Vec<NodeId> = self.heard.of.keys().copied().collect();
            all.into_iter().for_each(|id| self.heard.set(id, now));
        }
        while let Some((last, id)) = self.heard.first() {
            if last + limits::NODE_DOWN_AFTER > now {
                break;
            }
            if let Some(until) = self.lost_its_manager(&id, now) {
                self.heard.set(id, until - limits::NODE_DOWN_AFTER);
                continue;
            }
            self.heard.forget(&id);
            if let Some(node) = state.node(&id) {
                reports.turn(node, NodeState::Down, "heartbeat failure", "", now);
            }
        }
    }

    /// A manager has a new session: whatever ended its last one ended those that it held, too.
    fn await_agents_of(&mut self, manager: &NodeId, now: Stamp) {
        let latest = now + limits::RECONNECT_WITHIN - limits::NODE_DOWN_AFTER;
        let lost: Vec<NodeId> =
            self.by.iter().filter(|(_, by)| *by == manager).map(|(id, _)| *id).collect();
        for id in lost {
            self.by.remove(&id);
            if self.heard.of.contains_key(&id) {
                self.heard.set(id, latest);
            }
        }
    }

    /// Until when a silent node is waited for because the manager that had its session is silent
    /// itself; once for each session.
    fn lost_its_manager(&mut self, id: &NodeId, now: Stamp) -> Option<Stamp> {
        let manager = self.by.remove(id)?;
        let since = match self.heard.of.get(&manager) {
            Some(last) if *last + limits::MANAGER_SILENT_AFTER > now => return None,
            Some(last) => *last,
            None => now,
        };
        Some(since + limits::RECONNECT_WITHIN).filter(|until| *until > now)
    }

    pub(super) fn deadline(&self) -> Option<Stamp> {
        let silent = self.heard.first().map(|(last, _)| last + limits::NODE_DOWN_AFTER);
        let lost = self.down.first().map(|(since, _)| since + limits::NODE_LOST_AFTER);
        silent.into_iter().chain(lost).min()
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

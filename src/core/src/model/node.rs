//! Nodes.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::{Labels, Meta};
use crate::id::NodeId;
use crate::time::Stamp;

/// What a node may do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Role {
    /// Runs tasks.
    #[default]
    #[n(0)]
    Worker,
    /// Runs tasks and holds the Raft log.
    #[n(1)]
    Manager,
}

/// Whether a node takes tasks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Availability {
    /// Takes tasks.
    #[default]
    #[n(0)]
    Active,
    /// Keeps its tasks, takes no new ones.
    #[n(1)]
    Pause,
    /// Runs none.
    #[n(2)]
    Drain,
}

/// What a user says of a node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NodeSpec {
    /// Optional name.
    #[n(0)]
    pub name: Option<String>,
    /// Labels for placement.
    #[n(1)]
    pub labels: Labels,
    /// Role asked for.
    #[n(2)]
    pub role: Role,
    /// Availability.
    #[n(3)]
    pub availability: Availability,
}

/// What a node says of itself.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NodeDescription {
    /// Host name.
    #[n(0)]
    pub hostname: String,
    /// Machine word as the kernel prints it, such as `x86_64`.
    #[n(1)]
    pub architecture: String,
    /// `linux`.
    #[n(2)]
    pub os: String,
    /// CPUs in billionths.
    #[n(3)]
    pub nano_cpus: u64,
    /// Memory in bytes.
    #[n(4)]
    pub memory_bytes: u64,
    /// Version of skep it runs.
    #[n(5)]
    pub engine_version: String,
    /// Labels of its engine.
    #[n(6)]
    pub engine_labels: Labels,
    /// Drivers by type: (type, name).
    #[n(7)]
    pub plugins: Vec<(String, String)>,
    /// Countable resources by kind.
    #[n(8)]
    pub generic: BTreeMap<String, u64>,
    /// Newest format of log entries and snapshots that it reads; 0 if it does not say.
    #[cbor(n(9), default)]
    pub format: u32,
}

impl NodeDescription {
    /// Newest format of log entries and snapshots that it reads. Every version reads the first.
    #[must_use]
    pub fn reads_format(&self) -> u32 {
        self.format.max(1)
    }
}

/// What managers have observed of a node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum NodeState {
    /// Never heard of since this swarm started counting.
    #[default]
    #[n(0)]
    Unknown,
    /// Silent for too long.
    #[n(1)]
    Down,
    /// Has a session.
    #[n(2)]
    Ready,
    /// Closed its session on purpose.
    #[n(3)]
    Disconnected,
}

/// The observed half of a node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NodeStatus {
    /// State.
    #[n(0)]
    pub state: NodeState,
    /// Why, if there is something to say.
    #[n(1)]
    pub message: String,
    /// Address as others see it, without port.
    #[n(2)]
    pub addr: String,
    /// When the state last changed.
    #[n(3)]
    pub since: Stamp,
}

/// The manager half of a node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ManagerInfo {
    /// Its Raft id: minted at each promotion, never reused.
    #[n(0)]
    pub raft_id: u64,
    /// Its address with port.
    #[n(1)]
    pub addr: String,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Node {
    /// Id.
    #[n(0)]
    pub id: NodeId,
    /// Version counter and stamps.
    #[n(1)]
    pub meta: Meta,
    /// What the user said.
    #[n(2)]
    pub spec: NodeSpec,
    /// What it said of itself.
    #[n(3)]
    pub description: NodeDescription,
    /// What was observed.
    #[n(4)]
    pub status: NodeStatus,
    /// Present on managers.
    #[n(5)]
    pub manager: Option<ManagerInfo>,
    /// DER of its public key: who it is.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// X25519 public key that ring slots are sealed to once it is a manager.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub seal_key: [u8; 32],
    /// Address with port where other managers reach it, as it says itself: a hint, it is known
    /// by its key.
    #[n(8)]
    pub advertise: String,
}

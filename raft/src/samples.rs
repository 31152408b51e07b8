//! What the tests of this crate share: a small swarm.

use std::collections::BTreeMap;

use skep_core::apply::apply;
use skep_core::command::{ClusterInit, Command, NodeJoin, Outcome, Proposal};
use skep_core::id::{ENTROPY_LEN, Id};
use skep_core::model::cluster::{ClusterSpec, Ring, RingKey, Slot, Trust};
use skep_core::model::material::{Author, MaterialKind, MaterialSpec};
use skep_core::model::node::{ManagerInfo, NodeDescription, NodeSpec, Role};
use skep_core::sealed::Sealed;
use skep_core::state::State;
use skep_core::time::Stamp;

pub(crate) fn id<K>(number: u64) -> Id<K> {
    let mut entropy = [0; ENTROPY_LEN];
    entropy[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_entropy(entropy)
}

pub(crate) fn init() -> Command {
    let slot = Slot { sealed: vec![1] };
    let key = RingKey { version: 1, created: Stamp(1), slots: BTreeMap::from([(id(1), slot)]) };
    let addr = String::from("10.0.0.1");
    Command::ClusterInit(Box::new(ClusterInit {
        id: id(1),
        spec: ClusterSpec::default(),
        ring: Ring { current: 1, keys: vec![key] },
        trust: Trust::default(),
        incarnation_id: [1; 16],
        node: id(1),
        node_spec: NodeSpec::default(),
        description: NodeDescription::default(),
        manager: ManagerInfo { raft_id: 1, addr: addr.clone() },
        public_key: Vec::new(),
        seal_key: [0; 32],
        addr,
    }))
}

/// A manager that joins and reads up to this format.
pub(crate) fn join(number: u64, format: u32) -> Command {
    let slots = BTreeMap::from([(1, Slot { sealed: vec![1] })]);
    Command::NodeJoin(Box::new(NodeJoin {
        id: id(number),
        public_key: number.to_be_bytes().to_vec(),
        seal_key: [7; 32],
        spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
        description: reading(format),
        advertise: format!("127.0.0.1:{number}"),
        addr: String::from("127.0.0.1"),
        manager: Some((number, slots)),
    }))
}

/// What a node of some version says of itself.
pub(crate) fn reading(format: u32) -> NodeDescription {
    NodeDescription { format, engine_version: format!("0.{format}"), ..NodeDescription::default() }
}

pub(crate) fn create(number: u64, payload: &[u8]) -> Command {
    Command::MaterialCreate {
        id: id(number),
        kind: MaterialKind::Secret,
        spec: MaterialSpec { name: format!("secret-{number}"), ..MaterialSpec::default() },
        size: payload.len() as u64 - 16,
        payload: Sealed { key: 1, nonce: [0; 12], bytes: payload.to_vec() },
        by: Author { node: id(1), uid: 0 },
    }
}

/// A swarm with a secret for each size.
pub(crate) fn state(sizes: &[usize]) -> State {
    let mut state = State::default();
    let secrets = sizes.iter().zip(2..).map(|(size, number)| create(number, &vec![9; *size]));
    for (command, number) in [init()].into_iter().chain(secrets).zip(1..) {
        let proposal = Proposal::new(id(number), Stamp(number), command);
        let outcome = apply(&mut state, &proposal, &mut Vec::new());
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }
    state
}

pub(crate) fn records(state: &State) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    skep_core::snapshot::write(state, &mut |record| records.push(record.to_vec()));
    records
}

//! What the tests of this crate share: a small swarm.

use std::collections::BTreeMap;

use skep_core::apply::apply;
use skep_core::command::{ClusterInit, Command, Outcome, Proposal};
use skep_core::id::{ENTROPY_LEN, Id};
use skep_core::model::cluster::{ClusterSpec, Ring, RingKey, Slot, Trust};
use skep_core::model::material::{MaterialKind, MaterialSpec};
use skep_core::model::node::{ManagerInfo, NodeDescription, NodeSpec};
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

pub(crate) fn create(number: u64, payload: &[u8]) -> Command {
    Command::MaterialCreate {
        id: id(number),
        kind: MaterialKind::Secret,
        spec: MaterialSpec { name: format!("secret-{number}"), ..MaterialSpec::default() },
        size: payload.len() as u64 - 16,
        payload: Sealed { key: 1, nonce: [0; 12], bytes: payload.to_vec() },
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

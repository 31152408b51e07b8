//! A wire in memory, and a swarm on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::BasicNode;
use skep_core::command::Outcome;
use skep_core::format::FORMAT;
use skep_core::time::Stamp;
use tokio::time::timeout;

use crate::disk::Disk;
use crate::network::{Answer, Peer, Transport, TransportError};
use crate::node::Disks;
use crate::samples::{create, id, init, records};
use crate::testing::CrashDisk;
use crate::{Config, FatalHook, Raft, StartError, StorageKey};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a request that is a part of a snapshot for sure in these tests.
const LARGE: usize = 600_000;

/// Carries messages between nodes of this process, unless one of the two is cut off.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) nodes: Mutex<BTreeMap<u64, Raft>>,
    pub(crate) cut: Mutex<BTreeSet<u64>>,
    /// What each of these answers, whatever it is asked.
    pub(crate) lies: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// After so many more large requests the node that gets the last one is cut off.
    pub(crate) cut_after: Mutex<Option<usize>>,
    /// The address that each node was last called at.
    pub(crate) called: Mutex<BTreeMap<u64, String>>,
}

#[derive(Debug, Clone)]
struct End {
    from: u64,
    wire: Arc<Wire>,
}

impl Transport for End {
    fn call(&self, peer: Peer, request: Vec<u8>) -> Answer<'_> {
        Box::pin(async move {
            let to = peer.raft_id;
            self.wire.called.lock().unwrap().insert(to, peer.addr.clone());
            let is_cut = |id| self.wire.cut.lock().unwrap().contains(&id);
            let unreachable = |peer| {
                let source = io::ErrorKind::NotConnected.into();
                TransportError::Unreachable { peer, source }
            };
            if is_cut(self.from) || is_cut(to) {
                return Err(unreachable(peer));
            }
            if request.len() > LARGE {
                let mut left = self.wire.cut_after.lock().unwrap();
                if let Some(left) = left.as_mut() {
                    *left = left.saturating_sub(1);
                }
                if *left == Some(0) {
                    *left = None;
                    self.wire.cut.lock().unwrap().insert(to);
                }
            }
            if let Some(lie) = self.wire.lies.lock().unwrap().get(&to) {
                return Ok(lie.clone());
            }
            let node = self.wire.nodes.lock().unwrap().get(&to).cloned();
            let Some(node) = node else { return Err(unreachable(peer)) };
            let answer = node.answer(self.from, &request).await;
            if is_cut(self.from) || is_cut(to) {
                return Err(unreachable(peer));
            }
            answer.map_err(|e| TransportError::Broken { peer, source: io::Error::other(e) })
        })
    }
}

pub(crate) async fn add(wire: &Arc<Wire>, raft_id: u64) -> Raft {
    add_on(wire, raft_id, Arc::new(CrashDisk::default())).await
}

pub(crate) async fn add_on(wire: &Arc<Wire>, raft_id: u64, log: Arc<dyn Disk>) -> Raft {
    let disks = Disks { log, snapshots: Arc::new(CrashDisk::default()) };
    let hook = FatalHook::new(|reason| panic!("{reason}"));
    add_as(wire, raft_id, disks, FORMAT, hook).await.unwrap()
}

/// Adds a node of a version that reads up to this format.
pub(crate) async fn add_as(
    wire: &Arc<Wire>,
    raft_id: u64,
    disks: Disks,
    format: u32,
    on_fatal: FatalHook,
) -> Result<Raft, StartError> {
    let config = Config {
        dir: "unused".into(),
        storage_key: StorageKey::new([raft_id as u8; 32]),
        raft_id,
        addr: format!("127.0.0.1:{raft_id}"),
        on_fatal,
        format,
    };
    let end = Arc::new(End { from: raft_id, wire: Arc::clone(wire) });
    let node = Raft::start_on(disks, config, Arc::new(|| Stamp(1)), end).await?;
    wire.nodes.lock().unwrap().insert(raft_id, node.clone());
    Ok(node)
}

pub(crate) async fn done(node: &Raft, number: u64, payload: &[u8]) {
    let outcome = node.propose(id(number), create(number, payload)).await.unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

pub(crate) async fn first(wire: &Arc<Wire>) -> Raft {
    let node = add(wire, 1).await;
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    node
}

pub(crate) async fn learn(leader: &Raft, raft_id: u64) {
    let node = BasicNode { addr: format!("127.0.0.1:{raft_id}") };
    let learned = leader.0.raft.add_learner(raft_id, node, true);
    timeout(PATIENCE, learned).await.unwrap().unwrap();
}

/// Waits until both hold the same.
pub(crate) async fn agree(one: &Raft, other: &Raft) {
    let mut applied = other.applied();
    let upto = *one.applied().borrow();
    timeout(PATIENCE, applied.wait_for(|at| *at >= upto)).await.unwrap().unwrap();
    assert_eq!(one.view(records), other.view(records));
}

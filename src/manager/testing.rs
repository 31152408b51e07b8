//! A manager for tests: a real log in a directory, no network, and nobody who decides.

use skep_core::command::Command;
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::cluster::ClusterSpec;
use skep_core::model::material::{MaterialKind, MaterialSpec};
use skep_core::model::node::NodeSpec;

use super::init::{Founder, found};
use super::peers::{Book, Peers};
use super::{Manager, mint};
use crate::gate::Request;
use crate::identity::ca::NodeKey;
use crate::identity::store::IdentityStore;
use crate::protected::Protected;

/// The only manager of a swarm.
pub(super) async fn manager(dir: &std::path::Path) -> Manager {
    manager_and_key(dir).await.0
}

/// The same with its node's key.
pub(super) async fn manager_and_key(dir: &std::path::Path) -> (Manager, NodeKey) {
    let (cluster, node): (ClusterId, NodeId) = (mint().unwrap(), mint().unwrap());
    let founding = found(Founder {
        cluster,
        node,
        spec: ClusterSpec::default(),
        node_spec: NodeSpec::default(),
        description: Default::default(),
        raft_id: 7,
        addr: "127.0.0.1:2377".parse().unwrap(),
        unlock_key: None,
    })
    .unwrap();
    let store = IdentityStore::new(dir);
    let config = skep_raft::Config {
        dir: store.raft_dir(),
        storage_key: store.make_storage_key().unwrap(),
        raft_id: 7,
        addr: String::new(),
        on_fatal: skep_raft::FatalHook::new(|why| panic!("{why}")),
        format: skep_core::format::FORMAT,
    };
    let raft = skep_raft::Raft::start(config, std::sync::Arc::new(crate::clock::now)).await;
    let raft = raft.unwrap();
    raft.initialize().await.unwrap();
    let net = crate::net::Net::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let book = std::sync::Arc::new(Book::new(cluster, Default::default()));
    let peers = Peers::new(net, book);
    let audits = dir.join("audit");
    let key = super::audit::store::key_from(&founding.seal);
    let audits = super::audit::store::Store::new(audits, key, Default::default());
    let audits = super::audit::Audits::new(audits);
    let manager = Manager::new(raft, cluster, node, peers, founding.seal, String::new(), audits);
    manager.propose(Command::ClusterInit(Box::new(founding.command))).await.unwrap();
    (manager, founding.key)
}

/// What makes a secret.
pub(super) fn secret(name: &str, payload: &[u8]) -> Request {
    Request::MaterialCreate {
        kind: MaterialKind::Secret,
        spec: MaterialSpec { name: name.into(), ..Default::default() },
        payload: Protected::copy_of(payload).unwrap(),
        uid: 0,
    }
}

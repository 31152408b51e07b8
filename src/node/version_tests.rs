//! Whole nodes of this version and the next in one swarm, in one process on loopback. A node of
//! the next is this code, told that it reads one format more and has newer names of the protocols.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use minicbor::Encode;
use skep_core::format::FORMAT;
use skep_core::model::node::{Availability, NodeSpec, NodeState, Role};
use skep_core::state::State;
use tempfile::TempDir;
use tokio::time::timeout;

use super::{Node, StartError};
use crate::chain::chain;
use crate::config::{Build, JoinArgs, NodeConfig};
use crate::gate::Request;
use crate::hidden::Hidden;
use crate::identity::token::Token;
use crate::limits::NET_MESSAGE_BYTES;
use crate::manager::Manager;
use crate::net::Protocol;
use crate::net::tests::next_names;
use crate::wire::control::{ControlAnswer, ControlRequest};
use crate::wire::join::JoinAnswer;
use crate::wire::refused::Refused;
use crate::wire::relay::Answer;
use crate::wire::{frame, receive, send};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const NEXT: Build = Build { format: FORMAT + 1, names: next_names };

/// One machine with its disk, whatever version it runs.
pub(super) struct Machine {
    pub(super) dir: TempDir,
    name: &'static str,
    /// Where it listens, also after a restart.
    addr: SocketAddr,
}

impl Machine {
    pub(super) fn new(name: &'static str) -> Self {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = free.local_addr().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), name, addr }
    }

    pub(super) async fn start(
        &self,
        build: Build,
        join: Option<(&Node, &str)>,
    ) -> Result<Arc<Node>, StartError> {
        let dir: &Path = self.dir.path();
        let join = join.map(|(through, token)| JoinArgs {
            managers: vec![through.swarm().unwrap().advertise().to_owned()],
            token: Hidden::new(token.to_owned()),
        });
        let config = NodeConfig {
            data_root: dir.join("data"),
            run_root: dir.join("run"),
            node_name: self.name.to_owned(),
            listen_addr: self.addr,
            advertise_addr: None,
            runtime: "/nonexistent/runtime".to_owned(),
            vault: "auto".to_owned(),
            sockets: Vec::new(),
            autolock: false,
            availability: Availability::Active,
            init: join.is_none(),
            join,
            build,
        };
        Box::pin(Node::start(config)).await
    }
}

pub(super) fn manager(node: &Node) -> Arc<Manager> {
    node.swarm().unwrap().manager().unwrap()
}

/// Waits until the state of this manager is so.
pub(super) async fn until(node: &Node, what: &str, is_so: impl Fn(&Manager, &State) -> bool) {
    let manager = manager(node);
    let mut changes = manager.raft.subscribe();
    let wait = async {
        while !manager.raft.view(|state| is_so(&manager, state)) {
            // Raft's members change without a change of the state.
            let _ = timeout(Duration::from_millis(50), changes.next()).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "waited for: {what}");
}

pub(super) fn are_ready(state: &State, count: usize) -> bool {
    state.nodes().filter(|node| node.status.state == NodeState::Ready).count() == count
}

/// Stops a node and waits until its directories can be used again.
pub(super) async fn stop(node: Arc<Node>) {
    node.stop().await;
    let last = Arc::downgrade(&node);
    drop(node);
    let gone = async {
        while last.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(PATIENCE, gone).await.is_ok(), "the node does not go");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_next_version_joins_and_holds_back_until_all_are_upgraded() {
    let [first, second, third] = ["first", "second", "third"].map(Machine::new);
    let one = first.start(Build::default(), None).await.unwrap();
    let tokens = manager(&one).join_tokens().unwrap();
    let two = second.start(NEXT, Some((&one, &tokens.manager))).await.unwrap();
    until(&one, "both vote", |manager, state| {
        manager.raft.members().voters.len() == 2 && are_ready(state, 2)
    })
    .await;
    let announced = |state: &State| -> Vec<u32> {
        let mut all: Vec<_> = state.nodes().map(|node| node.description.format).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(manager(&two).raft.view(announced), [FORMAT, NEXT.format]);
    // Writes go either way, whoever leads.
    for (n, node) in [&one, &two, &one].into_iter().enumerate() {
        let spec = manager(node).raft.view(|state| state.cluster().unwrap().spec.clone());
        let version = manager(node).raft.view(|state| state.cluster().unwrap().meta.version);
        let update = Request::SwarmUpdate {
            version,
            spec,
            rotate_worker: false,
            rotate_manager: false,
            rotate_unlock: false,
            rotate_ca: false,
        };
        manager(node).submit(update).await.unwrap_or_else(|e| panic!("write {n}: {}", chain(&e)));
        for other in [&one, &two] {
            until(other, "the write is applied", |_, state| {
                state.cluster().unwrap().meta.version > version
            })
            .await;
        }
        manager(&one).hand_over().await;
        assert_eq!(manager(&one).raft.view(State::format), FORMAT);
        assert_eq!(manager(&two).raft.view(State::format), FORMAT);
    }

    stop(one).await;
    let one = first.start(NEXT, None).await.unwrap();
    for node in [&one, &two] {
        until(node, "the format is raised", |_, state| state.format() == NEXT.format).await;
    }
    // One of this version comes too late to be a manager.
    let late = third.start(Build::default(), Some((&two, &tokens.manager))).await.unwrap_err();
    let text = chain(&late);
    assert!(text.contains("format 2") && text.contains("no newer one than 1"), "{text}");
    let late = third.start(Build::default(), Some((&two, &tokens.worker))).await.unwrap();
    until(&two, "the worker has its session", |_, state| are_ready(state, 3)).await;
    let (id, version, spec) = manager(&two).raft.view(|state| {
        let node = state.nodes().find(|node| node.manager.is_none()).unwrap();
        (node.id, node.meta.version, NodeSpec { role: Role::Manager, ..node.spec.clone() })
    });
    let refused = manager(&two).submit(Request::NodeUpdate { id, version, spec }).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("format 2") && text.contains("upgrade skep"), "{text}");
    for node in [late, one, two] {
        stop(node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_format_rises_when_the_last_old_manager_is_one_no_more() {
    let [first, second] = ["first", "second"].map(Machine::new);
    let one = first.start(Build::default(), None).await.unwrap();
    let tokens = manager(&one).join_tokens().unwrap();
    let two = second.start(NEXT, Some((&one, &tokens.manager))).await.unwrap();
    until(&two, "both vote", |manager, state| {
        manager.raft.members().voters.len() == 2 && are_ready(state, 2)
    })
    .await;
    assert_eq!(manager(&two).raft.view(State::format), FORMAT);
    let old = one.swarm().unwrap().node;
    let (version, spec) = manager(&two).raft.view(|state| {
        let node = state.node(&old).unwrap();
        (node.meta.version, NodeSpec { role: Role::Worker, ..node.spec.clone() })
    });
    let demote = Request::NodeUpdate { id: old, version, spec };
    manager(&two).submit(demote).await.unwrap();
    until(&two, "the format is raised", |_, state| state.format() == NEXT.format).await;
    // As a worker it goes on.
    until(&two, "the old one has its session", |manager, state| {
        manager.sessions.of(&old).is_some() && are_ready(state, 2)
    })
    .await;
    stop(one).await;
    stop(two).await;
}

/// A question that only a later version knows.
#[derive(Encode)]
enum Later {
    #[n(99)]
    New(#[n(0)] u64),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_of_a_later_version_is_refused_and_ends_no_connection() {
    let [first, second] = ["first", "second"].map(Machine::new);
    let one = first.start(Build::default(), None).await.unwrap();
    let tokens = manager(&one).join_tokens().unwrap();
    let two = second.start(NEXT, Some((&one, &tokens.manager))).await.unwrap();
    let (from, to) = (manager(&two), manager(&one).raft.members().me);
    let question = frame(&Later::New(7));

    let (mut open_tx, mut open_rx) = from.peers.open(to, Protocol::Control).await.unwrap();
    let (mut tx, mut rx) = from.peers.open(to, Protocol::Control).await.unwrap();
    tx.write_all(&question).await.unwrap();
    let answer: ControlAnswer = receive(&mut rx, NET_MESSAGE_BYTES).await.unwrap();
    assert_eq!(answer, ControlAnswer::NotUnderstood);
    // A stream that was open before goes on: the connection is the same.
    send(&mut open_tx, &ControlRequest::Directory).await.unwrap();
    let answer: ControlAnswer = receive(&mut open_rx, NET_MESSAGE_BYTES).await.unwrap();
    assert!(matches!(answer, ControlAnswer::Directory(_)), "{answer:?}");

    let reach = ControlRequest::Reach { node: one.swarm().unwrap().node };
    let (answer, mut tx, mut rx) = from.peers.ask_stream(to, &reach).await.unwrap();
    assert_eq!(answer, ControlAnswer::Done);
    tx.write_all(&question).await.unwrap();
    let answer: Answer = receive(&mut rx, NET_MESSAGE_BYTES).await.unwrap();
    assert!(
        matches!(&answer, Answer::Refused(Refused::Unsupported(why)) if why.contains("upgrade"))
    );

    let token = Arc::new(Token::parse(&tokens.worker).unwrap());
    let swarm = two.swarm().unwrap();
    let addr = one.swarm().unwrap().advertise().to_owned();
    let meeting = swarm.net.dial_to_join(&addr, &token).await.unwrap();
    let (mut tx, mut rx) = meeting.connection.open_bi().await.unwrap();
    tx.write_all(&question).await.unwrap();
    let answer: JoinAnswer = receive(&mut rx, NET_MESSAGE_BYTES).await.unwrap();
    assert!(matches!(&answer, JoinAnswer::Refused(why) if why.contains("upgrade")), "{answer:?}");
    drop(swarm);
    stop(one).await;
    stop(two).await;
}

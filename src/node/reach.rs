//! The ways between agents and managers that are no session: a manager's questions about
//! containers of any node, and an agent's for the images it lacks.

use std::sync::{Arc, OnceLock, Weak};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use skep_core::id::NodeId;

use super::Swarm;
use crate::agent::remote::Remote;
use crate::engine::images::exchange::ImageSource;
use crate::gate::{Later, Refusal};
use crate::manager::Manager;
use crate::manager::images::{Images, OwnImages};
use crate::manager::reach::Reach;
use crate::manager::reception::Requests;
use crate::net::{BiStream, Visit};
use crate::wire::control::{ControlAnswer, ControlRequest};
use crate::wire::{Stream, WireError};

/// The node's part in its swarm, once that is made: its parts need one another.
#[derive(Debug, Default)]
pub(super) struct Own(OnceLock<Weak<Swarm>>);

impl Own {
    pub(super) fn set(&self, swarm: &Arc<Swarm>) {
        let _ = self.0.set(Arc::downgrade(swarm));
    }

    fn get(&self) -> Option<Arc<Swarm>> {
        self.0.get()?.upgrade()
    }
}

/// The way to agents: by their sessions here, or by the manager that has them.
#[derive(Debug)]
pub(super) struct Ways(pub(super) Arc<Own>);

impl Reach for Ways {
    fn open(&self, node: NodeId) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        Box::pin(async move {
            let lost = |why: &str| Refusal::Unreachable { node, why: why.to_owned() };
            let manager = self.0.get().and_then(|swarm| swarm.manager());
            let manager = manager.ok_or_else(|| lost("this node is no manager"))?;
            if let Some(connection) = manager.sessions.of(&node)
                && let Ok(stream) = BiStream::open(&connection).await
            {
                return Ok(Box::new(stream) as Box<dyn Stream>);
            }
            match by_others(&manager, node).await {
                Some(stream) => Ok(Box::new(stream) as _),
                None => Err(lost("no manager has a session with it")),
            }
        })
    }
}

/// A stream by way of the manager that has the node's session, or is that node.
async fn by_others(manager: &Manager, node: NodeId) -> Option<BiStream> {
    let mut others = manager.peers.book().directory().borrow().managers.clone();
    others.retain(|other| other.node != manager.node);
    if others.iter().any(|other| other.node == node) {
        others.retain(|other| other.node == node);
    }
    let request = ControlRequest::Reach { node };
    let mut asked: FuturesUnordered<_> = others
        .iter()
        .map(|other| manager.peers.ask_stream(other.raft_id, &request))
        .collect();
    while let Some(answer) = asked.next().await {
        if let Ok((ControlAnswer::Done, tx, rx)) = answer {
            return Some(BiStream::new((tx, rx)));
        }
    }
    None
}

/// Where the agent of this node asks for images: at its own manager half, or by its session.
#[derive(Debug)]
pub(super) struct ByTheSwarm(pub(super) Arc<Own>);

impl ImageSource for ByTheSwarm {
    fn open(&self, name: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        let name = name.to_owned();
        Box::pin(async move {
            let swarm = self.0.get().ok_or(Refusal::NotInSwarm)?;
            if let Some(half) = swarm.half() {
                return OwnImages(Arc::clone(&half.images)).open(&name).await;
            }
            let line = swarm.line().ok_or(Refusal::NoLeader)?;
            let opened = BiStream::open(&line).await;
            let failed = |e| crate::manager::failed("cannot ask a manager for the image", e);
            opened.map(|stream| Box::new(stream) as _).map_err(failed)
        })
    }
}

/// What a manager answers agents and other managers.
pub(super) struct Counter {
    pub(super) images: Arc<Images>,
    pub(super) remote: Arc<Remote>,
}

impl Requests for Counter {
    fn answer(&self, node: NodeId, stream: BiStream) -> Visit {
        let images = Arc::clone(&self.images);
        Box::pin(async move { note(images.serve(node, stream).await) })
    }

    fn local(&self, stream: BiStream) -> Visit {
        let remote = Arc::clone(&self.remote);
        Box::pin(async move { note(remote.serve(stream).await) })
    }
}

/// A stream that breaks off is everyday life.
pub(super) fn note(ended: Result<(), WireError>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a stream of another node broke off");
    }
}

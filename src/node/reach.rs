//! What other nodes ask of this one beside Raft and sessions.

use std::sync::Arc;

use super::{Node, Swarm};
use crate::manager::reception::{Requests, Stream};
use crate::net::Visit;

/// Answers for this node.
struct Answers;

impl Requests for Answers {
    fn answer(&self, _node: skep_core::id::NodeId, stream: Stream) -> Visit {
        drop(stream);
        Box::pin(async {})
    }

    fn image(&self, _reference: &str) -> Option<Box<dyn FnOnce(Stream) -> Visit + Send>> {
        None
    }
}

impl Node {
    /// What answers agents on this manager.
    pub(super) fn requests(&self, _swarm: &Arc<Swarm>) -> Arc<dyn Requests> {
        Arc::new(Answers)
    }

    /// What answers managers on this node.
    pub(super) fn answerer(
        &self,
        _swarm: &Arc<Swarm>,
    ) -> Arc<dyn Fn(Stream) -> Visit + Send + Sync> {
        Arc::new(|stream| {
            drop(stream);
            Box::pin(async {})
        })
    }
}

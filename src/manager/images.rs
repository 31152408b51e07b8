//! Finds the images that agents lack: only those of tasks assigned to the asker, on whichever
//! node has them.

use std::sync::Arc;

use skep_core::id::NodeId;
use skep_core::model::node::NodeState;
use skep_core::model::task::TaskState;
use skep_core::state::State;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes, duplex};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Manager;
use super::reach::Reach;
use crate::engine::images::ImageStore;
use crate::engine::images::exchange::{ImageSource, give};
use crate::gate::{Later, Refusal};
use crate::limits::{
    IMAGE_HOLDERS, IMAGE_OFFER_BYTES, IMAGE_PIECE_BYTES, IMAGE_PIECE_WAIT, IMAGES_GIVEN,
    RELAY_ANSWER, RELAY_MESSAGE_BYTES,
};
use crate::wire::refused::Refused;
use crate::wire::relay::{Answer, Ask};
use crate::wire::{Stream, WireError, receive, send};

/// What a manager needs to find images.
#[derive(Debug)]
pub struct Images {
    manager: Arc<Manager>,
    store: Arc<ImageStore>,
    reach: Arc<dyn Reach>,
    room: Semaphore,
}

impl Images {
    /// A search in this node's store, and by this way in those of others.
    #[must_use]
    pub fn new(manager: Arc<Manager>, store: Arc<ImageStore>, reach: Arc<dyn Reach>) -> Self {
        Self { manager, store, reach, room: Semaphore::new(IMAGES_GIVEN) }
    }

    /// Answers an agent, whose node id comes from its certificate, and ends with the stream.
    ///
    /// # Errors
    /// If the stream broke off, or a side broke the protocol.
    pub async fn serve(&self, asker: NodeId, mut stream: impl Stream) -> Result<(), WireError> {
        let asked = timeout(RELAY_ANSWER, receive(&mut stream, RELAY_MESSAGE_BYTES)).await;
        let asked: Ask = asked.map_err(|_| WireError::Silent(RELAY_ANSWER))??;
        let Ask::Image { name } = asked else { return Err(WireError::Unexpected) };
        let Ok(_turn) = self.room.try_acquire() else {
            let text = format!("this manager passes {IMAGES_GIVEN} images on already");
            return refuse(&mut stream, Refused::Conflict(text)).await;
        };
        let holders = self.manager.raft.view(|state| holders(state, asker, &name));
        match holders {
            // Not even that the image exists is told to a node that has nothing to do with it.
            None => refuse(&mut stream, missing(&name)).await,
            Some(holders) => {
                pass(&self.store, &*self.reach, self.manager.node, &holders, &name, &mut stream)
                    .await
            }
        }
    }
}

/// The agent of a manager's own node asks without a wire.
#[derive(Debug)]
pub struct OwnImages(pub Arc<Images>);

impl ImageSource for OwnImages {
    fn open(&self, _: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        let (ours, theirs) = duplex(IMAGE_PIECE_BYTES);
        let images = Arc::clone(&self.0);
        tokio::spawn(async move {
            let own = images.manager.node;
            if let Err(error) = images.serve(own, theirs).await {
                tracing::debug!(%error, "an image for this node broke off");
            }
        });
        Box::pin(async move { Ok(Box::new(ours) as _) })
    }
}

/// Nodes that may have an image, the likeliest first; none at all if no task of the asker needs
/// it.
fn holders(state: &State, asker: NodeId, name: &str) -> Option<Vec<NodeId>> {
    let (mut is_assigned, mut running) = (false, Vec::new());
    for task in state.tasks().filter(|task| task.spec.container.image == name) {
        let Some(node) = task.node else { continue };
        if node == asker {
            is_assigned |= task.desired <= TaskState::Running && !task.status.state.is_terminal();
        } else if task.status.state > TaskState::Preparing {
            running.push(node);
        }
    }
    if !is_assigned {
        return None;
    }
    let is_there = |node: &NodeId| {
        *node != asker && state.node(node).is_some_and(|node| node.status.state == NodeState::Ready)
    };
    let managers = state.nodes().filter(|node| node.manager.is_some()).map(|node| node.id);
    let workers = state.nodes().filter(|node| node.manager.is_none()).map(|node| node.id);
    let mut found: Vec<NodeId> = Vec::new();
    for node in running.into_iter().chain(managers).chain(workers).filter(is_there) {
        if found.len() >= IMAGE_HOLDERS {
            break;
        }
        if !found.contains(&node) {
            found.push(node);
        }
    }
    Some(found)
}

fn missing(name: &str) -> Refused {
    Refused::NotFound(format!("No such image: {name}"))
}

async fn refuse(stream: &mut impl Stream, refused: Refused) -> Result<(), WireError> {
    send(stream, &Answer::Refused(refused)).await?;
    Ok(stream.shutdown().await?)
}

/// Gives an image from this node's store, or passes it on from the first other that has it.
async fn pass(
    store: &Arc<ImageStore>,
    reach: &dyn Reach,
    own: NodeId,
    holders: &[NodeId],
    name: &str,
    stream: &mut impl Stream,
) -> Result<(), WireError> {
    if store.has(name) {
        return give(store, name, stream).await;
    }
    let mut lost = None;
    for node in holders.iter().filter(|node| **node != own) {
        let (answer, mut far) = match offered(reach, *node, name).await {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(why) => {
                lost = Some(format!("node {node} may have it, but is not available: {why}"));
                continue;
            }
        };
        send(stream, &answer).await?;
        stream.flush().await?;
        copy_bidirectional_with_sizes(stream, &mut far, IMAGE_PIECE_BYTES, IMAGE_PIECE_BYTES)
            .await?;
        return Ok(());
    }
    // Where a node could not be asked, it is worth while to try again.
    refuse(stream, lost.map_or_else(|| missing(name), Refused::Failed)).await
}

/// A node's offer of an image, and the stream that goes on with its layers; nothing if it has no
/// such image.
async fn offered(
    reach: &dyn Reach,
    node: NodeId,
    name: &str,
) -> Result<Option<(Answer, Box<dyn Stream>)>, String> {
    let mut far = reach.open(node).await.map_err(|refusal| match refusal {
        Refusal::Unreachable { why, .. } => why,
        other => other.to_string(),
    })?;
    let ask = async {
        send(&mut far, &Ask::Image { name: name.to_owned() }).await?;
        far.flush().await?;
        receive(&mut far, IMAGE_OFFER_BYTES).await
    };
    let answered = timeout(IMAGE_PIECE_WAIT, ask).await;
    match answered.unwrap_or(Err(WireError::Silent(IMAGE_PIECE_WAIT))) {
        Ok(answer @ Answer::Image(_)) => Ok(Some((answer, far))),
        Ok(Answer::Refused(Refused::NotFound(_))) => Ok(None),
        Ok(Answer::Refused(refused)) => Err(Refusal::from(refused).to_string()),
        Ok(_) => Err(WireError::Unexpected.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;

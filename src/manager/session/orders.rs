//! What a session sends to the shims of its node: payloads sealed to them, and the order to let go
//! of what is revoked.

use std::sync::Arc;

use skep_core::assign::AssignedGrant;
use skep_core::deliver::{Order, What};
use skep_core::id::TaskId;
use skep_core::sealed::Sealed;

use super::Session;
use crate::gate::Refusal;
use crate::manager::failed;
use crate::seal::{ShimSeal, seal_to_shim};
use crate::wire::session::ToAgent;
use crate::wire::shim::{DeliveredItem, Delivery};

/// An order with what it takes to carry it out.
struct Ready {
    order: Order,
    /// The shim's public key.
    key: [u8; 32],
    /// Payloads as the state has them, of an order that delivers.
    payloads: Vec<(AssignedGrant, Arc<Sealed>)>,
}

impl Session<'_> {
    /// Sends a shim what it should hold and does not, and has it let go of what is revoked. False
    /// if the session is over.
    pub(super) async fn supply(&mut self, id: TaskId) -> bool {
        // Each order that was sent changes what is next, and few may be under way.
        while let Some(ready) = self.ready(&id) {
            let message = match self.message(id, &ready) {
                Ok(message) => message,
                Err(error) => {
                    tracing::error!(task = %id, %error, "payloads of a task cannot be delivered");
                    self.later.insert(id);
                    return true;
                }
            };
            self.shims.sent(&id, &ready.order);
            if self.orders.send(message).await.is_err() {
                return false;
            }
        }
        true
    }

    /// The order and the payloads are of one state: none can be removed in between.
    fn ready(&self, id: &TaskId) -> Option<Ready> {
        self.manager.raft.view(|state| {
            let (order, key) = self.shims.next(state, id)?;
            let payload = |grant: &AssignedGrant| {
                Some((grant.clone(), Arc::clone(state.payload(&grant.material, grant.version)?)))
            };
            let payloads = match &order.what {
                What::Deliver(grants) => grants.iter().filter_map(payload).collect(),
                What::Revoke(_) => Vec::new(),
            };
            Some(Ready { order, key, payloads })
        })
    }

    fn message(&self, task: TaskId, ready: &Ready) -> Result<ToAgent, Refusal> {
        let sequence = ready.order.sequence;
        match &ready.order.what {
            What::Deliver(_) => {
                let delivery = self.seal(task, ready)?;
                Ok(ToAgent::Deliver { task, delivery })
            }
            What::Revoke(materials) => {
                Ok(ToAgent::Revoke { task, sequence, materials: materials.clone() })
            }
        }
    }

    /// Opens each payload in protected memory and seals it to the shim, one at a time.
    fn seal(&self, task: TaskId, ready: &Ready) -> Result<Delivery, Refusal> {
        let sequence = ready.order.sequence;
        let mut items = Vec::with_capacity(ready.payloads.len());
        for (grant, payload) in &ready.payloads {
            let (material, version) = (grant.material, grant.version);
            let to = ShimSeal {
                cluster: self.manager.cluster,
                node: self.node,
                task,
                key: &ready.key,
                material,
                version,
                sequence,
            };
            let sealed = self
                .manager
                .open(grant.kind, material, version, payload)
                .and_then(|plain| seal_to_shim(&to, plain))
                .map_err(|e| failed("cannot seal a payload to a supervisor", e))?;
            let (created, size) = (grant.created, grant.size);
            items.push(DeliveredItem { material, version, created, size, sealed });
        }
        Ok(Delivery { sequence, items })
    }
}

//! The node's certificate is renewed in time, when another root signs, and when the node's role
//! has changed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use skep_core::model::node::Role;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Node, Swarm};
use crate::chain::chain;
use crate::identity::rotation::{Plan, Roots, plan};
use crate::manager::stopped;

/// Longest time between two looks: clocks are set.
const LOOK: Duration = Duration::from_secs(3600);
/// Pause before a certificate that was not to be had is asked for again.
const RETRY: Duration = Duration::from_secs(5);

impl Node {
    /// Keeps the certificate good until the node stops.
    pub(super) async fn keep_certificate(
        self: Arc<Self>,
        swarm: Arc<Swarm>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut directory = swarm.book().directory();
        loop {
            let roots = directory.borrow_and_update().roots.clone();
            let pause = match self.certificate_plan(&swarm, &roots) {
                Some(Plan::Wait(time)) => time.min(LOOK),
                Some(Plan::Renew(reason)) => {
                    tracing::info!(?reason, "this node gets itself another certificate");
                    match self.renew(&swarm).await {
                        Ok(()) => Duration::ZERO,
                        Err(error) => {
                            tracing::warn!(error = chain(&error), "there is no other certificate");
                            RETRY
                        }
                    }
                }
                None => LOOK,
            };
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = directory.changed() => if changed.is_err() { return },
                () = sleep(pause.max(Duration::from_millis(10))) => {}
            }
        }
    }

    fn certificate_plan(&self, swarm: &Swarm, roots: &[String]) -> Option<Plan> {
        // The one that was added last signs.
        let signer = roots.last()?;
        let pem = self.store.load_chain().ok()?;
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let role = if swarm.file().raft_id == 0 { Role::Worker } else { Role::Manager };
        let roots = Roots { trusted: std::slice::from_ref(signer), next: None };
        match plan(&leaf, roots, role, SystemTime::now()) {
            Ok(plan) => Some(plan),
            Err(error) => {
                tracing::warn!(error = chain(&error), "the certificate cannot be judged");
                None
            }
        }
    }
}

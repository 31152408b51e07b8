//! An agent joins as any node does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use skep::config::describe;
use skep::identity::ca::NodeKey;
use skep::identity::token::Token;
use skep::limits::{NET_ANSWER, NET_MESSAGE_BYTES};
use skep::net::{Closed, Identity, Net};
use skep::seal::SealKeyPair;
use skep::wire::join::{EXPORTER_LABEL, JoinAnswer, JoinRequest, Joiner, Welcome};
use skep::wire::{receive, send};
use skep_core::format::FORMAT;
use skep_core::model::node::{Availability, NodeDescription};

/// A member without a session yet.
pub(crate) struct Member {
    pub(crate) net: Arc<Net>,
    pub(crate) welcome: Welcome,
    pub(crate) description: NodeDescription,
    pub(crate) advertise: String,
}

/// Joins by one manager.
pub(crate) async fn join(manager: &str, token: &Arc<Token>, number: usize) -> Result<Member> {
    let net = Net::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    let advertise = net.local_addr()?.to_string();
    let mut description = describe(&format!("simulated-{number}"), FORMAT);
    description.engine_labels.insert("simulated".into(), "yes".into());
    let key = NodeKey::generate()?;
    let connection = net.dial_to_join(manager, token).await?.connection;
    let mut exported = [0; 32];
    let exports = connection.export_keying_material(&mut exported, EXPORTER_LABEL, b"");
    exports.ok().context("the TLS session gives no key material")?;
    let csr = key.csr()?;
    let joiner = Joiner {
        proof: token.secret.proof(&exported, &csr),
        csr,
        seal_key: SealKeyPair::generate()?.public(),
        description: description.clone(),
        advertise: advertise.clone(),
        availability: Availability::Active,
        now_ns: skep::clock::now().0,
    };
    let (mut tx, mut rx) = connection.open_bi().await?;
    send(&mut tx, &JoinRequest::Join(Box::new(joiner))).await?;
    tx.finish()?;
    let answer = receive(&mut rx, NET_MESSAGE_BYTES);
    let answer: JoinAnswer = tokio::time::timeout(NET_ANSWER, answer).await??;
    connection.close(Closed::Stopping.code().into(), b"joined");
    let welcome = match answer {
        JoinAnswer::Welcome(welcome) => *welcome,
        other => bail!("the manager answered {other:?}"),
    };
    let (cluster, node) = (welcome.cluster, welcome.node);
    let identity = Identity::new(cluster, node, &welcome.chain, &key, &welcome.directory.roots)?;
    net.set_identity(Arc::new(identity))?;
    Ok(Member { net, welcome, description, advertise })
}

//! What a node does about its own certificate when the swarm's roots or its role change, or time
//! passes. Decided here; asking a manager, or signing its own as a manager, is for others.
//!
//! While one root takes over from another, both are believed, and a certificate of the new one is
//! sent along with a cross certificate: nodes that have not heard of the new root accept it all
//! the same, so no order among the nodes is needed.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use skep_core::model::cluster;
use skep_core::model::node::Role;

use super::trust::{Trust, TrustError, read_leaf};

/// The roots of a swarm, as it says them.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    /// Those trusted, in PEM, the one that signs first.
    pub trusted: &'a [String],
    /// The root that takes over, in PEM, and the cross certificate by which the old one vouches
    /// for it. It signs in place of the first.
    pub next: Option<(&'a str, &'a str)>,
}

impl<'a> From<&'a cluster::Trust> for Roots<'a> {
    fn from(trust: &'a cluster::Trust) -> Self {
        let next = trust.next.as_ref();
        Self {
            trusted: &trust.roots,
            next: next.map(|next| (next.pem.as_str(), next.cross_pem.as_str())),
        }
    }
}

impl Roots<'_> {
    /// All roots to be believed, in PEM, the one that signs first.
    #[must_use]
    pub fn believed(&self) -> Vec<String> {
        let mut all: Vec<String> = self.next.iter().map(|(pem, _)| (*pem).to_owned()).collect();
        for root in self.trusted {
            if !all.contains(root) {
                all.push(root.clone());
            }
        }
        all
    }
}

/// Why a node wants another certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another root signs now.
    Root,
    /// The node is a manager now, or none any more.
    Role,
    /// Most of its life is over, or all of it.
    Age,
}

/// What a node does about its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Get another one now, for the same key.
    Renew(Reason),
    /// Look again after this time, or when roots or role change.
    Wait(Duration),
}

/// Decides on this node's own certificate, given the swarm's roots and the node's role in it.
///
/// # Errors
/// [`TrustError`] if the swarm's roots or the certificate cannot be read at all.
pub fn plan(
    leaf: &CertificateDer<'_>,
    roots: Roots<'_>,
    role: Role,
    now: SystemTime,
) -> Result<Plan, TrustError> {
    let facts = read_leaf(leaf, now)?;
    let believed = roots.believed();
    let signer = believed.first().ok_or(TrustError::RootCount(0))?;
    let signer = Trust::new(std::slice::from_ref(signer))?;
    let due = facts.renewal_due(now);
    Ok(match signer.verify(std::slice::from_ref(leaf), now) {
        Err(_) => Plan::Renew(Reason::Root),
        Ok(_) if facts.role != role => Plan::Renew(Reason::Role),
        Ok(_) if due.is_zero() => Plan::Renew(Reason::Age),
        Ok(_) => Plan::Wait(due),
    })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;
    use skep_core::id::{ClusterId, ENTROPY_LEN, NodeId};
    use skep_core::time::Span;

    use super::*;
    use crate::identity::ca::{NodeKey, Root};
    use crate::identity::token::{JoinSecret, Token};

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn leaf(root: &Root, role: Role) -> CertificateDer<'static> {
        let id = [1; ENTROPY_LEN];
        let (cluster, node) = (ClusterId::from_entropy(id), NodeId::from_entropy(id));
        let csr = NodeKey::generate().unwrap().csr().unwrap();
        let life = Span::from_secs(90 * 24 * 3_600);
        der(&root.sign(&csr, cluster, node, role, life).unwrap())
    }

    /// What a node with this certificate shows to its peers.
    fn shown(roots: Roots<'_>, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        let cross = roots.next.map(|(_, cross)| der(cross));
        let believed: Vec<_> = roots.believed().iter().map(|pem| der(pem)).collect();
        [leaf.clone()].into_iter().chain(cross).chain(believed).collect()
    }

    #[test]
    fn a_change_of_roots_is_played_through() {
        let (old, new) = (Root::generate().unwrap(), Root::generate().unwrap());
        let cross = old.cross_sign(&new).unwrap();
        let now = SystemTime::now();
        let (of_old, of_new) = (leaf(&old, Role::Worker), leaf(&new, Role::Worker));
        let (before, after) = ([old.pem.clone()], [new.pem.clone()]);
        let before = Roots { trusted: &before, next: None };
        let during = Roots { next: Some((&new.pem, &cross)), ..before };
        let after = Roots { trusted: &after, next: None };
        let plan = |leaf, roots| plan(leaf, roots, Role::Worker, now).unwrap();
        assert!(matches!(plan(&of_old, before), Plan::Wait(_)));
        assert_eq!(plan(&of_old, during), Plan::Renew(Reason::Root));
        assert!(matches!(plan(&of_new, during), Plan::Wait(_)));
        assert_eq!(plan(&of_old, after), Plan::Renew(Reason::Root));
        assert!(matches!(plan(&of_new, after), Plan::Wait(_)));
        assert_eq!(during.believed(), [new.pem.clone(), old.pem.clone()]);
        // What each shows during the change is believed by those before, during and after, but
        // the old certificate no more once its root is dropped.
        let believes = |roots: Roots<'_>, leaf| {
            let chain = shown(during, leaf);
            Trust::new(&roots.believed()).unwrap().verify(&chain, now).is_ok()
        };
        let all = [before, during, after];
        assert_eq!(all.map(|roots| believes(roots, &of_old)), [true, true, false]);
        assert_eq!(all.map(|roots| believes(roots, &of_new)), [true, true, true]);
    }

    #[test]
    fn during_a_change_a_manager_with_a_new_certificate_takes_old_and_new_tokens() {
        let (old, new) = (Root::generate().unwrap(), Root::generate().unwrap());
        let cross = old.cross_sign(&new).unwrap();
        let trusted = [old.pem.clone()];
        let roots = Roots { trusted: &trusted, next: Some((&new.pem, &cross)) };
        let chain = shown(roots, &leaf(&new, Role::Manager));
        for named in [&old, &new] {
            let token = JoinSecret::generate().unwrap().token(&named.pem).unwrap();
            let token = Token::parse(&token).unwrap();
            Trust::verify_by_token(&chain, &token, SystemTime::now()).unwrap();
        }
    }

    #[test]
    fn role_and_age_ask_for_another_certificate() {
        let root = Root::generate().unwrap();
        let trusted = [root.pem.clone()];
        let roots = Roots { trusted: &trusted, next: None };
        let worker = leaf(&root, Role::Worker);
        let now = SystemTime::now();
        let plan = |role, now| plan(&worker, roots, role, now).unwrap();
        assert_eq!(plan(Role::Manager, now), Plan::Renew(Reason::Role));
        let Plan::Wait(wait) = plan(Role::Worker, now) else { panic!("it is new") };
        assert_eq!(plan(Role::Worker, now + wait), Plan::Renew(Reason::Age));
        let before = now + wait - Duration::from_secs(1);
        assert_eq!(plan(Role::Worker, before), Plan::Wait(Duration::from_secs(1)));
        let expired = now + Duration::from_secs(100 * 24 * 3_600);
        assert_eq!(plan(Role::Worker, expired), Plan::Renew(Reason::Age));
    }

    #[test]
    fn roots_that_cannot_be_read_are_an_error() {
        let root = Root::generate().unwrap();
        let (leaf, now) = (leaf(&root, Role::Worker), SystemTime::now());
        let none = Roots { trusted: &[], next: None };
        assert!(matches!(plan(&leaf, none, Role::Worker, now), Err(TrustError::RootCount(0))));
        let bad = ["x".to_owned()];
        let bad = Roots { trusted: &bad, next: None };
        assert!(matches!(plan(&leaf, bad, Role::Worker, now), Err(TrustError::BadRoot { .. })));
    }
}

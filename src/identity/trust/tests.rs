use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use skep_core::id::ENTROPY_LEN;
use skep_core::time::Span;

use super::*;
use crate::identity::ca::{NodeKey, Root};
use crate::identity::token::JoinSecret;

fn ids() -> (ClusterId, NodeId) {
    (ClusterId::from_entropy([2; ENTROPY_LEN]), NodeId::from_entropy([1; ENTROPY_LEN]))
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A certificate of the root, with its key.
fn issue(root: &Root, role: Role) -> (CertificateDer<'static>, NodeKey) {
    let (cluster, node) = ids();
    let key = NodeKey::generate().unwrap();
    let life = Span::from_secs(90 * 24 * 3_600);
    (der(&root.sign(&key.csr().unwrap(), cluster, node, role, life).unwrap()), key)
}

fn leaf(root: &Root, role: Role) -> CertificateDer<'static> {
    issue(root, role).0
}

fn trust(roots: &[&Root]) -> Trust {
    Trust::new(&roots.iter().map(|root| root.pem.clone()).collect::<Vec<_>>()).unwrap()
}

fn token(root: &Root) -> Token {
    Token::parse(&JoinSecret::generate().unwrap().token(&root.pem).unwrap()).unwrap()
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 3_600)
}

#[test]
fn a_leaf_of_a_known_root_tells_who_it_is() {
    let (root, other) = (Root::generate().unwrap(), Root::generate().unwrap());
    let (cluster, node) = ids();
    let now = SystemTime::now();
    for role in [Role::Manager, Role::Worker] {
        let (made, key) = issue(&root, role);
        for known in [trust(&[&root]), trust(&[&other, &root])] {
            let facts = known.verify(std::slice::from_ref(&made), now).unwrap();
            assert_eq!((facts.node, facts.cluster, facts.role), (node, cluster, role));
            assert_eq!(facts.public_key, key.public());
            assert_eq!(facts.standing, Standing::Valid);
            facts.require_valid(now).unwrap();
        }
        // The root may be sent along; that makes nobody believe it.
        let chain = [made.clone(), der(&root.pem)];
        trust(&[&root]).verify(&chain, now).unwrap();
        let error = trust(&[&other]).verify(&chain, now).unwrap_err();
        assert!(matches!(error, TrustError::UnknownRoot { .. }), "{error:?}");
        assert!(error.to_string().contains(node.as_str()), "{error}");
    }
}

#[test]
fn a_clock_that_is_off_is_told_with_both_times_and_breaks_no_chain() {
    let root = Root::generate().unwrap();
    let chain = [leaf(&root, Role::Manager)];
    let now = SystemTime::now();
    let (early, late) = (now - days(30), now + days(120));
    let facts = trust(&[&root]).verify(&chain, early).unwrap();
    assert_eq!(facts.standing, Standing::NotYetValid);
    let error = facts.require_valid(early).unwrap_err();
    assert!(matches!(error, TrustError::Lapsed { .. }));
    for part in
        [&Moment(early).to_string(), &Moment(facts.not_before).to_string(), "check the clocks"]
    {
        assert!(error.to_string().contains(part), "{error}");
    }
    let facts = trust(&[&root]).verify(&chain, late).unwrap();
    assert_eq!(facts.standing, Standing::Expired);
    let error = facts.require_valid(late).unwrap_err();
    assert!(matches!(error, TrustError::Lapsed { .. }));
    for part in
        [&Moment(late).to_string(), &Moment(facts.not_after).to_string(), "check the clocks"]
    {
        assert!(error.to_string().contains(part), "{error}");
    }
    // However far off.
    for clock in [SystemTime::UNIX_EPOCH, now + days(365 * 300)] {
        trust(&[&root]).verify(&chain, clock).unwrap();
    }
    assert_eq!(Moment(SystemTime::UNIX_EPOCH).to_string(), "1970-01-01T00:00:00Z");
}

#[test]
fn a_cross_certificate_carries_a_leaf_to_those_who_know_the_other_root() {
    let (old, new) = (Root::generate().unwrap(), Root::generate().unwrap());
    let now = SystemTime::now();
    let (to_new, to_old) = (leaf(&new, Role::Worker), leaf(&old, Role::Worker));
    let forward = der(&old.cross_sign(&new).unwrap());
    let backward = der(&new.cross_sign(&old).unwrap());
    let error = trust(&[&old]).verify(std::slice::from_ref(&to_new), now).unwrap_err();
    assert!(matches!(error, TrustError::UnknownRoot { .. }));
    for clock in [now, now - days(30), now + days(120)] {
        trust(&[&old]).verify(&[to_new.clone(), forward.clone()], clock).unwrap();
        trust(&[&new]).verify(&[to_new.clone(), forward.clone()], clock).unwrap();
        trust(&[&new]).verify(&[to_old.clone(), backward.clone()], clock).unwrap();
    }
    // A cross certificate is of the two that it names.
    let third = Root::generate().unwrap();
    assert!(trust(&[&third]).verify(&[to_new.clone(), forward.clone()], now).is_err());
    assert!(trust(&[&old]).verify(&[leaf(&third, Role::Worker), forward], now).is_err());
}

#[test]
fn two_steps_of_vouching_are_one_too_many() {
    let roots: Vec<_> = (0..3).map(|_| Root::generate().unwrap()).collect();
    let (first, second) =
        (roots[0].cross_sign(&roots[1]).unwrap(), roots[1].cross_sign(&roots[2]).unwrap());
    let chain = [leaf(&roots[2], Role::Worker), der(&second), der(&first)];
    let now = SystemTime::now();
    trust(&[&roots[1]]).verify(&chain, now).unwrap();
    assert!(trust(&[&roots[0]]).verify(&chain, now).is_err());
}

#[test]
fn a_leaf_signs_nothing() {
    let root = Root::generate().unwrap();
    let (cluster, node) = ids();
    let (made, key) = issue(&root, Role::Manager);
    let key = KeyPair::from_pem(&key.pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&made.clone(), &key).unwrap();
    let mut params = CertificateParams::new(vec![node.to_string()]).unwrap();
    params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let chain = [forged.der().clone(), made.clone()];
    let error = trust(&[&root]).verify(&chain, SystemTime::now()).unwrap_err();
    assert!(matches!(error, TrustError::UnknownRoot { .. }), "{error:?}");
}

/// A certificate that the root signed, but that is not of the form that it signs for nodes.
fn odd(root: &Root, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let (cluster, node) = ids();
    let key = KeyPair::try_from(root.key_der().as_slice()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&der(&root.pem), &key).unwrap();
    let mut params = CertificateParams::new(vec![node.to_string()]).unwrap();
    params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
}

#[test]
fn a_certificate_of_another_form_is_refused_by_what_is_odd() {
    let root = Root::generate().unwrap();
    let now = SystemTime::now();
    let verify = |leaf| trust(&[&root]).verify(&[leaf], now);
    verify(odd(&root, |_| ())).unwrap();
    let other = CertificateParams::new(vec!["example.org".to_owned()]).unwrap().subject_alt_names;
    let error = verify(odd(&root, |p| p.subject_alt_names = other.clone())).unwrap_err();
    assert!(matches!(error, TrustError::NoNodeId), "{error:?}");
    let error = verify(odd(&root, |p| p.subject_alt_names.extend(other.clone()))).unwrap_err();
    assert!(matches!(error, TrustError::NoNodeId), "{error:?}");
    let error = verify(odd(&root, |p| p.subject_alt_names.clear())).unwrap_err();
    assert!(matches!(error, TrustError::NoNodeId), "{error:?}");
    let error = verify(odd(&root, |p| p.distinguished_name = Default::default())).unwrap_err();
    assert!(matches!(error, TrustError::NoClusterId), "{error:?}");
    let error = verify(odd(&root, |p| p.extended_key_usages.clear())).unwrap_err();
    assert!(error.to_string().contains("no extended key usage"), "{error}");
    let server = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let error = verify(odd(&root, |p| p.extended_key_usages = server)).unwrap_err();
    assert!(error.to_string().contains("not good for a client"), "{error}");
    let turned = |p: &mut CertificateParams| std::mem::swap(&mut p.not_before, &mut p.not_after);
    let error = verify(odd(&root, turned)).unwrap_err();
    assert!(error.to_string().contains("ends before"), "{error}");
    let authority =
        |p: &mut CertificateParams| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    verify(odd(&root, authority)).unwrap_err();
    let error = verify(CertificateDer::from(vec![1, 2, 3])).unwrap_err();
    assert!(matches!(error, TrustError::BadCertificate(_)), "{error:?}");
    let error = trust(&[&root]).verify(&[], now).unwrap_err();
    assert!(matches!(error, TrustError::NoCertificate));
    let many = vec![leaf(&root, Role::Worker); CHAIN_CERTIFICATES + 1];
    let error = trust(&[&root]).verify(&many, now).unwrap_err();
    assert!(matches!(error, TrustError::TooMany(7)), "{error:?}");
}

#[test]
fn a_joiner_believes_the_root_of_its_token_and_a_manager_only() {
    let (root, other) = (Root::generate().unwrap(), Root::generate().unwrap());
    let now = SystemTime::now();
    let chain = |role| vec![leaf(&root, role), der(&root.pem)];
    let sent = chain(Role::Manager);
    let facts = Trust::verify_by_token(&sent, &token(&root), now).unwrap();
    assert_eq!(facts.node, ids().1);
    let error = Trust::verify_by_token(&sent, &token(&root), now - days(30)).unwrap_err();
    assert!(matches!(error, TrustError::Lapsed { .. }), "{error:?}");
    let error = Trust::verify_by_token(&chain(Role::Worker), &token(&root), now).unwrap_err();
    assert!(matches!(error, TrustError::NotAManager), "{error:?}");
    let error = Trust::verify_by_token(&sent, &token(&other), now).unwrap_err();
    assert!(matches!(error, TrustError::WrongDigest), "{error:?}");
    // The right root beside a leaf that it has not signed.
    let stolen = [leaf(&other, Role::Manager), der(&root.pem)];
    let error = Trust::verify_by_token(&stolen, &token(&root), now).unwrap_err();
    assert!(matches!(error, TrustError::UnknownRoot { .. }), "{error:?}");
    let error = Trust::verify_by_token(&[], &token(&root), now).unwrap_err();
    assert!(matches!(error, TrustError::NoCertificate), "{error:?}");
    let error = Trust::verify_by_token(&sent[..1], &token(&root), now).unwrap_err();
    assert!(matches!(error, TrustError::WrongDigest), "{error:?}");
}

#[test]
fn old_and_new_tokens_match_while_the_root_changes() {
    let (old, new) = (Root::generate().unwrap(), Root::generate().unwrap());
    let now = SystemTime::now();
    let (forward, backward) = (old.cross_sign(&new).unwrap(), new.cross_sign(&old).unwrap());
    for signer in [&old, &new] {
        let sent = [
            leaf(signer, Role::Manager),
            der(&forward),
            der(&backward),
            der(&old.pem),
            der(&new.pem),
        ];
        for named in [&old, &new] {
            Trust::verify_by_token(&sent, &token(named), now).unwrap();
        }
    }
}

#[test]
fn roots_are_counted_and_read() {
    let root = Root::generate().unwrap();
    assert!(matches!(Trust::new(&[]), Err(TrustError::RootCount(0))));
    let three = vec![root.pem.clone(); 3];
    assert!(matches!(Trust::new(&three), Err(TrustError::RootCount(3))));
    let error = Trust::new(&[root.pem, "x".into()]).unwrap_err();
    assert!(matches!(error, TrustError::BadRoot { number: 2, count: 2, .. }), "{error:?}");
}

#[test]
fn renewal_is_due_at_half_to_four_fifths_of_the_life_and_spread() {
    let root = Root::generate().unwrap();
    let (cluster, _) = ids();
    let mut seen = std::collections::BTreeSet::new();
    for life in [3_600, 90 * 24 * 3_600] {
        for n in 0..20 {
            let node = NodeId::from_entropy([n; ENTROPY_LEN]);
            let csr = NodeKey::generate().unwrap().csr().unwrap();
            let pem = root.sign(&csr, cluster, node, Role::Worker, Span::from_secs(life)).unwrap();
            let now = SystemTime::now();
            let facts = read_leaf(&der(&pem), now).unwrap();
            let due = facts.renewal_due(now);
            // Certificates carry whole seconds.
            let (least, most) = (life as f64 * 0.5 - 2.0, life as f64 * 0.8 + 2.0);
            assert!((least..=most).contains(&due.as_secs_f64()), "{due:?} of {life} s");
            assert_eq!(facts.renewal_due(now + due), Duration::ZERO);
            assert_eq!(facts.renewal_due(now + days(10_000)), Duration::ZERO);
            seen.insert((life, due.as_secs() * 100 / life));
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
    let (epoch, node) = (SystemTime::UNIX_EPOCH, ids().1);
    assert_eq!(renewal_due(epoch, epoch, node, epoch + days(1)), Duration::ZERO);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_chain_or_an_error(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        at in 0usize..400,
    ) {
        let root = Root::generate().unwrap();
        let now = SystemTime::now();
        let mut torn = leaf(&root, Role::Manager).to_vec();
        let whole = torn.clone();
        for (to, from) in torn.iter_mut().skip(at).zip(&bytes) {
            *to = *from;
        }
        let chain = [CertificateDer::from(torn.clone()), CertificateDer::from(bytes)];
        let believed = trust(&[&root]).verify(&chain, now).is_ok();
        assert_eq!(believed, torn == whole, "only what was signed is believed");
        let _ = Trust::verify_by_token(&chain, &token(&root), now);
    }
}

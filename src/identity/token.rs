//! Join tokens: `SWMTKN-1-<digest of the root>-<secret>`. The digest lets a joiner know the
//! swarm before it says anything; the secret never crosses the wire: the joiner proves that it
//! has it.

use std::fmt;

use hmac::{Hmac, Mac as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::limits::TOKEN_BYTES;
use crate::protected::Protected;
use crate::seal::{SealError, random};

/// Characters of the digest.
const DIGEST_CHARS: usize = 50;
/// Characters of the secret.
const SECRET_CHARS: usize = 25;

/// What a proof of a join secret begins with.
const PROOF_LABEL: &[u8] = b"skep-join-proof/1\0";
/// What a verifier is made of, before the secret.
const VERIFIER_LABEL: &[u8] = b"skep-join-verifier/1\0";

/// A text is no join token. The text itself is never told: it may be one but for a slip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing was given.
    #[error("the join token is empty; `skep swarm join-token worker` on a manager prints one")]
    Empty,
    /// It is far too long.
    #[error("a join token of {0} bytes is too long; it has at most {TOKEN_BYTES}")]
    TooLong(usize),
    /// It does not begin as one.
    #[error("a join token begins with SWMTKN-1-; this text does not: copy the whole token")]
    Prefix,
    /// Another version.
    #[error("this join token is not of version 1, the only one that this build knows")]
    Version,
    /// Too few or too many parts.
    #[error(
        "a join token has four parts with three dashes between them, SWMTKN-1-DIGEST-SECRET; this one has {0}: copy the whole token"
    )]
    Parts(usize),
    /// The third part.
    #[error(
        "the third part of a join token, the digest of the swarm's root certificate, is {DIGEST_CHARS} characters of 0-9 and a-z; this one is not: copy the whole token"
    )]
    Digest,
    /// The fourth part.
    #[error(
        "the fourth part of a join token, its secret, is {SECRET_CHARS} characters of 0-9 and a-z; this one is not: copy the whole token"
    )]
    Secret,
    /// The root certificate of which a token was to be made is none.
    #[error("the swarm's root certificate cannot be read, so no token can name it")]
    BadRoot,
}

/// What a joiner has been told of the swarm.
#[derive(Debug)]
pub struct Token {
    /// Digest of the swarm's root certificate, as [`root_digest`] makes it.
    pub digest: String,
    /// What the joiner proves to have.
    pub secret: JoinSecret,
}

impl Token {
    /// Reads a token. White space around it is dropped: it may come out of a file.
    ///
    /// # Errors
    /// [`TokenError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("SWMTKN-").ok_or(TokenError::Prefix)?;
        let mut parts = rest.split('-');
        if parts.next() != Some("1") {
            return Err(TokenError::Version);
        }
        let (Some(digest), Some(secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Parts(text.split('-').count()));
        };
        if !is_base36(digest, DIGEST_CHARS) {
            return Err(TokenError::Digest);
        }
        if !is_base36(secret, SECRET_CHARS) {
            return Err(TokenError::Secret);
        }
        let secret = JoinSecret(Zeroizing::new(secret.to_owned()));
        Ok(Self { digest: digest.to_owned(), secret })
    }

    /// Whether this token is of the swarm with this root certificate, in PEM.
    #[must_use]
    pub fn is_of(&self, root_pem: &str) -> bool {
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes());
        root.is_ok_and(|root| self.is_of_der(&root))
    }

    /// The same for a root certificate in DER.
    #[must_use]
    pub fn is_of_der(&self, root: &[u8]) -> bool {
        self.digest == root_digest(root)
    }
}

/// The digest by which a token names a root certificate in DER: SHA-256 as a number in base 36.
/// It is no secret.
#[must_use]
pub fn root_digest(root: &[u8]) -> String {
    base36(&Sha256::digest(root), DIGEST_CHARS)
}

fn is_base36(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

/// A token's secret half: 25 characters of base 36.
pub struct JoinSecret(Zeroizing<String>);

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

impl JoinSecret {
    /// Makes one.
    ///
    /// # Errors
    /// If the kernel gives no randomness.
    pub fn generate() -> Result<Self, SealError> {
        let bytes = Zeroizing::new(random::<16>()?);
        Ok(Self(Zeroizing::new(base36(&*bytes, SECRET_CHARS))))
    }

    /// Takes one from where it was kept.
    ///
    /// # Errors
    /// [`SealError::Forged`] if it is none.
    pub fn from_protected(bytes: &Protected) -> Result<Self, SealError> {
        let text = std::str::from_utf8(bytes.as_slice()).map_err(|_| SealError::Forged)?;
        if !is_base36(text, SECRET_CHARS) {
            return Err(SealError::Forged);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The bytes, to be sealed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The token for a swarm with this root certificate in PEM.
    ///
    /// # Errors
    /// [`TokenError::BadRoot`].
    pub fn token(&self, root_pem: &str) -> Result<String, TokenError> {
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes());
        let root = root.map_err(|_| TokenError::BadRoot)?;
        Ok(format!("SWMTKN-1-{}-{}", root_digest(&root), self.0.as_str()))
    }

    /// The key of its proofs, from which the secret itself does not follow. While the secret
    /// admits, this is as good as the secret; once it does not, this may be kept to tell old
    /// tokens from wrong ones.
    #[must_use]
    pub fn verifier(&self) -> Zeroizing<[u8; 32]> {
        let mut digest = Sha256::new_with_prefix(VERIFIER_LABEL);
        digest.update(self.as_bytes());
        Zeroizing::new(digest.finalize().into())
    }

    /// What proves on one connection that its maker has this secret and wants this request
    /// signed: an HMAC-SHA256. `exporter` are bytes that TLS gives both ends of that connection
    /// and nobody else, so a proof is worth nothing on another one.
    #[must_use]
    pub fn proof(&self, exporter: &[u8], csr: &[u8]) -> [u8; 32] {
        let mac = mac(&self.verifier(), exporter, csr);
        mac.map_or([0; 32], |mac| mac.finalize().into_bytes().into())
    }

    /// Whether `proof` is [`JoinSecret::proof`] of the same, in constant time.
    #[must_use]
    pub fn check(&self, exporter: &[u8], csr: &[u8], proof: &[u8]) -> bool {
        is_proof(&self.verifier(), exporter, csr, proof)
    }
}

/// Whether `proof` is [`JoinSecret::proof`] of the same by the secret with this verifier, in
/// constant time.
#[must_use]
pub fn is_proof(verifier: &[u8; 32], exporter: &[u8], csr: &[u8], proof: &[u8]) -> bool {
    mac(verifier, exporter, csr).is_some_and(|mac| mac.verify_slice(proof).is_ok())
}

/// None is never given: HMAC takes keys of any length.
fn mac(verifier: &[u8; 32], exporter: &[u8], csr: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(verifier).ok()?;
    mac.update(PROOF_LABEL);
    // With its length, so that no byte can move from one to the other.
    mac.update(&(exporter.len() as u64).to_be_bytes());
    mac.update(exporter);
    mac.update(csr);
    Some(mac)
}

/// `bytes` as a number in base 36, padded with zeros to `width` digits.
fn base36(bytes: &[u8], width: usize) -> String {
    let mut number = Zeroizing::new(bytes.to_vec());
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in number.iter_mut() {
            let n = rest * 256 + u32::from(*byte);
            *byte = (n / 36) as u8;
            rest = n % 36;
        }
        *digit = char::from_digit(rest, 36).map_or(b'0', |c| c as u8);
    }
    digits.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (String, Vec<u8>) {
        let pem = crate::identity::ca::Root::generate().unwrap().pem;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        (pem, der)
    }

    #[test]
    fn a_token_has_dockers_form_and_is_read_back() {
        let secret = JoinSecret::generate().unwrap();
        let (pem, der) = root();
        let text = secret.token(&pem).unwrap();
        let parts: Vec<_> = text.split('-').collect();
        assert_eq!((parts[0], parts[1]), ("SWMTKN", "1"));
        assert_eq!((parts[2].len(), parts[3].len()), (50, 25));
        let token = Token::parse(&format!(" {text} \n")).unwrap();
        assert_eq!(token.secret.as_bytes(), secret.as_bytes());
        assert!(token.is_of_der(&der) && token.is_of(&pem));
        let (pem, der) = root();
        assert!(!token.is_of_der(&der) && !token.is_of(&pem) && !token.is_of("none"));
        assert!(!format!("{token:?}{secret:?}").contains(parts[3]));
        assert_eq!(base36(&[0, 35], 3), "00z");
        assert_eq!(base36(&[1, 0], 3), "074");
        assert_eq!(secret.token("no certificate"), Err(TokenError::BadRoot));
        // Line ends and what stands around the certificate do not change what a token names.
        let other = format!("# ours\r\n{}", pem.replace('\n', "\r\n"));
        assert_eq!(secret.token(&other), secret.token(&pem));
    }

    #[test]
    fn a_bad_token_is_told_by_its_part_and_never_printed() {
        let secret = JoinSecret::generate().unwrap();
        let good = secret.token(&root().0).unwrap();
        let (digest, hidden) = (&good[9..59], &good[60..]);
        let cases = [
            (String::new(), TokenError::Empty),
            (" \n".into(), TokenError::Empty),
            ("x".repeat(TOKEN_BYTES + 1), TokenError::TooLong(TOKEN_BYTES + 1)),
            (format!("SWMKEY-1-{digest}-{hidden}"), TokenError::Prefix),
            (format!("SWMTKN-2-{digest}-{hidden}"), TokenError::Version),
            (format!("SWMTKN-1-{digest}"), TokenError::Parts(3)),
            (format!("SWMTKN-1-{digest}-{hidden}-x"), TokenError::Parts(5)),
            (format!("SWMTKN-1-{}-{hidden}", &digest[1..]), TokenError::Digest),
            (format!("SWMTKN-1-{}-{hidden}", digest.to_uppercase() + "A"), TokenError::Digest),
            (format!("SWMTKN-1-{digest}-{}", &hidden[1..]), TokenError::Secret),
            (format!("SWMTKN-1-{digest}-{}A", &hidden[1..]), TokenError::Secret),
        ];
        for (text, expected) in cases {
            let error = Token::parse(&text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!format!("{error} {error:?}").contains(&hidden[1..]), "{error}");
        }
    }

    #[test]
    fn a_proof_holds_for_one_connection_and_one_request() {
        let (secret, other) = (JoinSecret::generate().unwrap(), JoinSecret::generate().unwrap());
        let proof = secret.proof(b"exporter", b"csr");
        assert!(secret.check(b"exporter", b"csr", &proof));
        assert!(!other.check(b"exporter", b"csr", &proof));
        assert!(!secret.check(b"exporte", b"rcsr", &proof), "bytes moved");
        assert!(!secret.check(b"exporter", b"csR", &proof));
        assert!(!secret.check(b"exporter", b"csr", &proof[..31]));
        assert!(!secret.check(b"exporter", b"csr", &[]));
        assert_ne!(proof, [0; 32]);
        // What is kept of a secret recognises its proofs, and says nothing of it.
        assert!(is_proof(&secret.verifier(), b"exporter", b"csr", &proof));
        assert!(!is_proof(&other.verifier(), b"exporter", b"csr", &proof));
        assert!(
            !secret
                .verifier()
                .windows(8)
                .any(|part| secret.as_bytes().windows(8).any(|w| w == part))
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,200}", tail in "[0-9a-z-]{0,90}") {
            let _ = Token::parse(&text);
            if let Ok(token) = Token::parse(&format!("SWMTKN-1-{tail}")) {
                assert_eq!(token.digest.len(), DIGEST_CHARS);
            }
        }
    }
}

//! Join tokens: `SWMTKN-1-<digest of the root>-<secret>`. The digest lets a joiner know the
//! swarm before it says anything; the secret never crosses the wire.

use std::fmt;

use hmac::{Hmac, Mac};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::protected::Protected;
use crate::seal::{SealError, random};

/// What every token begins with.
const PREFIX: &str = "SWMTKN-1-";
/// Sets proofs apart from other uses of the secret.
const PROOF_LABEL: &[u8] = b"skep-join/1 proof";
/// Characters of the digest.
const DIGEST_CHARS: usize = 50;
/// Characters of the secret.
const SECRET_CHARS: usize = 25;

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
        if text.len() != SECRET_CHARS {
            return Err(SealError::Forged);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The bytes, to be sealed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The token for a swarm with this root certificate.
    #[must_use]
    pub fn token(&self, root_pem: &str) -> String {
        let digest = digest(&root_der(root_pem));
        format!("{PREFIX}{digest}-{}", self.0.as_str())
    }

    /// Shows that one has the secret, without showing it: good for one TLS session and one
    /// certificate request only.
    #[must_use]
    pub fn proof(&self, exported: &[u8; 32], csr: &[u8]) -> [u8; 32] {
        self.mac(exported, csr).finalize().into_bytes().into()
    }

    /// Whether a proof was made with this secret. Takes the same time for all that were not.
    #[must_use]
    pub fn check(&self, exported: &[u8; 32], csr: &[u8], proof: &[u8; 32]) -> bool {
        self.mac(exported, csr).verify_slice(proof).is_ok()
    }

    fn mac(&self, exported: &[u8; 32], csr: &[u8]) -> Hmac<Sha256> {
        // HMAC takes keys of any length: it cannot fail.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.as_bytes())
            .unwrap_or_else(|_| Hmac::new(&Default::default()));
        mac.update(PROOF_LABEL);
        mac.update(exported);
        mac.update(csr);
        mac
    }
}

/// A join token, taken apart.
#[derive(Debug)]
pub struct Token {
    digest: String,
    /// Its secret half.
    pub secret: JoinSecret,
}

/// A text is no join token. It never says the text: most of it is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another beginning.
    #[error("it does not begin with {PREFIX}")]
    Prefix,
    /// Another number of parts.
    #[error("it must have two parts behind {PREFIX}, joined by a hyphen")]
    Parts,
    /// The first part is none.
    #[error("its first part, the digest, must be {DIGEST_CHARS} characters of 0-9 and a-z")]
    Digest,
    /// The second part is none.
    #[error("its second part, the secret, must be {SECRET_CHARS} characters of 0-9 and a-z")]
    Secret,
}

impl Token {
    /// Takes a token apart. Space around it does not matter.
    ///
    /// # Errors
    /// [`TokenError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let parts = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let (digest, secret) = parts.split_once('-').ok_or(TokenError::Parts)?;
        if secret.contains('-') {
            return Err(TokenError::Parts);
        }
        let is_base36 = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
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

    /// Whether it is a token of the swarm with this root certificate, in PEM.
    #[must_use]
    pub fn is_of(&self, root_pem: &str) -> bool {
        self.is_of_der(&root_der(root_pem))
    }

    /// The same for a root certificate in DER.
    #[must_use]
    pub fn is_of_der(&self, root: &[u8]) -> bool {
        digest(root) == self.digest
    }
}

fn root_der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map(|der| der.to_vec()).unwrap_or_default()
}

fn digest(root: &[u8]) -> String {
    base36(&Sha256::digest(root), DIGEST_CHARS)
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

    #[test]
    fn a_token_has_dockers_form() {
        let secret = JoinSecret::generate().unwrap();
        let root = crate::identity::ca::Root::generate().unwrap();
        let token = secret.token(&root.pem);
        let parts: Vec<_> = token.split('-').collect();
        assert_eq!((parts[0], parts[1]), ("SWMTKN", "1"));
        assert_eq!((parts[2].len(), parts[3].len()), (50, 25));
        assert_eq!(format!("{secret:?}"), "JoinSecret(…)");
        assert_eq!(base36(&[0, 35], 3), "00z");
        assert_eq!(base36(&[1, 0], 3), "074");
        let parsed = Token::parse(&format!(" {token}\n")).unwrap();
        assert!(parsed.is_of(&root.pem));
        assert!(!parsed.is_of(&crate::identity::ca::Root::generate().unwrap().pem));
        let proof = parsed.secret.proof(&[1; 32], b"csr");
        assert!(secret.check(&[1; 32], b"csr", &proof));
        assert!(!secret.check(&[2; 32], b"csr", &proof));
        assert!(!secret.check(&[1; 32], b"other", &proof));
        assert!(!JoinSecret::generate().unwrap().check(&[1; 32], b"csr", &proof));
    }

    #[test]
    fn what_is_no_token_is_told_by_part() {
        let (digest, secret) = ("a".repeat(50), "b".repeat(25));
        for (text, error) in [
            (String::new(), TokenError::Prefix),
            (format!("SWMTKN-2-{digest}-{secret}"), TokenError::Prefix),
            (format!("SWMTKN-1-{digest}"), TokenError::Parts),
            (format!("SWMTKN-1-{digest}-{secret}-x"), TokenError::Parts),
            (format!("SWMTKN-1-{digest}x-{secret}"), TokenError::Digest),
            (format!("SWMTKN-1-{digest}-{}", secret.to_uppercase()), TokenError::Secret),
        ] {
            let found = Token::parse(&text).unwrap_err();
            assert_eq!(found, error, "{text}");
            assert!(!found.to_string().contains(&secret));
        }
    }
}

//! Join tokens: `SWMTKN-1-<digest of the root>-<secret>`. The digest lets a joiner know the
//! swarm before it says anything; the secret never crosses the wire.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::protected::Protected;
use crate::seal::{SealError, random};

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
        let digest = base36(&Sha256::digest(root_pem.as_bytes()), DIGEST_CHARS);
        format!("SWMTKN-1-{digest}-{}", self.0.as_str())
    }
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
        let token = secret.token("pem");
        let parts: Vec<_> = token.split('-').collect();
        assert_eq!((parts[0], parts[1]), ("SWMTKN", "1"));
        assert_eq!((parts[2].len(), parts[3].len()), (50, 25));
        assert_eq!(format!("{secret:?}"), "JoinSecret(…)");
        assert_eq!(base36(&[0, 35], 3), "00z");
        assert_eq!(base36(&[1, 0], 3), "074");
    }
}

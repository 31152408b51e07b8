//! The storage key and what is derived from it.

use std::fmt;
use std::io;
use std::sync::Arc;

use aes_gcm_siv::aead::{AeadInPlace, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

/// Bytes that a seal adds to what it seals.
pub(crate) const TAG_BYTES: usize = 16;

/// The key under which this node keeps its log and snapshots.
pub struct StorageKey([u8; 32]);

impl Drop for StorageKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl StorageKey {
    /// Takes the key; the caller wipes its own copy.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The same key once more, for what goes to another thread.
    pub(crate) fn copy(&self) -> Self {
        Self(self.0)
    }

    /// The cipher for one file: `purpose` names the kind of file, `id` the file.
    pub(crate) fn cipher(&self, purpose: &str, id: &[u8; 16]) -> Cipher {
        let mut subkey = Zeroizing::new([0u8; 32]);
        let info: [&[u8]; 2] = [purpose.as_bytes(), id];
        // 32 bytes are far below the bound of HKDF, so this cannot fail.
        let _ = Hkdf::<Sha256>::new(None, &self.0).expand_multi_info(&info, &mut *subkey);
        Cipher(Aes256GcmSiv::new(aes_gcm_siv::Key::<Aes256GcmSiv>::from_slice(&*subkey)))
    }
}

/// The keys that files may be sealed with: what is written takes the first, what is read any.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) new: Arc<StorageKey>,
    pub(crate) old: Option<Arc<StorageKey>>,
}

impl Keys {
    pub(crate) fn one(key: Arc<StorageKey>) -> Self {
        Self { new: key, old: None }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &StorageKey> {
        [&self.new].into_iter().chain(&self.old).map(AsRef::as_ref)
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageKey(..)")
    }
}

/// Draws an id that no other file has.
pub(crate) fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(id)
}

/// A seal did not open: the bytes are not what this key sealed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// Seals the parts of one file. Every part has its own number, and no number is used twice in
/// a file, so the nonce is the number.
pub(crate) struct Cipher(Aes256GcmSiv);

impl Cipher {
    /// Encrypts `bytes` in place and returns the tag.
    pub(crate) fn seal(
        &self,
        number: u64,
        aad: &[u8],
        bytes: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Unreadable> {
        let tag = self.0.encrypt_in_place_detached(&nonce(number), aad, bytes);
        tag.map(Into::into).map_err(|_| Unreadable)
    }

    /// Decrypts `sealed` (ciphertext and tag) and returns the plaintext.
    pub(crate) fn open(
        &self,
        number: u64,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, Unreadable> {
        let at = sealed.len().checked_sub(TAG_BYTES).ok_or(Unreadable)?;
        let (bytes, tag) = sealed.split_at_checked(at).ok_or(Unreadable)?;
        let mut bytes = bytes.to_vec();
        self.0
            .decrypt_in_place_detached(&nonce(number), aad, &mut bytes, Tag::from_slice(tag))
            .map_err(|_| Unreadable)?;
        Ok(bytes)
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = Nonce::default();
    for (to, from) in nonce.iter_mut().zip(number.to_le_bytes()) {
        *to = from;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_only_where_it_was_made() {
        let key = StorageKey::new([7; 32]);
        let cipher = key.cipher("test", &[1; 16]);
        let mut bytes = *b"payload";
        let tag = cipher.seal(3, b"aad", &mut bytes).unwrap();
        let sealed = [&bytes[..], &tag[..]].concat();
        assert_eq!(cipher.open(3, b"aad", &sealed).unwrap(), b"payload");
        assert_eq!(cipher.open(4, b"aad", &sealed), Err(Unreadable));
        assert_eq!(cipher.open(3, b"other", &sealed), Err(Unreadable));
        assert_eq!(cipher.open(3, b"aad", b"short"), Err(Unreadable));
        assert!(key.cipher("other", &[1; 16]).open(3, b"aad", &sealed).is_err());
        assert!(key.cipher("test", &[2; 16]).open(3, b"aad", &sealed).is_err());
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{:?}", StorageKey::new([0xab; 32])), "StorageKey(..)");
    }
}

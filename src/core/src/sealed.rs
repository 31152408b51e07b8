//! A payload as everything but a task's shim sees it: ciphertext.

use alloc::vec::Vec;
use core::fmt;

use minicbor::{Decode, Encode};

/// AES-256-GCM-SIV ciphertext with its tag, and which ring key opens it.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Sealed {
    /// Version of the ring key that sealed it.
    #[n(0)]
    pub key: u64,
    /// Random nonce.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub nonce: [u8; 12],
    /// Ciphertext and tag: 16 bytes longer than the plaintext.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(key {}, {} bytes)", self.key, self.bytes.len())
    }
}

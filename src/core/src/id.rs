//! Typed ids: 25 characters of base 36, as Docker prints them.
//!
//! An id is minted outside, from entropy handed in, and stays the same through every retry of
//! the request that carries it.

use alloc::string::String;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::str::FromStr;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sha2::{Digest, Sha256};

/// Characters in an id.
pub const ID_LEN: usize = 25;
/// Random bytes that make one id.
pub const ENTROPY_LEN: usize = 17;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// An id of a `K`. Ids of different kinds do not mix.
pub struct Id<K> {
    text: [u8; ID_LEN],
    kind: PhantomData<fn() -> K>,
}

/// The kinds that have ids. None of these has a value: they only tell ids apart.
pub mod kind {
    /// A secret or a config.
    #[derive(Debug)]
    pub enum Material {}
    /// A service.
    #[derive(Debug)]
    pub enum Service {}
    /// A task.
    #[derive(Debug)]
    pub enum Task {}
    /// A node.
    #[derive(Debug)]
    pub enum Node {}
    /// The swarm itself.
    #[derive(Debug)]
    pub enum Cluster {}
    /// One request, through all its retries.
    #[derive(Debug)]
    pub enum Request {}
}

/// Id of a secret or a config.
pub type MaterialId = Id<kind::Material>;
/// Id of a service.
pub type ServiceId = Id<kind::Service>;
/// Id of a task.
pub type TaskId = Id<kind::Task>;
/// Id of a node.
pub type NodeId = Id<kind::Node>;
/// Id of a swarm.
pub type ClusterId = Id<kind::Cluster>;
/// Id of a request; a repeated one gets its first outcome.
pub type RequestId = Id<kind::Request>;

/// A text that is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseIdError;

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id is 25 characters of 0-9 and a-z")
    }
}

impl core::error::Error for ParseIdError {}

impl<K> Id<K> {
    /// The first of all ids. Bounds ranges; never minted.
    pub(crate) const MIN: Self = Self { text: [b'0'; ID_LEN], kind: PhantomData };
    /// The last of all ids.
    pub(crate) const MAX: Self = Self { text: [b'z'; ID_LEN], kind: PhantomData };

    /// Makes an id of 17 random bytes.
    #[must_use]
    pub fn from_entropy(mut entropy: [u8; ENTROPY_LEN]) -> Self {
        // The top bit makes every number 27 digits long; the first digit then carries the
        // bias and is dropped.
        entropy[0] |= 0x80;
        let mut digits = [b'0'; 27];
        for digit in digits.iter_mut().rev() {
            let mut rest = 0u32;
            for byte in &mut entropy {
                let n = rest * 256 + u32::from(*byte);
                *byte = (n / 36) as u8;
                rest = n % 36;
            }
            *digit = ALPHABET[rest as usize];
        }
        let mut text = [0; ID_LEN];
        text.copy_from_slice(&digits[1..=ID_LEN]);
        Self { text, kind: PhantomData }
    }

    /// The first 16 bytes and the last 16 as numbers; they overlap.
    fn halves(&self) -> (u128, u128) {
        let part = |bytes: Option<&[u8; 16]>| bytes.map_or(0, |bytes| u128::from_be_bytes(*bytes));
        (part(self.text.first_chunk()), part(self.text.last_chunk()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every constructor admits ASCII only, so the fallback is never taken.
        core::str::from_utf8(&self.text).unwrap_or_default()
    }
}

impl Id<kind::Task> {
    /// The id of the container that runs this task: 64 hex characters, the runc id too.
    #[must_use]
    pub fn container_id(&self) -> String {
        hex(&Sha256::new().chain_update(b"skep-container").chain_update(self.text).finalize())
    }
}

/// Lower-case hex of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n & 0xf)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

impl<K> FromStr for Id<K> {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        let text: [u8; ID_LEN] = s.as_bytes().try_into().map_err(|_| ParseIdError)?;
        if !text.iter().all(|b| ALPHABET.contains(b)) {
            return Err(ParseIdError);
        }
        Ok(Self { text, kind: PhantomData })
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        // As big-endian numbers: the same order as byte by byte, without a call.
        self.halves().cmp(&other.halves())
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<C, K> Encode<C> for Id<K> {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(self.as_str())?.ok()
    }
}

impl<'b, C, K> Decode<'b, C> for Id<K> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        d.str()?.parse().map_err(|_| decode::Error::message("not an id").at(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn ids_are_25_base36_characters_and_round_trip() {
        for seed in [0u8, 1, 7, 0x7f, 0x80, 0xff] {
            let id = TaskId::from_entropy([seed; ENTROPY_LEN]);
            assert_eq!(id.as_str().parse(), Ok(id));
            let bytes = minicbor::to_vec(id).unwrap();
            assert_eq!(minicbor::decode::<TaskId>(&bytes).unwrap(), id);
        }
        let mut ids: Vec<TaskId> = (0..=255)
            .map(|n| TaskId::from_entropy(core::array::from_fn(|i| n ^ i as u8)))
            .collect();
        ids.sort();
        assert!(ids.is_sorted_by(|a, b| a.as_str() <= b.as_str()));
        assert!("ABC".parse::<TaskId>().is_err());
        assert!("A234567890123456789012345".parse::<TaskId>().is_err());
    }

    #[test]
    fn container_id_is_fixed_by_the_task() {
        let id = TaskId::from_entropy([9; ENTROPY_LEN]);
        assert_eq!(id.container_id().len(), 64);
        assert_eq!(id.container_id(), id.container_id());
    }
}

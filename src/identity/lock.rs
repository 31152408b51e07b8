//! Autolock at rest: the unlock key, and the form that a file with keys has while it is locked.
//!
//! A locked file begins with [`MARK`]; then comes one line for every unlock key that opens it,
//! base64 of nonce, ciphertext and tag. It is one, or two while one unlock key takes over from
//! another: at every moment some key opens all files.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use skep_core::id::NodeId;
use zeroize::Zeroizing;

use crate::limits::TOKEN_BYTES;
use crate::protected::Protected;
use crate::seal::{NONCE_BYTES, SealError, open_under, random, seal_under};

/// What every locked file begins with, of whatever version.
const MARK: &[u8] = b"skep-locked/";
/// The first line of those that this build reads.
const FIRST_LINE: &str = "skep-locked/1";
/// Purpose of the subkey that locks.
const PURPOSE: &[u8] = b"lock";
/// Unlock keys that open one file.
const OPENERS: usize = 2;
/// Characters of an unlock key after its prefix.
const KEY_CHARS: usize = 43;

/// A text is no unlock key. The text itself is never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnlockKeyError {
    /// Nothing was given.
    #[error("the unlock key is empty; `skep swarm unlock-key` on an unlocked manager prints it")]
    Empty,
    /// It is far too long.
    #[error("an unlock key of {0} bytes is too long; it has at most {TOKEN_BYTES}")]
    TooLong(usize),
    /// It does not begin as one.
    #[error("an unlock key begins with SWMKEY-1-; this text does not: copy the whole key")]
    Prefix,
    /// What follows is not 32 bytes in base64.
    #[error(
        "after SWMKEY-1- an unlock key has {KEY_CHARS} characters of base64; this text has not: copy the whole key"
    )]
    Body,
}

/// The key, 256 bits, that opens the keys of a locked manager. The same for all managers.
pub struct UnlockKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(…)")
    }
}

impl UnlockKey {
    /// Makes one.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// Reads the text that a user gives. White space around it is dropped.
    ///
    /// # Errors
    /// [`UnlockKeyError`].
    pub fn parse(text: &str) -> Result<Self, UnlockKeyError> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(UnlockKeyError::Empty);
        }
        if text.len() > TOKEN_BYTES {
            return Err(UnlockKeyError::TooLong(text.len()));
        }
        let body = text.strip_prefix("SWMKEY-1-").ok_or(UnlockKeyError::Prefix)?;
        if body.len() != KEY_CHARS {
            return Err(UnlockKeyError::Body);
        }
        // The decoder wants room for whole groups.
        let mut bytes = Zeroizing::new([0; 33]);
        let len =
            STANDARD_NO_PAD.decode_slice(body, &mut *bytes).map_err(|_| UnlockKeyError::Body)?;
        let key = bytes.first_chunk().filter(|_| len == 32).ok_or(UnlockKeyError::Body)?;
        Ok(Self(Zeroizing::new(*key)))
    }

    /// Takes one from where it was kept.
    ///
    /// # Errors
    /// [`SealError::BadKey`] if it is not 32 bytes.
    pub fn from_protected(bytes: &Protected) -> Result<Self, SealError> {
        let key = bytes.as_slice().try_into().map_err(|_| SealError::BadKey)?;
        Ok(Self(Zeroizing::new(key)))
    }

    /// The text for people: `SWMKEY-1-` and base64 without padding.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(STANDARD_NO_PAD.encode(*self.0));
        Zeroizing::new(format!("SWMKEY-1-{}", body.as_str()))
    }

    /// The bytes, to be sealed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What locks the files of one node.
#[derive(Debug, Clone, Copy)]
pub struct Lock<'a> {
    /// With which key.
    pub key: &'a UnlockKey,
    /// Of which node: a file of another node does not open.
    pub node: NodeId,
}

impl Lock<'_> {
    fn aad(&self, name: &str) -> Vec<u8> {
        format!("skep-lock/1\0{name}\0{}", self.node).into_bytes()
    }

    /// A line with `plain`, the content of the file `name`.
    fn line(&self, name: &str, plain: &Protected) -> Result<String, SealError> {
        let mut plain = Protected::copy_of(plain.as_slice())?;
        let aad = self.aad(name);
        let (nonce, sealed) = seal_under(self.key.as_bytes(), PURPOSE, &aad, plain.as_mut_slice())?;
        Ok(STANDARD.encode([nonce.as_slice(), &sealed].concat()))
    }

    fn open_line(&self, name: &str, line: &[u8]) -> Result<Protected, SealError> {
        let (nonce, sealed) = line.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Forged)?;
        open_under(self.key.as_bytes(), PURPOSE, &self.aad(name), nonce, sealed)
    }
}

/// Content of the file `name` that any of `locks` opens.
///
/// # Errors
/// [`SealError`].
pub(super) fn close(
    name: &str,
    plain: &Protected,
    locks: &[Lock<'_>],
) -> Result<String, SealError> {
    let mut text = format!("{FIRST_LINE}\n");
    for lock in locks {
        text.push_str(&lock.line(name, plain)?);
        text.push('\n');
    }
    Ok(text)
}

/// Whether a file with this content is locked.
pub(super) fn is_closed(content: &[u8]) -> bool {
    content.starts_with(MARK)
}

/// A file that is locked, as it stands on the disk.
#[derive(Debug)]
pub(super) struct Closed(Vec<Vec<u8>>);

impl Closed {
    /// Reads it; none if it is damaged or of another version.
    pub(super) fn read(content: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(content).ok()?.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let lines: Option<Vec<_>> = lines.map(|line| STANDARD.decode(line).ok()).collect();
        lines.filter(|lines| (1..=OPENERS).contains(&lines.len())).map(Self)
    }

    /// How many unlock keys open it.
    pub(super) fn openers(&self) -> usize {
        self.0.len()
    }

    /// Opens the file `name`; none if this is not its key.
    ///
    /// # Errors
    /// [`SealError`] if it could not be tried.
    pub(super) fn open(&self, name: &str, lock: Lock<'_>) -> Result<Option<Protected>, SealError> {
        for line in &self.0 {
            match lock.open_line(name, line) {
                Err(SealError::Forged) => {}
                opened => return opened.map(Some),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_core::id::ENTROPY_LEN;

    #[test]
    fn an_unlock_key_has_dockers_form_and_is_read_back() {
        let key = UnlockKey::generate().unwrap();
        let text = key.to_text();
        assert_eq!((&text[..9], text.len()), ("SWMKEY-1-", 9 + KEY_CHARS));
        let again = UnlockKey::parse(&format!("{}\n", text.as_str())).unwrap();
        assert_eq!(again.as_bytes(), key.as_bytes());
        let kept = Protected::copy_of(key.as_bytes()).unwrap();
        assert_eq!(UnlockKey::from_protected(&kept).unwrap().as_bytes(), key.as_bytes());
        let short = Protected::copy_of(b"short").unwrap();
        assert!(UnlockKey::from_protected(&short).is_err());
        assert_eq!(format!("{key:?}"), "UnlockKey(…)");
    }

    #[test]
    fn a_bad_unlock_key_is_told_by_its_part_and_never_printed() {
        let key = UnlockKey::generate().unwrap();
        let text = key.to_text();
        let body = &text[9..];
        for (bad, expected) in [
            (String::new(), UnlockKeyError::Empty),
            ("y".repeat(TOKEN_BYTES + 1), UnlockKeyError::TooLong(TOKEN_BYTES + 1)),
            (format!("SWMTKN-1-{body}"), UnlockKeyError::Prefix),
            (format!("SWMKEY-2-{body}"), UnlockKeyError::Prefix),
            (format!("SWMKEY-1-{body}="), UnlockKeyError::Body),
            (format!("SWMKEY-1-{}", &body[1..]), UnlockKeyError::Body),
            (format!("SWMKEY-1-!{}", &body[1..]), UnlockKeyError::Body),
            // Bits beyond the 256th.
            (format!("SWMKEY-1-{}/", &body[..42]), UnlockKeyError::Body),
        ] {
            let error = UnlockKey::parse(&bad).unwrap_err();
            assert_eq!(error, expected, "{bad}");
            assert!(!format!("{error} {error:?}").contains(&body[1..]), "{error}");
        }
    }

    #[test]
    fn a_closed_file_opens_with_its_keys_for_its_name_and_node_only() {
        let keys: Vec<_> = (0..3).map(|_| UnlockKey::generate().unwrap()).collect();
        let node = NodeId::from_entropy([1; ENTROPY_LEN]);
        let lock = |n: usize| Lock { key: &keys[n], node };
        let plain = Protected::copy_of(b"the storage key").unwrap();
        let text = close("a", &plain, &[lock(0), lock(1)]).unwrap();
        assert!(is_closed(text.as_bytes()));
        let closed = Closed::read(text.as_bytes()).unwrap();
        assert_eq!(closed.openers(), 2);
        for n in 0..2 {
            let opened = closed.open("a", lock(n)).unwrap().unwrap();
            assert_eq!(opened.as_slice(), plain.as_slice());
        }
        assert!(closed.open("a", lock(2)).unwrap().is_none());
        assert!(closed.open("b", lock(0)).unwrap().is_none());
        let elsewhere = Lock { node: NodeId::from_entropy([2; ENTROPY_LEN]), ..lock(0) };
        assert!(closed.open("a", elsewhere).unwrap().is_none());
        for bad in ["", "skep-locked/2\nAAAA\n", "skep-locked/1\n", "skep-locked/1\n*\n"] {
            assert!(Closed::read(bad.as_bytes()).is_none(), "{bad}");
        }
        let torn = Closed::read(b"skep-locked/1\nAAAA\n").unwrap();
        assert!(torn.open("a", lock(0)).unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error(text in ".{0,150}", body in "[A-Za-z0-9+/=]{0,50}") {
            let _ = UnlockKey::parse(&text);
            let text = format!("SWMKEY-1-{body}");
            if let Ok(key) = UnlockKey::parse(&text) {
                assert_eq!(key.to_text().as_str(), text);
            }
        }

        #[test]
        fn any_bytes_are_a_closed_file_or_none(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            line in "[A-Za-z0-9+/=\n]{0,100}",
        ) {
            let key = UnlockKey::generate().unwrap();
            let lock = Lock { key: &key, node: NodeId::from_entropy([1; ENTROPY_LEN]) };
            let content = [FIRST_LINE.as_bytes(), b"\n", line.as_bytes()].concat();
            for content in [&bytes, &content] {
                if let Some(closed) = Closed::read(content) {
                    assert!(closed.open("a", lock).unwrap().is_none());
                }
            }
        }
    }
}

//! The files with a node's keys: `key.pem` (node key, then the key that ring slots are sealed to)
//! and, on managers, `storage.key` (the key of log and snapshots; two while another one takes
//! over). Each is either clear or locked with the unlock key and says which.
//!
//! Every change is a list of whole files, replaced one after the other; whatever of the list was
//! done before a crash, the files can be read with a key that was good before or after, and doing
//! the change again finishes it.
//!
//! To turn autolock on or to rotate the unlock key: [`IdentityStore::lock_with`], then
//! [`IdentityStore::begin_rekey`]; rewrite all of log and snapshots with the next storage key; then
//! [`IdentityStore::finish_rekey`]. In this order the next storage key never stands on the disk in
//! the clear, nor under the old unlock key alone.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skep_raft::StorageKey;
use zeroize::Zeroizing;

use super::ca::NodeKey;
use super::lock::{Closed, Lock, UnlockKey, close, is_closed};
use super::store::{IdentityStore, KEY_FILE, STORAGE_KEY_FILE, StoreError, read_bounded};
use crate::files::{FileError, beside, remove_file, write_atomic};
use crate::limits::IDENTITY_FILE_BYTES;
use crate::protected::{ProtectError, Protected};
use crate::seal::{SealError, SealKeyPair, random};

/// The files that can be locked.
const LOCKABLE: [&str; 2] = [STORAGE_KEY_FILE, KEY_FILE];
/// Hex digits of a storage key.
const STORAGE_KEY_CHARS: usize = 64;
const SEAL_KEY_BEGIN: &str = "-----BEGIN SKEP SEAL KEY-----";
const SEAL_KEY_END: &str = "-----END SKEP SEAL KEY-----";

/// A node's keys cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The files cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file is not there.
    #[error("{0} is missing; restore it from a backup, or leave the swarm by force and join again")]
    Missing(PathBuf),
    /// They are locked and no key was given.
    #[error("{0} is locked; unlock this manager with `skep swarm unlock`")]
    Locked(PathBuf),
    /// The key given is not the one.
    #[error(
        "the unlock key does not open {0}; `skep swarm unlock-key` on an unlocked manager prints the right one, or an older key is needed if this manager was away when it was rotated"
    )]
    WrongKey(PathBuf),
    /// There is no second storage key to go over to.
    #[error("{0} holds no next storage key: no change of storage keys was begun")]
    NoNextKey(PathBuf),
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A node key was made that cannot be read.
    #[error("{path} is damaged or from another program; restore it from a backup")]
    NodeKey {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: super::ca::CaError,
    },
}

impl From<FileError> for KeysError {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}

impl From<ProtectError> for KeysError {
    fn from(error: ProtectError) -> Self {
        Self::Seal(error.into())
    }
}

/// The keys of log and snapshots.
#[derive(Debug)]
pub struct StorageKeys {
    /// What everything is sealed with, or all but what the next one has been used for.
    pub current: StorageKey,
    /// What takes over, while it does.
    pub next: Option<StorageKey>,
}

/// All keys of a node.
#[derive(Debug)]
pub struct Keys {
    /// Who it is.
    pub node: NodeKey,
    /// What others seal to.
    pub seal: SealKeyPair,
    /// Of its log; none on a worker.
    pub storage: Option<StorageKeys>,
}

type KeyBytes = Zeroizing<[u8; 32]>;

/// One file to be replaced.
struct Step {
    name: &'static str,
    content: Zeroizing<Vec<u8>>,
}

/// A file with keys, opened.
struct Opened {
    name: &'static str,
    plain: Protected,
    /// How many unlock keys open it; 0 if it is clear.
    openers: usize,
    /// Whether the first of the locks tried opened it.
    by_first: bool,
}

impl IdentityStore {
    /// Whether any of the files with keys is locked: then nothing of the swarm can run before
    /// [`IdentityStore::load_keys`] with the unlock key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_locked(&self) -> Result<bool, StoreError> {
        for name in LOCKABLE {
            if self.read(name)?.is_some_and(|content| is_closed(&content)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes node key and seal key: clear, or locked from the first byte on.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn save_keys(
        &self,
        node: &NodeKey,
        seal: &SealKeyPair,
        lock: Option<Lock<'_>>,
    ) -> Result<(), KeysError> {
        let private = Zeroizing::new(STANDARD.encode(seal.private_bytes().as_slice()));
        let text = Zeroizing::new(format!(
            "{}{SEAL_KEY_BEGIN}\n{}\n{SEAL_KEY_END}\n",
            node.to_pem().as_str(),
            private.as_str()
        ));
        let plain = Protected::copy_of(text.as_bytes())?;
        self.perform(&step(KEY_FILE, &plain, lock.as_slice())?)
    }

    /// Makes and writes the storage key of a new manager.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn make_storage_key(&self, lock: Option<Lock<'_>>) -> Result<StorageKey, KeysError> {
        let key = Zeroizing::new(random::<32>()?);
        self.perform(&step(STORAGE_KEY_FILE, &storage_text(&[&key])?, lock.as_slice())?)?;
        Ok(StorageKey::new(*key))
    }

    /// Reads all keys. Files that are clear need no lock; one that is given does not hurt.
    ///
    /// # Errors
    /// [`KeysError::Locked`] without the key where one is needed, [`KeysError::WrongKey`] with
    /// another; others name the file.
    pub fn load_keys(&self, lock: Option<Lock<'_>>) -> Result<Keys, KeysError> {
        let path = self.path(KEY_FILE);
        let file = self.open(KEY_FILE, lock.as_slice())?;
        let file = file.ok_or_else(|| KeysError::Missing(path.clone()))?;
        let damaged = |why: &str| StoreError::damaged(&path, why);
        let text = std::str::from_utf8(file.plain.as_slice())
            .map_err(|_| damaged("it holds no seal key"))?;
        let (node, rest) =
            text.split_once(SEAL_KEY_BEGIN).ok_or_else(|| damaged("it holds no seal key"))?;
        let node = NodeKey::from_pem(node)
            .map_err(|source| KeysError::NodeKey { path: path.clone(), source })?;
        let seal = rest.split_once(SEAL_KEY_END).and_then(|(body, _)| {
            let key = Zeroizing::new(STANDARD.decode(body.trim()).ok()?);
            SealKeyPair::from_private(&key).ok()
        });
        let seal = seal.ok_or_else(|| damaged("it holds no seal key"))?;
        let storage = match self.open(STORAGE_KEY_FILE, lock.as_slice())? {
            Some(file) => Some(self.storage_keys(&file.plain)?),
            None => None,
        };
        Ok(Keys { node, seal, storage })
    }

    /// Locks the files, or moves them from the `old` unlock key to this one. Files that are so
    /// already stay as they are: to be repeated until it succeeds, a crash in between included.
    ///
    /// # Errors
    /// [`KeysError::WrongKey`] or [`KeysError::Locked`] if neither key opens what is locked; then
    /// nothing has been changed. Others may come when part is done.
    pub fn lock_with(&self, lock: Lock<'_>, old: Option<&UnlockKey>) -> Result<(), KeysError> {
        for step in self.lock_steps(lock, old)? {
            self.perform(&step)?;
        }
        self.clear_beside()
    }

    fn lock_steps(&self, lock: Lock<'_>, old: Option<&UnlockKey>) -> Result<Vec<Step>, KeysError> {
        let old = old.map(|key| Lock { key, ..lock });
        let both: Vec<_> = [lock].into_iter().chain(old).collect();
        let files = self.open_all(&both)?;
        let mut steps = Vec::new();
        // All files open with the new key before one stops to open with the old one.
        for file in files.iter().filter(|file| file.openers > 0 && !file.by_first) {
            steps.push(step(file.name, &file.plain, &both)?);
        }
        for file in files.iter().filter(|file| file.openers != 1 || !file.by_first) {
            steps.push(step(file.name, &file.plain, &[lock])?);
        }
        Ok(steps)
    }

    /// Writes the files in the clear again: autolock is off, or the node is no manager any more.
    /// To be repeated until it succeeds.
    ///
    /// # Errors
    /// As [`IdentityStore::lock_with`].
    pub fn unlock_for_good(&self, lock: Lock<'_>) -> Result<(), KeysError> {
        for step in self.unlock_steps(lock)? {
            self.perform(&step)?;
        }
        Ok(())
    }

    fn unlock_steps(&self, lock: Lock<'_>) -> Result<Vec<Step>, KeysError> {
        let files = self.open_all(&[lock])?;
        let locked = files.iter().filter(|file| file.openers > 0);
        locked.map(|file| step(file.name, &file.plain, &[])).collect()
    }

    /// Makes the storage key that is to take over and keeps both, clear or locked as the file is;
    /// one that was begun before goes on. New segments and snapshots are to be written with
    /// `next`, old ones rewritten.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn begin_rekey(&self, lock: Option<Lock<'_>>) -> Result<StorageKeys, KeysError> {
        let file = self.open_storage(lock)?;
        if let keys @ StorageKeys { next: Some(_), .. } = self.storage_keys(&file.plain)? {
            return Ok(keys);
        }
        let (current, _) = self.storage_bytes(&file.plain)?;
        let next = Zeroizing::new(random::<32>()?);
        self.rewrite_storage(&file, &storage_text(&[&current, &next])?, lock)
    }

    /// Forgets the old storage key: what is still sealed with it can never be read again.
    ///
    /// # Errors
    /// [`KeysError::NoNextKey`] if none was begun; others.
    pub fn finish_rekey(&self, lock: Option<Lock<'_>>) -> Result<StorageKeys, KeysError> {
        let file = self.open_storage(lock)?;
        let (_, next) = self.storage_bytes(&file.plain)?;
        let next = next.ok_or_else(|| KeysError::NoNextKey(self.path(STORAGE_KEY_FILE)))?;
        self.rewrite_storage(&file, &storage_text(&[&next])?, lock)
    }

    fn rewrite_storage(
        &self,
        file: &Opened,
        plain: &Protected,
        lock: Option<Lock<'_>>,
    ) -> Result<StorageKeys, KeysError> {
        let lock = lock.filter(|_| file.openers > 0);
        self.perform(&step(STORAGE_KEY_FILE, plain, lock.as_slice())?)?;
        self.storage_keys(plain)
    }

    /// The error of a manager that finds no storage key.
    #[must_use]
    pub fn no_storage_key(&self) -> KeysError {
        KeysError::Missing(self.path(STORAGE_KEY_FILE))
    }

    fn open_storage(&self, lock: Option<Lock<'_>>) -> Result<Opened, KeysError> {
        let file = self.open(STORAGE_KEY_FILE, lock.as_slice())?;
        file.ok_or_else(|| self.no_storage_key())
    }

    fn storage_keys(&self, plain: &Protected) -> Result<StorageKeys, KeysError> {
        let (current, next) = self.storage_bytes(plain)?;
        let next = next.map(|key| StorageKey::new(*key));
        Ok(StorageKeys { current: StorageKey::new(*current), next })
    }

    /// The current and the next storage key.
    fn storage_bytes(&self, plain: &Protected) -> Result<(KeyBytes, Option<KeyBytes>), KeysError> {
        let damaged = || {
            let why = "it is not one or two lines of 64 hex digits";
            StoreError::damaged(&self.path(STORAGE_KEY_FILE), why)
        };
        let mut lines = plain.as_slice().trim_ascii().split(|byte| *byte == b'\n');
        let current = lines.next().and_then(from_hex).ok_or_else(damaged)?;
        let next = lines.next().map(|line| from_hex(line).ok_or_else(damaged)).transpose()?;
        match lines.next() {
            None => Ok((current, next)),
            Some(_) => Err(damaged().into()),
        }
    }

    fn open_all(&self, locks: &[Lock<'_>]) -> Result<Vec<Opened>, KeysError> {
        LOCKABLE.into_iter().filter_map(|name| self.open(name, locks).transpose()).collect()
    }

    /// Reads a file with keys, with the first of `locks` that opens it if it is locked; none if
    /// there is no such file.
    fn open(&self, name: &'static str, locks: &[Lock<'_>]) -> Result<Option<Opened>, KeysError> {
        let Some(content) = self.read(name)? else { return Ok(None) };
        if !is_closed(&content) {
            let plain = Protected::copy_of(&content)?;
            return Ok(Some(Opened { name, plain, openers: 0, by_first: false }));
        }
        let path = self.path(name);
        let closed = Closed::read(&content).ok_or_else(|| {
            StoreError::damaged(&path, "it is locked in a form that this build does not know")
        })?;
        for (at, lock) in locks.iter().enumerate() {
            if let Some(plain) = closed.open(name, *lock)? {
                let openers = closed.openers();
                return Ok(Some(Opened { name, plain, openers, by_first: at == 0 }));
            }
        }
        Err(if locks.is_empty() { KeysError::Locked(path) } else { KeysError::WrongKey(path) })
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        read_bounded(&self.path(name), IDENTITY_FILE_BYTES)
    }

    /// Replaces one file. If a clear one gives way to a locked one, its bytes are overwritten.
    fn perform(&self, step: &Step) -> Result<(), KeysError> {
        let path = self.path(step.name);
        let old = OpenOptions::new().write(true).open(&path);
        write_atomic(&path, &step.content, 0o600)?;
        if let (Ok(old), true) = (old, is_closed(&step.content)) {
            overwrite(&old);
        }
        Ok(())
    }

    /// Removes what a crash left of clear files that were being written.
    fn clear_beside(&self) -> Result<(), KeysError> {
        for name in LOCKABLE {
            remove_file(&beside(&self.path(name)))?;
        }
        Ok(())
    }
}

/// Zeroes a file that no name leads to any more. On many disks that takes the bytes away; where
/// the filesystem or the device writes elsewhere it does nothing, and neither does a failure: that
/// is why the storage key is replaced when files are locked.
fn overwrite(file: &File) {
    let Ok(about) = file.metadata() else { return };
    if about.nlink() == 0 {
        let len = usize::try_from(about.len().min(IDENTITY_FILE_BYTES)).unwrap_or(0);
        let mut file = file;
        let _ = file.write_all(&vec![0; len]).and_then(|()| file.sync_data());
    }
}

fn step(name: &'static str, plain: &Protected, locks: &[Lock<'_>]) -> Result<Step, KeysError> {
    let content = match locks {
        [] => plain.as_slice().to_vec(),
        locks => close(name, plain, locks)?.into_bytes(),
    };
    Ok(Step { name, content: Zeroizing::new(content) })
}

/// One line of hex for each key.
fn storage_text(keys: &[&[u8; 32]]) -> Result<Protected, KeysError> {
    let mut text = Protected::zeroed(keys.len() * (STORAGE_KEY_CHARS + 1))?;
    for (line, key) in text.as_mut_slice().chunks_mut(STORAGE_KEY_CHARS + 1).zip(keys) {
        let hex = Zeroizing::new(skep_core::id::hex(*key));
        line.fill(b'\n');
        for (to, from) in line.iter_mut().zip(hex.as_bytes()) {
            *to = *from;
        }
    }
    Ok(text)
}

fn from_hex(line: &[u8]) -> Option<KeyBytes> {
    let mut key = Zeroizing::new([0u8; 32]);
    let valid = line.len() == STORAGE_KEY_CHARS && line.iter().all(u8::is_ascii_hexdigit);
    let filled = valid
        && key.iter_mut().zip(line.as_chunks::<2>().0).all(|(byte, pair)| {
            let text = std::str::from_utf8(pair).ok();
            text.and_then(|p| u8::from_str_radix(p, 16).ok()).map(|b| *byte = b).is_some()
        });
    filled.then_some(key)
}

#[cfg(test)]
mod tests;

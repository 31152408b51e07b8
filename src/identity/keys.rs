//! The files with a node's keys: `key.pem` (node key, then the key that ring slots are sealed to)
//! and, on managers, `storage.key` (the key of log and snapshots; two while another one takes
//! over). Each is either clear or locked with the unlock key and says which.
//!
//! Every change is a list of whole files, replaced one after the other; whatever of the list was
//! done before a crash, the files can be read with a key that was good before or after, and doing
//! the change again finishes it.
//!
//! To turn autolock on or to rotate the unlock key: [`IdentityStore::lock_with`]; rewrite all of log
//! and snapshots with the next storage key that it made; then [`IdentityStore::finish_rekey`]. The
//! file that is the first to open with the new unlock key alone names the next storage key: from
//! then on every start finds what is still to be done, and that key never stands on the disk in the
//! clear, nor under the old unlock key.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skep_core::id::NodeId;
use skep_raft::StorageKey;
use zeroize::Zeroizing;

use super::ca::NodeKey;
use super::lock::{Closed, Lock, UnlockKey, close, is_closed};
use super::store::{IdentityStore, KEY_FILE, STORAGE_KEY_FILE, StoreError, read_bounded};
use crate::files::{beside, remove_file, write_atomic};
use crate::limits::IDENTITY_FILE_BYTES;
use crate::protected::Protected;
use crate::seal::{SealKeyPair, random};

/// The files that can be locked.
const LOCKABLE: [&str; 2] = [STORAGE_KEY_FILE, KEY_FILE];
/// Hex digits of a storage key.
const STORAGE_KEY_CHARS: usize = 64;
const SEAL_KEY_BEGIN: &str = "-----BEGIN SKEP SEAL KEY-----";
const SEAL_KEY_END: &str = "-----END SKEP SEAL KEY-----";

/// The keys of log and snapshots.
#[derive(Debug)]
pub struct StorageKeys {
    /// What everything is sealed with, or all but what the next one has been used for.
    pub current: StorageKey,
    /// What takes over, while it does.
    pub next: Option<StorageKey>,
}

/// The unlock key that a store was given, and of which node its files are.
pub(super) type Held = (UnlockKey, NodeId);

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

impl Opened {
    /// Whether it is not locked with the first of the locks tried alone.
    fn is_exposed(&self) -> bool {
        self.openers != 1 || !self.by_first
    }
}

impl IdentityStore {
    /// Whether the files with keys are locked and this store has not been given the key: nothing
    /// of the swarm can run before [`IdentityStore::unlock`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_locked(&self) -> Result<bool, StoreError> {
        Ok(self.held().is_none() && self.has_locked_files()?)
    }

    fn has_locked_files(&self) -> Result<bool, StoreError> {
        for name in LOCKABLE {
            if self.read(name)?.is_some_and(|content| is_closed(&content)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Opens all that is locked with this key, which is kept: from now on the files are read and
    /// written with it.
    ///
    /// # Errors
    /// [`StoreError::WrongKey`] if it is another's.
    pub fn unlock(&self, key: UnlockKey, node: NodeId) -> Result<(), StoreError> {
        self.open_all(&[Lock { key: &key, node }])?;
        if self.has_locked_files()? {
            *self.held_mut() = Some((key, node));
        }
        Ok(())
    }

    /// Writes node key and seal key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_keys(&self, node: &NodeKey, seal: &SealKeyPair) -> Result<(), StoreError> {
        let private = Zeroizing::new(STANDARD.encode(seal.private_bytes().as_slice()));
        let text = Zeroizing::new(format!(
            "{}{SEAL_KEY_BEGIN}\n{}\n{SEAL_KEY_END}\n",
            node.pem().as_str(),
            private.as_str()
        ));
        let plain = Protected::copy_of(text.as_bytes())?;
        self.replace(KEY_FILE, &plain)
    }

    /// The keys of a node that has not joined yet: those of an attempt that was cut short, since
    /// the swarm may know them, or new ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unfinished_keys(&self) -> Result<(NodeKey, SealKeyPair), StoreError> {
        if let Ok(keys) = self.load_keys() {
            return Ok(keys);
        }
        let path = self.path(KEY_FILE);
        let node = NodeKey::generate().map_err(|source| StoreError::NodeKey { path, source })?;
        let seal = SealKeyPair::generate()?;
        self.save_keys(&node, &seal)?;
        Ok((node, seal))
    }

    /// Reads node key and seal key.
    ///
    /// # Errors
    /// [`StoreError::Locked`] before [`IdentityStore::unlock`] where that is needed; others name
    /// the file.
    pub fn load_keys(&self) -> Result<(NodeKey, SealKeyPair), StoreError> {
        let path = self.path(KEY_FILE);
        let file = self.open_held(KEY_FILE)?;
        let damaged = |why: &str| StoreError::damaged(&path, why);
        let text = std::str::from_utf8(file.plain.as_slice())
            .map_err(|_| damaged("it holds no seal key"))?;
        let (node, rest) =
            text.split_once(SEAL_KEY_BEGIN).ok_or_else(|| damaged("it holds no seal key"))?;
        let node = NodeKey::from_pem(node)
            .map_err(|source| StoreError::NodeKey { path: path.clone(), source })?;
        let seal = rest.split_once(SEAL_KEY_END).and_then(|(body, _)| {
            let key = Zeroizing::new(STANDARD.decode(body.trim()).ok()?);
            SealKeyPair::from_private(&key).ok()
        });
        Ok((node, seal.ok_or_else(|| damaged("it holds no seal key"))?))
    }

    /// The node key alone.
    ///
    /// # Errors
    /// As [`IdentityStore::load_keys`].
    pub fn load_node_key(&self) -> Result<NodeKey, StoreError> {
        self.load_keys().map(|(node, _)| node)
    }

    /// The seal key alone.
    ///
    /// # Errors
    /// As [`IdentityStore::load_keys`].
    pub fn load_seal_key(&self) -> Result<SealKeyPair, StoreError> {
        self.load_keys().map(|(_, seal)| seal)
    }

    /// Makes and writes the storage key of a new manager.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn make_storage_key(&self) -> Result<StorageKey, StoreError> {
        let key = Zeroizing::new(random::<32>()?);
        self.replace(STORAGE_KEY_FILE, &storage_text(&[&key])?)?;
        Ok(StorageKey::new(*key))
    }

    /// Reads the storage key: the current one if another is about to take over.
    ///
    /// # Errors
    /// As [`IdentityStore::load_storage_keys`].
    pub fn load_storage_key(&self) -> Result<StorageKey, StoreError> {
        self.load_storage_keys().map(|keys| keys.current)
    }

    /// Reads the storage keys.
    ///
    /// # Errors
    /// [`StoreError::Locked`] before [`IdentityStore::unlock`] where that is needed; others name
    /// the file.
    pub fn load_storage_keys(&self) -> Result<StorageKeys, StoreError> {
        self.storage_keys(&self.open_held(STORAGE_KEY_FILE)?.plain)
    }

    /// Locks the files with this key, or moves them to it from the one given to
    /// [`IdentityStore::unlock`] or here before. Files that are so already stay as they are: to be
    /// repeated until it succeeds, after a crash too. On a node without files it makes sure that
    /// none is ever written in the clear. Answers whether a file was not so before.
    ///
    /// A storage key that was clear, or opened with the old key, gets another to take over. To be
    /// called when no such change is open: see [`IdentityStore::finish_rekey`].
    ///
    /// # Errors
    /// [`StoreError::WrongKey`] if neither key opens what is locked, [`StoreError::OpenRekey`] if
    /// storage keys are changed already; then nothing has been changed. Others may come when part
    /// is done.
    pub fn lock_with(&self, key: UnlockKey, node: NodeId) -> Result<bool, StoreError> {
        let mut held = self.held_mut();
        let old = held.as_ref().map(|(key, _)| key);
        let steps = self.lock_steps(Lock { key: &key, node }, old)?;
        for step in &steps {
            self.perform(step)?;
        }
        self.clear_beside()?;
        *held = Some((key, node));
        Ok(!steps.is_empty())
    }

    fn lock_steps(&self, lock: Lock<'_>, old: Option<&UnlockKey>) -> Result<Vec<Step>, StoreError> {
        let old = old.map(|key| Lock { key, ..lock });
        let both: Vec<_> = [lock].into_iter().chain(old).collect();
        let files = self.open_all(&both)?;
        let next = self.next_storage(&files)?;
        let mut steps = Vec::new();
        // All files open with the new key before one stops to open with the old one.
        for file in files.iter().filter(|file| file.openers > 0 && !file.by_first) {
            steps.push(step(file.name, &file.plain, &both)?);
        }
        for file in files.iter().filter(|file| file.is_exposed()) {
            let next = next.as_ref().filter(|_| file.name == STORAGE_KEY_FILE);
            steps.push(step(file.name, next.unwrap_or(&file.plain), &[lock])?);
        }
        Ok(steps)
    }

    /// What the file of storage keys is to hold if the present one was open to somebody else: that
    /// one, and the one that takes over.
    fn next_storage(&self, files: &[Opened]) -> Result<Option<Protected>, StoreError> {
        let is_it = |file: &&Opened| file.name == STORAGE_KEY_FILE && file.is_exposed();
        let Some(file) = files.iter().find(is_it) else { return Ok(None) };
        let (current, next) = self.storage_bytes(&file.plain)?;
        if next.is_some() {
            return Err(StoreError::OpenRekey(self.path(STORAGE_KEY_FILE)));
        }
        let next = Zeroizing::new(random::<32>()?);
        storage_text(&[&current, &next]).map(Some)
    }

    /// Writes the files in the clear again: autolock is off, or the node is no manager any more.
    /// To be repeated until it succeeds.
    ///
    /// # Errors
    /// As [`IdentityStore::lock_with`].
    pub fn unlock_for_good(&self) -> Result<(), StoreError> {
        let mut held = self.held_mut();
        for step in self.unlock_steps(lock_of(&held).as_slice())? {
            self.perform(&step)?;
        }
        *held = None;
        Ok(())
    }

    fn unlock_steps(&self, locks: &[Lock<'_>]) -> Result<Vec<Step>, StoreError> {
        let files = self.open_all(locks)?;
        let locked = files.iter().filter(|file| file.openers > 0);
        locked.map(|file| step(file.name, &file.plain, &[])).collect()
    }

    /// Forgets the old storage key: what is still sealed with it can never be read again.
    ///
    /// # Errors
    /// [`StoreError::NoNextKey`] if none was begun; others.
    pub fn finish_rekey(&self) -> Result<StorageKeys, StoreError> {
        let file = self.open_held(STORAGE_KEY_FILE)?;
        let (_, next) = self.storage_bytes(&file.plain)?;
        let next = next.ok_or_else(|| StoreError::NoNextKey(self.path(STORAGE_KEY_FILE)))?;
        let plain = storage_text(&[&next])?;
        self.replace(STORAGE_KEY_FILE, &plain)?;
        self.storage_keys(&plain)
    }

    /// Writes a file with keys: locked if this store holds a key, else clear.
    fn replace(&self, name: &'static str, plain: &Protected) -> Result<(), StoreError> {
        let held = self.held();
        self.perform(&step(name, plain, lock_of(&held).as_slice())?)
    }

    /// Reads a file with keys that must be there.
    fn open_held(&self, name: &'static str) -> Result<Opened, StoreError> {
        let held = self.held();
        let file = self.open(name, lock_of(&held).as_slice())?;
        file.ok_or_else(|| StoreError::Missing(self.path(name)))
    }

    fn held(&self) -> RwLockReadGuard<'_, Option<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Option<Held>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the key of locked files: the files are gone.
    pub(super) fn let_go(&self) {
        *self.held_mut() = None;
    }

    fn storage_keys(&self, plain: &Protected) -> Result<StorageKeys, StoreError> {
        let (current, next) = self.storage_bytes(plain)?;
        let next = next.map(|key| StorageKey::new(*key));
        Ok(StorageKeys { current: StorageKey::new(*current), next })
    }

    /// The current and the next storage key.
    fn storage_bytes(&self, plain: &Protected) -> Result<(KeyBytes, Option<KeyBytes>), StoreError> {
        let damaged = || {
            let why = "it is not one or two lines of 64 hex digits";
            StoreError::damaged(&self.path(STORAGE_KEY_FILE), why)
        };
        let mut lines = plain.as_slice().trim_ascii().split(|byte| *byte == b'\n');
        let current = lines.next().and_then(from_hex).ok_or_else(damaged)?;
        let next = lines.next().map(|line| from_hex(line).ok_or_else(damaged)).transpose()?;
        match lines.next() {
            None => Ok((current, next)),
            Some(_) => Err(damaged()),
        }
    }

    fn open_all(&self, locks: &[Lock<'_>]) -> Result<Vec<Opened>, StoreError> {
        LOCKABLE.into_iter().filter_map(|name| self.open(name, locks).transpose()).collect()
    }

    /// Reads a file with keys, with the first of `locks` that opens it if it is locked; none if
    /// there is no such file.
    fn open(&self, name: &'static str, locks: &[Lock<'_>]) -> Result<Option<Opened>, StoreError> {
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
        Err(if locks.is_empty() { StoreError::Locked(path) } else { StoreError::WrongKey(path) })
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        read_bounded(&self.path(name), IDENTITY_FILE_BYTES)
    }

    /// Replaces one file. If a clear one gives way to a locked one, its bytes are overwritten.
    fn perform(&self, step: &Step) -> Result<(), StoreError> {
        let path = self.path(step.name);
        let old = OpenOptions::new().write(true).open(&path);
        write_atomic(&path, &step.content, 0o600)?;
        if let (Ok(old), true) = (old, is_closed(&step.content)) {
            overwrite(&old);
        }
        Ok(())
    }

    /// Removes what a crash left of clear files that were being written.
    fn clear_beside(&self) -> Result<(), StoreError> {
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

fn lock_of(held: &Option<Held>) -> Option<Lock<'_>> {
    held.as_ref().map(|(key, node)| Lock { key, node: *node })
}

fn step(name: &'static str, plain: &Protected, locks: &[Lock<'_>]) -> Result<Step, StoreError> {
    let content = match locks {
        [] => plain.as_slice().to_vec(),
        locks => close(name, plain, locks)?.into_bytes(),
    };
    Ok(Step { name, content: Zeroizing::new(content) })
}

/// One line of hex for each key.
fn storage_text(keys: &[&[u8; 32]]) -> Result<Protected, StoreError> {
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

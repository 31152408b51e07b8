//! The identity files of a node under its data root, all 0600:
//! `node.json`, `cert.pem` (its certificate, cross certificates after it), `managers.json` (see
//! [`super::directory`]), and `key.pem` and `storage.key` (see [`super::keys`]).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use skep_core::model::node::Role;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::ca::NodeKey;
use super::keys::Held;
use crate::files::{FileError, beside, remove_dir, remove_file, write_atomic};
use crate::limits::{CHAIN_CERTIFICATES, IDENTITY_FILE_BYTES};
use crate::protected::ProtectError;
use crate::seal::{SealError, SealKeyPair};

/// Layout of the data root that this build reads and writes.
pub const LAYOUT: u32 = 1;

pub(super) const NODE_FILE: &str = "node.json";
pub(super) const CERTIFICATE_FILE: &str = "cert.pem";
pub(super) const DIRECTORY_FILE: &str = "managers.json";
pub(super) const KEY_FILE: &str = "key.pem";
pub(super) const STORAGE_KEY_FILE: &str = "storage.key";

/// All of them but `node.json`, keys first: what is left after some of them are gone is worth
/// nothing.
const OF_THE_SWARM: [&str; 4] = [STORAGE_KEY_FILE, KEY_FILE, CERTIFICATE_FILE, DIRECTORY_FILE];

/// Audits: those that this node keeps as a manager, in a directory of their own, and what it has
/// not sent yet.
const AUDIT_DIR: &str = "audit";
/// What may stand in a data root; the last is made by the filesystem.
const OWN: [&str; 12] = [
    NODE_FILE,
    CERTIFICATE_FILE,
    DIRECTORY_FILE,
    KEY_FILE,
    STORAGE_KEY_FILE,
    "raft",
    AUDIT_DIR,
    "images",
    "layers",
    "tasks",
    "lock",
    "lost+found",
];

/// What `node.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Layout of the data root.
    pub layout: u32,
    /// Where the node stands.
    pub standing: Standing,
    /// Its id.
    pub node: String,
    /// Its swarm.
    pub cluster: String,
    /// Its Raft id; 0 on workers.
    pub raft_id: u64,
    /// Address it listens on.
    pub listen_addr: String,
    /// Address others use.
    pub advertise_addr: String,
    /// Digest in the token it joined with: the root may be another since. Empty for a founder.
    #[serde(default)]
    pub joined_by: String,
}

impl NodeFile {
    /// What the node was when it last knew: what it is now, the swarm says.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.raft_id == 0 { Role::Worker } else { Role::Manager }
    }
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// In a swarm.
    Member,
    /// Left its swarm on purpose.
    Left,
}

/// The data root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error(
        "{path} is damaged or from another program: {why}; restore it from a backup, or choose another --data-root"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The directory is somebody else's.
    #[error(
        "{path} holds {name:?} and no node: choose an empty --data-root, or one that skep made"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What it holds.
        name: String,
    },
    /// Another build wrote it.
    #[error(
        "{path} has layout {found}, this build reads layout {LAYOUT}; use the build that wrote it"
    )]
    Layout {
        /// Which.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
    /// A file is not there.
    #[error("{0} is missing; restore it from a backup, or leave the swarm by force and join again")]
    Missing(PathBuf),
    /// Keys are locked and no key was given.
    #[error("{0} is locked; unlock this manager with `skep swarm unlock`")]
    Locked(PathBuf),
    /// The key given is not the one.
    #[error(
        "the unlock key does not open {0}; `skep swarm unlock-key` on an unlocked manager prints the right one, or an older key is needed if this manager was away when it was rotated"
    )]
    WrongKey(PathBuf),
    /// There is a second storage key, and no room for a third.
    #[error("{0} holds a next storage key already: the change to it is to be ended first")]
    OpenRekey(PathBuf),
    /// There is no second storage key to go over to.
    #[error("{0} holds no next storage key: no change of storage keys was begun")]
    NoNextKey(PathBuf),
    /// A node key cannot be read, or made for this file.
    #[error("{path} holds no node key; restore it from a backup")]
    NodeKey {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: super::ca::CaError,
    },
    /// A key could not be made, sealed or protected.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A directory of managers is not written.
    #[error("a list of managers for this node is refused: {0}")]
    Directory(super::directory::DirectoryError),
}

impl From<ProtectError> for StoreError {
    fn from(error: ProtectError) -> Self {
        Self::Seal(error.into())
    }
}

impl StoreError {
    pub(super) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }
}

/// The identity files under one data root.
#[derive(Debug, Clone)]
pub struct IdentityStore {
    root: PathBuf,
    pub(super) held: Arc<RwLock<Option<Held>>>,
}

impl IdentityStore {
    /// The files under `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), held: Arc::default() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Directory of log and snapshots.
    #[must_use]
    pub fn raft_dir(&self) -> PathBuf {
        self.path("raft")
    }

    /// Reads `node.json`; none on a fresh data root.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(&self) -> Result<Option<NodeFile>, StoreError> {
        let path = self.path(NODE_FILE);
        let Some(bytes) = read_bounded(&path, IDENTITY_FILE_BYTES)? else { return Ok(None) };
        let damaged = |e: serde_json::Error| StoreError::damaged(&path, e.to_string());
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
        let found = value.get("layout").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found != u64::from(LAYOUT) {
            return Err(StoreError::Layout { path, found: u32::try_from(found).unwrap_or(0) });
        }
        serde_json::from_value(value).map(Some).map_err(damaged)
    }

    /// Checks that a data root without a node holds nothing but what an unfinished start or the
    /// filesystem itself may have left.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] names what else there is; the directory is not touched.
    pub fn check_own(&self) -> Result<(), StoreError> {
        if self.path(NODE_FILE).exists() {
            return Ok(());
        }
        let read = |e| FileError::on("read", &self.root)(e);
        for entry in std::fs::read_dir(&self.root).map_err(read)? {
            let name = entry.map_err(read)?.file_name().to_string_lossy().into_owned();
            let made = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
            if !OWN.contains(&made.unwrap_or(&name)) {
                return Err(StoreError::Foreign { path: self.root.clone(), name });
            }
        }
        Ok(())
    }

    /// Removes what a crash left of files that were being written: one may hold a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear_unfinished(&self) -> Result<(), StoreError> {
        for name in OF_THE_SWARM.into_iter().chain([NODE_FILE]) {
            remove_file(&beside(&self.path(name)))?;
        }
        Ok(())
    }

    /// Writes `node.json`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save(&self, node: &NodeFile) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec_pretty(node).unwrap_or_default();
        text.push(b'\n');
        Ok(write_atomic(&self.path(NODE_FILE), &text, 0o600)?)
    }

    /// Writes certificate, node key and seal key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_leaf(
        &self,
        chain: &str,
        key: &NodeKey,
        seal: &SealKeyPair,
    ) -> Result<(), StoreError> {
        self.save_chain(chain)?;
        self.save_keys(key, seal)
    }

    /// Writes this node's certificate and what vouches for its root, in PEM: the first one and
    /// those at renewal. The keys stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_chain(&self, chain: &str) -> Result<(), StoreError> {
        Ok(write_atomic(&self.path(CERTIFICATE_FILE), chain.as_bytes(), 0o600)?)
    }

    /// Reads this node's certificate and what vouches for its root, in PEM.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_chain(&self) -> Result<String, StoreError> {
        let path = self.path(CERTIFICATE_FILE);
        let text = read_bounded(&path, IDENTITY_FILE_BYTES)?;
        let mut text = text.ok_or_else(|| StoreError::Missing(path.clone()))?;
        String::from_utf8(std::mem::take(&mut *text))
            .map_err(|_| StoreError::damaged(&path, "it is no text"))
    }

    /// Checks that certificate and node key can be read and belong together.
    ///
    /// # Errors
    /// [`StoreError`] names the file.
    pub fn check_leaf(&self) -> Result<(), StoreError> {
        let key = self.load_node_key()?;
        let path = self.path(CERTIFICATE_FILE);
        let damaged = |why: &str| StoreError::damaged(&path, why);
        let text = self.load_chain()?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let chain = chain.map_err(|_| damaged("it is no list of certificates in PEM"))?;
        if chain.len() > CHAIN_CERTIFICATES {
            return Err(damaged("it holds too many certificates"));
        }
        let leaf = chain.first().ok_or_else(|| damaged("it holds no certificate"))?;
        let (_, leaf) =
            X509Certificate::from_der(leaf).map_err(|_| damaged("it holds no certificate"))?;
        if leaf.public_key().raw != key.public() {
            return Err(damaged("its key is not the one in key.pem"));
        }
        Ok(())
    }

    /// Forgets the swarm: keys first, so that what remains of the log cannot be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn wipe(&self, node: &NodeFile) -> Result<(), StoreError> {
        self.save(&NodeFile { standing: Standing::Left, ..node.clone() })?;
        self.finish_wipe()
    }

    /// Removes what a node that has left its swarm may still hold of it: a crash may have come
    /// in between.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn finish_wipe(&self) -> Result<(), StoreError> {
        for name in OF_THE_SWARM {
            remove_file(&self.path(name))?;
        }
        self.let_go();
        remove_dir(&self.path(AUDIT_DIR))?;
        Ok(remove_dir(&self.raft_dir())?)
    }

    /// Forgets what only a manager has: a node that is a worker now has no log. The storage key
    /// goes first, so that what remains of the log cannot be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_log(&self) -> Result<(), StoreError> {
        remove_file(&self.path(STORAGE_KEY_FILE))?;
        remove_dir(&self.path(AUDIT_DIR).join("log"))?;
        Ok(remove_dir(&self.raft_dir())?)
    }
}

/// Reads a file of at most `limit` bytes; none if there is no such file.
pub(super) fn read_bounded(
    path: &Path,
    limit: u64,
) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let read = || -> std::io::Result<_> {
        let file = File::open(path)?;
        // With room for all: growing would leave copies of keys behind.
        let room = usize::try_from(file.metadata()?.len().min(limit)).unwrap_or(0);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room.saturating_add(64)));
        file.take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > limit => {
            Err(StoreError::damaged(path, format!("it is longer than {limit} bytes")))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::on("read", path)(e).into()),
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::{ClusterId, ENTROPY_LEN, NodeId};
    use skep_core::time::Span;

    use super::*;
    use crate::identity::ca::Root;

    #[test]
    fn a_wipe_that_was_cut_short_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        for cut in 0..=4 {
            std::fs::create_dir_all(store.raft_dir().join("log")).unwrap();
            for name in ["storage.key", "key.pem", "cert.pem", "managers.json"].iter().skip(cut) {
                std::fs::write(dir.path().join(name), b"x").unwrap();
            }
            for name in [".key.pem.new", ".managers.json.new", ".node.json.new"] {
                std::fs::write(dir.path().join(name), b"x").unwrap();
            }
            store.clear_unfinished().unwrap();
            store.finish_wipe().unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn identity_files_are_read_back_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        assert_eq!(store.load().unwrap(), None);
        let node = NodeFile {
            layout: LAYOUT,
            standing: Standing::Member,
            node: "n".into(),
            cluster: "c".into(),
            raft_id: 7,
            listen_addr: String::new(),
            advertise_addr: String::new(),
            joined_by: String::new(),
        };
        store.save(&node).unwrap();
        assert_eq!(store.load().unwrap(), Some(node.clone()));
        assert_eq!(node.role(), Role::Manager);
        assert_eq!(NodeFile { raft_id: 0, ..node }.role(), Role::Worker);
        std::fs::write(dir.path().join("node.json"), r#"{"layout":9}"#).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Layout { found: 9, .. })));
        std::fs::write(dir.path().join("node.json"), "{").unwrap();
        assert!(matches!(store.load(), Err(StoreError::Damaged { .. })));
        let long = " ".repeat(usize::try_from(IDENTITY_FILE_BYTES).unwrap() + 1);
        std::fs::write(dir.path().join("node.json"), long).unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        store.check_own().unwrap();
        for name in ["lock", ".key.pem.new", "lost+found", "storage.key", "managers.json"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        store.check_own().unwrap();
        std::fs::write(dir.path().join("photos.txt"), "").unwrap();
        let error = store.check_own().unwrap_err().to_string();
        assert!(error.contains("photos.txt"), "{error}");
        // A node's own directory may hold what its owner puts beside.
        std::fs::write(dir.path().join("node.json"), "{}").unwrap();
        store.check_own().unwrap();
    }

    #[test]
    fn certificate_and_key_belong_together() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        let (ca, next) = (Root::generate().unwrap(), Root::generate().unwrap());
        let key = NodeKey::generate().unwrap();
        let sign = |ca: &Root, key: &NodeKey| {
            let (id, life) = ([7; ENTROPY_LEN], Span::from_secs(3_600));
            let (cluster, node) = (ClusterId::from_entropy(id), NodeId::from_entropy(id));
            ca.sign(&key.csr().unwrap(), cluster, node, Role::Worker, life).unwrap()
        };
        let seal = SealKeyPair::generate().unwrap();
        store.save_keys(&key, &seal).unwrap();
        let error = store.check_leaf().unwrap_err().to_string();
        assert!(error.contains("cert.pem") && error.contains("missing"), "{error}");
        store.save_leaf(&sign(&ca, &key), &key, &seal).unwrap();
        store.check_leaf().unwrap();
        // Renewed, by the root that takes over.
        let chain = sign(&next, &key) + &ca.cross_sign(&next).unwrap();
        store.save_chain(&chain).unwrap();
        store.check_leaf().unwrap();
        assert_eq!(store.load_chain().unwrap(), chain);
        let other = NodeKey::generate().unwrap();
        let many = sign(&ca, &key).repeat(CHAIN_CERTIFICATES + 1);
        for bad in [sign(&ca, &other).as_str(), "", "garbage", many.as_str()] {
            store.save_chain(bad).unwrap();
            let error = store.check_leaf().unwrap_err().to_string();
            assert!(error.contains("cert.pem"), "{error}");
        }
        std::fs::write(store.path("cert.pem"), [0xff; 9]).unwrap();
        let error = store.check_leaf().unwrap_err().to_string();
        assert!(error.contains("cert.pem"), "{error}");
    }

    #[test]
    fn a_node_that_is_a_worker_now_keeps_who_it_is_and_loses_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        for name in ["storage.key", "key.pem", "cert.pem", "managers.json", "node.json"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        std::fs::create_dir_all(store.raft_dir().join("log")).unwrap();
        for _ in 0..2 {
            store.forget_log().unwrap();
            let left = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(left, 4);
            assert!(!store.raft_dir().exists());
        }
    }
}

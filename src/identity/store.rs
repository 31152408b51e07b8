//! The identity files of a node under its data root, all 0600:
//! `node.json`, `cert.pem`, `key.pem` (node key, then the key ring slots are sealed to) and
//! `storage.key`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_raft::StorageKey;
use zeroize::Zeroizing;

use super::ca::NodeKey;
use super::directory;
use crate::files::{FileError, beside, remove_dir, remove_file, write_atomic};
use crate::seal::{SealError, SealKeyPair, random};
use crate::wire::session::Directory;

/// Layout of the data root that this build reads and writes.
pub const LAYOUT: u32 = 1;

/// What may stand in a data root; the last is made by the filesystem.
const OWN: [&str; 11] = [
    "node.json",
    "managers.json",
    "cert.pem",
    "key.pem",
    "storage.key",
    "raft",
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
    /// Its Raft id, on managers.
    pub raft_id: u64,
    /// Address it listens on.
    pub listen_addr: String,
    /// Address others use.
    pub advertise_addr: String,
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
    /// A key could not be made.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// The identity files under one data root.
#[derive(Debug, Clone)]
pub struct IdentityStore {
    root: PathBuf,
}

impl IdentityStore {
    /// The files under `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
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
        let path = self.path("node.json");
        let Some(bytes) = read_optional(&path)? else { return Ok(None) };
        let damaged =
            |e: serde_json::Error| StoreError::Damaged { path: path.clone(), why: e.to_string() };
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
        if self.path("node.json").exists() {
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
        for name in ["node.json", "managers.json", "cert.pem", "key.pem", "storage.key"] {
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
        Ok(write_atomic(&self.path("node.json"), &text, 0o600)?)
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

    /// Writes the certificate: leaf and what is between it and the root, in PEM.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_chain(&self, chain: &str) -> Result<(), StoreError> {
        Ok(write_atomic(&self.path("cert.pem"), chain.as_bytes(), 0o600)?)
    }

    /// Reads the certificate.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_chain(&self) -> Result<String, StoreError> {
        let path = self.path("cert.pem");
        std::fs::read_to_string(&path).map_err(|e| FileError::on("read", &path)(e).into())
    }

    /// The keys of a node that has not joined yet: those of an attempt that was cut short, since
    /// the swarm may know them, or new ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unfinished_keys(&self) -> Result<(NodeKey, SealKeyPair), StoreError> {
        if self.path("key.pem").exists()
            && let (Ok(key), Ok(seal)) = (self.load_node_key(), self.load_seal_key())
        {
            return Ok((key, seal));
        }
        let path = self.path("key.pem");
        let key = NodeKey::generate()
            .map_err(|e| StoreError::Damaged { path, why: e.to_string() })?;
        let seal = SealKeyPair::generate()?;
        self.save_keys(&key, &seal)?;
        Ok((key, seal))
    }

    /// Writes who the managers are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_directory(&self, directory: &Directory) -> Result<(), StoreError> {
        Ok(write_atomic(&self.path("managers.json"), &directory::encode(directory), 0o600)?)
    }

    /// Reads who the managers are; none before the first session.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_directory(&self) -> Result<Option<Directory>, StoreError> {
        let path = self.path("managers.json");
        let Some(bytes) = read_optional(&path)? else { return Ok(None) };
        let read = directory::decode(&bytes);
        read.map(Some).map_err(|why| StoreError::Damaged { path, why })
    }

    /// Forgets what the node had as a manager: the key first, so that what remains of the log
    /// cannot be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_log(&self) -> Result<(), StoreError> {
        remove_file(&self.path("storage.key"))?;
        Ok(remove_dir(&self.raft_dir())?)
    }

    /// Writes node key and seal key.
    fn save_keys(&self, key: &NodeKey, seal: &SealKeyPair) -> Result<(), StoreError> {
        use base64::Engine as _;
        let private = Zeroizing::new(
            base64::engine::general_purpose::STANDARD.encode(seal.private_bytes().as_slice()),
        );
        let text = Zeroizing::new(format!(
            "{}-----BEGIN SKEP SEAL KEY-----\n{}\n-----END SKEP SEAL KEY-----\n",
            key.pem().as_str(),
            private.as_str()
        ));
        Ok(write_atomic(&self.path("key.pem"), text.as_bytes(), 0o600)?)
    }

    /// Reads the node key out of `key.pem`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_node_key(&self) -> Result<NodeKey, StoreError> {
        let path = self.path("key.pem");
        let text = Zeroizing::new(std::fs::read(&path).map_err(FileError::on("read", &path))?);
        let key = std::str::from_utf8(&text).ok().and_then(|text| NodeKey::from_pem(text).ok());
        key.ok_or_else(|| StoreError::Damaged { path, why: "it holds no node key".into() })
    }

    /// Reads the seal key out of `key.pem`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_seal_key(&self) -> Result<SealKeyPair, StoreError> {
        use base64::Engine as _;
        let path = self.path("key.pem");
        let bytes = Zeroizing::new(std::fs::read(&path).map_err(FileError::on("read", &path))?);
        let damaged =
            || StoreError::Damaged { path: path.clone(), why: "it holds no seal key".into() };
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
        let body = text
            .split_once("-----BEGIN SKEP SEAL KEY-----")
            .and_then(|(_, rest)| rest.split_once("-----END"))
            .map(|(body, _)| body.trim())
            .ok_or_else(damaged)?;
        let key = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| damaged())?;
        SealKeyPair::from_private(&Zeroizing::new(key)).map_err(|_| damaged())
    }

    /// Checks that certificate and node key can be read and belong together.
    ///
    /// # Errors
    /// [`StoreError`] names the file.
    pub fn check_leaf(&self) -> Result<(), StoreError> {
        let read = |path: &Path| std::fs::read(path).map_err(FileError::on("read", path));
        let damaged = |path: &Path, why: &str| StoreError::Damaged {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let key = self.load_node_key()?;
        let cert = self.path("cert.pem");
        let text = read(&cert)?;
        let none = || damaged(&cert, "it holds no certificate");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&text).map_err(|_| none())?;
        let leaf = pem.parse_x509().map_err(|_| none())?;
        if leaf.public_key().raw != key.public() {
            return Err(damaged(&cert, "its key is not the one in key.pem"));
        }
        Ok(())
    }

    /// Makes and writes the storage key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn make_storage_key(&self) -> Result<StorageKey, StoreError> {
        let key = Zeroizing::new(random::<32>()?);
        let text = Zeroizing::new(format!("{}\n", skep_core::id::hex(&*key)));
        write_atomic(&self.path("storage.key"), text.as_bytes(), 0o600)?;
        Ok(StorageKey::new(*key))
    }

    /// Reads the storage key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_storage_key(&self) -> Result<StorageKey, StoreError> {
        let path = self.path("storage.key");
        let text = Zeroizing::new(std::fs::read(&path).map_err(FileError::on("read", &path))?);
        let mut key = Zeroizing::new([0u8; 32]);
        let hex = text.trim_ascii();
        let valid = hex.len() == 64
            && key.iter_mut().zip(hex.as_chunks::<2>().0).all(|(byte, pair)| {
                std::str::from_utf8(pair)
                    .ok()
                    .and_then(|p| u8::from_str_radix(p, 16).ok())
                    .map(|b| *byte = b)
                    .is_some()
            });
        if !valid {
            return Err(StoreError::Damaged { path, why: "it is not 64 hex digits".into() });
        }
        Ok(StorageKey::new(*key))
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
        for name in ["storage.key", "key.pem", "cert.pem", "managers.json"] {
            remove_file(&self.path(name))?;
        }
        Ok(remove_dir(&self.raft_dir())?)
    }
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::on("read", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::{ClusterId, ENTROPY_LEN, NodeId};
    use skep_core::model::node::Role;

    use super::*;
    use crate::identity::ca::Root;

    #[test]
    fn a_wipe_that_was_cut_short_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        for cut in 0..=3 {
            std::fs::create_dir_all(store.raft_dir().join("log")).unwrap();
            for name in ["storage.key", "key.pem", "cert.pem"].iter().skip(cut) {
                std::fs::write(dir.path().join(name), b"x").unwrap();
            }
            std::fs::write(dir.path().join(".key.pem.new"), b"x").unwrap();
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
        };
        store.save(&node).unwrap();
        assert_eq!(store.load().unwrap(), Some(node.clone()));
        store.make_storage_key().unwrap();
        store.load_storage_key().unwrap();
        std::fs::write(dir.path().join("storage.key"), "zz").unwrap();
        let error = store.load_storage_key().unwrap_err().to_string();
        assert!(error.contains("storage.key"), "{error}");
        std::fs::write(dir.path().join("node.json"), r#"{"layout":9}"#).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Layout { found: 9, .. })));
        std::fs::write(dir.path().join("node.json"), "{").unwrap();
        assert!(matches!(store.load(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        store.check_own().unwrap();
        for name in ["lock", ".key.pem.new", "lost+found", "storage.key"] {
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
        let ca = Root::generate().unwrap();
        let leaf = || {
            let id = [7; ENTROPY_LEN];
            let (cluster, node) = (ClusterId::from_entropy(id), NodeId::from_entropy(id));
            let key = NodeKey::generate().unwrap();
            let life = skep_core::time::Span::from_secs(3600);
            let csr = key.csr().unwrap();
            (ca.sign(&csr, cluster, node, Role::Manager, life).unwrap(), key)
        };
        let seal = SealKeyPair::generate().unwrap();
        let (chain, key) = leaf();
        store.save_leaf(&chain, &key, &seal).unwrap();
        store.check_leaf().unwrap();
        let (other, _) = leaf();
        for bad in [other.as_str(), "", "garbage"] {
            std::fs::write(dir.path().join("cert.pem"), bad).unwrap();
            let error = store.check_leaf().unwrap_err().to_string();
            assert!(error.contains("cert.pem"), "{error}");
        }
        std::fs::write(dir.path().join("key.pem"), "garbage").unwrap();
        let error = store.check_leaf().unwrap_err().to_string();
        assert!(error.contains("key.pem"), "{error}");
    }
}

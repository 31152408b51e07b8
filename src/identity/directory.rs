//! `managers.json`: whom a node obeys and where they were last, kept through restarts. It comes
//! from managers only; one that is older than the one kept changes nothing, so that a manager of
//! the past, however genuine, cannot take a node back.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use skep_core::id::{ClusterId, NodeId};

use super::store::{DIRECTORY_FILE, IdentityStore, StoreError, read_bounded};
use super::trust::Trust;
use crate::files::write_atomic;
use crate::limits::{
    DIRECTORY_ADDR_BYTES, DIRECTORY_BYTES, DIRECTORY_KEY_BYTES, DIRECTORY_MANAGERS,
};

/// The managers of a swarm at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Of which swarm.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// Counter of the swarm's incarnations.
    pub incarnation: u64,
    /// Random half of the incarnation, 32 hex digits.
    pub incarnation_id: String,
    /// Counts up with every change of managers or roots within an incarnation.
    pub epoch: u64,
    /// All managers.
    pub managers: Vec<ManagerEntry>,
    /// The roots that the swarm trusts, in PEM.
    pub roots: Vec<String>,
}

/// One manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerEntry {
    /// Its id.
    #[serde(with = "text")]
    pub node: NodeId,
    /// DER of its public key: who it is.
    #[serde(with = "base64_text")]
    pub public_key: Vec<u8>,
    /// Where it was last, with port: a hint.
    pub addr: String,
    /// Its Raft id.
    pub raft_id: u64,
}

/// A directory that no swarm makes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// None, or more than a swarm has.
    #[error("it names {0} managers; a swarm has 1 to {DIRECTORY_MANAGERS}")]
    Managers(usize),
    /// One stands in it twice.
    #[error("it names manager {0} twice")]
    Twice(NodeId),
    /// Key or address of a manager has an impossible length.
    #[error(
        "the key of manager {0} has 1 to {DIRECTORY_KEY_BYTES} bytes and its address at most {DIRECTORY_ADDR_BYTES}; here it is otherwise"
    )]
    Manager(NodeId),
    /// The incarnation's id.
    #[error("its incarnation id is not 32 hex digits")]
    Incarnation,
    /// The roots.
    #[error("its roots cannot be used: {0}")]
    Roots(String),
}

impl Directory {
    /// Checks what came from a file or a peer.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn check(&self) -> Result<(), DirectoryError> {
        if !(1..=DIRECTORY_MANAGERS).contains(&self.managers.len()) {
            return Err(DirectoryError::Managers(self.managers.len()));
        }
        let mut seen = BTreeSet::new();
        for manager in &self.managers {
            if !seen.insert(manager.node) {
                return Err(DirectoryError::Twice(manager.node));
            }
            if !(1..=DIRECTORY_KEY_BYTES).contains(&manager.public_key.len())
                || manager.addr.len() > DIRECTORY_ADDR_BYTES
            {
                return Err(DirectoryError::Manager(manager.node));
            }
        }
        let id = self.incarnation_id.as_bytes();
        if id.len() != 32 || !id.iter().all(u8::is_ascii_hexdigit) {
            return Err(DirectoryError::Incarnation);
        }
        match Trust::new(&self.roots) {
            Ok(_) => Ok(()),
            Err(e) => Err(DirectoryError::Roots(e.to_string())),
        }
    }

    /// Whether this one takes the place of `old`: of the same swarm and later. Of two incarnations
    /// with one number, which is what two forced restarts side by side make, neither takes the
    /// other's place.
    #[must_use]
    pub fn supersedes(&self, old: &Self) -> bool {
        self.cluster == old.cluster
            && (self.incarnation > old.incarnation
                || (self.incarnation == old.incarnation
                    && self.incarnation_id == old.incarnation_id
                    && self.epoch > old.epoch))
    }

    /// The manager with this id, if it is one.
    #[must_use]
    pub fn manager(&self, node: NodeId) -> Option<&ManagerEntry> {
        self.managers.iter().find(|manager| manager.node == node)
    }
}

impl IdentityStore {
    /// Reads `managers.json`; none on a node that has never had one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] says what is wrong with it.
    pub fn load_directory(&self) -> Result<Option<Directory>, StoreError> {
        let path = self.path(DIRECTORY_FILE);
        let Some(bytes) = read_bounded(&path, DIRECTORY_BYTES)? else { return Ok(None) };
        let directory: Directory = serde_json::from_slice(&bytes)
            .map_err(|e| StoreError::damaged(&path, e.to_string()))?;
        check(&path, &directory)?;
        Ok(Some(directory))
    }

    /// Writes `managers.json` if there is none or this one supersedes it. Returns whether it was
    /// written.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Directory`] if this one is not one that a swarm makes.
    pub fn save_directory(&self, directory: &Directory) -> Result<bool, StoreError> {
        directory.check().map_err(StoreError::Directory)?;
        if self.load_directory()?.is_some_and(|old| !directory.supersedes(&old)) {
            return Ok(false);
        }
        let path = self.path(DIRECTORY_FILE);
        let mut bytes = serde_json::to_vec_pretty(directory)
            .map_err(|e| StoreError::damaged(&path, e.to_string()))?;
        bytes.push(b'\n');
        write_atomic(&path, &bytes, 0o600)?;
        Ok(true)
    }
}

fn check(path: &Path, directory: &Directory) -> Result<(), StoreError> {
    directory.check().map_err(|e| StoreError::damaged(path, e.to_string()))
}

/// Ids as their text.
mod text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use skep_core::id::Id;

    pub(super) fn serialize<S: Serializer, K>(id: &Id<K>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>, K>(from: D) -> Result<Id<K>, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Bytes as base64.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::files::beside;
    use crate::identity::ca::Root;
    use skep_core::id::ENTROPY_LEN;

    fn node(n: u8) -> NodeId {
        NodeId::from_entropy([n; ENTROPY_LEN])
    }

    fn directory() -> Directory {
        let manager = |n: u8| ManagerEntry {
            node: node(n),
            public_key: vec![n; 91],
            addr: format!("10.0.0.{n}:2377"),
            raft_id: u64::from(n) << 56,
        };
        Directory {
            cluster: ClusterId::from_entropy([9; ENTROPY_LEN]),
            incarnation: 1,
            incarnation_id: "0123456789abcdef".repeat(2),
            epoch: 5,
            managers: vec![manager(1), manager(0xff)],
            roots: vec![Root::generate().unwrap().pem],
        }
    }

    #[test]
    fn a_directory_is_read_back_and_readable_by_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        assert_eq!(store.load_directory().unwrap(), None);
        let saved = directory();
        assert!(store.save_directory(&saved).unwrap());
        assert_eq!(store.load_directory().unwrap(), Some(saved.clone()));
        let path = dir.path().join("managers.json");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(saved.manager(node(1)).unwrap().addr, "10.0.0.1:2377");
        assert_eq!(saved.manager(node(3)), None);
        // What a crash leaves of the next one is in nobody's way.
        std::fs::write(beside(&path), "{").unwrap();
        assert_eq!(store.load_directory().unwrap(), Some(saved));
    }

    #[test]
    fn only_a_later_directory_of_the_same_swarm_takes_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        let old = directory();
        store.save_directory(&old).unwrap();
        let other = ClusterId::from_entropy([8; ENTROPY_LEN]);
        let refused = [
            old.clone(),
            Directory { epoch: 4, ..old.clone() },
            Directory { incarnation: 0, epoch: 99, ..old.clone() },
            Directory { incarnation_id: "f".repeat(32), epoch: 99, ..old.clone() },
            Directory { cluster: other, incarnation: 9, ..old.clone() },
        ];
        for new in refused {
            assert!(!store.save_directory(&new).unwrap(), "{new:?}");
            assert_eq!(store.load_directory().unwrap(), Some(old.clone()));
        }
        let later = Directory { epoch: 6, ..old.clone() };
        assert!(store.save_directory(&later).unwrap());
        let forced =
            Directory { incarnation: 2, incarnation_id: "f".repeat(32), epoch: 0, ..old.clone() };
        assert!(store.save_directory(&forced).unwrap());
        assert!(!store.save_directory(&later).unwrap());
        assert_eq!(store.load_directory().unwrap(), Some(forced));
    }

    #[test]
    fn what_no_swarm_makes_is_neither_written_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        let good = directory();
        let first = good.managers[0].clone();
        let with = |managers: Vec<ManagerEntry>| Directory { managers, ..good.clone() };
        let bad = [
            (with(Vec::new()), "0 managers"),
            (with(vec![first.clone(); DIRECTORY_MANAGERS + 1]), "1001 managers"),
            (with(vec![first.clone(), first.clone()]), "twice"),
            (with(vec![ManagerEntry { public_key: Vec::new(), ..first.clone() }]), "key"),
            (with(vec![ManagerEntry { addr: "x".repeat(300), ..first }]), "address"),
            (Directory { incarnation_id: "x".into(), ..good.clone() }, "incarnation"),
            (Directory { roots: Vec::new(), ..good.clone() }, "roots"),
            (Directory { roots: vec!["x".into()], ..good.clone() }, "roots"),
        ];
        for (directory, why) in bad {
            let error = store.save_directory(&directory).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            let text = serde_json::to_vec(&directory).unwrap();
            std::fs::write(dir.path().join("managers.json"), text).unwrap();
            let error = store.load_directory().unwrap_err().to_string();
            assert!(error.contains("managers.json") && error.contains(why), "{error}");
            std::fs::remove_file(dir.path().join("managers.json")).unwrap();
        }
        for text in ["", "{", "[]", r#"{"cluster":"x"}"#] {
            std::fs::write(dir.path().join("managers.json"), text).unwrap();
            let error = store.load_directory().unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        }
        let file = std::fs::File::create(dir.path().join("managers.json")).unwrap();
        file.set_len(DIRECTORY_BYTES + 1).unwrap();
        let error = store.load_directory().unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }
}

//! `managers.json`: whom a node obeys and where they were last, kept through restarts. It comes
//! from managers only; one that is older than the one kept changes nothing, so that a manager of
//! the past, however genuine, cannot take a node back.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use skep_core::id::NodeId;

use super::store::{DIRECTORY_FILE, IdentityStore, StoreError, read_bounded};
use super::trust::Trust;
use crate::files::write_atomic;
use crate::limits::{
    DIRECTORY_ADDR_BYTES, DIRECTORY_BYTES, DIRECTORY_KEY_BYTES, DIRECTORY_MANAGERS,
};
use crate::wire::session::{Directory, ManagerEntry};

/// A directory that no swarm makes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// More than a swarm has.
    #[error("it names {0} managers; a swarm has at most {DIRECTORY_MANAGERS}")]
    Managers(usize),
    /// One stands in it twice.
    #[error("it names manager {0} twice")]
    Twice(NodeId),
    /// Key or address of a manager has an impossible length.
    #[error(
        "the key of manager {0} has 1 to {DIRECTORY_KEY_BYTES} bytes and its address at most {DIRECTORY_ADDR_BYTES}; here it is otherwise"
    )]
    Manager(NodeId),
    /// The roots.
    #[error("its roots cannot be used: {0}")]
    Roots(String),
}

/// Checks what came from a file or a peer. A founder's has no managers yet.
///
/// # Errors
/// [`DirectoryError`].
pub fn check(directory: &Directory) -> Result<(), DirectoryError> {
    if directory.managers.len() > DIRECTORY_MANAGERS {
        return Err(DirectoryError::Managers(directory.managers.len()));
    }
    let mut seen = BTreeSet::new();
    for manager in &directory.managers {
        if !seen.insert(manager.node) {
            return Err(DirectoryError::Twice(manager.node));
        }
        if !(1..=DIRECTORY_KEY_BYTES).contains(&manager.public_key.len())
            || manager.addr.len() > DIRECTORY_ADDR_BYTES
        {
            return Err(DirectoryError::Manager(manager.node));
        }
    }
    match Trust::new(&directory.roots) {
        Ok(_) => Ok(()),
        Err(e) => Err(DirectoryError::Roots(e.to_string())),
    }
}

/// Whether `new` takes the place of `old`, both of one swarm: it is later. Of two incarnations with
/// one number, which is what two forced restarts side by side make, neither takes the other's
/// place.
#[must_use]
pub fn supersedes(new: &Directory, old: &Directory) -> bool {
    new.incarnation > old.incarnation
        || (new.incarnation == old.incarnation
            && new.incarnation_id == old.incarnation_id
            && new.epoch > old.epoch)
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    incarnation: u64,
    #[serde(with = "base64_text")]
    incarnation_id: [u8; 16],
    epoch: u64,
    managers: Vec<Entry>,
    roots: Vec<String>,
}

/// One manager.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    node: String,
    addr: String,
    raft_id: u64,
    #[serde(with = "base64_text")]
    public_key: Vec<u8>,
}

fn encode(directory: &Directory) -> Result<Vec<u8>, serde_json::Error> {
    let managers = directory.managers.iter().map(|manager| Entry {
        node: manager.node.to_string(),
        addr: manager.addr.clone(),
        raft_id: manager.raft_id,
        public_key: manager.public_key.clone(),
    });
    let file = File {
        incarnation: directory.incarnation,
        incarnation_id: directory.incarnation_id,
        epoch: directory.epoch,
        managers: managers.collect(),
        roots: directory.roots.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&file)?;
    text.push(b'\n');
    Ok(text)
}

/// Reads the file, or says what is wrong with it.
fn decode(text: &[u8]) -> Result<Directory, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let entry = |entry: Entry| {
        let node = entry.node.parse().map_err(|_| format!("{:?} is no node id", entry.node))?;
        let Entry { public_key, addr, raft_id, .. } = entry;
        Ok(ManagerEntry { node, public_key, addr, raft_id })
    };
    let directory = Directory {
        incarnation: file.incarnation,
        incarnation_id: file.incarnation_id,
        epoch: file.epoch,
        managers: file.managers.into_iter().map(entry).collect::<Result<_, String>>()?,
        roots: file.roots,
    };
    check(&directory).map_err(|e| e.to_string())?;
    Ok(directory)
}

impl IdentityStore {
    /// Reads who the managers are; none before the first session.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] says what is wrong with it.
    pub fn load_directory(&self) -> Result<Option<Directory>, StoreError> {
        let path = self.path(DIRECTORY_FILE);
        let Some(bytes) = read_bounded(&path, DIRECTORY_BYTES)? else { return Ok(None) };
        decode(&bytes).map(Some).map_err(|why| StoreError::damaged(&path, why))
    }

    /// Writes who the managers are of a swarm that was just founded or joined, whatever there was.
    ///
    /// # Errors
    /// [`StoreError::Directory`] if no swarm makes such a one; others.
    pub fn save_directory(&self, directory: &Directory) -> Result<(), StoreError> {
        check(directory).map_err(StoreError::Directory)?;
        let path = self.path(DIRECTORY_FILE);
        let text = encode(directory).map_err(|e| StoreError::damaged(&path, e.to_string()))?;
        Ok(write_atomic(&path, &text, 0o600)?)
    }

    /// Writes who the managers are if that is later than what is kept. Returns whether it was
    /// written.
    ///
    /// # Errors
    /// As [`IdentityStore::save_directory`].
    pub fn advance_directory(&self, directory: &Directory) -> Result<bool, StoreError> {
        if self.load_directory()?.is_some_and(|old| !supersedes(directory, &old)) {
            return Ok(false);
        }
        self.save_directory(directory)?;
        Ok(true)
    }
}

/// Bytes as base64.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        bytes: impl AsRef<[u8]>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>, B: TryFrom<Vec<u8>>>(
        from: D,
    ) -> Result<B, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        B::try_from(bytes).map_err(|_| D::Error::custom("bytes of another length"))
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
            incarnation: 1,
            incarnation_id: [9; 16],
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
        store.save_directory(&saved).unwrap();
        assert_eq!(store.load_directory().unwrap(), Some(saved.clone()));
        let path = dir.path().join("managers.json");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
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
        let refused = [
            old.clone(),
            Directory { epoch: 4, ..old.clone() },
            Directory { incarnation: 0, epoch: 99, ..old.clone() },
            Directory { incarnation_id: [0xf; 16], epoch: 99, ..old.clone() },
        ];
        for new in refused {
            assert!(!store.advance_directory(&new).unwrap(), "{new:?}");
            assert_eq!(store.load_directory().unwrap(), Some(old.clone()));
        }
        let later = Directory { epoch: 6, ..old.clone() };
        assert!(store.advance_directory(&later).unwrap());
        let forced =
            Directory { incarnation: 2, incarnation_id: [0xf; 16], epoch: 0, ..old.clone() };
        assert!(store.advance_directory(&forced).unwrap());
        assert!(!store.advance_directory(&later).unwrap());
        assert_eq!(store.load_directory().unwrap(), Some(forced));
        // Another swarm begins anew.
        store.save_directory(&old).unwrap();
        assert_eq!(store.load_directory().unwrap(), Some(old));
    }

    #[test]
    fn what_no_swarm_makes_is_neither_written_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        let good = directory();
        let first = good.managers[0].clone();
        let with = |managers: Vec<ManagerEntry>| Directory { managers, ..good.clone() };
        let bad = [
            (with(vec![first.clone(); DIRECTORY_MANAGERS + 1]), "1001 managers"),
            (with(vec![first.clone(), first.clone()]), "twice"),
            (with(vec![ManagerEntry { public_key: Vec::new(), ..first.clone() }]), "key"),
            (with(vec![ManagerEntry { addr: "x".repeat(300), ..first }]), "address"),
            (Directory { roots: Vec::new(), ..good.clone() }, "roots"),
            (Directory { roots: vec!["x".into()], ..good.clone() }, "roots"),
        ];
        for (directory, why) in bad {
            let error = store.save_directory(&directory).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            let text = encode(&directory).unwrap();
            std::fs::write(dir.path().join("managers.json"), text).unwrap();
            let error = store.load_directory().unwrap_err().to_string();
            assert!(error.contains("managers.json") && error.contains(why), "{error}");
            std::fs::remove_file(dir.path().join("managers.json")).unwrap();
        }
        for text in ["", "{", "[]", r#"{"epoch":1}"#] {
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

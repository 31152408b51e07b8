//! `managers.json`: who the managers are, as the node knew it last.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::wire::session::{Directory, ManagerEntry};

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    incarnation: u64,
    incarnation_id: String,
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
    public_key: String,
}

/// The file's text.
pub(super) fn encode(directory: &Directory) -> Vec<u8> {
    let managers = directory.managers.iter().map(|manager| Entry {
        node: manager.node.to_string(),
        addr: manager.addr.clone(),
        raft_id: manager.raft_id,
        public_key: STANDARD.encode(&manager.public_key),
    });
    let file = File {
        incarnation: directory.incarnation,
        incarnation_id: STANDARD.encode(directory.incarnation_id),
        epoch: directory.epoch,
        managers: managers.collect(),
        roots: directory.roots.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&file).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Reads the file, or says what is wrong with it.
pub(super) fn decode(text: &[u8]) -> Result<Directory, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let bytes = |text: &str| STANDARD.decode(text).map_err(|e| e.to_string());
    let mut managers = Vec::with_capacity(file.managers.len());
    for entry in file.managers {
        managers.push(ManagerEntry {
            node: entry.node.parse().map_err(|_| format!("{:?} is no node id", entry.node))?,
            public_key: bytes(&entry.public_key)?,
            addr: entry.addr,
            raft_id: entry.raft_id,
        });
    }
    let id = bytes(&file.incarnation_id)?;
    Ok(Directory {
        incarnation: file.incarnation,
        incarnation_id: id.try_into().map_err(|_| "the incarnation id has not 16 bytes")?,
        epoch: file.epoch,
        managers,
        roots: file.roots,
    })
}

#[cfg(test)]
mod tests {
    use skep_core::id::{ENTROPY_LEN, NodeId};

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let manager = ManagerEntry {
            node: NodeId::from_entropy([7; ENTROPY_LEN]),
            public_key: vec![1, 2, 3],
            addr: "10.0.0.1:2377".into(),
            raft_id: u64::MAX,
        };
        let directory = Directory {
            incarnation: 2,
            incarnation_id: [9; 16],
            epoch: 77,
            managers: vec![manager],
            roots: vec!["PEM".into()],
        };
        assert_eq!(decode(&encode(&directory)).unwrap(), directory);
        for bad in [&b"{"[..], b"{}", b"[]"] {
            assert!(decode(bad).is_err());
        }
    }
}

//! The shape of what a task sees: an immutable inode tree made of grants.
//!
//! ```text
//! /               the mount, seen by the shim alone
//! ├─ secrets/     bound on /run/secrets; relative targets, with their directories
//! │  ├─ ..current -> ..7      not listed, found by name
//! │  └─ ..6/ ..7/             the last delivered sets, never changed
//! └─ abs/0 1 2…   absolute targets, bound file by file
//! ```
//!
//! A target keeps its inode for good: replaced content, revocation and a new grant of the same
//! target all happen to the same inode, because a single-file bind holds on to it.

mod build;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use build::{Change, Placement, TreeError};
use target::Place;
pub use target::{SECRETS_DIR, TargetError};

/// The inode of the mount's root.
pub const ROOT: u64 = 1;
const SECRETS: u64 = 2;
const ABSOLUTE: u64 = 3;
const CURRENT: u64 = 4;
const FIRST_FREE: u64 = 5;
const BLOCK: u64 = 4_096;

/// One secret (or config) at one target, as the task shall see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Relative to `/run/secrets`, or an absolute path.
    pub target: String,
    /// What the audit calls the secret.
    pub secret: String,
    /// The secret's version: never lower than one delivered before.
    pub version: u64,
    /// Owner, as a number in the task.
    pub uid: u32,
    /// Group, as a number in the task.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of payload.
    pub size: u64,
    /// When this version was made, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

/// What `stat` says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode.
    pub ino: u64,
    /// Kind of node.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Links.
    pub nlink: u32,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// One line of a directory listing. Entries are ordered by `cookie`, which stays the same as
/// long as the entry exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where a later listing goes on after this entry.
    pub cookie: u64,
    /// Inode.
    pub ino: u64,
    /// Kind of node.
    pub kind: NodeKind,
    /// Name in the directory.
    pub name: String,
}

/// What the shim binds into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Below the mount's directory.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Whether source and target are directories; else they are files.
    pub directory: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory(BTreeMap<String, u64>),
    File(Arc<Grant>),
    /// To the directory of a set.
    Link(u64),
    /// A target whose grant was taken away.
    Revoked(Arc<Grant>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    parent: u64,
    name: String,
    kind: Kind,
}

/// The tree. Changes make a new one.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    /// From a target's path in the task to its inode, revoked ones included.
    targets: BTreeMap<String, u64>,
    /// Number and inode of each set that still exists, oldest first.
    sets: Vec<(u64, u64)>,
    next_ino: u64,
    next_set: u64,
    born_ns: i64,
}

impl Tree {
    /// A tree without grants, whose directories carry this time.
    pub fn new(born_ns: i64) -> Tree {
        let directory = |parent, name: &str, children| Node {
            parent,
            name: name.to_owned(),
            kind: Kind::Directory(children),
        };
        let top = BTreeMap::from([("secrets".to_owned(), SECRETS), ("abs".to_owned(), ABSOLUTE)]);
        let nodes = BTreeMap::from([
            (ROOT, directory(ROOT, "", top)),
            (SECRETS, directory(ROOT, "secrets", BTreeMap::new())),
            (ABSOLUTE, directory(ROOT, "abs", BTreeMap::new())),
        ]);
        Tree {
            nodes,
            targets: BTreeMap::new(),
            sets: Vec::new(),
            next_ino: FIRST_FREE,
            next_set: 1,
            born_ns,
        }
    }

    /// What is called `name` in a directory.
    pub fn lookup(&self, parent: u64, name: &str) -> Option<Attributes> {
        self.attributes(self.child(parent, name)?)
    }

    /// The inode of what is called `name` in a directory, also of a revoked file.
    pub fn child(&self, parent: u64, name: &str) -> Option<u64> {
        match &self.nodes.get(&parent)?.kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// What `stat` says; nothing of a revoked file.
    pub fn attributes(&self, ino: u64) -> Option<Attributes> {
        let attributes = |kind, mode, size: u64, blocks, mtime_ns| Attributes {
            ino,
            kind,
            mode,
            uid: 0,
            gid: 0,
            size,
            blocks,
            nlink: 1,
            mtime_ns,
        };
        match &self.nodes.get(&ino)?.kind {
            Kind::Directory(children) => Some(Attributes {
                nlink: 2 + self.directories(children),
                ..attributes(NodeKind::Directory, 0o755, BLOCK, BLOCK / 512, self.born_ns)
            }),
            Kind::File(grant) => {
                let blocks = grant.size.div_ceil(BLOCK) * (BLOCK / 512);
                Some(Attributes {
                    uid: grant.uid,
                    gid: grant.gid,
                    mode: grant.mode & 0o7777,
                    ..attributes(NodeKind::File, 0, grant.size, blocks, grant.mtime_ns)
                })
            }
            Kind::Link(set) => {
                let size = set_name(*set).len() as u64;
                Some(attributes(NodeKind::Link, 0o777, size, 0, self.born_ns))
            }
            Kind::Revoked(_) => None,
        }
    }

    /// The entries of a directory that come after `cookie` (0: all), `.` and `..` first. Sets
    /// are not listed.
    pub fn list(&self, ino: u64, cookie: u64) -> Option<Vec<Entry>> {
        let node = self.nodes.get(&ino)?;
        let Kind::Directory(children) = &node.kind else { return None };
        let entry = |cookie, ino, kind, name: &str| Entry { cookie, ino, kind, name: name.into() };
        let mut entries = vec![
            entry(1, ino, NodeKind::Directory, "."),
            entry(2, node.parent, NodeKind::Directory, ".."),
        ];
        for (name, &child) in children {
            if let Some(attributes) = self.attributes(child)
                && !name.starts_with("..")
            {
                entries.push(entry(child + 2, child, attributes.kind, name));
            }
        }
        entries.retain(|entry| entry.cookie > cookie);
        entries.sort_by_key(|entry| entry.cookie);
        Some(entries)
    }

    /// Where a symbolic link points.
    pub fn link(&self, ino: u64) -> Option<String> {
        match self.nodes.get(&ino)?.kind {
            Kind::Link(set) => Some(set_name(set)),
            _ => None,
        }
    }

    /// The grant behind a file that can be opened.
    pub fn grant(&self, ino: u64) -> Option<&Arc<Grant>> {
        match &self.nodes.get(&ino)?.kind {
            Kind::File(grant) => Some(grant),
            _ => None,
        }
    }

    /// The grant that was behind a file that was revoked.
    pub fn revoked(&self, ino: u64) -> Option<&Arc<Grant>> {
        match &self.nodes.get(&ino)?.kind {
            Kind::Revoked(grant) => Some(grant),
            _ => None,
        }
    }

    /// The inode of a target that is granted now.
    pub fn target(&self, target: &str) -> Option<u64> {
        let place = Place::parse(target).ok()?;
        let ino = *self.targets.get(&place.path())?;
        self.grant(ino).map(|_| ino)
    }

    /// Inodes of the targets granted now.
    pub fn granted(&self) -> impl Iterator<Item = u64> {
        self.targets.values().copied().filter(|&ino| self.grant(ino).is_some())
    }

    /// Every inode there is.
    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        self.nodes.keys().copied()
    }

    /// Where a node is, below the mount's directory.
    pub fn path(&self, ino: u64) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let node = self.nodes.get(&at)?;
            names.push(node.name.as_str());
            at = node.parent;
        }
        Some(names.iter().rev().collect())
    }

    /// What to bind into the container for the targets granted now.
    pub fn binds(&self) -> Vec<Bind> {
        let mut binds = Vec::new();
        for (target, &ino) in &self.targets {
            let is_absolute = self.nodes.get(&ino).is_some_and(|node| node.parent == ABSOLUTE);
            if is_absolute
                && self.grant(ino).is_some()
                && let Some(source) = self.path(ino)
            {
                binds.push(Bind { source, target: target.into(), directory: false });
            }
        }
        if self.granted_below() {
            let source = "secrets".into();
            binds.insert(0, Bind { source, target: SECRETS_DIR.into(), directory: true });
        }
        binds
    }

    fn granted_below(&self) -> bool {
        self.granted().any(|ino| self.nodes.get(&ino).is_some_and(|n| n.parent != ABSOLUTE))
    }

    fn directories(&self, children: &BTreeMap<String, u64>) -> u32 {
        let listed = children.iter().filter(|(name, _)| !name.starts_with(".."));
        let is_directory =
            |ino: &u64| matches!(self.nodes.get(ino), Some(Node { kind: Kind::Directory(_), .. }));
        listed.filter(|(_, ino)| is_directory(ino)).count() as u32
    }
}

fn set_name(set: u64) -> String {
    format!("..{set}")
}

#[cfg(test)]
mod tests;

//! How one tree becomes the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::target::{Place, TargetError};
use super::{ABSOLUTE, CURRENT, Grant, Kind, Node, SECRETS, Tree, set_name};
use crate::limits;

/// Why a set of grants does not make a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A target that cannot be served.
    #[error("target {target:?} is invalid")]
    Target {
        /// As given.
        target: String,
        /// What is wrong with it.
        source: TargetError,
    },
    /// Two grants of one target.
    #[error("target {target:?} is granted twice")]
    Duplicate {
        /// The path in the task.
        target: String,
    },
    /// A target below another target.
    #[error("target {target:?} would have to be a file and a directory")]
    Conflict {
        /// The path in the task.
        target: String,
    },
    /// A version lower than the one held.
    #[error("target {target:?} holds version {held} of the secret; {offered} is older")]
    Older {
        /// The path in the task.
        target: String,
        /// The version held.
        held: u64,
        /// The version delivered.
        offered: u64,
    },
    /// More grants, bytes or names than a task may have.
    #[error("too much for one task: {what} (at most {limit})")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
}

/// What became of a delivered grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// A target that was not granted before.
    Added,
    /// Content of a target that was taken away before.
    Returned,
    /// New content of a target granted before.
    Replaced,
    /// The same content with another owner, mode or time.
    Adjusted,
    /// Nothing changed.
    Same,
}

/// What a delivery or a revocation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Inode of each delivered grant, in the order given.
    pub placed: Vec<(u64, Placement)>,
    /// Number of the set that was made, if anything below `/run/secrets` changed.
    pub set: Option<u64>,
    /// Files of the new set, each with the inode whose content it keeps.
    pub kept: Vec<(u64, u64)>,
    /// Files that cannot be opened any more: revoked, or of a set that went.
    pub gone: Vec<u64>,
    /// Inodes of which the kernel may hold something that is no longer true.
    pub invalid: BTreeSet<u64>,
}

impl Tree {
    /// The tree after a delivery: the grants given replace or join those held. A grant that
    /// changes nothing is no change.
    ///
    /// # Errors
    /// Bad, duplicate or conflicting targets, an older version, or too much of anything.
    pub fn deliver(&self, grants: &[Grant]) -> Result<(Tree, Change), TreeError> {
        let mut tree = self.clone();
        let mut change = Change::default();
        let mut seen = BTreeSet::new();
        let mut below = false;
        for grant in grants {
            let place = Place::parse(&grant.target)
                .map_err(|source| TreeError::Target { target: grant.target.clone(), source })?;
            let path = place.path();
            if !seen.insert(path.clone()) {
                return Err(TreeError::Duplicate { target: path });
            }
            let changed = match tree.targets.get(&path) {
                Some(&ino) => tree.replace(ino, &path, grant, &mut change)?,
                None => tree.add(&place, path, grant, &mut change)?,
            };
            below |= changed && matches!(place, Place::Below(_));
        }
        tree.check_limits()?;
        if below {
            tree.make_set(&mut change);
        }
        Ok((tree, change))
    }

    /// The tree without these targets; unknown ones are no error. Sets lose them too.
    pub fn revoke<T: AsRef<str>>(&self, targets: &[T]) -> (Tree, Change) {
        let mut tree = self.clone();
        let mut change = Change::default();
        let path = |target: &str| Place::parse(target).map(|place| place.path()).ok();
        let doomed: BTreeSet<String> = targets.iter().filter_map(|t| path(t.as_ref())).collect();
        for (&ino, node) in &mut tree.nodes {
            let (Kind::File(grant) | Kind::Revoked(grant)) = &node.kind else { continue };
            if !path(&grant.target).is_some_and(|path| doomed.contains(&path)) {
                continue;
            }
            // Of what is gone already the kernel may hold something still, if it was slow.
            change.invalid.insert(ino);
            if matches!(node.kind, Kind::File(_)) {
                node.kind = Kind::Revoked(grant.clone());
                change.gone.push(ino);
                change.invalid.insert(node.parent);
            }
        }
        (tree, change)
    }

    /// The tree with the current set only.
    pub fn forget_sets(&self) -> (Tree, Change) {
        let mut tree = self.clone();
        let mut change = Change::default();
        tree.drop_sets(1, &mut change);
        (tree, change)
    }

    fn replace(
        &mut self,
        ino: u64,
        path: &str,
        grant: &Grant,
        change: &mut Change,
    ) -> Result<bool, TreeError> {
        let Some(node) = self.nodes.get_mut(&ino) else { return Ok(false) };
        let mut placement = Placement::Returned;
        if let Kind::File(held) = &node.kind {
            if held.secret == grant.secret && held.version > grant.version {
                return Err(TreeError::Older {
                    target: path.to_owned(),
                    held: held.version,
                    offered: grant.version,
                });
            }
            if **held == *grant {
                change.placed.push((ino, Placement::Same));
                return Ok(false);
            }
            let same = held.secret == grant.secret
                && held.version == grant.version
                && held.size == grant.size;
            placement = if same { Placement::Adjusted } else { Placement::Replaced };
        }
        node.kind = Kind::File(Arc::new(grant.clone()));
        change.placed.push((ino, placement));
        change.invalid.insert(ino);
        Ok(true)
    }

    fn add(
        &mut self,
        place: &Place,
        path: String,
        grant: &Grant,
        change: &mut Change,
    ) -> Result<bool, TreeError> {
        let inside = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
        };
        if self.targets.keys().any(|other| inside(other, &path) || inside(&path, other)) {
            return Err(TreeError::Conflict { target: path });
        }
        let kind = Kind::File(Arc::new(grant.clone()));
        let ino = match place {
            Place::Absolute(_) => {
                let number = self.children(ABSOLUTE).map_or(0, BTreeMap::len);
                self.insert(ABSOLUTE, number.to_string(), kind)
            }
            Place::Below(names) => self.insert_below(SECRETS, names, kind, &mut change.invalid),
        };
        self.targets.insert(path, ino);
        change.placed.push((ino, Placement::Added));
        Ok(true)
    }

    fn check_limits(&self) -> Result<(), TreeError> {
        let too_much = |what, limit| Err(TreeError::TooMuch { what, limit });
        let granted: Vec<&Arc<Grant>> = self.granted().filter_map(|ino| self.grant(ino)).collect();
        // A secret at two targets is held once.
        let payloads: BTreeMap<(&str, u64), u64> = granted
            .iter()
            .map(|grant| ((grant.secret.as_str(), grant.version), grant.size))
            .collect();
        let bytes = payloads.values().fold(0u64, |sum, size| sum.saturating_add(*size));
        if granted.len() > limits::GRANTS {
            return too_much("grants", limits::GRANTS as u64);
        }
        if bytes > limits::GRANTED_BYTES {
            return too_much("bytes", limits::GRANTED_BYTES);
        }
        if self.targets.len() > limits::TARGETS {
            return too_much("targets in its lifetime", limits::TARGETS as u64);
        }
        Ok(())
    }

    fn children(&self, ino: u64) -> Option<&BTreeMap<String, u64>> {
        match &self.nodes.get(&ino)?.kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn insert(&mut self, parent: u64, name: String, kind: Kind) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.insert_as(ino, parent, name, kind);
        ino
    }

    fn insert_as(&mut self, ino: u64, parent: u64, name: String, kind: Kind) {
        if let Some(Node { kind: Kind::Directory(children), .. }) = self.nodes.get_mut(&parent) {
            children.insert(name.clone(), ino);
        }
        self.nodes.insert(ino, Node { parent, name, kind });
    }

    /// Inserts a node at `names` below `root`, with the directories on the way.
    fn insert_below(
        &mut self,
        root: u64,
        names: &[String],
        kind: Kind,
        invalid: &mut BTreeSet<u64>,
    ) -> u64 {
        let mut parent = root;
        let (last, directories) = names.split_last().map_or(("", names), |(l, d)| (l.as_str(), d));
        for name in directories {
            invalid.insert(parent);
            let known = self.children(parent).and_then(|children| children.get(name).copied());
            parent = known.unwrap_or_else(|| {
                self.insert(parent, name.clone(), Kind::Directory(BTreeMap::new()))
            });
        }
        invalid.insert(parent);
        self.insert(parent, last.to_owned(), kind)
    }

    fn make_set(&mut self, change: &mut Change) {
        let number = self.next_set;
        self.next_set += 1;
        let root = self.insert(SECRETS, set_name(number), Kind::Directory(BTreeMap::new()));
        let members: Vec<u64> = self.granted().collect();
        let mut unseen = BTreeSet::new();
        for member in members {
            let Some(grant) = self.grant(member).cloned() else { continue };
            if let Ok(Place::Below(names)) = Place::parse(&grant.target) {
                let copy = self.insert_below(root, &names, Kind::File(grant), &mut unseen);
                change.kept.push((copy, member));
            }
        }
        self.sets.push((number, root));
        self.insert_as(CURRENT, SECRETS, "..current".to_owned(), Kind::Link(number));
        change.invalid.insert(CURRENT);
        change.set = Some(number);
        self.drop_sets(limits::SETS, change);
    }

    fn drop_sets(&mut self, keep: usize, change: &mut Change) {
        while self.sets.len() > keep {
            let (number, root) = self.sets.remove(0);
            if let Some(Node { kind: Kind::Directory(children), .. }) = self.nodes.get_mut(&SECRETS)
            {
                children.remove(&set_name(number));
            }
            self.drop_below(root, change);
        }
    }

    fn drop_below(&mut self, ino: u64, change: &mut Change) {
        let mut doomed = vec![ino];
        while let Some(ino) = doomed.pop() {
            change.invalid.insert(ino);
            match self.nodes.remove(&ino).map(|node| node.kind) {
                Some(Kind::Directory(children)) => doomed.extend(children.values()),
                Some(Kind::File(_)) => change.gone.push(ino),
                Some(Kind::Link(_) | Kind::Revoked(_)) | None => {}
            }
        }
    }
}

//! What an open or a read gets, decided without a kernel: which version a handle pins, what a
//! delivery replaces, what a revocation takes away.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::limits;
use crate::tree::{Attributes, Change, Entry, Grant, NodeKind, Placement, Tree, TreeError};
use crate::vault::Slot;

/// Why an operation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such file, or not any more.
    Gone,
    /// It is a directory.
    IsDirectory,
    /// Too many open files.
    TooManyHandles,
    /// The handle's version was replaced too often.
    Stale,
    /// The kernel named a handle that it does not have.
    BadHandle,
}

/// What an open asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Bytes written are ignored: only the write's inotify event is wanted.
    Touch,
}

/// What an open gets.
#[derive(Debug)]
pub(crate) enum Open {
    /// A handle. The grant is there if the open counts as a read.
    Handle(u64, Option<Arc<Grant>>),
    /// The kernel has not yet dropped what it cached of the previous version: ask again.
    Wait,
    /// Nothing, and which grant was asked for if there is or was one.
    Refused(Refusal, Option<Arc<Grant>>),
}

#[derive(Clone, Debug)]
enum Source {
    Bytes(Arc<Slot>),
    Touch,
    Stale,
    Gone,
}

#[derive(Debug)]
struct Handle {
    ino: u64,
    /// The file whose version it pins: another one than `ino` if it was opened in a set.
    file: u64,
    source: Source,
}

/// The files of one task.
#[derive(Debug)]
pub(crate) struct Files {
    tree: Tree,
    /// Content of every file that can be opened.
    contents: HashMap<u64, Arc<Slot>>,
    /// From the files of the sets to those they are copies of.
    copies: HashMap<u64, u64>,
    /// Replaced contents that a handle or a set may still hold, newest first.
    replaced: HashMap<u64, Vec<Weak<Slot>>>,
    handles: Vec<Option<Handle>>,
    unused: Vec<usize>,
    waiting: bool,
    refusing: bool,
}

impl Files {
    pub(crate) fn new(born_ns: i64) -> Files {
        Files {
            tree: Tree::new(born_ns),
            contents: HashMap::new(),
            copies: HashMap::new(),
            replaced: HashMap::new(),
            handles: Vec::new(),
            unused: Vec::new(),
            waiting: false,
            refusing: false,
        }
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn refusing(&self) -> bool {
        self.refusing
    }

    /// What `stat` says. At the end the directories stay, empty.
    pub(crate) fn attributes(&self, ino: u64) -> Option<Attributes> {
        let found = self.tree.attributes(ino)?;
        (!self.refusing || found.kind == NodeKind::Directory).then_some(found)
    }

    pub(crate) fn lookup(&self, parent: u64, name: &str) -> Option<Attributes> {
        self.attributes(self.tree.lookup(parent, name)?.ino)
    }

    /// The grant of a file that is there no more, because it is revoked or the task has ended.
    pub(crate) fn taken_away(&self, ino: u64) -> Option<Arc<Grant>> {
        let granted = self.tree.grant(ino).filter(|_| self.refusing);
        granted.or_else(|| self.tree.revoked(ino)).cloned()
    }

    pub(crate) fn list(&self, ino: u64, cookie: u64) -> Option<Vec<Entry>> {
        let mut entries = self.tree.list(ino, cookie)?;
        entries.retain(|entry| !self.refusing || entry.kind == NodeKind::Directory);
        Some(entries)
    }

    pub(crate) fn open(&mut self, ino: u64, access: Access) -> Open {
        let grant = self.tree.grant(ino).or_else(|| self.tree.revoked(ino)).cloned();
        if self.refusing {
            return Open::Refused(Refusal::Gone, grant);
        }
        if self.waiting {
            return Open::Wait;
        }
        let Some(content) = self.contents.get(&ino) else {
            let is_other = grant.is_none() && self.tree.attributes(ino).is_some();
            let refusal = if is_other { Refusal::IsDirectory } else { Refusal::Gone };
            return Open::Refused(refusal, grant);
        };
        let source = match access {
            Access::Read => Source::Bytes(content.clone()),
            Access::Touch => Source::Touch,
        };
        let file = self.copies.get(&ino).copied().unwrap_or(ino);
        let Some(fh) = self.add(Handle { ino, file, source }) else {
            return Open::Refused(Refusal::TooManyHandles, grant);
        };
        Open::Handle(fh, grant.filter(|_| access == Access::Read))
    }

    fn add(&mut self, handle: Handle) -> Option<u64> {
        let index = match self.unused.pop() {
            Some(index) => index,
            None if self.handles.len() < limits::HANDLES => {
                self.handles.push(None);
                self.handles.len() - 1
            }
            None => return None,
        };
        *self.handles.get_mut(index)? = Some(handle);
        Some(index as u64)
    }

    /// The bytes behind a handle: those it pinned, or for the page cache, which all handles
    /// share, those of now. A file of a set that went gets no more pages: a revocation could
    /// not take them back.
    pub(crate) fn read(&self, fh: u64, for_page_cache: bool) -> Result<Arc<Slot>, Refusal> {
        if self.refusing {
            return Err(Refusal::Gone);
        }
        let handle = self.handle(fh)?;
        match &handle.source {
            Source::Gone => Err(Refusal::Gone),
            Source::Touch => Err(Refusal::BadHandle),
            Source::Bytes(_) | Source::Stale if for_page_cache => {
                self.contents.get(&handle.ino).cloned().ok_or(Refusal::Gone)
            }
            Source::Bytes(slot) => Ok(slot.clone()),
            Source::Stale => Err(Refusal::Stale),
        }
    }

    /// Whether a handle may be written to.
    pub(crate) fn touch(&self, fh: u64) -> Result<(), Refusal> {
        if self.refusing {
            return Err(Refusal::Gone);
        }
        match self.handle(fh)?.source {
            Source::Touch => Ok(()),
            _ => Err(Refusal::BadHandle),
        }
    }

    fn handle(&self, fh: u64) -> Result<&Handle, Refusal> {
        let index = usize::try_from(fh).map_err(|_| Refusal::BadHandle)?;
        self.handles.get(index).and_then(Option::as_ref).ok_or(Refusal::BadHandle)
    }

    /// Closes a handle; its version goes with it, if that was the last.
    pub(crate) fn release(&mut self, fh: u64) {
        if let Ok(index) = usize::try_from(fh)
            && let Some(place) = self.handles.get_mut(index)
            && place.take().is_some()
        {
            self.unused.push(index);
        }
    }

    /// Switches to a delivered set; from now on opens wait until [`Files::settle`], if the
    /// kernel has anything to forget.
    pub(crate) fn deliver(&mut self, set: Vec<(Grant, Arc<Slot>)>) -> Result<Change, TreeError> {
        let (grants, slots): (Vec<Grant>, Vec<Arc<Slot>>) = set.into_iter().unzip();
        let (tree, change) = self.tree.deliver(&grants)?;
        self.tree = tree;
        for (&(ino, placement), slot) in change.placed.iter().zip(slots) {
            if matches!(placement, Placement::Added | Placement::Returned | Placement::Replaced)
                && let Some(before) = self.contents.insert(ino, slot)
            {
                self.replaced.entry(ino).or_default().insert(0, Arc::downgrade(&before));
            }
        }
        for &(copy, original) in &change.kept {
            if let Some(slot) = self.contents.get(&original).cloned() {
                self.contents.insert(copy, slot);
                self.copies.insert(copy, original);
            }
        }
        self.drop_gone(&change);
        self.retire(limits::OLD_VERSIONS);
        self.waiting = !change.invalid.is_empty();
        Ok(change)
    }

    /// The kernel has forgotten what the last change made untrue: opens go on.
    pub(crate) fn settle(&mut self) {
        self.waiting = false;
    }

    pub(crate) fn revoke<T: AsRef<str>>(&mut self, targets: &[T]) -> Change {
        let (tree, change) = self.tree.revoke(targets);
        self.tree = tree;
        self.drop_gone(&change);
        change
    }

    /// Gives up every replaced version and all sets but the current one.
    pub(crate) fn forget_old(&mut self) -> Change {
        let (tree, change) = self.tree.forget_sets();
        self.tree = tree;
        self.drop_gone(&change);
        self.retire(0);
        change
    }

    /// Refuses everything from now on and lets go of all contents.
    pub(crate) fn refuse_all(&mut self) {
        self.refusing = true;
        self.waiting = false;
        self.contents.clear();
        self.copies.clear();
        self.replaced.clear();
        for handle in self.handles.iter_mut().flatten() {
            handle.source = Source::Gone;
        }
    }

    /// Handles of what was revoked lose it; those of a set that went keep what they pinned.
    fn drop_gone(&mut self, change: &Change) {
        for ino in &change.gone {
            self.contents.remove(ino);
            self.replaced.remove(ino);
            self.copies.remove(ino);
        }
        for handle in self.handles.iter_mut().flatten() {
            if change.gone.contains(&handle.file) {
                handle.source = Source::Gone;
            }
        }
    }

    /// Keeps the newest `keep` replaced versions of each file that somebody still holds; handles
    /// of the rest become stale.
    fn retire(&mut self, keep: usize) {
        for (&ino, versions) in &mut self.replaced {
            versions.retain(|version| version.strong_count() > 0);
            for old in versions.split_off(versions.len().min(keep)) {
                for handle in self.handles.iter_mut().flatten() {
                    let holds = matches!(&handle.source, Source::Bytes(slot) if Arc::as_ptr(slot) == old.as_ptr());
                    if handle.file == ino && holds {
                        handle.source = Source::Stale;
                    }
                }
            }
        }
        self.replaced.retain(|_, versions| !versions.is_empty());
    }
}

#[cfg(test)]
mod tests;

//! Plaintext in memory of its own: one arena per task, filled in place, zeroed slot by slot
//! as versions go and as a whole at the end.

mod arena;
mod bounce;
mod space;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arena::Arena;
pub(crate) use bounce::Bounce;
use space::Space;

/// What memory a vault is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultKind {
    /// Secret memory where the kernel has it, else locked memory.
    Auto,
    /// `memfd_secret`: gone from the kernel's own map, unreadable for other processes, root's
    /// included.
    SecretMem,
    /// Anonymous memory, locked, left out of core files and of children.
    Mlock,
}

impl FromStr for VaultKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<VaultKind, UnknownKind> {
        match text {
            "auto" => Ok(VaultKind::Auto),
            "secretmem" => Ok(VaultKind::SecretMem),
            "mlock" => Ok(VaultKind::Mlock),
            _ => Err(UnknownKind),
        }
    }
}

impl fmt::Display for VaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VaultKind::Auto => "auto",
            VaultKind::SecretMem => "secretmem",
            VaultKind::Mlock => "mlock",
        })
    }
}

/// A vault kind that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown vault kind: use auto, secretmem or mlock")]
pub struct UnknownKind;

/// Why a vault could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// This kernel has no secret memory, or has it turned off.
    #[error("this kernel offers no secret memory (secretmem)")]
    Unsupported {
        /// What memfd_secret said.
        source: io::Error,
    },
    /// The kernel refused the memory.
    #[error("cannot get protected memory: {what}")]
    Map {
        /// The call that failed.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// No room for another slot.
    #[error("the vault is full: {asked} bytes asked for, {used} of {capacity} in use")]
    Full {
        /// Bytes asked for.
        asked: usize,
        /// Bytes in use, rounding included.
        used: usize,
        /// Bytes in all.
        capacity: usize,
    },
    /// The vault was wiped; nothing goes in or comes out any more.
    #[error("the vault has been wiped")]
    Wiped,
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError<E> {
    /// The vault had no room or was wiped.
    #[error(transparent)]
    Vault(VaultError),
    /// The writer of the plaintext failed; what it wrote is zeroed.
    #[error("the payload could not be written to the vault")]
    Fill(#[source] E),
}

#[derive(Debug)]
struct Inner {
    arena: Arena,
    space: Mutex<Space>,
    /// Whether contents may be touched. Held for reading by whoever reads or fills a slot, for
    /// writing by `wipe` alone.
    open: RwLock<bool>,
}

impl Inner {
    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task's protected memory. Clones share it.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

impl Vault {
    /// Reserves `capacity` bytes (rounded up to whole pages); pages become resident with
    /// their first use.
    ///
    /// # Errors
    /// The kernel lacks the kind asked for, or refuses to lock that much.
    pub fn new(kind: VaultKind, capacity: usize) -> Result<Vault, VaultError> {
        let capacity = whole_pages(capacity);
        let arena = Arena::map(kind, capacity)?;
        let space = Mutex::new(Space::new(capacity));
        Ok(Vault(Arc::new(Inner { arena, space, open: RwLock::new(true) })))
    }

    /// What it is made of: never `Auto`.
    pub fn kind(&self) -> VaultKind {
        self.0.arena.kind()
    }

    /// Bytes in use, rounding included.
    pub fn used(&self) -> usize {
        self.0.space().used()
    }

    /// Reserves `len` bytes, zeroed, and lets `fill` write the plaintext there directly.
    ///
    /// # Errors
    /// No room, wiped, or whatever `fill` returned; then nothing stays.
    pub fn store<E>(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Slot, StoreError<E>> {
        let open = self.0.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(StoreError::Vault(VaultError::Wiped));
        }
        let slot = self.reserve(len).map_err(StoreError::Vault)?;
        let Some(start) = self.0.arena.at(slot.offset, len) else {
            return Err(StoreError::Vault(VaultError::Wiped));
        };
        // SAFETY: in bounds by `at`; the range was reserved for this slot alone, which nobody
        // else has yet, and `open` keeps `wipe` away.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) };
        let filled = fill(bytes);
        drop(open);
        filled.map_err(StoreError::Fill)?;
        Ok(slot)
    }

    fn reserve(&self, len: usize) -> Result<Slot, VaultError> {
        let mut space = self.0.space();
        let Some(offset) = space.take(len) else {
            return Err(VaultError::Full {
                asked: len,
                used: space.used(),
                capacity: self.0.arena.len(),
            });
        };
        Ok(Slot { inner: self.0.clone(), offset, len })
    }

    /// Zeroes everything at once, for good: slots that still exist read as wiped.
    pub fn wipe(&self) {
        let mut open = self.0.open.write().unwrap_or_else(PoisonError::into_inner);
        if *open {
            *open = false;
            let end = self.0.space().high_water();
            // SAFETY: the write lock keeps readers and writers of slots away.
            unsafe { self.0.arena.zero(0, end) };
        }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("kind", &self.kind())
            .field("used", &self.used())
            .field("capacity", &self.0.arena.len())
            .finish()
    }
}

/// One payload in a vault. Zeroed when dropped; share it by `Arc`.
pub struct Slot {
    inner: Arc<Inner>,
    offset: usize,
    len: usize,
}

impl Slot {
    /// Bytes of payload.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies what is at `offset` into `into`; returns how many bytes there were. The caller
    /// wipes `into`.
    ///
    /// # Errors
    /// The vault was wiped.
    pub fn read_into(&self, offset: u64, into: &mut [u8]) -> Result<usize, VaultError> {
        self.look(offset, into.len(), |bytes| {
            into.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            bytes.len()
        })
    }

    /// Hands at most `size` bytes from `offset` on to `answer`, in memory that the kernel can
    /// read: the arena itself, or a bounce buffer that is wiped afterwards.
    pub(crate) fn serve<R>(
        &self,
        offset: u64,
        size: usize,
        bounce: &mut Bounce,
        answer: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, VaultError> {
        match self.inner.arena.kind() {
            VaultKind::Mlock => self.look(offset, size, answer),
            VaultKind::SecretMem | VaultKind::Auto => {
                let wiped = self.look(offset, size, |bytes| bounce.copy(bytes))?;
                Ok(answer(&wiped))
            }
        }
    }

    fn look<R>(
        &self,
        offset: u64,
        size: usize,
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, VaultError> {
        let open = self.inner.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(VaultError::Wiped);
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len);
        let size = size.min(self.len - from);
        let start = self.inner.arena.at(self.offset + from, size).ok_or(VaultError::Wiped)?;
        // SAFETY: in bounds by `at`; a finished slot is written only by `wipe`, which `open`
        // keeps away, and by its own drop.
        let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), size) };
        Ok(look(bytes))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the range is this slot's alone. A concurrent `wipe` writes zeros too, but is
        // kept away all the same.
        {
            let _open = self.inner.open.read().unwrap_or_else(PoisonError::into_inner);
            unsafe { self.inner.arena.zero(self.offset, self.len) };
        }
        self.inner.space().give(self.offset, self.len);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("len", &self.len).finish_non_exhaustive()
    }
}

fn whole_pages(len: usize) -> usize {
    len.max(1).next_multiple_of(rustix::param::page_size())
}

#[cfg(test)]
mod tests;

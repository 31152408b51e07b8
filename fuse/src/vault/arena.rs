//! Memory that is kept out of swap, core files and children.

use std::ffi::c_void;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use nix::libc;
use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags};

use super::{VaultError, VaultKind};

/// One mapping. Pages come with their first use; whoever puts a secret there zeroes it again.
///
/// Only raw pointers leave it: whoever makes a slice of a range answers for nobody else
/// writing there meanwhile.
#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    len: usize,
    kind: VaultKind,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Arena` hands out nothing
// but raw pointers.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `len` bytes, a multiple of the page size. `Auto` falls back to locked memory only
    /// where the kernel has no secret memory.
    pub(super) fn map(kind: VaultKind, len: usize) -> Result<Arena, VaultError> {
        match kind {
            VaultKind::SecretMem => secret(len),
            VaultKind::Mlock => locked(len),
            VaultKind::Auto => match secret(len) {
                Err(VaultError::Unsupported { .. }) => locked(len),
                other => other,
            },
        }
    }

    pub(super) fn kind(&self) -> VaultKind {
        self.kind
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The start of `offset..offset + len`, if that is inside.
    pub(super) fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset` is inside the mapping.
        Some(unsafe { self.base.add(offset) })
    }

    /// Overwrites a range with zeros.
    ///
    /// # Safety
    /// Nobody else reads or writes the range meanwhile.
    pub(super) unsafe fn zero(&self, offset: usize, len: usize) {
        if let Some(start) = self.at(offset, len) {
            // SAFETY: in bounds by `at`, unshared by the caller's word.
            unsafe { start.write_bytes(0, len) };
            compiler_fence(Ordering::SeqCst);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the last owner is going; nothing reads or writes the mapping any more.
        unsafe {
            let _ = rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len);
        }
    }
}

fn secret(len: usize) -> Result<Arena, VaultError> {
    // SAFETY: takes one flag word and returns a descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => VaultError::Unsupported { source },
            _ => VaultError::Map { what: "memfd_secret", source },
        });
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::fs::ftruncate(&fd, len as u64)
        .map_err(|e| VaultError::Map { what: "ftruncate", source: e.into() })?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &fd,
            0,
        )
    }
    .map_err(|e| VaultError::Map { what: "mmap of secret memory", source: e.into() })?;
    // The kernel itself keeps these pages out of swap and core files.
    guarded(base, len, VaultKind::SecretMem, &[Advice::LinuxDontFork])
}

fn locked(len: usize) -> Result<Arena, VaultError> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }
    .map_err(|e| VaultError::Map { what: "mmap", source: e.into() })?;
    // Huge pages would make 2 MiB resident for the first byte.
    let advice = [Advice::LinuxDontDump, Advice::LinuxDontFork, Advice::LinuxNoHugepage];
    let arena = guarded(base, len, VaultKind::Mlock, &advice)?;
    // SAFETY: locks the mapping just made; `ONFAULT` touches no page.
    unsafe { rustix::mm::mlock_with(base, len, MlockFlags::ONFAULT) }
        .map_err(|e| VaultError::Map { what: "mlock", source: e.into() })?;
    Ok(arena)
}

fn guarded(
    base: *mut c_void,
    len: usize,
    kind: VaultKind,
    advice: &[Advice],
) -> Result<Arena, VaultError> {
    let Some(start) = NonNull::new(base.cast::<u8>()) else {
        return Err(VaultError::Map { what: "mmap", source: io::ErrorKind::Other.into() });
    };
    let arena = Arena { base: start, len, kind };
    for &advice in advice {
        // SAFETY: applies to the mapping just made; none of these advices changes contents.
        match unsafe { rustix::mm::madvise(base, len, advice) } {
            Ok(()) => {}
            // A kernel without huge pages has none to refuse.
            Err(rustix::io::Errno::INVAL) if advice == Advice::LinuxNoHugepage => {}
            Err(e) => return Err(VaultError::Map { what: "madvise", source: e.into() }),
        }
    }
    Ok(arena)
}

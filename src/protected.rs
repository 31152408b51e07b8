//! Memory for one plaintext at a time: locked, left out of core dumps and of forks, zeroed
//! before it goes back to the kernel.

use std::fmt;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Protected memory could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot protect {bytes} bytes of memory for a payload (is RLIMIT_MEMLOCK too low?)")]
pub struct ProtectError {
    bytes: usize,
    #[source]
    source: rustix::io::Errno,
}

/// Plaintext in protected memory. It has no `Clone` and no `Display`, and its `Debug` tells
/// only the length.
pub struct Protected {
    start: NonNull<u8>,
    mapped: usize,
    len: usize,
}

// The mapping belongs to this value alone.
unsafe impl Send for Protected {}
unsafe impl Sync for Protected {}

impl Protected {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// If the kernel refuses the memory or the lock on it.
    pub fn zeroed(len: usize) -> Result<Self, ProtectError> {
        let mapped = len.max(1).next_multiple_of(4096);
        let fail = |source| ProtectError { bytes: len, source };
        // SAFETY: a fresh private mapping aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(fail)?;
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(fail(rustix::io::Errno::NOMEM));
        };
        let memory = Self { start, mapped, len };
        // SAFETY: the range is the mapping just made.
        unsafe {
            mlock(start.as_ptr().cast(), mapped).map_err(fail)?;
            madvise(start.as_ptr().cast(), mapped, Advice::LinuxDontDump).map_err(fail)?;
            madvise(start.as_ptr().cast(), mapped, Advice::LinuxDontFork).map_err(fail)?;
        }
        Ok(memory)
    }

    /// A protected copy of `bytes`. The caller wipes the original.
    ///
    /// # Errors
    /// As [`Protected::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> Result<Self, ProtectError> {
        let mut memory = Self::zeroed(bytes.len())?;
        memory.as_mut_slice().copy_from_slice(bytes);
        Ok(memory)
    }

    /// Bytes held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes and zeroes the rest.
    pub fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.as_mut_slice().get_mut(len..) {
            rest.zeroize();
            self.len = len;
        }
    }

    /// The plaintext.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes of the mapping are initialised: the kernel zeroed them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The plaintext, to write.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as `as_slice`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        self.as_mut_slice().zeroize();
        // SAFETY: the mapping is ours and nobody can hold a borrow of it now.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

impl fmt::Debug for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Protected({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_tells_the_length_only_and_truncate_wipes() {
        let mut p = Protected::copy_of(b"hunter2").unwrap();
        assert_eq!(format!("{p:?}"), "Protected(7 bytes)");
        p.truncate(3);
        assert_eq!(p.as_slice(), b"hun");
        p.len = 7;
        assert_eq!(p.as_slice(), b"hun\0\0\0\0");
    }
}

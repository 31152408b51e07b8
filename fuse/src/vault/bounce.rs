//! Where bytes of secret memory pass on their way to the kernel.

use std::ops::Deref;

use super::arena::Arena;
use super::{VaultError, VaultKind, whole_pages};
use crate::limits;

/// A buffer in locked memory, as large as the largest read.
#[derive(Debug)]
pub(crate) struct Bounce(Arena);

impl Bounce {
    pub(crate) fn new() -> Result<Bounce, VaultError> {
        Arena::map(VaultKind::Mlock, whole_pages(limits::READ_BYTES)).map(Bounce)
    }

    #[cfg(test)]
    pub(super) fn raw(&mut self) -> Vec<u8> {
        let len = self.0.len();
        Bounced { bounce: self, len }.to_vec()
    }

    /// Copies as much of `bytes` as fits; the copy is zeroed when dropped.
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Bounced<'_> {
        let len = bytes.len().min(self.0.len());
        if let Some(start) = self.0.at(0, len) {
            // SAFETY: in bounds by `at`; `&mut self` keeps everybody else away, and `bytes`
            // cannot lie in an arena that hands out no slices.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), len) };
        }
        Bounced { bounce: self, len }
    }
}

/// Bytes in a bounce buffer, zeroed when dropped.
pub(super) struct Bounced<'a> {
    bounce: &'a mut Bounce,
    len: usize,
}

impl Deref for Bounced<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.bounce.0.at(0, self.len) {
            // SAFETY: in bounds by `at`, written by `copy`, borrowed exclusively.
            Some(start) => unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len) },
            None => &[],
        }
    }
}

impl Drop for Bounced<'_> {
    fn drop(&mut self) {
        // SAFETY: borrowed exclusively.
        unsafe { self.bounce.0.zero(0, self.len) };
    }
}

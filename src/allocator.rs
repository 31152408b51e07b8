//! The allocator: what is freed is zeroed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zeroizing_alloc::ZeroAlloc;

/// Allocations from this size on are mappings of their own, unmapped when freed. The buffers
/// that hold payloads are smaller (an API request ends at 4 MiB); fuser's, of 16 MiB and hardly
/// touched, would cost each task 10 ms to zero, and as much resident memory meanwhile.
const MAPPED_FROM_BYTES: usize = 8 << 20;
/// What mmap aligns to on every machine.
const PAGE_BYTES: usize = 4096;

/// Zeroes on free; hands very large allocations back to the kernel instead.
#[derive(Debug)]
pub(crate) struct WipingAllocator;

const SMALL: ZeroAlloc<System> = ZeroAlloc(System);

fn is_mapped(layout: Layout) -> bool {
    layout.size() >= MAPPED_FROM_BYTES && layout.align() <= PAGE_BYTES
}

// SAFETY: either half allocates and frees by itself, and a layout always leads to the same
// half. `realloc` is the provided one: it allocates, copies and frees.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_mapped(layout) {
            // SAFETY: the caller's promise, passed on.
            return unsafe { SMALL.alloc(layout) };
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private mapping aliases nothing.
        let mapped = unsafe {
            mmap_anonymous(ptr::null_mut(), layout.size(), protection, MapFlags::PRIVATE)
        };
        mapped.map_or(ptr::null_mut(), <*mut _>::cast)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            // SAFETY: the caller's promise; new mappings are zero.
            unsafe { self.alloc(layout) }
        } else {
            // SAFETY: the caller's promise, passed on.
            unsafe { SMALL.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if is_mapped(layout) {
            // SAFETY: `alloc` mapped exactly this, and nobody uses it any more.
            let _ = unsafe { munmap(start.cast(), layout.size()) };
        } else {
            // SAFETY: the caller's promise, passed on.
            unsafe { SMALL.dealloc(start, layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_on_both_sides_of_the_border_hold_what_is_written() {
        for size in [1, 4_096, MAPPED_FROM_BYTES - 1, MAPPED_FROM_BYTES, 3 * MAPPED_FROM_BYTES] {
            let mut bytes = vec![0u8; size];
            assert!(bytes.iter().step_by(4_096).all(|&byte| byte == 0));
            bytes.fill(7);
            bytes.extend([8; 100]);
            bytes.shrink_to(size);
            assert_eq!((bytes[0], bytes[size - 1], bytes[size]), (7, 7, 8));
        }
    }
}

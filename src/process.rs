//! What every process of skep does first.

use std::env;

/// Prepares this process, in whatever role. The first thing to call: there must be one thread yet.
#[expect(clippy::disallowed_methods, reason = "nobody else reads the environment yet")]
pub fn begin() {
    // In every role secrets pass through. A limit of zero does not keep a core file from a
    // handler that the kernel pipes it to; this does. Where it is refused, the limits remain.
    let _ = nix::sys::prctl::set_dumpable(false);
    if !cfg!(walks_no_stacks) {
        return;
    }
    // This binary has no tables for walking the stack (see `build.rs`): a backtrace would end the
    // process at the first error that somebody makes.
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: nobody reads the environment meanwhile, as this is the only thread.
        unsafe { env::remove_var(name) };
    }
}

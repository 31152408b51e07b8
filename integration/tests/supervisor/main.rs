//! One task's supervisor, driven by a test that plays the daemon: real FUSE, real runc, root.

mod deaths;
mod life;
mod refusals;
mod revoked;
mod rig;
mod touch;

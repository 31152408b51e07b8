//! Hostile hands: root in a container, other users of the host, clients that flood or dawdle.

mod container;
mod flood;
mod others;

/// Path of the hostile program: static, so that it runs in any container.
const PROBE: &str = env!("CARGO_BIN_EXE_probe");

//! A harness for tests across real processes: the `skep` binary, real FUSE mounts, real runc
//! containers, and two clients, `docker` and `skep`.
//!
//! The binary under test is named by `SKEP_BIN`; without it the debug build of the workspace is
//! taken. Everything a [`Node`] starts or makes goes away with it, even when a test panics or is
//! killed: a guardian process waits for that.

mod bench;
mod budget;
mod cli;
mod clock;
mod cluster;
mod dockerd;
mod herd;
mod history;
mod host;
mod http;
mod namespace;
mod node;
mod scan;
mod seen;
mod specification;
mod wait;

pub use bench::{Bench, run_by, shared, tag_of};
pub use budget::{BUDGETS, Bound, Budget, SWARM_BUDGETS};
pub use cli::{Cli, Output, Program};
pub use cluster::{Capture, Cluster, ClusterOptions, PORT, Placed, Role, name_of};
pub use dockerd::Dockerd;
pub use herd::{Back, Herd};
pub use history::{Action, Fault, History, Load, LoadOptions, Operation, Outcome, check};
pub use host::{Process, cgroups_of, mounts_naming, processes_of};
pub use http::{Http, Reply, encode_query};
pub use node::{Node, Options, Place, binary, busybox_tar, repository};
pub use scan::{Hit, Marker, scan_disk, scan_memory};
pub use seen::{Seen, look, shim_of, task, tasks_of};
pub use specification::{PROMISES, Promise};
pub use wait::{settle, wait_until};

/// Makes two tests of each scenario: one driven by `docker`, one by `skep`.
///
/// A scenario is a function `fn(&Bench) -> anyhow::Result<()>` of the same name; after `with` and a
/// function like [`run_by`] it takes what that gives it.
#[macro_export]
macro_rules! by_both {
    (with $run:path: $($scenario:ident)*) => {$(
        mod $scenario {
            #[test]
            fn docker() -> anyhow::Result<()> {
                $run($crate::Program::Docker, stringify!($scenario), super::$scenario)
            }
            #[test]
            fn skep() -> anyhow::Result<()> {
                $run($crate::Program::Skep, stringify!($scenario), super::$scenario)
            }
        }
    )*};
    ($($scenario:ident)*) => { $crate::by_both! { with $crate::run_by: $($scenario)* } };
}

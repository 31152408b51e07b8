//! What runs containers: images, root filesystems, runtime bundles, logs. Effects without policy.

pub(crate) mod bundle;
pub mod cgroup;
pub mod files;
pub mod images;
pub mod logs;
pub mod plan;
pub mod runc;

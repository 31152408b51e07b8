//! What runs containers: images, root filesystems, runtime bundles, logs. Effects without policy.

mod bundle;
pub mod files;
pub mod images;
pub mod plan;

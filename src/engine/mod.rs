//! What runs containers: images, root filesystems, runtime bundles, logs. Effects without policy.

pub mod images;

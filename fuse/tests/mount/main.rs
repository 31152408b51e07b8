//! The server under a real kernel. Needs root and `/dev/fuse`.

mod content;
mod harness;

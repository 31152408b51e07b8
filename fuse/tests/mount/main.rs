//! The server under a real kernel. Needs root and `/dev/fuse`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of it is tests, helpers included"
)]

mod access;
mod change;
mod content;
mod death;
mod harness;
mod look;
mod rates;
mod read;
mod refuse;
mod served;
mod sets;

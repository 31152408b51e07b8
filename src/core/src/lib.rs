//! The pure half of skep: what the swarm is (`model`), what it holds (`state`), the only ways
//! it changes (`command`, `apply`) and everything that decides (`control`, `assign`,
//! `task_machine`).
//!
//! Nothing here reads a clock, draws a random number, or does IO. Time and ids come in with the
//! command; what should happen goes out as data. That is why ten thousand nodes fit in a test.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod apply;
pub mod assign;
pub mod codec;
pub mod command;
pub mod control;
pub mod deliver;
pub mod format;
pub mod id;
pub mod isolation;
pub mod limits;
pub mod model;
pub mod on_change;
pub mod outcome;
pub mod sealed;
pub mod shared;
pub mod signal;
pub mod snapshot;
pub mod state;
pub mod task_machine;
pub mod time;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

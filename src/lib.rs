//! The node and the command line of skep. `main.rs` chooses the role; `node.rs` composes the
//! parts, which do not know one another.

#[global_allocator]
static ALLOCATOR: allocator::WipingAllocator = allocator::WipingAllocator;

pub mod address;
pub mod agent;
mod allocator;
pub mod api;
pub mod audit;
mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod door;
pub mod engine;
pub mod files;
pub mod gate;
pub mod hidden;
pub mod identity;
pub mod limits;
pub mod manager;
pub mod net;
pub mod node;
pub mod process;
pub mod protected;
pub mod seal;
pub mod shim;
pub mod wire;

//! A task's secrets as an in-memory filesystem.
//!
//! [`vault`] keeps plaintext in memory that other processes, core files and swap don't reach;
//! [`tree`] is the pure shape of what the task sees; [`server`] mounts it and answers the
//! kernel from memory only; [`audit`] counts who opened what. Threads, no async runtime.
//!
//! The order of a shim's life: [`vault::Vault::new`], [`server::Server::mount`] in a private
//! mount namespace, [`vault::Vault::store`] for each payload, [`server::Server::deliver`],
//! bind what [`server::Server::binds`] lists, and at the task's end [`server::Server::refuse_all`]
//! and [`vault::Vault::wipe`], then `_exit`.

pub mod audit;
mod files;
pub mod limits;
mod notify;
mod serve;
pub mod server;
pub mod tree;
pub mod vault;

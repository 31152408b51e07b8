//! The Docker Engine API on a unix socket: HTTP in, one [`Request`](crate::gate::Request) or a
//! look at the state out. Docker's words live here and nowhere else: `types` holds them as they
//! are on the wire, `convert` turns them into the swarm's nouns and back.

mod audit;
mod bind;
mod call;
mod containers;
mod convert;
mod error;
mod exec;
mod filters;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod history;
mod holders;
mod images;
mod json;
mod logs;
mod lookup;
mod materials;
mod names;
mod networks;
mod nodes;
mod peer;
mod prune;
mod query;
mod reply;
mod revoke;
mod ring;
mod routes;
mod server;
mod services;
mod swarm;
mod system;
mod tasks;
#[cfg(test)]
mod tests;
mod time;
mod turn;
mod types;
mod versions;

pub use bind::{BindError, bind};
pub use server::serve;

//! Who this node is: its files, its certificate, the swarm's root and the tokens that admit.

pub mod ca;
pub mod directory;
pub mod store;
pub mod token;
pub mod trust;

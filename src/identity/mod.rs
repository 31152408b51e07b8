//! Who this node is: its files, its keys and certificate, the swarm's roots and the tokens that
//! admit.

pub mod ca;
pub mod directory;
pub mod keys;
pub mod lock;
pub mod rotation;
pub mod store;
pub mod token;
pub mod trust;

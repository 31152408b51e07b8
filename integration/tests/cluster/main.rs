//! The cluster harness itself: its networks do what its methods say, and nothing of it is left.

mod load;
mod network;
mod nodes;
mod remains;

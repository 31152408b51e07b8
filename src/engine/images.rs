//! The images of this node: an OCI content store and the layers made of it.

/// The images of this node.
#[derive(Debug)]
pub struct ImageStore {}

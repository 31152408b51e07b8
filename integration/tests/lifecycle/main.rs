//! What outlives what: daemons, shims and containers that are killed, on nodes of their own.

mod daemon;
mod hygiene;
mod shim;

use anyhow::Result;
use skep_integration::{Bench, Node, Options, Program};

/// A node with the busybox image.
fn node(args: &[&str]) -> Result<Node> {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let node = Node::start(Options { args, ..Options::default() })?;
    node.import_busybox()?;
    Ok(node)
}

fn bench(node: &Node) -> Bench<'_> {
    Bench::new(node, Program::Skep, "own".to_owned())
}

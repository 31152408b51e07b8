//! Namespaces with a cable each to one switch, which is a bridge in a namespace of its own: nothing
//! of it is in the host's.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use super::faults::Faults;
use super::held::Held;
use crate::namespace;
use crate::node::Guardian;

/// Most nodes of a network.
const NODES: usize = 64;
/// Datagrams that the kernel takes through a link as one.
const MERGED: u32 = 65_535;

/// A network of its own for a number of nodes.
#[derive(Debug)]
pub(crate) struct Network {
    root: PathBuf,
    switch: String,
    nodes: Vec<String>,
    faults: Mutex<Faults>,
    held: Mutex<Option<Held>>,
    guardian: Guardian,
}

impl Network {
    /// Lays out the network. `permit` stays open until all of it is gone.
    pub(crate) fn lay_out(count: usize, permit: Stdio) -> Result<Self> {
        static SERIAL: AtomicUsize = AtomicUsize::new(0);
        ensure!(count <= NODES, "{count} nodes: a network has at most {NODES}");
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = |part: &str| format!("skt{}-{serial}-{part}", std::process::id());
        let (switch, nodes) = (name("b"), (0..count).map(|at| name(&format!("n{}", at + 1))));
        let nodes: Vec<_> = nodes.collect();
        let root = tempfile::Builder::new().prefix("skep-test.").tempdir()?.keep();
        let all: Vec<_> = nodes.iter().chain([&switch]).cloned().collect();
        let guardian = Guardian::of(&root, &all, permit)?;
        let (faults, held) = (Mutex::default(), Mutex::default());
        let network = Self { root, switch, nodes, faults, held, guardian };
        network.connect()?;
        Ok(network)
    }

    fn connect(&self) -> Result<()> {
        let switch = self.switch.as_str();
        ip(&["netns", "add", switch])?;
        ip(&["-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0"])?;
        ip(&["-n", switch, "link", "set", "br0", "up"])?;
        for (at, node) in self.nodes.iter().enumerate() {
            let port = format!("v{at}");
            let address = format!("{}/24", address_of(at));
            ip(&["netns", "add", node])?;
            ip(&["-n", node, "link", "set", "lo", "up"])?;
            let cable = ["type", "veth", "peer", "name", &port, "netns", switch];
            ip(&[&["-n", node, "link", "add", "eth0"][..], &cable].concat())?;
            ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", node, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", node, "link", "set", "eth0", "up"])?;
        }
        // What the bridge forwards passes the packet filter.
        namespace::within(&self.switch_path(), || {
            fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
                .context("the kernel module br_netfilter is missing")
        })
    }

    /// Where what belongs to the network is kept.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a node's namespace.
    pub(crate) fn namespace(&self, node: usize) -> Result<PathBuf> {
        let name = self.nodes.get(node).with_context(|| format!("no node {node}"))?;
        Ok(namespace::path_of(name))
    }

    /// Path of the switch's.
    pub(crate) fn switch_path(&self) -> PathBuf {
        namespace::path_of(&self.switch)
    }

    /// Its namespaces, by name.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        self.nodes.iter().chain([&self.switch]).cloned().collect()
    }

    /// Number of nodes that it has room for.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Gives a node another address; the old one is gone.
    pub(crate) fn renumber(&self, node: usize, address: Ipv4Addr) -> Result<()> {
        let name = self.nodes.get(node).with_context(|| format!("no node {node}"))?;
        ip(&["-n", name, "address", "flush", "dev", "eth0"])?;
        ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"])
    }

    /// Changes what is wrong with it, in one step.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Faults) -> Result<()>) -> Result<()> {
        let mut faults = lock(&self.faults);
        let mut next = faults.clone();
        change(&mut next)?;
        for node in next.lossy().symmetric_difference(&faults.lossy()) {
            // A datagram is lost alone, not with all that the kernel merged with it.
            let merged = if next.lossy().contains(node) { 1 } else { MERGED };
            let name = self.nodes.get(*node).with_context(|| format!("no node {node}"))?;
            ip(&["-n", name, "link", "set", "eth0", "gso_max_segs", &merged.to_string()])?;
        }
        let mut held = lock(&self.held);
        if held.is_none() && !next.held().is_empty() {
            *held = Some(Held::start(&self.switch_path(), self.len())?);
        }
        if let Some(held) = held.as_ref() {
            held.set(next.held().clone());
        }
        self.filter(&next.rules())?;
        *faults = next;
        Ok(())
    }

    fn filter(&self, rules: &str) -> Result<()> {
        let mut command = Command::new("iptables-restore");
        command.arg("--wait").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        namespace::enter(&mut command, &self.switch_path())?;
        let mut child = command.spawn().context("iptables-restore (package iptables)")?;
        child.stdin.take().context("its input")?.write_all(rules.as_bytes())?;
        let out = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "iptables-restore: {said}\n{rules}");
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        lock(&self.held).take();
        self.guardian.clear();
    }
}

/// Address of a node.
pub(crate) fn address_of(node: usize) -> Ipv4Addr {
    // At most NODES of them.
    address_of_host((node + 1).min(NODES) as u8)
}

/// An address of the network.
pub(crate) fn address_of_host(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ip(words: &[&str]) -> Result<()> {
    let out = Command::new("ip").args(words).output().context("ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "ip {}: {said}", words.join(" "));
    Ok(())
}

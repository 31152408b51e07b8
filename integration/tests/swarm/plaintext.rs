//! Where a secret's bytes are in a swarm: in the granted task's supervisor on its node, and neither
//! in any other process or file of any node nor in anything that passes between them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use skep::identity::store::IdentityStore;
use skep_integration::{
    Cluster, Hit, Marker, PORT, by_both, look, processes_of, scan_disk, scan_memory, settle,
    shim_of,
};
use skep_raft::{FatalHook, Raft};

use crate::{BOUND, OTHER, Scene, WORKER, storm};

by_both! { with crate::storm_by: s037_s048_encrypted_in_transit s054_only_where_a_granted_task_runs }

/// One packet between nodes.
struct Packet {
    protocol: u8,
    ports: [u16; 2],
    /// Addresses of sender and receiver.
    between: [[u8; 4]; 2],
    bytes: usize,
}

/// The IPv4 packets of a capture, but for those of a node to itself.
fn packets(capture: &Path) -> Result<Vec<Packet>> {
    let bytes = fs::read(capture)?;
    let mut rest = bytes.get(24..).context("no capture")?;
    let mut found = Vec::new();
    while let Some(length) = rest.get(8..12) {
        let length = u32::from_ne_bytes(length.try_into()?) as usize;
        let frame = rest.get(16..16 + length).context("a cut frame")?;
        rest = rest.get(16 + length..).unwrap_or_default();
        if frame.get(12..14) != Some(&[8, 0]) {
            continue;
        }
        let packet = frame.get(14..).context("no packet")?;
        let head = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
        let address = |at: usize| -> Result<[u8; 4]> {
            Ok(packet.get(at..at + 4).context("no address")?.try_into()?)
        };
        let port = |at: usize| match packet.get(at..at + 2) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => 0,
        };
        let between = [address(12)?, address(16)?];
        if between.iter().all(|address| address[0] != 127) && between[0] != between[1] {
            let protocol = packet.get(9).copied().unwrap_or_default();
            found.push(Packet {
                protocol,
                ports: [port(head), port(head + 2)],
                between,
                bytes: length,
            });
        }
    }
    Ok(found)
}

/// Where the marker is in the memory of all nodes' processes and on their disks.
fn everywhere(cluster: &Cluster, marker: &Marker) -> Result<Vec<Hit>> {
    let mut hits = Vec::new();
    for node in cluster.nodes() {
        hits.extend(scan_memory(&processes_of(node)?, marker)?);
        hits.extend(scan_disk(node.root(), marker)?);
    }
    Ok(hits)
}

/// P1, P2, P7 and P8 in one scene: made at a follower, granted to a task on a worker, its logs read
/// from another manager, with everything captured that any node sent.
fn s037_s048_encrypted_in_transit(scene: &Scene) -> Result<()> {
    const PROTOCOL_UDP: u8 = 17;
    let cluster = scene.cluster;
    let (payload, name) = (Marker::new()?, Marker::new()?);
    let captures: Vec<_> =
        (0..crate::MEMBERS).map(|at| cluster.capture(at)).collect::<Result<_>>()?;
    let program = scene.bench.cli.program;
    let leader = cluster.leader()?;
    let follower = cluster.managers().find(|at| *at != leader).context("a follower")?;
    let cli = cluster.node(follower).cli(program);
    cli.ok_with(&["secret", "create", name.text(), "-"], payload.text().as_bytes())?;
    let flag = format!("source={},target=marker", name.text());
    let (service, placed) = scene.sleeper_on(WORKER, "transit", &["--secret", &flag])?;
    // By checksum: what a command prints passes through supervisor and daemon.
    scene.exec(&placed[0], &["sha256sum", "/run/secrets/marker"])?;
    // So that the other worker has something to say too.
    scene.sleeper_on(OTHER, "beside", &[])?;

    let shim = shim_of(cluster.node(WORKER), &placed[0].task)?;
    let held: BTreeSet<_> = everywhere(cluster, &payload)?.iter().map(|hit| hit.pid).collect();
    let hits = everywhere(cluster, &payload)?;
    ensure!(held == BTreeSet::from([shim.pid]), "the supervisor is {}: {hits:?}", shim.pid);

    scene.bench.cli.ok(&["service", "rm", &service])?;
    settle("the end of the supervisor", BOUND, || {
        Ok(!Path::new(&format!("/proc/{}", shim.pid)).exists())
    })?;
    let hits = everywhere(cluster, &payload)?;
    ensure!(hits.is_empty(), "after the end: {hits:?}");
    cli.ok(&["secret", "rm", name.text()])?;

    let mut peers = BTreeSet::new();
    for capture in captures {
        let file = capture.finish()?;
        // Not even its name passes in the clear.
        for marker in [&payload, &name] {
            let hits = scan_disk(&file, marker)?;
            ensure!(hits.is_empty(), "in transit: {hits:?}");
        }
        for packet in packets(&file)? {
            let own = packet.protocol == PROTOCOL_UDP && packet.ports.contains(&PORT);
            ensure!(own, "protocol {}, ports {:?}", packet.protocol, packet.ports);
            peers.insert(packet.between);
        }
    }
    ensure!(peers.len() >= 2 * crate::MEMBERS - 2, "who talked to whom? {peers:?}");
    Ok(())
}

/// The bytes that managers keep of a secret, as its ring key seals it: read out of a copy of a
/// manager's log by the storage key that lies beside it.
fn sealed_bytes(cluster: &Cluster, secret: &str) -> Result<Vec<u8>> {
    const MANAGER: usize = 0;
    let (node, copy) = (cluster.node(MANAGER), cluster.root().join("copy"));
    // What a copy finds is what a crash would leave.
    cluster.pause(MANAGER)?;
    let copied = copy_tree(&node.data_root().join("raft"), &copy.join("raft"));
    let key = fs::copy(node.data_root().join("storage.key"), copy.join("storage.key"));
    cluster.resume(MANAGER)?;
    copied?;
    key?;
    let store = IdentityStore::new(&copy);
    let config = || -> Result<skep_raft::Config> {
        Ok(skep_raft::Config {
            dir: store.raft_dir(),
            storage_key: store.load_storage_key()?,
            raft_id: 1,
            addr: String::new(),
            format: skep_core::format::FORMAT,
            on_fatal: FatalHook::exit(),
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        Raft::recover_alone(&config()?).await?;
        let raft = Raft::start(config()?, Arc::new(skep::clock::now)).await?;
        let found = raft.view(|state| {
            let material = state.materials().find(|material| material.spec.name == secret)?;
            Some(state.payload(&material.id, 1)?.bytes.clone())
        });
        raft.shutdown().await;
        anyhow::Ok(found)
    });
    fs::remove_dir_all(&copy)?;
    found?.with_context(|| format!("the log knows no {secret}"))
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// P3: a worker without a granted task has not even the ciphertext of a secret, neither as managers
/// keep it nor, as a secret larger than all else that it is sent shows, sealed to somebody else; and
/// one that had such a task keeps nothing of it.
fn s054_only_where_a_granted_task_runs(scene: &Scene) -> Result<()> {
    const SECRET_BYTES: usize = 500_000;
    let cluster = scene.cluster;
    let marker = Marker::new()?;
    let mut payload = marker.text().as_bytes().to_vec();
    payload.resize(SECRET_BYTES, b'.');
    let secret = scene.bench.name("large");

    let captures = [WORKER, OTHER].map(|at| cluster.capture(at));
    scene.bench.cli.ok_with(&["secret", "create", &secret, "-"], &payload)?;
    scene.sleeper_on(OTHER, "without", &[])?;
    let (service, placed) = scene.sleeper_on(WORKER, "granted", &["--secret", &secret])?;
    scene.exec(&placed[0], &["sha256sum", &format!("/run/secrets/{secret}")])?;
    let [granted, without] = captures;
    let received = |capture: Result<skep_integration::Capture>, at: usize| -> Result<usize> {
        let own = [10, 77, 0, u8::try_from(at + 1)?];
        let all = packets(&capture?.finish()?)?;
        Ok(all.iter().filter(|one| one.between[1] == own).map(|one| one.bytes).sum())
    };
    let (granted, without) = (received(granted, WORKER)?, received(without, OTHER)?);
    ensure!(granted > SECRET_BYTES, "the granted worker received {granted} bytes only");
    ensure!(without < SECRET_BYTES / 2, "the other worker received {without} bytes");

    // The bytes that all managers hold in their state are on no worker, in memory or on disk: one
    // with a granted task gets them opened and sealed anew, to that task's supervisor.
    let ciphertext = Marker::of(&sealed_bytes(cluster, &secret)?)?;
    for at in cluster.managers() {
        let hits = scan_memory(&processes_of(cluster.node(at))?, &ciphertext)?;
        ensure!(!hits.is_empty(), "manager {at} holds it, and the search does not find it");
    }
    for at in cluster.workers() {
        let node = cluster.node(at);
        let mut hits = scan_memory(&processes_of(node)?, &ciphertext)?;
        hits.extend(scan_disk(node.root(), &ciphertext)?);
        ensure!(hits.is_empty(), "the ciphertext is on worker {at}: {hits:?}");
    }

    let other = cluster.node(OTHER);
    let hits = scan_memory(&processes_of(other)?, &marker)?;
    ensure!(hits.is_empty() && scan_disk(other.root(), &marker)?.is_empty(), "{hits:?}");

    // The task ends, and with it what its node held; the next runs elsewhere.
    let old = look(cluster.node(WORKER), &placed[0].container)?;
    scene.bench.cli.ok(&["service", "rm", &service])?;
    settle("the end of the container", BOUND, || Ok(old.is_dead()))?;
    settle("the end of the supervisor", BOUND, || {
        Ok(shim_of(cluster.node(WORKER), &placed[0].task).is_err())
    })?;
    let hits = everywhere(cluster, &marker)?;
    ensure!(hits.is_empty(), "after the end: {hits:?}");
    Ok(())
}

/// The log, and with it every sealed payload, is on managers alone.
#[test]
fn a_worker_has_no_log() -> Result<()> {
    storm("nolog", |scene| {
        for at in scene.cluster.workers() {
            let log = scene.cluster.node(at).data_root().join("raft");
            let entries = match fs::read_dir(&log) {
                Ok(entries) => entries.count(),
                Err(_) => 0,
            };
            ensure!(entries == 0, "node {at} keeps a log");
        }
        Ok(())
    })
}

//! Where a secret's bytes are, and where they are not: memory, disk, mount table.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skep_integration::{
    Bench, Http, Marker, Node, look, mounts_naming, processes_of, scan_disk, scan_memory, settle,
    shim_of,
};

use crate::{bench, node};

const BOUND: Duration = Duration::from_secs(30);

/// Makes the secret by hand and answers the connection, which stays open.
fn create(node: &Node, name: &str, marker: &Marker) -> Result<Http> {
    let mut http = node.http()?;
    let body = json!({ "Name": name, "Labels": {}, "Data": STANDARD.encode(marker.text()) });
    let reply = http.json("POST", "/secrets/create", &body)?;
    ensure!(reply.status == 201, "{reply:?}");
    Ok(http)
}

/// Processes in whose memory the marker is.
fn holders(node: &Node, marker: &Marker) -> Result<BTreeSet<i32>> {
    let hits = scan_memory(&processes_of(node)?, marker)?;
    Ok(hits.into_iter().map(|hit| hit.pid).collect())
}

fn describe(node: &Node, marker: &Marker) -> String {
    format!(
        "{:?}\n{:?}",
        scan_memory(&processes_of(node).unwrap_or_default(), marker),
        processes_of(node)
    )
}

fn on_disk(node: &Node, marker: &Marker) -> Result<()> {
    // The log of the daemon is in neither root: it is searched with them.
    let hits = scan_disk(node.root(), marker)?;
    ensure!(hits.is_empty(), "on the disk: {hits:?}");
    Ok(())
}

/// A granted and an ungranted task, their secret read once; the connection that made it is open.
fn scene<'a>(node: &'a Node, marker: &Marker) -> Result<(Bench<'a>, String, Http)> {
    let bench = bench(node);
    let secret = bench.name("marker");
    let connection = create(node, &secret, marker)?;
    let service = bench.sleeper("granted", &["--secret", &secret])?;
    let other = bench.sleeper("other", &[])?;
    bench.container(&other)?;
    let container = bench.container(&service)?;
    // By checksum: what a command prints passes through shim and daemon.
    bench.exec(&container, &["sha256sum", &format!("/run/secrets/{secret}")])?;
    Ok((bench, service, connection))
}

#[test]
fn only_in_the_granted_shim() -> Result<()> {
    let node = node(&["--vault", "mlock"])?;
    let marker = Marker::new()?;
    let (bench, service, connection) = scene(&node, &marker)?;
    let seen = look(&node, &bench.container(&service)?)?;
    let shim = shim_of(&node, &seen.task)?;
    let wanted = BTreeSet::from([shim.pid]);
    ensure!(holders(&node, &marker)? == wanted, "shim {}: {}", shim.pid, describe(&node, &marker));
    on_disk(&node, &marker)?;

    // An equal payload sent again is compared, not kept.
    let name = bench.name("marker");
    let version = bench.inspect("secret", &name)?["Version"]["Index"].clone();
    let body =
        json!({ "Name": name, "Labels": { "a": "b" }, "Data": STANDARD.encode(marker.text()) });
    let mut again = node.http()?;
    let target = format!("/secrets/{name}/update?version={version}");
    ensure!(again.json("POST", &target, &body)?.status == 200, "update");
    ensure!(holders(&node, &marker)? == wanted, "after update: {}", describe(&node, &marker));

    // The next daemon takes over the task without its secret.
    node.kill_daemon()?;
    node.launch()?;
    ensure!(look(&node, &bench.container(&service)?)? == seen, "replaced");
    ensure!(holders(&node, &marker)? == wanted, "after restart: {}", describe(&node, &marker));

    bench.cli.ok(&["service", "rm", &service])?;
    let gone = || !std::path::Path::new(&format!("/proc/{}", shim.pid)).exists();
    settle("the end of the shim", BOUND, || Ok(gone()))?;
    ensure!(holders(&node, &marker)?.is_empty(), "after the end: {}", describe(&node, &marker));
    on_disk(&node, &marker)?;
    drop((connection, again));
    Ok(())
}

#[test]
fn nowhere_that_root_can_read() -> Result<()> {
    let node = node(&["--vault", "secretmem"])?;
    let marker = Marker::new()?;
    let (bench, service, connection) = scene(&node, &marker)?;
    ensure!(holders(&node, &marker)?.is_empty(), "{}", describe(&node, &marker));
    on_disk(&node, &marker)?;
    let shown = mounts_naming(&node.root().display().to_string())?;
    ensure!(shown.is_empty(), "the host's mount table: {shown:?}");
    bench.cli.ok(&["service", "rm", &service])?;
    bench.running(&service, 0)?;
    ensure!(holders(&node, &marker)?.is_empty(), "{}", describe(&node, &marker));
    drop(connection);
    Ok(())
}

/// Requests that are refused leave no more behind than those that are not.
#[test]
fn refused_payloads_are_not_kept() -> Result<()> {
    let node = node(&["--vault", "mlock"])?;
    let marker = Marker::new()?;
    let data = STANDARD.encode(marker.text());
    let mut open = Vec::new();
    for body in [
        json!({ "Name": "bad name", "Data": data }).to_string(),
        json!({ "Name": "types", "Labels": 5, "Data": data }).to_string(),
        json!({ "Data": data, "Name": 5 }).to_string(),
        format!("{{\"Data\":\"{data}\",\"Name\":"),
        format!("{{\"Name\":\"broken\",\"Data\":\"{data}!\"}}"),
        format!("{{\"Name\":\"unknown\",\"Data\":\"{data}\",\"Driver\":{{\"Name\":\"no-such\"}}}}"),
    ] {
        let mut http = node.http()?;
        let reply = http.request("POST", "/secrets/create", "application/json", body.as_bytes())?;
        ensure!((400..=501).contains(&reply.status), "{reply:?}");
        let told = String::from_utf8_lossy(&reply.body).into_owned();
        ensure!(!told.contains(&data[..20]), "the answer repeats it: {told}");
        open.push(http);
    }
    ensure!(holders(&node, &marker)?.is_empty(), "{}", describe(&node, &marker));
    on_disk(&node, &marker)?;
    drop(open);
    Ok(())
}

/// Descriptors that the container or its commands could inherit.
#[test]
fn containers_inherit_nothing() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let secret = bench.secret("fds", "x")?;
    let service = bench.sleeper("fds", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let seen = look(&node, &container)?;
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", seen.pid))?;
    let numbers: BTreeSet<_> =
        descriptors.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    ensure!(numbers == BTreeSet::from(["0", "1", "2"].map(str::to_owned)), "{numbers:?}");
    let listed = bench.exec(&container, &["sh", "-c", "ls /proc/self/fd | wc -l"])?;
    ensure!(listed.parse::<u32>().context(listed)? <= 4, "a command's descriptors");
    Ok(())
}

//! A node's directories: taken, damaged, foreign. A daemon that cannot use them says which and why,
//! and changes nothing.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Node, Options, Output};

const BOUND: Duration = Duration::from_secs(20);

/// Runs a daemon that must refuse to start, naming `place`.
fn refuses(node: &Node, args: &[String], place: &Path) -> Result<Output> {
    let place = place.display().to_string();
    let out = node.run_binary(args, BOUND).with_context(|| format!("with {place}"))?;
    ensure!(out.code == 1, "exit {}: {out:?}", out.code);
    ensure!(out.stderr.contains(&place), "does not name {place}: {out:?}");
    ensure!(!out.stderr.contains("panicked"), "{out:?}");
    Ok(out)
}

/// The node's arguments with one option's value replaced.
fn with(node: &Node, option: &str, value: &Path) -> Vec<String> {
    let mut args = node.daemon_args();
    if let Some(at) = args.iter().position(|arg| arg == option) {
        args[at + 1] = value.display().to_string();
    }
    args
}

#[test]
fn roots_in_use() -> Result<()> {
    let node = Node::start(Options::default())?;
    refuses(&node, &with(&node, "--run-root", &node.root().join("run-2")), &node.data_root())?;
    refuses(&node, &with(&node, "--data-root", &node.root().join("data-2")), &node.run_root())?;
    refuses(&node, &node.daemon_args(), node.root())?;
    node.get("/nodes")?;
    ensure!(node.stop_daemon()?.success(), "a clean stop: {}", node.log_tail());
    node.launch()
}

#[test]
fn socket_path_taken() -> Result<()> {
    let node = Node::prepare(Options::default())?;
    fs::create_dir_all(node.run_root())?;
    let other = UnixListener::bind(node.socket())?;
    refuses(&node, &node.daemon_args(), &node.socket())?;
    ensure!(node.socket().exists(), "another's socket was removed");

    // A socket that nobody serves is what a crash leaves: it is in nobody's way.
    drop(other);
    node.launch()?;
    node.kill_daemon()?;
    node.launch()?;
    node.stop_daemon()?;
    ensure!(!node.socket().exists(), "a stopped daemon leaves no socket");

    fs::write(node.socket(), "somebody's file")?;
    refuses(&node, &node.daemon_args(), &node.socket())?;
    ensure!(fs::read(node.socket())? == b"somebody's file", "a foreign file was touched");
    Ok(())
}

#[test]
fn keys_that_cannot_be_read() -> Result<()> {
    let node = Node::start(Options::default())?;
    node.skep().ok_with(&["secret", "create", "kept", "-"], b"x")?;
    node.stop_daemon()?;
    for name in ["node.json", "key.pem", "cert.pem", "storage.key"] {
        let file = node.data_root().join(name);
        let good = fs::read(&file)?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file)?.permissions());
        ensure!(mode & 0o077 == 0, "{name} is open to others: {mode:o}");
        for bad in [&b""[..], b"garbage", &good[..good.len() / 2]] {
            fs::write(&file, bad)?;
            refuses(&node, &node.daemon_args(), &file)?;
            ensure!(fs::read(&file)? == bad, "{name} was changed");
        }
        fs::remove_file(&file)?;
        fs::create_dir(&file)?;
        refuses(&node, &node.daemon_args(), &file)?;
        fs::remove_dir(&file)?;
        fs::write(&file, good)?;
    }
    node.launch()?;
    node.skep().ok(&["secret", "inspect", "kept"])?;
    Ok(())
}

#[test]
fn another_key_opens_nothing() -> Result<()> {
    let node = Node::start(Options::default())?;
    node.skep().ok_with(&["secret", "create", "kept", "-"], b"x")?;
    node.stop_daemon()?;
    let file = node.data_root().join("storage.key");
    let good = fs::read(&file)?;
    let mut wrong = good.clone();
    if let Some(byte) = wrong.iter_mut().rev().find(|byte| byte.is_ascii_alphanumeric()) {
        *byte = if *byte == b'0' { b'1' } else { b'0' };
    }
    fs::write(&file, wrong)?;
    let out = node.run_binary(&node.daemon_args(), BOUND)?;
    ensure!(out.code == 1 && !out.stderr.contains("panicked"), "{out:?}");
    fs::write(&file, good)?;
    node.launch()?;
    node.skep().ok(&["secret", "inspect", "kept"])?;
    Ok(())
}

#[test]
fn foreign_data_root() -> Result<()> {
    let node = Node::prepare(Options::default())?;
    fs::create_dir_all(node.data_root())?;
    fs::write(node.data_root().join("photos.txt"), "not skep's")?;
    refuses(&node, &node.daemon_args(), &node.data_root())?;
    let left: Vec<_> =
        fs::read_dir(node.data_root())?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["photos.txt"], "{left:?}");
    Ok(())
}

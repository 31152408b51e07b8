//! Ends that nobody asked for, and those that somebody insists on.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use skep::wire::shim::{ShimState, ToShim};
use skep_core::model::material::MaterialKind;

use crate::rig::{Rig, heeds_term, is_dead, time_until};

const STUBBORN: [&str; 3] = ["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"];
/// Longest life of a container after its shim.
const DEAD_WITHIN: Duration = Duration::from_millis(100);

#[test]
fn a_killed_shim_takes_secrets_and_container_along() -> Result<()> {
    let mut rig = Rig::new(&STUBBORN)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    shim.deliver(&[(secret, 1, "swordfish")])?;
    let pid = shim.start()?.pid;
    let sentinel = shim.sentinel()?;
    let seen = fs::File::open(format!("/proc/{pid}/root/run/secrets/s"))?;
    let mut bytes = [0; 16];
    let read = |bytes: &mut [u8]| std::os::unix::fs::FileExt::read_at(&seen, bytes, 0);
    ensure!(read(&mut bytes)? == 9);
    let fds = fs::read_dir(format!("/proc/{sentinel}/fd"))?.flatten();
    let links: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    ensure!(!links.iter().any(|l| l.ends_with("fuse")), "{links:?}");

    kill(Pid::from_raw(shim.pid().cast_signed()), Signal::SIGKILL)?;
    let unreadable = time_until(|| read(&mut bytes).is_err())?;
    let dead = time_until(|| is_dead(pid))?;
    drop(seen);
    eprintln!("unreadable after {unreadable:?}, dead {dead:?} later");
    ensure!(unreadable + dead < DEAD_WITHIN, "unreadable {unreadable:?}, dead {dead:?}");
    shim.gone()?;
    shim.nothing_left()?;
    time_until(|| is_dead(sentinel))?;
    Ok(())
}

#[test]
fn a_shim_killed_at_any_point_of_the_start_leaves_nothing() -> Result<()> {
    for after_ms in (0..48).step_by(4) {
        let mut shim = Rig::new(&STUBBORN)?.spawn()?;
        let sentinel = shim.sentinel()?;
        shim.say(&ToShim::Start)?;
        // Not to wait for anything: to hit another point each time.
        std::thread::sleep(Duration::from_millis(after_ms));
        kill(Pid::from_raw(shim.pid().cast_signed()), Signal::SIGKILL)?;
        shim.gone()?;
        time_until(|| is_dead(sentinel))?;
        shim.nothing_left().with_context(|| format!("killed after {after_ms} ms"))?;
        let id = &shim.rig.launch.container_id;
        let runtimes = fs::read_dir("/proc")?.flatten().filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(id.as_str())
        });
        ensure!(runtimes.count() == 0, "killed after {after_ms} ms: a runtime lives on");
    }
    Ok(())
}

#[test]
fn a_killed_sentinel_is_replaced() -> Result<()> {
    let mut shim = Rig::new(&STUBBORN)?.spawn()?;
    let pid = shim.start()?.pid;
    let first = shim.sentinel()?;
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL)?;
    let mut second = first;
    time_until(|| {
        second = shim.sentinel().unwrap_or(first);
        second != first
    })?;
    ensure!(shim.output(&["echo", "alive"])? == "alive\n");
    kill(Pid::from_raw(shim.pid().cast_signed()), Signal::SIGKILL)?;
    let dead = time_until(|| is_dead(pid))?;
    ensure!(dead < DEAD_WITHIN, "dead after {dead:?}");
    shim.gone()?;
    time_until(|| is_dead(second))?;
    shim.nothing_left()
}

#[test]
fn a_terminated_shim_stops_its_container_first() -> Result<()> {
    let mut shim =
        Rig::new(&["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"])?.spawn()?;
    heeds_term(shim.start()?.pid)?;
    kill(Pid::from_raw(shim.sentinel()?.cast_signed()), Signal::SIGTERM)?;
    kill(Pid::from_raw(shim.pid().cast_signed()), Signal::SIGTERM)?;
    ensure!(shim.gone()?.success() && shim.exit_record()?.code == 3);
    shim.nothing_left()
}

#[test]
fn a_shim_killed_while_it_waits_leaves_nothing() -> Result<()> {
    let mut rig = Rig::new(&STUBBORN)?;
    rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    let sentinel = shim.sentinel()?;
    kill(Pid::from_raw(shim.pid().cast_signed()), Signal::SIGKILL)?;
    shim.gone()?;
    time_until(|| is_dead(sentinel))?;
    shim.nothing_left()
}

#[test]
fn grace_ends_with_a_kill_also_without_a_daemon() -> Result<()> {
    let mut shim = Rig::new(&STUBBORN)?.spawn()?;
    let pid = shim.start()?.pid;
    heeds_term(pid)?;
    shim.say(&ToShim::Signal { signal: 15 })?;
    shim.say(&ToShim::Stop { signal: 15, grace_ms: 300 })?;
    shim.say(&ToShim::Probe)?;
    ensure!(shim.status(|_| true)?.state == ShimState::Running);
    shim.stream.shutdown(std::net::Shutdown::Both)?;
    ensure!(shim.gone()?.success() && is_dead(pid));
    ensure!(shim.exit_record()?.code == 137);
    shim.nothing_left()
}

#[test]
fn a_killed_container_is_reported() -> Result<()> {
    let mut shim = Rig::new(&STUBBORN)?.spawn()?;
    let pid = shim.start()?.pid;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
    let exit = shim.status(|s| s == ShimState::Exited)?.exit.context("no exit")?;
    ensure!(exit.code == 137 && !exit.oom, "{exit:?}");
    shim.gone()?;
    shim.nothing_left()
}

#[test]
fn death_for_memory_is_told() -> Result<()> {
    let mut rig = Rig::new(&["tail", "/dev/zero"])?;
    rig.edit_bundle(|bundle| {
        bundle["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    })?;
    let mut shim = rig.spawn()?;
    shim.say(&ToShim::Start)?;
    let exit = shim.status(|s| s == ShimState::Exited)?.exit.context("no exit")?;
    ensure!(exit.code == 137 && exit.oom, "{exit:?}");
    shim.gone()?;
    shim.nothing_left()
}

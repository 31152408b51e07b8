//! What a revocation takes away, what it leaves, and what brings a file back.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use skep::audit::What;
use skep::wire::shim::{FromShim, ShimState, ToShim};
use skep_core::id::MaterialId;
use skep_core::model::material::MaterialKind;
use skep_integration::settle;

use crate::rig::{BOUND, Rig, Shim, taken};

const FOREVER: [&str; 3] = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"];
/// Tells of every signal, one line each, once it can hear them.
const LISTENER: [&str; 3] = [
    "sh",
    "-c",
    "trap 'echo hup' HUP; trap 'echo usr' USR1; echo ready; while :; do sleep 0.05; done",
];

/// A running task that has one secret below `/run/secrets` and at a path of its own.
fn running() -> Result<(Shim, MaterialId, [PathBuf; 2])> {
    let mut rig = Rig::new(&FOREVER)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    rig.grant_again(secret, MaterialKind::Secret, "s", "/etc/app/key.pem");
    let mut shim = rig.spawn()?;
    ensure!(taken(&shim.deliver(&[(secret, 1, "one")])?) == Some(1));
    let status = shim.start()?;
    ensure!(status.state == ShimState::Running, "{status:?}");
    let place = |path: &str| PathBuf::from(format!("/proc/{}/root/{path}", status.pid));
    Ok((shim, secret, ["run/secrets/s", "etc/app/key.pem"].map(place)))
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

fn refusal(answer: FromShim) -> Result<(String, bool)> {
    match answer {
        FromShim::Refused { reason, is_outdated, .. } => Ok((reason, is_outdated)),
        other => bail!("not refused but {other:?}"),
    }
}

#[test]
fn nothing_can_be_read_once_it_is_answered_and_a_later_version_comes_back_in_place() -> Result<()> {
    let (mut shim, secret, places) = running()?;
    let inodes = places.each_ref().map(|path| fs::metadata(path).map(|found| found.ino()));
    let inodes = inodes.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    let open: Vec<File> = places.iter().map(File::open).collect::<std::io::Result<_>>()?;
    let answer = shim.revoke(&[(secret, 2)])?;
    ensure!(answer == FromShim::Delivered { sequence: 2, held: Vec::new(), last: 2 }, "{answer:?}");
    for (file, path) in open.iter().zip(&places) {
        ensure!(errno(file.read_at(&mut [0; 8], 0)) == Some(Errno::ENOENT), "{path:?}");
        ensure!(errno(File::open(path)) == Some(Errno::ENOENT), "{path:?}");
    }
    ensure!(shim.output(&["echo", "on"])? == "on\n", "the task goes on");

    // Whoever offers them: not the one it had, nor one that it never saw.
    for version in [1, 2] {
        let (reason, is_outdated) = refusal(shim.deliver(&[(secret, version, "old")])?)?;
        let text = format!("version {version} of {secret} is revoked, and so is every one up to 2");
        ensure!(reason == text && is_outdated, "{reason}");
    }
    shim.reconnect()?;
    ensure!(shim.hello.held.is_empty() && shim.hello.sequence == 2, "{:?}", shim.hello);

    let events = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mask = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
    let directory = places[0].parent().context("no directory")?;
    events.add_watch(directory, mask)?;
    ensure!(taken(&shim.deliver(&[(secret, 3, "three")])?) == Some(5));
    for ((path, inode), old) in places.iter().zip(inodes).zip(&open) {
        ensure!(fs::read_to_string(path)? == "three", "{path:?}");
        ensure!(fs::metadata(path)?.ino() == inode, "{path:?}");
        ensure!(errno(old.read_at(&mut [0; 8], 0)) == Some(Errno::ENOENT), "{path:?}");
    }
    for path in ["/run/secrets/s", "/etc/app/key.pem"] {
        ensure!(shim.output(&["cat", path])? == "three", "{path}");
    }
    let mut seen = AddWatchFlags::empty();
    while seen != mask {
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut fds, PollTimeout::try_from(BOUND)?)? == 1, "only {seen:?}");
        events.read_events()?.iter().for_each(|event| seen |= event.mask);
    }
    Ok(())
}

#[test]
fn a_revocation_leaves_later_versions_and_holds_good_however_late_it_comes() -> Result<()> {
    let (mut shim, secret, places) = running()?;
    let first = File::open(&places[0])?;
    ensure!(taken(&shim.deliver(&[(secret, 4, "four")])?) == Some(2));
    ensure!(first.read_at(&mut [0; 8], 0)? == 3, "its version is pinned");
    let second = File::open(&places[0])?;
    let answer = shim.revoke(&[(secret, 3)])?;
    ensure!(answer == FromShim::Delivered { sequence: 3, held: vec![(secret, 4)], last: 3 });
    ensure!(fs::read_to_string(&places[1])? == "four" && second.read_at(&mut [0; 8], 0)? == 4);
    let gone = errno(first.read_at(&mut [0; 8], 0));
    ensure!(gone == Some(Errno::ESTALE), "a revoked version that a handle had pinned: {gone:?}");

    // A delivery that comes late is passed over, a revocation is not.
    let late = shim.sealed(2, &[(secret, 5, "five")])?;
    shim.say(&ToShim::Deliver(late))?;
    let held = vec![(secret, 4)];
    ensure!(shim.hear()? == FromShim::Delivered { sequence: 2, held, last: 3 });
    shim.say(&ToShim::Revoke { sequence: 1, materials: vec![(secret, 4)] })?;
    ensure!(shim.hear()? == FromShim::Delivered { sequence: 1, held: Vec::new(), last: 3 });
    ensure!(errno(second.read_at(&mut [0; 8], 0)) == Some(Errno::ENOENT));
    Ok(())
}

#[test]
fn what_is_revoked_keeps_a_task_from_its_start() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    ensure!(taken(&shim.deliver(&[(secret, 1, "one")])?) == Some(1));
    ensure!(taken(&shim.revoke(&[(secret, 1)])?) == Some(2));
    shim.say(&ToShim::Start)?;
    let (reason, _) = refusal(shim.hear()?)?;
    ensure!(reason == "\"s\" is revoked", "{reason}");
    ensure!(taken(&shim.deliver(&[(secret, 2, "two")])?) == Some(3));
    ensure!(shim.start()?.state == ShimState::Running);
    ensure!(shim.output(&["cat", "/run/secrets/s"])? == "two");
    Ok(())
}

#[test]
fn opens_after_a_revocation_are_on_record_as_refused() -> Result<()> {
    let (mut shim, secret, places) = running()?;
    ensure!(taken(&shim.revoke(&[(secret, 1)])?) == Some(2));
    for path in &places {
        ensure!(errno(File::open(path)) == Some(Errno::ENOENT));
    }
    settle("the refused opens on record", BOUND, || {
        let records = shim.audit()?;
        let rows = records.iter().flat_map(|record| &record.rows);
        let of = |row: &&skep::audit::Row| {
            row.reader.as_ref().is_some_and(|reader| reader.material == secret)
        };
        Ok(rows.filter(of).map(|row| row.refused).sum::<u64>() == 2)
    })
}

/// What the container has said since it was ready.
fn said(shim: &Shim) -> Result<Vec<String>> {
    let log = shim.log().unwrap_or_default();
    Ok(log.lines().skip_while(|line| *line != "ready").skip(1).map(str::to_owned).collect())
}

#[test]
fn the_first_process_hears_of_new_versions_by_the_signals_it_asked_for() -> Result<()> {
    let mut rig = Rig::new(&LISTENER)?;
    let mut grant = |name: &str, signal: Option<i32>| -> Result<MaterialId> {
        let material = rig.grant(MaterialKind::Secret, name, name)?;
        rig.launch.files.last_mut().context("no file")?.signal = signal;
        Ok(material)
    };
    let (a, b) = (grant("a", Some(1))?, grant("b", Some(1))?);
    let (c, quiet) = (grant("c", Some(10))?, grant("quiet", None)?);
    let mut shim = rig.spawn()?;
    shim.deliver(&[(a, 1, "1"), (b, 1, "1"), (c, 1, "1"), (quiet, 1, "1")])?;
    shim.start()?;
    settle("its handlers", BOUND, || Ok(shim.log().is_ok_and(|log| log.contains("ready"))))?;

    // One delivery, one signal of each number; none for what asks for none, or for nothing new.
    shim.deliver(&[(quiet, 2, "2")])?;
    shim.deliver(&[(a, 1, "1")])?;
    shim.deliver(&[(a, 2, "2"), (b, 2, "2")])?;
    settle("the first signal", BOUND, || Ok(said(&shim)? == ["hup"]))?;
    shim.deliver(&[(c, 2, "2")])?;
    settle("the second signal", BOUND, || Ok(said(&shim)? == ["hup", "usr"]))?;
    // One that comes back after a revocation is new to who knew the one before.
    shim.revoke(&[(c, 2)])?;
    shim.deliver(&[(c, 3, "3")])?;
    settle("the third signal", BOUND, || Ok(said(&shim)? == ["hup", "usr", "usr"]))?;

    let signalled = || -> Result<Vec<_>> {
        let events = shim.audit()?.into_iter().flat_map(|record| record.events);
        Ok(events
            .filter_map(|event| match event.what {
                What::Signalled { materials, signal, sequence } => {
                    Some((materials, signal, sequence))
                }
                _ => None,
            })
            .collect())
    };
    let mut both = vec![a, b];
    both.sort_unstable();
    let expected = vec![(both, 1, 4), (vec![c], 10, 5), (vec![c], 10, 7)];
    settle("the signals on record", BOUND, || Ok(signalled()? == expected))
}

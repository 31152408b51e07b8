//! From launch to exit.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use skep::audit::{Record, What};
use skep::wire::shim::{ExecStart, FromShim, ShimState, ToShim};
use skep_core::id::MaterialId;
use skep_core::model::material::MaterialKind;
use skep_integration::settle;

use crate::rig::{BOUND, GRANTS, Rig, Shim, exec, is_dead, taken};

const FOREVER: [&str; 3] = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"];

#[test]
fn secrets_at_their_targets_and_nothing_on_the_host() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let first = rig.grant(MaterialKind::Secret, "first", "first")?;
    rig.grant_again(first, MaterialKind::Secret, "first", "/etc/app/key.pem");
    rig.launch.files[1].uid = 1000;
    rig.launch.files[1].mode = 0o400;
    let config = rig.grant(MaterialKind::Config, "settings", "settings.ini")?;
    let mut shim = rig.spawn()?;
    ensure!(shim.hello.status.state == ShimState::Waiting && shim.hello.held.is_empty());
    let items = [(first, 1, "swordfish"), (config, 4, "a=1\n")];
    ensure!(taken(&shim.deliver(&items)?) == Some(1));
    let status = shim.start()?;
    ensure!(status.state == ShimState::Running && status.pid > 0, "{status:?}");

    ensure!(shim.output(&["cat", "/run/secrets/first"])? == "swordfish");
    ensure!(shim.output(&["cat", "/etc/app/key.pem"])? == "swordfish");
    ensure!(shim.output(&["cat", "/settings.ini"])? == "a=1\n");
    let form = ["stat", "-c", "%a %u %g %h %s", "/run/secrets/first", "/etc/app/key.pem"];
    ensure!(shim.output(&form)? == "444 0 0 1 9\n400 1000 0 1 9\n");
    ensure!(shim.output(&["ls", "/run/secrets"])? == "first\n");
    let write = shim.exec(&["touch", "/run/secrets/other"])?;
    ensure!(write.code == 1 && write.stderr.contains("Read-only file system"), "{write:?}");
    shim.nothing_mounted()?;

    shim.reconnect()?;
    ensure!(shim.hello.held.len() == 2 && shim.hello.sequence == 1, "{:?}", shim.hello);
    ensure!(shim.hello.status.pid == status.pid);
    shim.say(&ToShim::Audit)?;
    let FromShim::Audit(rows) = shim.hear()? else { anyhow::bail!("no audit") };
    let opens: u64 = rows.iter().filter(|r| r.name == "first").map(|r| r.count).sum();
    ensure!(opens == 2, "{rows:?}");
    let pss = [shim.pid(), shim.sentinel()?].map(Shim::pss_kib);
    eprintln!("PSS of shim and sentinel in KiB: {pss:?}");

    shim.say(&ToShim::Stop { signal: 15, grace_ms: 20_000 })?;
    let ended = shim.status(|state| state == ShimState::Exited)?;
    let exit = ended.exit.context("no exit")?;
    ensure!(exit.code == 3 && !exit.oom && exit.error.is_none(), "{exit:?}");
    ensure!(exit.started_ns == status.started.0 && exit.at_ns > exit.started_ns);
    ensure!(shim.gone()?.success());
    ensure!(shim.exit_record()? == exit && is_dead(status.pid));
    let records = shim.audit()?;
    ensure!(records.last().is_some_and(Record::is_last), "{records:?}");
    ensure!(opened(&records, first) == 2 && opened(&records, config) == 1, "{records:?}");
    let readers = records.iter().flat_map(|record| &record.rows).filter_map(|r| r.reader.as_ref());
    let claims: Vec<_> = readers.map(|reader| reader.executable.as_deref()).collect();
    ensure!(claims.iter().all(|path| path.is_some_and(|p| p.ends_with("busybox"))), "{claims:?}");
    shim.nothing_left()
}

fn opened(records: &[Record], of: MaterialId) -> u64 {
    let rows = records.iter().flat_map(|record| &record.rows);
    let of = rows.filter(|row| row.reader.as_ref().is_some_and(|reader| reader.material == of));
    of.map(|row| row.opened).sum()
}

/// What was read a second before a supervisor is killed is on record, and so is what it did.
#[test]
fn the_audit_is_a_second_behind_at_most() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    shim.deliver(&[(secret, 1, "old")])?;
    shim.start()?;
    shim.output(&["cat", "/run/secrets/s"])?;
    shim.deliver(&[(secret, 2, "newer")])?;
    let read = Instant::now();
    shim.output(&["cat", "/run/secrets/s"])?;
    settle("both opens on record", BOUND, || Ok(opened(&shim.audit()?, secret) == 2))?;
    // With room for a busy machine; `AUDIT_DELAY` is what keeps it below a second.
    ensure!(read.elapsed() < Duration::from_secs(3), "{:?}", read.elapsed());
    ensure!(taken(&shim.revoke(&[(secret, 2)])?) == Some(3));
    ensure!(shim.exec(&["cat", "/run/secrets/s"])?.code == 1);
    let is_revoked = |records: &[Record]| {
        let mut events = records.iter().flat_map(|record| &record.events);
        events.any(|event| matches!(event.what, What::Revoked { version: Some(2), .. }))
    };
    settle("the revocation on record", BOUND, || Ok(is_revoked(&shim.audit()?)))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.pid().cast_signed()), Signal::SIGKILL)?;
    shim.gone()?;
    let records = shim.audit()?;
    let mut events = records.iter().flat_map(|record| &record.events);
    ensure!(events.any(|e| matches!(e.what, What::Switched { from: 1, to: 2, .. })), "{records:?}");
    ensure!(!records.last().is_some_and(Record::is_last), "{records:?}");
    Ok(())
}

/// As many as a task may have, at the top, in directories that some share, and at absolute
/// paths beside files of the image.
#[test]
fn as_many_grants_as_allowed_show_in_the_container() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let target = |index: usize| match index % 4 {
        0 => format!("top-{index}"),
        1 => format!("shared/by/several/{index}.pem"),
        2 => format!("alone/{index}/a/b/key"),
        _ => format!("/etc/app-{}/{index}.conf", index % 3),
    };
    let mut items = Vec::new();
    for index in 0..GRANTS {
        let material = rig.grant(MaterialKind::Secret, &format!("s{index}"), &target(index))?;
        items.push((material, 1, format!("content {index}\n")));
    }
    let mut shim = rig.spawn()?;
    let items: Vec<_> = items.iter().map(|(m, version, text)| (*m, *version, &**text)).collect();
    ensure!(taken(&shim.deliver(&items)?) == Some(1));
    ensure!(shim.start()?.state == ShimState::Running);
    let path = |index| std::path::Path::new("/run/secrets").join(target(index));
    let paths: Vec<_> = (0..items.len()).map(|i| path(i).display().to_string()).collect();
    // By way of a shell that reads meanwhile: so many small pieces do not fit in a pipe.
    let script = ["sh", "-c", "text=$(cat \"$@\") && echo \"$text\"", "sh"];
    let command: Vec<&str> = script.into_iter().chain(paths.iter().map(|p| &**p)).collect();
    let expected: String = items.iter().map(|(_, _, text)| *text).collect();
    ensure!(shim.output(&command)? == expected);
    ensure!(shim.output(&["ls", "/run/secrets/shared/by/several"])?.lines().count() == 16);
    ensure!(shim.output(&["cat", "/etc/passwd"])?.contains("root:"), "the image's own files");
    shim.nothing_mounted()
}

#[test]
fn a_new_version_in_place_is_seen_and_heard_of() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    shim.deliver(&[(secret, 1, "old")])?;
    let pid = shim.start()?.pid;
    let events = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mask = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
    events.add_watch(format!("/proc/{pid}/root/run/secrets/s").as_str(), mask)?;
    ensure!(taken(&shim.deliver(&[(secret, 2, "newer")])?) == Some(2));
    ensure!(shim.output(&["cat", "/run/secrets/s"])? == "newer");
    let mut seen = AddWatchFlags::empty();
    while seen != mask {
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(BOUND)?;
        ensure!(poll(&mut fds, timeout)? == 1, "only {seen:?}");
        events.read_events()?.iter().for_each(|event| seen |= event.mask);
    }
    ensure!(taken(&shim.revoke(&[(secret, 2)])?) == Some(3));
    let gone = shim.exec(&["cat", "/run/secrets/s"])?;
    ensure!(gone.code == 1 && gone.stderr.contains("No such file"), "{gone:?}");
    Ok(())
}

#[test]
fn output_goes_to_the_log_and_codes_to_the_record() -> Result<()> {
    let script = "echo to out; echo to err >&2; printf 'no end \\377'; exit 42";
    let mut shim = Rig::new(&["sh", "-c", script])?.spawn()?;
    shim.say(&ToShim::Start)?;
    let ended = shim.status(|state| state == ShimState::Exited)?;
    ensure!(ended.exit.context("no exit")?.code == 42);
    ensure!(shim.gone()?.success());
    let log = shim.log()?;
    for line in ["to out\n", "to err\n", "no end \u{fffd}"] {
        ensure!(log.contains(line), "{log:?}");
    }
    shim.nothing_left()
}

#[test]
fn execs_have_codes_users_directories_and_environment() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    rig.launch.user = "app".into();
    rig.launch.groups = vec!["29".into(), "77".into()];
    let mut shim = rig.spawn()?;
    shim.start()?;
    ensure!(shim.exec(&["sh", "-c", "exit 7"])?.code == 7);
    ensure!(shim.exec(&["sh", "-c", "kill -9 $$"])?.code == 137);
    let own = shim.output(&["id"])?;
    ensure!(
        own == "uid=1000(app) gid=1001(appgroup) groups=29(log),77,1001(appgroup)\n"
            || own.starts_with("uid=1000(app) gid=1001(appgroup) groups="),
        "{own}"
    );
    let other = ExecStart {
        user: "root:log".into(),
        cwd: "/tmp".into(),
        env: vec!["MORE=1".into(), "FROM_IMAGE=no".into()],
        ..exec(&["sh", "-c", "id -u; id -g; pwd; echo $MORE $FROM_IMAGE $HOME"])?
    };
    let ran = shim.exec_as(&other)?;
    ensure!(ran.stdout == "0\n29\n/tmp\n1 no /root\n", "{ran:?}");
    let caps = ["cat", "/proc/self/status"];
    let plain = ExecStart { user: "0".into(), ..exec(&caps)? };
    let all = ExecStart { privileged: true, ..plain.clone() };
    let effective =
        |text: &str| text.lines().find_map(|l| l.strip_prefix("CapEff:\t")).map(str::to_owned);
    let some = effective(&shim.exec_as(&plain)?.stdout).context("no capabilities")?;
    let all = ExecStart { id: exec(&[])?.id, ..all };
    let ran = shim.exec_as(&all)?;
    let full = effective(&ran.stdout).with_context(|| format!("{ran:?}"))?;
    ensure!(some == "00000000000000eb" && full > some, "{some} {full}");
    Ok(())
}

#[test]
fn execs_that_cannot_run_say_so_in_dockers_words() -> Result<()> {
    let mut shim = Rig::new(&FOREVER)?.spawn()?;
    shim.start()?;
    let missing = shim.exec(&["nosuch"])?;
    let words = "OCI runtime exec failed: exec failed: unable to start container process: exec: \
                 \"nosuch\": executable file not found in $PATH: unknown";
    ensure!(missing.code == 127 && missing.error.as_deref() == Some(words), "{missing:?}");
    ensure!(missing.stderr.is_empty() && missing.stdout.is_empty(), "{missing:?}");
    let plain = shim.exec(&["/bin/plain"])?;
    ensure!(plain.code == 126 && plain.error.is_some_and(|e| e.contains("permission denied")));
    let ghost = ExecStart { user: "ghost".into(), ..exec(&["true"])? };
    let ghost = shim.exec_as(&ghost)?;
    let words = "unable to find user ghost: no matching entries in passwd file";
    ensure!(ghost.error.as_deref() == Some(words), "{ghost:?}");
    let left = std::fs::read_dir(&shim.rig.launch.run_dir)?.flatten();
    let left: Vec<_> = left.map(|e| e.file_name().into_string().unwrap_or_default()).collect();
    ensure!(!left.iter().any(|name| name.starts_with("exec-")), "{left:?}");
    Ok(())
}

#[test]
fn terminals_of_execs_and_of_the_container() -> Result<()> {
    let script = "test -t 1 && echo a terminal; trap 'exit 3' TERM; while :; do sleep 0.05; done";
    let mut rig = Rig::new(&["sh", "-c", script])?;
    rig.edit_bundle(|bundle| {
        bundle["process"]["terminal"] = true.into();
        let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
        let pts = serde_json::json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts
        });
        bundle["mounts"].as_array_mut().expect("a list").push(pts);
    })?;
    let mut shim = rig.spawn()?;
    shim.start()?;
    let mut terminal = shim.exec_terminal(&["sh", "-c", "read x; stty size; echo $x"], (24, 80))?;
    terminal.write_all(b"typed\n")?;
    let mut text = Vec::new();
    // The end of a terminal is an error.
    let _ = terminal.read_to_end(&mut text);
    let text = String::from_utf8(text)?;
    ensure!(text.contains("24 80\r\n") && text.ends_with("typed\r\n"), "{text:?}");
    ensure!(matches!(shim.hear()?, FromShim::ExecExited { code: 0, error: None, .. }));
    shim.say(&ToShim::Stop { signal: 15, grace_ms: 20_000 })?;
    shim.status(|state| state == ShimState::Exited)?;
    shim.gone()?;
    ensure!(shim.log()? == "a terminal\r\n", "{:?}", shim.log()?);
    shim.nothing_left()
}

//! Secrets that change while tasks hold them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use skep_integration::{by_both, look, settle};

use crate::{BOUND, OTHER, Scene, WORKER};

by_both! { with crate::calm:
    a_new_version_reaches_running_tasks
    a_set_is_updated_as_one
    single_files_and_watchers
    pairs_match_through_current
}

by_both! { with crate::storm_by: no_slot_goes_back }

fn a_new_version_reaches_running_tasks(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("turns", "first")?;
    let (_, placed) = scene.sleeper_on(WORKER, "turns", &["--secret", &secret])?;
    let seen = look(scene.cluster.node(WORKER), &placed[0].container)?;
    let mut before = seen.open(&format!("/run/secrets/{secret}"))?;
    // By a manager that does not hold the task's session, and may not lead.
    let skep = scene.cluster.node(1).skep();
    let said = skep.ok_with(&["secret", "update", &secret, "-"], b"second")?;
    ensure!(said == format!("{secret} 2"), "{said}");
    let reads = |value: &str| Ok(scene.read(&placed[0], &secret)? == value);
    settle("the second version", BOUND, || reads("second"))?;
    let mut text = String::new();
    before.read_to_string(&mut text)?;
    ensure!(text == "first", "an open file changed: {text}");

    let said = skep.ok_with(&["secret", "update", &secret, "-"], b"second")?;
    ensure!(said == format!("{secret} 2"), "the same bytes made a version: {said}");
    let said = skep.ok(&["secret", "rollback", &secret])?;
    ensure!(said == format!("{secret} 3"), "{said}");
    settle("the first bytes again", BOUND, || reads("first"))?;
    let refused = skep.run(&["secret", "rollback", &secret, "9"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("has no version 9"), "{refused:?}");
    let history = skep.ok(&["secret", "history", &secret])?;
    let lines: Vec<&str> = history.lines().collect();
    ensure!(lines.len() == 4 && lines[1].starts_with('3'), "{history}");
    ensure!(lines[1].contains("uid 0 at n2") && lines[1].contains("turns"), "{history}");
    ensure!(!seen.is_dead(), "the task did not survive");
    Ok(())
}

fn a_set_is_updated_as_one(scene: &Scene) -> Result<()> {
    let (key, cert) = (scene.bench.secret("key", "key 1")?, scene.bench.secret("cert", "cert 1")?);
    let grants = ["--secret", key.as_str(), "--secret", cert.as_str()];
    let (_, placed) = scene.sleeper_on(OTHER, "pair", &grants)?;
    let skep = scene.cluster.node(0).skep();
    let root = scene.cluster.root();
    let file = |name: &str, text: &str| -> Result<String> {
        let path = root.join(scene.bench.name(name));
        fs::write(&path, text)?;
        Ok(format!("{name}={}", path.display()))
    };
    let [new_key, new_cert] = [file(&key, "key 2")?, file(&cert, "cert 2")?];
    let refused = skep.run(&["secret", "update", &new_key, &file("nobody", "x")?])?;
    ensure!(refused.code == 1, "{refused:?}");
    ensure!(scene.read(&placed[0], &key)? == "key 1", "a refused set changed something");
    let said = skep.ok(&["secret", "update", "--keep", "2", &new_key, &new_cert])?;
    ensure!(said == format!("{key} 2\n{cert} 2"), "{said}");
    settle("both", BOUND, || {
        let both = [scene.read(&placed[0], &key)?, scene.read(&placed[0], &cert)?];
        Ok(both == ["key 2", "cert 2"])
    })?;
    let history = skep.ok(&["secret", "history", "-q", &key])?;
    ensure!(history == "2\n1", "{history}");
    Ok(())
}

/// A file that is bound alone changes in place, and whoever watches hears of it.
fn single_files_and_watchers(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("watched", "one")?;
    let alone = format!("source={secret},target=/etc/app/key.pem,uid=7,mode=0440");
    let grants = ["--secret", secret.as_str(), "--secret", alone.as_str()];
    let (_, placed) = scene.sleeper_on(WORKER, "watched", &grants)?;
    let seen = look(scene.cluster.node(WORKER), &placed[0].container)?;
    let files = [format!("/run/secrets/{secret}"), "/etc/app/key.pem".to_owned()];
    let inodes = || -> Result<Vec<(u64, u64)>> {
        let inode = |file: &String| {
            let meta = fs::metadata(seen.path(file)).with_context(|| file.clone())?;
            Ok((meta.ino(), meta.size()))
        };
        files.iter().map(inode).collect()
    };
    let before = inodes()?;
    let events = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mask = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
    let mut watches = BTreeMap::new();
    for file in &files {
        watches.insert(events.add_watch(&seen.path(file), mask)?, file.as_str());
    }
    scene.cluster.node(2).skep().ok_with(&["secret", "update", &secret, "-"], b"and two")?;
    let mut heard: BTreeMap<&str, AddWatchFlags> = BTreeMap::new();
    while heard.len() < files.len() || heard.values().any(|flags| *flags != mask) {
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut fds, PollTimeout::try_from(BOUND)?)? == 1, "only {heard:?}");
        for event in events.read_events()? {
            let file = watches.get(&event.wd).context("another watch")?;
            *heard.entry(file).or_insert(AddWatchFlags::empty()) |= event.mask;
        }
    }
    for file in &files {
        let text = scene.exec(&placed[0], &["cat", file])?;
        ensure!(text == "and two", "{file}: {text}");
    }
    for (before, after) in before.iter().zip(inodes()?) {
        ensure!(before.0 == after.0 && after.1 == 7, "{before:?} became {after:?}");
    }
    let shown = scene.exec(&placed[0], &["stat", "-c", "%u %a", "/etc/app/key.pem"])?;
    ensure!(shown == "7 440", "{shown}");
    Ok(())
}

/// Whoever opens two files below one `..current` reads two that belong together, at any time.
fn pairs_match_through_current(scene: &Scene) -> Result<()> {
    const TURNS: u32 = 30;
    let (key, cert) = (scene.bench.secret("pkey", "0")?, scene.bench.secret("pcert", "0")?);
    let grants = ["--secret", key.as_str(), "--secret", cert.as_str()];
    let (_, placed) = scene.sleeper_on(OTHER, "current", &grants)?;
    let seen = look(scene.cluster.node(OTHER), &placed[0].container)?;
    let read_pair = || -> Result<[u32; 2]> {
        loop {
            let current = fs::read_link(seen.path("/run/secrets/..current"))?;
            let set = seen.path("/run/secrets").join(current);
            let texts = [&key, &cert].map(|name| fs::read_to_string(set.join(name)));
            match texts {
                [Ok(key), Ok(cert)] => return Ok([key.parse()?, cert.parse()?]),
                // Only the last two sets stay: this reader was that slow.
                [Err(error), _] | [_, Err(error)] if error.kind() == ErrorKind::NotFound => {}
                [Err(error), _] | [_, Err(error)] => return Err(error.into()),
            }
        }
    };
    let over = AtomicBool::new(false);
    let skep = scene.cluster.node(1).skep();
    let file = |name: &str, turn: u32| -> Result<String> {
        let path = scene.cluster.root().join(scene.bench.name(&format!("{name}-{turn}")));
        fs::write(&path, turn.to_string())?;
        Ok(format!("{name}={}", path.display()))
    };
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<u32> {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                let [key, cert] = read_pair()?;
                ensure!(key == cert, "a key of version {key} and a certificate of {cert}");
                ensure!(key >= last, "{key} after {last}");
                last = key;
            }
            Ok(last)
        });
        let turned = (1..=TURNS).try_for_each(|turn| {
            skep.ok(&["secret", "update", &file(&key, turn)?, &file(&cert, turn)?])?;
            anyhow::Ok(())
        });
        let last = turned
            .and_then(|()| settle("the last pair", BOUND, || Ok(read_pair()? == [TURNS, TURNS])));
        over.store(true, Ordering::Relaxed);
        let read = reader.join().map_err(|_| anyhow!("the reader broke off"))?;
        last?;
        ensure!(read? > 0, "it never saw a change");
        Ok(())
    })
}

/// Reads a file of a number again and again, and notes the last one and each that was less than
/// the one before.
fn watch_number(path: &PathBuf, over: &AtomicBool, last: &Mutex<u32>) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let text = fs::read_to_string(path)?;
        let number = text.parse().with_context(|| format!("{text:?}"))?;
        let mut last = last.lock().map_err(|_| anyhow!("poisoned"))?;
        ensure!(number >= *last, "{} went back from {last} to {number}", path.display());
        *last = number;
    }
    Ok(())
}

/// Whatever becomes of managers, links and daemons, a task reads an older version never again, and
/// in the end the latest.
fn no_slot_goes_back(scene: &Scene) -> Result<()> {
    let cluster = scene.cluster;
    let secret = scene.bench.secret("onward", "0")?;
    let mut paths = Vec::new();
    for (at, base) in [(WORKER, "onward-a"), (OTHER, "onward-b")] {
        let (_, placed) = scene.sleeper_on(at, base, &["--secret", &secret])?;
        let seen = look(cluster.node(at), &placed[0].container)?;
        paths.push(seen.path(&format!("/run/secrets/{secret}")));
    }
    let over = AtomicBool::new(false);
    let lasts = [Mutex::new(0), Mutex::new(0)];
    let number = |at: usize| lasts[at].lock().map(|last| *last).map_err(|_| anyhow!("poisoned"));
    let mut turn = 0;
    let mut update = |manager: usize| -> Result<u32> {
        turn += 1;
        let skep = cluster.node(manager).skep();
        settle("an update", BOUND, || {
            let args = ["secret", "update", secret.as_str(), "-"];
            Ok(skep.run_with(&args, turn.to_string().as_bytes())?.code == 0)
        })?;
        Ok(turn)
    };
    let mut story = || -> Result<()> {
        for manager in [0, 1, 2, 0, 1, 2] {
            update(manager)?;
        }
        let leader = cluster.leader()?;
        let others: Vec<usize> = cluster.managers().filter(|at| *at != leader).collect();
        cluster.kill(leader)?;
        let told = update(others[0])?;
        settle("both under a new leader", BOUND, || Ok(number(0)? == told && number(1)? == told))?;
        cluster.isolate(WORKER)?;
        for manager in [0, 1, 0, 1] {
            update(others[manager])?;
        }
        let told = update(others[1])?;
        settle("the one that is not cut off", BOUND, || Ok(number(1)? == told))?;
        ensure!(number(0)? < told, "it heard of it through a cut link");
        cluster.restart(leader)?;
        cluster.heal()?;
        settle("the one that was cut off", BOUND, || Ok(number(0)? == told))?;
        // A daemon that is away costs its tasks nothing.
        cluster.kill(OTHER)?;
        let told = update(leader)?;
        settle("the other", BOUND, || Ok(number(0)? == told))?;
        cluster.restart(OTHER)?;
        settle("the one whose daemon was away", BOUND, || Ok(number(1)? == told))
    };
    thread::scope(|scope| {
        let readers: Vec<_> = paths
            .iter()
            .zip(&lasts)
            .map(|(path, last)| scope.spawn(|| watch_number(path, &over, last)))
            .collect();
        let told = story();
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().map_err(|_| anyhow!("a reader broke off"))??;
        }
        told
    })
}

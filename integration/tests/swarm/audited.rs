//! Who reads what: the audit, from any manager, by both clients' containers.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep::audit::{Next, Record, next, put};
use skep_integration::{Placed, by_both, look, wait_until};

use crate::{BOUND, OTHER, Scene, WORKER, name_of};

/// How soon a read is to be found: it is written within a second, and sent within another.
const SOON: Duration = Duration::from_secs(2);
/// What the machine may take on top: builds with checks, and other clusters beside this one.
const SLACK: Duration = Duration::from_secs(3);

/// Lines that may wait to be looked at.
const LINES: usize = 1_024;

by_both! {
    with crate::calm:
    reads_are_found_at_any_manager
    what_is_asked_for_narrows_the_audit
    one_who_follows_sees_reads_as_they_happen
    a_removed_secret_is_still_accounted_for
    refused_opens_are_counted_after_a_revocation
}
by_both! {
    with crate::storm_by:
    audits_of_a_node_that_was_cut_off_arrive_later
    a_record_that_was_edited_on_its_node_is_found
}

/// Lines of an audit.
fn audit(scene: &Scene, at: usize, args: &[&str]) -> Result<Vec<Value>> {
    let skep = scene.cluster.node(at).skep();
    let text = skep.ok(&[&["secret", "audit", "--format", "json"], args].concat())?;
    text.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
}

/// Opens by a task as this user.
fn opens<'a>(lines: &'a [Value], task: &Placed, uid: u64) -> impl Iterator<Item = &'a Value> {
    let task = task.task.clone();
    lines.iter().filter(move |line| {
        line["Event"] == "opens" && line["TaskID"] == task.as_str() && line["UID"] == uid
    })
}

fn count(lines: &[Value], task: &Placed, uid: u64) -> u64 {
    opens(lines, task, uid).filter_map(|line| line["Opened"].as_u64()).sum()
}

/// Reads a secret as a user of the container.
fn read_as(scene: &Scene, user: &str, task: &Placed, secret: &str) -> Result<()> {
    let cli = scene.cluster.node(task.node).cli(scene.bench.cli.program);
    let path = format!("/run/secrets/{secret}");
    cli.ok(&["exec", "--user", user, &task.container, "cat", &path]).map(drop)
}

fn reads_are_found_at_any_manager(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("seen", "seen")?;
    let grant = format!("source={secret},mode=0444");
    let flags = ["--secret", grant.as_str()];
    let (one, on_worker) = scene.sleeper_on(WORKER, "seen-a", &flags)?;
    let (_, on_other) = scene.sleeper_on(OTHER, "seen-b", &flags)?;
    let tasks = [&on_worker[0], &on_other[0]];
    for task in tasks {
        read_as(scene, "0", task, &secret)?;
        read_as(scene, "0", task, &secret)?;
        read_as(scene, "1234", task, &secret)?;
    }
    for manager in scene.cluster.managers() {
        let all = wait_until("all reads", SOON + SLACK, || {
            let lines = audit(scene, manager, &[&secret])?;
            let is_all = tasks
                .iter()
                .all(|task| count(&lines, task, 0) >= 2 && count(&lines, task, 1234) >= 1);
            Ok(is_all.then_some(lines))
        })?;
        let row = opens(&all, tasks[0], 1234).next().context("no row")?;
        ensure!(row["Hostname"] == name_of(WORKER).as_str(), "{row}");
        ensure!(row["TaskName"] == format!("{one}.1") && row["ServiceName"] == one.as_str());
        ensure!(row["Name"] == secret.as_str() && row["Version"] == 1, "{row}");
        let claim = row["ExecutableClaim"].as_str().unwrap_or_default();
        ensure!(claim.ends_with("busybox") || claim.ends_with("cat"), "{row}");
        ensure!(all.iter().any(|line| line["Event"] == "delivered"), "{all:?}");
    }
    let table = scene.cluster.node(1).skep().ok(&["secret", "audit", &secret])?;
    let head = table.lines().next().context("an empty table")?;
    ensure!(head.contains("EXECUTABLE (CLAIMED)") && head.starts_with("TIME"), "{table}");
    ensure!(!table.contains("seen\n"), "a payload in the audit: {table}");

    let verdict = wait_until("all is anchored", BOUND, || {
        let verdict =
            scene.cluster.node(2).skep().run(&["secret", "audit", "--verify", &secret])?;
        Ok(verdict
            .stdout
            .matches("anchored up to record")
            .eq(["anchored up to record"; 2])
            .then_some(verdict))
    })?;
    ensure!(verdict.code == 0 && !verdict.stdout.contains("NOT INTACT"), "{verdict:?}");
    Ok(())
}

fn what_is_asked_for_narrows_the_audit(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("narrow", "narrow")?;
    let flags = ["--secret", secret.as_str()];
    let (one, on_worker) = scene.sleeper_on(WORKER, "narrow-a", &flags)?;
    let (_, on_other) = scene.sleeper_on(OTHER, "narrow-b", &flags)?;
    for task in [&on_worker[0], &on_other[0]] {
        scene.read(task, &secret)?;
    }
    wait_until("both", BOUND, || {
        let lines = audit(scene, 0, &[&secret])?;
        let is_both = [&on_worker, &on_other].iter().all(|it| count(&lines, &it[0], 0) > 0);
        Ok(is_both.then_some(()))
    })?;
    let of = |args: &[&str]| audit(scene, 1, &[args, &[secret.as_str()]].concat());
    let all_of = |lines: &[Value], node: usize| {
        !lines.is_empty() && lines.iter().all(|line| line["Hostname"] == name_of(node).as_str())
    };
    ensure!(all_of(&of(&["--node", &name_of(OTHER)])?, OTHER));
    ensure!(all_of(&of(&["--task", &format!("{one}.1")])?, WORKER));
    ensure!(all_of(&of(&["--task", &on_other[0].task])?, OTHER));
    ensure!(of(&["--since", "0s"])?.is_empty(), "the future was read");
    ensure!(of(&["--until", "1h"])?.is_empty(), "read before it was made");
    ensure!(!of(&["--since", "1h"])?.is_empty());
    let skep = scene.cluster.node(1).skep();
    let cut = skep.run(&["secret", "audit", "-n", "1", "--format", "json", &secret])?;
    ensure!(cut.stdout.lines().count() == 1 && cut.stderr.contains("only the latest"), "{cut:?}");
    let wrong = skep.run(&["secret", "audit", "--since", "soon", &secret])?;
    ensure!(wrong.code == 1 && wrong.stderr.contains("neither a time nor a duration"));
    let nobody = skep.run(&["secret", "audit", &scene.bench.name("never")])?;
    ensure!(nobody.code == 1 && nobody.stderr.contains("not found"), "{nobody:?}");
    Ok(())
}

/// A client that goes on, its lines as they come.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(scene: &Scene, at: usize, secret: &str) -> Result<Self> {
        let skep = scene.cluster.node(at).skep();
        let args = ["secret", "audit", "--follow", "--format", "json", secret];
        let mut child = skep.command(&args).spawn()?;
        let out = child.stdout.take().context("no output")?;
        let (tell, lines) = mpsc::sync_channel(LINES);
        thread::spawn(move || {
            let mut lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.try_for_each(|line| tell.send(line))
        });
        Ok(Self { child, lines })
    }

    /// Waits for a line that is as wanted.
    fn wait(&self, bound: Duration, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let left = bound.saturating_sub(begun.elapsed());
            let line = self.lines.recv_timeout(left).context("no such line in time")?;
            let line: Value = serde_json::from_str(&line)?;
            if is_wanted(&line) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It is over one way or the other.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one_who_follows_sees_reads_as_they_happen(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("followed", "followed")?;
    let (_, placed) = scene.sleeper_on(WORKER, "followed", &["--secret", &secret])?;
    let following = Following::start(scene, 2, &secret)?;
    // What was before comes first: then it follows.
    following.wait(BOUND, |line| line["Event"] == "delivered")?;
    scene.read(&placed[0], &secret)?;
    let task = placed[0].task.as_str();
    following.wait(SOON + SLACK, |line| line["Event"] == "opens" && line["TaskID"] == task)?;
    let skep = scene.cluster.node(1).skep();
    skep.ok_with(&["secret", "update", &secret, "-"], b"second")?;
    let switched = following.wait(SOON + SLACK, |line| line["Event"] == "switched")?;
    ensure!(switched["From"] == 1 && switched["Version"] == 2, "{switched}");
    Ok(())
}

fn a_removed_secret_is_still_accounted_for(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("gone", "gone")?;
    let (service, placed) = scene.sleeper_on(OTHER, "gone", &["--secret", &secret])?;
    let id = scene.bench.inspect("secret", &secret)?["ID"].as_str().context("ID")?.to_owned();
    scene.read(&placed[0], &secret)?;
    scene.bench.cli.ok(&["service", "rm", &service])?;
    scene.bench.cli.ok(&["secret", "rm", &secret])?;
    for word in [secret.as_str(), id.as_str()] {
        wait_until("its reads", BOUND, || {
            let found =
                scene.cluster.node(1).skep().run(&["secret", "audit", "--format", "json", word])?;
            let lines: Vec<Value> =
                found.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            Ok((count(&lines, &placed[0], 0) > 0).then_some(()))
        })?;
    }
    let ended = wait_until("the end", BOUND, || {
        let all = audit(scene, 0, &["--task", &placed[0].task])?;
        Ok(all.into_iter().find(|line| line["Event"] == "ended"))
    })?;
    ensure!(ended["NodeID"].is_string(), "{ended}");
    Ok(())
}

fn refused_opens_are_counted_after_a_revocation(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("taken", "taken")?;
    let (_, placed) = scene.sleeper_on(WORKER, "taken", &["--secret", &secret])?;
    scene.read(&placed[0], &secret)?;
    scene.cluster.node(0).skep().ok(&["secret", "revoke", &secret])?;
    let refused = scene.read(&placed[0], &secret);
    ensure!(refused.is_err(), "read after it was revoked: {refused:?}");
    wait_until("the refusal", SOON + SLACK, || {
        let lines = audit(scene, 1, &[&secret])?;
        let was_refused = lines.iter().any(|line| {
            line["Event"] == "opens" && line["Refused"].as_u64().is_some_and(|times| times > 0)
        });
        let is_revoked = lines.iter().any(|line| line["Event"] == "revoked");
        Ok((was_refused && is_revoked).then_some(()))
    })
}

fn audits_of_a_node_that_was_cut_off_arrive_later(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("late", "late")?;
    let (service, placed) = scene.sleeper_on(OTHER, "late", &["--secret", &secret])?;
    let seen = look(scene.cluster.node(OTHER), &placed[0].container)?;
    wait_until("its delivery", BOUND, || {
        let lines = audit(scene, 0, &[&secret])?;
        Ok(lines.iter().any(|line| line["Event"] == "delivered").then_some(()))
    })?;
    scene.cluster.isolate(OTHER)?;
    // By the host: no session reaches that node.
    std::io::read_to_string(seen.open(&format!("/run/secrets/{secret}"))?)?;
    scene.await_state(OTHER, "down")?;
    ensure!(count(&audit(scene, 0, &[&secret])?, &placed[0], 0) == 0, "a read came through");
    scene.cluster.heal()?;
    wait_until("the read", BOUND, || {
        let lines = audit(scene, 0, &["--node", &name_of(OTHER), &secret])?;
        Ok((count(&lines, &placed[0], 0) > 0).then_some(()))
    })?;
    let verdict = scene.cluster.node(1).skep().run(&["secret", "audit", "--verify", &secret])?;
    ensure!(verdict.code == 0, "{verdict:?}");
    scene.bench.cli.ok(&["service", "rm", &service]).map(drop)
}

/// Records in the file of a task's audit, each with where it stands.
fn records(file: &Path) -> Result<Vec<(usize, Record)>> {
    let bytes = fs::read(file)?;
    let (mut records, mut at) = (Vec::new(), 0);
    while let Next::Record { body, taken } = next(&bytes[at..]) {
        records.push((at, Record::parse(body)?));
        at += taken;
    }
    Ok(records)
}

/// What a node has not sent yet can be changed there, as long as nobody looks: a record that was is
/// found by the one behind it.
fn a_record_that_was_edited_on_its_node_is_found(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("edited", "edited")?;
    let (service, placed) = scene.sleeper_on(OTHER, "edited", &["--secret", &secret])?;
    let node = scene.cluster.node(OTHER);
    let seen = look(node, &placed[0].container)?;
    wait_until("its delivery", BOUND, || {
        let lines = audit(scene, 0, &[&secret])?;
        Ok(lines.iter().any(|line| line["Event"] == "delivered").then_some(()))
    })?;
    scene.cluster.kill(OTHER)?;
    let file = node.data_root().join("tasks").join(&placed[0].task).join("audit");
    let before = records(&file)?.len();
    for more in 1..=2 {
        std::io::read_to_string(seen.open(&format!("/run/secrets/{secret}"))?)?;
        wait_until("a record", BOUND, || {
            Ok((records(&file)?.len() >= before + more).then_some(()))
        })?;
    }
    let all = records(&file)?;
    let (at, record) = all.get(before).context("no record")?;
    let mut record = record.clone();
    ensure!(record.rows.iter().any(|row| row.opened > 0), "{record:?}");
    record.rows.iter_mut().for_each(|row| row.opened = 0);
    let mut bytes = Vec::new();
    put(&mut bytes, &record.to_body());
    // The same length, and in place: its supervisor writes on behind it.
    let next = all.get(before + 1).context("no record behind it")?.0;
    ensure!(next - at == bytes.len(), "{record:?}");
    OpenOptions::new().write(true).open(&file)?.write_all_at(&bytes, *at as u64)?;
    scene.cluster.restart(OTHER)?;

    let verdict = wait_until("all records", BOUND, || {
        let verdict =
            scene.cluster.node(1).skep().run(&["secret", "audit", "--verify", &secret])?;
        Ok((verdict.code == 1).then_some(verdict))
    })?;
    let expected = format!(
        "record {} does not follow from record {}: one was changed",
        record.sequence + 1,
        record.sequence
    );
    ensure!(verdict.stdout.contains(&expected), "{expected}: {verdict:?}");
    scene.bench.cli.ok(&["service", "rm", &service]).map(drop)
}

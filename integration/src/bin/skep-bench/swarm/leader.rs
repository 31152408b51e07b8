//! The leader's end, violent and clean, and the end of all.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{MANAGERS, Swarm};
use crate::client::Client;
use crate::clock::{ms_between, ms_since, now_ns};
use crate::report::Report;
use crate::tasks::secret;

const KILLS: usize = 9;
const STOPS: usize = 7;
const RESTARTS: usize = 3;
/// How long a client in a hurry waits, and pauses before it tries again.
const HURRY: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(20);
/// How long a patient one waits, and all together at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a swarm is let alone before its leader goes, and how long a killed daemon stays away.
const CALM: Duration = Duration::from_secs(3);

/// `kill -9` and a clean stop, several times; the daemon is started anew each time.
pub(super) fn run(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    let kind = swarm.kind;
    let ends = [
        (Signal::SIGKILL, KILLS, ["leader-kill", "leader-kill-patient", "leader-kill-back"]),
        (Signal::SIGTERM, STOPS, ["leader-stop", "leader-stop-patient", "leader-stop-back"]),
    ];
    for (signal, rounds, [row, patient, back]) in ends {
        let (mut first, mut waits, mut healed) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..kind.rounds(rounds) {
            let name = format!("{row}-{round}");
            let leader = swarm.leader()?;
            sleep(CALM);
            let written = end(swarm, leader, signal, &name)?;
            first.push(written.hurried_ms);
            waits.extend(written.patient_ms);
            sleep(CALM);
            swarm.engine_mut(leader)?.launch()?;
            let launched_ns = now_ns();
            swarm.await_whole()?;
            healed.push(ms_since(launched_ns));
        }
        report.add(row, kind, &first)?;
        report.add_in("ms", patient, kind, &waits)?;
        report.add_in("ms", back, kind, &healed)?;
    }
    Ok(())
}

/// Milliseconds from the signal to the first answers.
#[derive(Debug)]
struct Written {
    /// Of those that try again and again.
    hurried_ms: f64,
    /// Of those that ask once and wait; one that was refused is not counted.
    patient_ms: Vec<f64>,
}

/// Ends the leader while both other managers are asked to write.
fn end(swarm: &mut Swarm, leader: usize, signal: Signal, name: &str) -> Result<Written> {
    let others = swarm.others(leader);
    let sockets = others.iter().map(|at| Ok(swarm.engine(*at)?.socket()));
    let sockets = sockets.collect::<Result<Vec<_>>>()?;
    let before = format!("{name}-before");
    let mut client = swarm.engine(*others.first().context("another manager")?)?.client();
    secret(&mut client, &before, b"x")?;
    let pid = Pid::from_raw(swarm.engine(leader)?.pid()?);
    let (first, patient) = (Mutex::new(None), Mutex::new(Vec::new()));
    let began_ns = now_ns();
    kill(pid, signal)?;
    thread::scope(|scope| {
        for (at, socket) in sockets.iter().enumerate() {
            let (first, patient) = (&first, &patient);
            scope.spawn(move || hurry(socket, &format!("{name}-{at}"), began_ns, first));
            scope.spawn(move || {
                let mut client = Client::within(socket, PATIENCE);
                if secret(&mut client, &format!("{name}-{at}-patient"), b"x").is_ok() {
                    lock(patient).push(ms_since(began_ns));
                }
            });
        }
    });
    swarm.engine_mut(leader)?.await_end()?;
    let secrets = client.get("/secrets")?;
    let mut names = secrets.as_array().into_iter().flatten().map(|it| &it["Spec"]["Name"]);
    ensure!(names.any(|name| *name == *before), "{before} was acknowledged and is lost");
    let first_ns = lock(&first).context("no manager took a write")?;
    let patient_ms = std::mem::take(&mut *lock(&patient));
    Ok(Written { hurried_ms: ms_between(began_ns, first_ns), patient_ms })
}

/// Tries to write until one of those that try has.
fn hurry(socket: &Path, name: &str, began_ns: u64, first: &Mutex<Option<u64>>) {
    let mut attempt = 0;
    while lock(first).is_none() && ms_since(began_ns) < PATIENCE.as_secs_f64() * 1e3 {
        attempt += 1;
        let mut client = Client::within(socket, HURRY);
        if secret(&mut client, &format!("{name}-{attempt}"), b"x").is_ok() {
            lock(first).get_or_insert(now_ns());
            return;
        }
        sleep(PAUSE);
    }
}

/// All nodes at once, `kill -9`, and started anew: from the first start to a write.
pub(super) fn restart(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    let (mut writes, mut healed) = (Vec::new(), Vec::new());
    for round in 0..swarm.kind.rounds(RESTARTS) {
        for engine in &mut swarm.engines {
            engine.end(Signal::SIGKILL)?;
        }
        sleep(CALM);
        let began_ns = now_ns();
        for engine in &mut swarm.engines {
            engine.launch()?;
        }
        let sockets: Vec<PathBuf> =
            swarm.engines.iter().take(MANAGERS).map(|engine| engine.socket()).collect();
        let first = Mutex::new(None);
        thread::scope(|scope| {
            for (at, socket) in sockets.iter().enumerate() {
                let (first, name) = (&first, format!("restart-{round}-{at}"));
                scope.spawn(move || hurry(socket, &name, began_ns, first));
            }
        });
        let first_ns = lock(&first).context("no manager took a write")?;
        writes.push(ms_between(began_ns, first_ns));
        swarm.await_whole()?;
        healed.push(ms_since(began_ns));
    }
    report.add_in("ms", "restart-all", swarm.kind, &writes)?;
    report.add_in("ms", "restart-all-ready", swarm.kind, &healed)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! The leader's end, violent and clean, and the end of all.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{MANAGERS, Swarm};
use crate::client::Client;
use crate::clock::{ms_between, ms_since, now_ns};
use crate::engine::Engine;
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
        let (mut gaps, mut waits, mut healed) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..kind.rounds(rounds) {
            let name = format!("{row}-{round}");
            let leader = swarm.leader()?;
            sleep(CALM);
            let written = end(swarm, leader, signal, &name)?;
            gaps.push(written.gap_ms);
            waits.extend(written.patient_ms);
            sleep(CALM);
            swarm.engine_mut(leader)?.launch()?;
            let launched_ns = now_ns();
            swarm.await_whole()?;
            healed.push(ms_since(launched_ns));
        }
        report.add(row, kind, &gaps)?;
        report.add_in("ms", patient, kind, &waits)?;
        report.add_in("ms", back, kind, &healed)?;
    }
    Ok(())
}

/// How writes went from the signal on.
#[derive(Debug)]
struct Written {
    /// Longest time without an acknowledged one: a leader that was asked to stop takes some more.
    gap_ms: f64,
    /// Milliseconds of those who ask once and wait; one that was refused is not counted.
    patient_ms: Vec<f64>,
}

/// Acknowledgements of those who write again and again.
#[derive(Debug, Default)]
struct Acknowledged {
    at_ns: Mutex<Vec<u64>>,
    /// Once this is true, each writes once more.
    is_over: AtomicBool,
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
    let (acknowledged, patient) = (Acknowledged::default(), Mutex::new(Vec::new()));
    let began_ns = now_ns();
    kill(pid, signal)?;
    thread::scope(|scope| {
        for (at, socket) in sockets.iter().enumerate() {
            let (acknowledged, patient) = (&acknowledged, &patient);
            scope.spawn(move || hurry(socket, &format!("{name}-{at}"), began_ns, acknowledged));
            scope.spawn(move || {
                let mut client = Client::within(socket, PATIENCE);
                if secret(&mut client, &format!("{name}-{at}-patient"), b"x").is_ok() {
                    lock(patient).push(ms_since(began_ns));
                }
            });
        }
        let ended = swarm.engine_mut(leader).and_then(Engine::await_end);
        acknowledged.is_over.store(true, Ordering::Release);
        ended
    })?;
    let secrets = client.get("/secrets")?;
    let mut names = secrets.as_array().into_iter().flatten().map(|it| &it["Spec"]["Name"]);
    ensure!(names.any(|name| *name == *before), "{before} was acknowledged and is lost");
    let mut at_ns = std::mem::take(&mut *lock(&acknowledged.at_ns));
    ensure!(!at_ns.is_empty(), "no manager took a write");
    at_ns.push(began_ns);
    at_ns.sort_unstable();
    let gaps = at_ns.iter().zip(at_ns.iter().skip(1)).map(|(one, next)| ms_between(*one, *next));
    let patient_ms = std::mem::take(&mut *lock(&patient));
    Ok(Written { gap_ms: gaps.fold(0.0, f64::max), patient_ms })
}

/// Writes again and again, and once more when the rest is over.
fn hurry(socket: &Path, name: &str, began_ns: u64, acknowledged: &Acknowledged) {
    let mut attempt = 0;
    while ms_since(began_ns) < PATIENCE.as_secs_f64() * 1e3 {
        attempt += 1;
        let is_last = acknowledged.is_over.load(Ordering::Acquire);
        let mut client = Client::within(socket, HURRY);
        if secret(&mut client, &format!("{name}-{attempt}"), b"x").is_ok() {
            lock(&acknowledged.at_ns).push(now_ns());
            if is_last {
                return;
            }
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
        let acknowledged = Acknowledged::default();
        acknowledged.is_over.store(true, Ordering::Release);
        thread::scope(|scope| {
            for (at, socket) in sockets.iter().enumerate() {
                let (acknowledged, name) = (&acknowledged, format!("restart-{round}-{at}"));
                scope.spawn(move || hurry(socket, &name, began_ns, acknowledged));
            }
        });
        let first_ns = lock(&acknowledged.at_ns).iter().min().copied();
        writes.push(ms_between(began_ns, first_ns.context("no manager took a write")?));
        swarm.await_whole()?;
        healed.push(ms_since(began_ns));
    }
    report.add_in("ms", "restart-all", swarm.kind, &writes)?;
    report.add_in("ms", "restart-all-ready", swarm.kind, &healed)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! What runs inside the containers: this same program, as `/probe`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use crate::clock::now_ns;

/// Rounds before the clock runs.
const WARM_UP: usize = 100;

/// Says when the process began and when it had read all its secrets, and waits for its end.
pub(crate) fn stamp(began_ns: u64, out: &Path) -> Result<()> {
    let (mut files, mut bytes) = (0, Vec::new());
    for entry in std::fs::read_dir("/run/secrets").into_iter().flatten() {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            File::open(entry.path())?.read_to_end(&mut bytes)?;
            files += 1;
        }
    }
    append(out, &format!("{began_ns} {} {files}\n", now_ns()))?;
    wait()
}

/// Waits for the stop signal.
pub(crate) fn wait() -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    set.wait()?;
    Ok(())
}

/// Opens, reads and closes `path` again and again, as `threads` at once.
pub(crate) fn read(path: &Path, rounds: usize, threads: usize, out: &Path) -> Result<()> {
    let mut workers = Vec::new();
    for _ in 0..threads.max(1) {
        let path = path.to_owned();
        workers.push(thread::spawn(move || read_rounds(&path, rounds)));
    }
    let mut all = Vec::new();
    for worker in workers {
        match worker.join() {
            Ok(times) => all.extend(times?),
            Err(_) => anyhow::bail!("a reader panicked"),
        }
    }
    all.sort_unstable();
    let total: u64 = all.iter().sum();
    let at = |share: usize| all.get(all.len() * share / 100).copied().unwrap_or(0);
    let line = json!({
        "mean_ns": total / all.len().max(1) as u64,
        "p50_ns": at(50),
        "p99_ns": at(99),
    });
    append(out, &format!("{line}\n"))
}

fn read_rounds(path: &Path, rounds: usize) -> Result<Vec<u64>> {
    let size = usize::try_from(path.metadata()?.len())?;
    let mut buffer = vec![0; size + 1];
    let mut times = Vec::with_capacity(rounds);
    for round in 0..WARM_UP.min(rounds) + rounds {
        let began = now_ns();
        let mut file = File::open(path)?;
        let mut got = 0;
        while got < size {
            match file.read(buffer.get_mut(got..).unwrap_or_default())? {
                0 => break,
                more => got += more,
            }
        }
        drop(file);
        if round >= WARM_UP.min(rounds) {
            times.push(now_ns() - began);
        }
    }
    Ok(times)
}

fn append(out: &Path, line: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(out)
        .with_context(|| format!("open {}", out.display()))?;
    file.write_all(line.as_bytes())?;
    Ok(())
}

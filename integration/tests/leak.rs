//! The leak loop in short: what `skep-bench leak` finds after two rounds.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

#[test]
fn two_rounds_leave_nothing() -> Result<()> {
    let out = Command::new(env!("CARGO_BIN_EXE_skep-bench"))
        .args(["leak", "--services", "2", "--secrets", "2", "--rounds", "2"])
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "{}\n{text}\n{said}", out.status);
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(lines.len() == 5, "{text}");
    let verdict = lines.last().context("no verdict")?;
    ensure!(verdict["rounds"] == 2 && verdict["leaked"] == json!({}), "{verdict}");
    // It did look: a node is a process with descriptors, files and memory.
    let census = &lines[2]["census"];
    for counted in ["processes", "descriptors", "threads", "rss_kib", "namespaces"] {
        ensure!(census[counted].as_u64().is_some_and(|count| count > 0), "{counted}: {census}");
    }
    // What was read is kept, and nothing else of it.
    let [files, bytes] = [0, 1].map(|at| census["files_and_bytes"]["data/audit"][at].as_u64());
    ensure!(files.is_some_and(|files| (2..6).contains(&files)) && bytes > Some(0), "{census}");
    ensure!(census["stray_audits"] == 0, "{census}");
    ensure!(census["files_and_bytes"]["data/layers"][0].as_u64() > Some(10), "{census}");
    Ok(())
}

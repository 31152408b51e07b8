//! What is measured of one node: each function is one group of rows.

mod lifecycle;
mod load;
mod read;
pub(crate) mod secrets;
mod start;

use std::path::PathBuf;

use anyhow::Result;

use crate::engine::{Engine, Kind};
use crate::report::Report;

/// The programs to measure.
#[derive(Debug)]
pub(crate) struct Programs {
    /// In turn; skep first.
    pub(crate) all: Vec<(Kind, PathBuf)>,
}

/// A group of rows that share a running engine.
type Group = fn(&mut Engine, &mut Report) -> Result<()>;

/// By name, in order. Memory is measured first, on a daemon that has done nothing yet.
const GROUPS: &[(&str, Group)] = &[
    ("load", load::run),
    ("secrets", secrets::run),
    ("start", start::create),
    ("swap", start::swap),
    ("scale", start::scale),
    ("read", read::run),
    ("copies", secrets::copies),
];

/// Names of all groups.
pub(crate) fn names() -> Vec<&'static str> {
    GROUPS.iter().map(|(name, _)| *name).chain(["lifecycle"]).collect()
}

/// Runs the groups in `only`, or all.
pub(crate) fn run(programs: &Programs, only: &[String], report: &mut Report) -> Result<()> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|it| it == name);
    if wanted("lifecycle") {
        for (kind, program) in &programs.all {
            lifecycle::run(*kind, program, report)?;
        }
    }
    let groups: Vec<_> = GROUPS.iter().filter(|(name, _)| wanted(name)).collect();
    if groups.is_empty() {
        return Ok(());
    }
    let started = programs.all.iter().map(|(kind, program)| Engine::start(*kind, program));
    let mut engines = started.collect::<Result<Vec<_>>>()?;
    for (_, group) in groups {
        for engine in &mut engines {
            group(engine, report)?;
        }
    }
    Ok(())
}

//! The README's table: promises with their checks, budgets with this build's figures.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use skep_integration::{Budget, PROMISES, Promise};

use crate::engine::Kind;
use crate::report::{Report, round};

const BEGIN: &str = "<!-- specification: written by scripts/bench --readme -->\n";
const END: &str = "<!-- end of specification -->\n";
const BEGIN_SWARM: &str =
    "<!-- figures of five nodes: written by scripts/bench --nodes 5 --readme -->\n";
const END_SWARM: &str = "<!-- end of figures of five nodes -->\n";

/// Puts promises and the budgets of one node between their marks in the file.
pub(crate) fn update(path: &Path, report: &Report, machine: &str) -> Result<()> {
    let table = promises()? + &budgets(report, "`scripts/bench`", machine)?;
    put(path, [BEGIN, END], &table)
}

/// Puts the budgets of a swarm between their marks.
pub(crate) fn update_swarm(path: &Path, report: &Report, machine: &str) -> Result<()> {
    let what = "`scripts/bench --nodes 5`: 3 managers and 2 workers, together";
    put(path, [BEGIN_SWARM, END_SWARM], &budgets(report, what, machine)?)
}

fn put(path: &Path, [begin, end]: [&str; 2], table: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let (before, rest) = text.split_once(begin).context("the README has no begin mark")?;
    let (_, after) = rest.split_once(end).context("the README has no end mark")?;
    fs::write(path, [before, begin, table, end, after].concat())?;
    Ok(())
}

fn promises() -> Result<String> {
    let mut out = String::from("\n| | promise | shown by |\n|---|---|---|\n");
    for Promise { id, text, checks } in PROMISES {
        let shown: Vec<_> = checks.iter().map(|check| format!("`{check}`")).collect();
        let shown = if shown.is_empty() { "nothing yet".into() } else { shown.join(", ") };
        writeln!(out, "| {id} | {text} | {shown} |")?;
    }
    Ok(out)
}

fn budgets(report: &Report, run: &str, machine: &str) -> Result<String> {
    let mut out = format!(
        "\nFigures of one run of {run} on {machine}: medians, Docker Swarm beside skep.\n\n\
         | what | bound | skep | Swarm | ratio | row of the bench |\n|---|---|---|---|---|---|\n"
    );
    for budget in report.budgets() {
        let Budget { row, what, unit, bound } = budget;
        let figure = |kind| report.figure(row, kind).map(|it| round(it.median).to_string());
        let own = figure(Kind::Skep).map_or("not measured".into(), |it| format!("{it} {unit}"));
        let peer = figure(Kind::Docker).map_or("–".into(), |it| format!("{it} {unit}"));
        let ratio = report.ratio(row).map_or("–".into(), |it| format!("{it:.3}"));
        let miss = if report.holds(budget) == Some(false) { " **missed**" } else { "" };
        writeln!(out, "| {what} | {bound} | {own}{miss} | {peer} | {ratio} | `{row}` |")?;
    }
    Ok(out + "\n")
}

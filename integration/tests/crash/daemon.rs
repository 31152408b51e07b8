//! The daemon is killed at its changes to files: identity, images, task records, log.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use skep_integration::{Node, Options};

use crate::life::{Life, check, live};
use crate::tracer::{Point, Strike};

/// Parts, which run beside one another.
const PARTS: usize = 3;

/// All points of a life without a crash.
fn points() -> Result<&'static [Point]> {
    static POINTS: OnceLock<Result<Vec<Point>, String>> = OnceLock::new();
    let points = POINTS.get_or_init(|| {
        let counted = || -> Result<Life> {
            let node = Node::prepare(Options::default())?;
            let life = live(&node, Strike::Never)?;
            ensure!(life.open.is_none() && life.done.len() == 7, "{:?}", life.done);
            check(&node, &life)?;
            Ok(life)
        };
        counted().map(|life| life.points).map_err(|e| format!("{e:#}"))
    });
    points.as_deref().map_err(|e| anyhow!("a life without a crash: {e}"))
}

fn crash_at(strike: Strike) -> Result<()> {
    let node = Node::prepare(Options::default())?;
    let life = live(&node, strike)?;
    let at = life.points.last().cloned();
    check(&node, &life).with_context(|| {
        format!(
            "{strike:?}, {at:?}, done {:?}, open {:?}\n{}",
            life.done,
            life.open,
            node.log_tail()
        )
    })
}

/// The points to try: the first of each kind, or all.
fn chosen() -> Result<Vec<(usize, &'static Point)>> {
    let mut kinds = BTreeSet::new();
    let all = points()?.iter().enumerate();
    let thorough = std::env::var_os("SKEP_CRASH_ALL").is_some();
    Ok(all.filter(|(_, point)| kinds.insert(point.kind()) || thorough).collect())
}

fn part(number: usize) -> Result<()> {
    let chosen = chosen()?;
    let mut tried = 0;
    for (at, point) in chosen.iter().skip(number).step_by(PARTS) {
        writeln!(std::io::stderr(), "{at} {}", point.kind())?;
        let is_write = point.call == "write" || point.call == "pwrite64";
        // Of a write, its torn half.
        crash_at(if is_write { Strike::Within(*at) } else { Strike::Before(*at) })?;
        tried += 1;
    }
    let (chosen, all) = (chosen.len(), points()?.len());
    writeln!(std::io::stderr(), "{tried} crashes; all parts: {chosen} of {all} points")?;
    Ok(())
}

#[test]
fn killed_at_its_changes_to_files_1() -> Result<()> {
    part(0)
}

#[test]
fn killed_at_its_changes_to_files_2() -> Result<()> {
    part(1)
}

#[test]
fn killed_at_its_changes_to_files_3() -> Result<()> {
    part(2)
}

//! Figures as JSON lines, and what they mean beside the peer's and the budgets.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skep_integration::{Bound, Budget};

use crate::engine::Kind;

/// All figures of a run.
#[derive(Debug)]
pub(crate) struct Report {
    budgets: &'static [Budget],
    figures: BTreeMap<(&'static str, Kind), Figure>,
}

/// One figure: samples of one row.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) p99: f64,
    pub(crate) samples: usize,
}

impl Figure {
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index of a short list"
            )]
            let place = (sorted.len() as f64 * share) as usize;
            sorted.get(place.min(sorted.len().saturating_sub(1))).copied()
        };
        Some(Self {
            median: at(0.5)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            p99: at(0.99)?,
            samples: sorted.len(),
        })
    }
}

impl Report {
    /// An empty one, to be judged by these budgets.
    pub(crate) fn by(budgets: &'static [Budget]) -> Self {
        Self { budgets, figures: BTreeMap::new() }
    }

    /// Notes and prints the samples of a row with a budget.
    pub(crate) fn add(&mut self, row: &'static str, kind: Kind, samples: &[f64]) -> Result<()> {
        let budget = self.budgets.iter().find(|budget| budget.row == row);
        let unit = budget.with_context(|| format!("{row}: no budget"))?.unit;
        self.add_in(unit, row, kind, samples)
    }

    /// Notes and prints the samples of a row in this unit.
    pub(crate) fn add_in(
        &mut self,
        unit: &str,
        row: &'static str,
        kind: Kind,
        samples: &[f64],
    ) -> Result<()> {
        let Some(figure) = Figure::of(samples) else { anyhow::bail!("{row}: no samples") };
        print(&json!({
            "row": row, "engine": kind.name(), "unit": unit, "median": round(figure.median),
            "min": round(figure.min), "max": round(figure.max), "p99": round(figure.p99),
            "samples": figure.samples, "load": load(),
        }))?;
        self.figures.insert((row, kind), figure);
        Ok(())
    }

    pub(crate) fn budgets(&self) -> &'static [Budget] {
        self.budgets
    }

    pub(crate) fn figure(&self, row: &'static str, kind: Kind) -> Option<&Figure> {
        self.figures.get(&(row, kind))
    }

    /// skep's median by the peer's.
    pub(crate) fn ratio(&self, row: &'static str) -> Option<f64> {
        let own = self.figure(row, Kind::Skep)?.median;
        let peer = self.figure(row, Kind::Docker)?.median;
        (peer > 0.0).then(|| own / peer)
    }

    /// Whether a budget holds; nothing if it was not measured, or not beside the peer.
    pub(crate) fn holds(&self, budget: &Budget) -> Option<bool> {
        let own = self.figure(budget.row, Kind::Skep)?;
        match budget.bound {
            Bound::Most(most) => Some(own.median <= most),
            Bound::MostAt99(most) => Some(own.p99 <= most),
            Bound::Ratio(most) => self.ratio(budget.row).map(|ratio| ratio <= most),
            Bound::RatioAtLeast(least) => self.ratio(budget.row).map(|ratio| ratio >= least),
        }
    }

    /// A line for each budget that was measured.
    pub(crate) fn judge(&self) -> Result<()> {
        for budget in self.budgets {
            if let Some(figure) = self.figure(budget.row, Kind::Skep) {
                print(&json!({
                    "budget": budget.row, "what": budget.what, "bound": budget.bound.to_string(),
                    "median": round(figure.median), "p99": round(figure.p99),
                    "unit": budget.unit, "ratio": self.ratio(budget.row).map(round),
                    "holds": self.holds(budget),
                }))?;
            }
        }
        Ok(())
    }
}

/// Writes one line.
pub(crate) fn print(line: &Value) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Four digits are all that a figure is worth.
pub(crate) fn round(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powf(3.0 - figure.abs().log10().floor());
    (figure * scale).round() / scale
}

/// Load of the machine over the last minute: whoever reads a figure wants to know.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

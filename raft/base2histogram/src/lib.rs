//! What openraft needs of the published `base2histogram`, in its stead (`[patch.crates-io]`).
//!
//! The published crate computes tables for sixteen precisions before the first value: 26 MB
//! that stay resident and 25 ms of every start, for figures of batch sizes that skep does not
//! read. This one has a bucket for each power of two and needs no tables.

use std::fmt;
use std::marker::PhantomData;

/// One bucket for zero and one for each bit length.
const BUCKETS: usize = 65;

/// Counts of values by their bit length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    kind: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: [0; BUCKETS], kind: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(counted) = self.counts.get_mut(bucket) {
            *counted = counted.saturating_add(count);
        }
    }

    /// Values counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The least value of the bucket that `permille` thousandths of all values reach.
    fn reached_by(&self, permille: u64) -> u64 {
        let wanted = (u128::from(self.total()) * u128::from(permille)).div_ceil(1_000).max(1);
        let mut seen = 0;
        for (bits, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted {
                return bits.checked_sub(1).map_or(0, |shift| 1 << shift);
            }
        }
        0
    }

    /// Percentiles, rounded down to powers of two.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.reached_by(1),
            p1: self.reached_by(10),
            p5: self.reached_by(50),
            p10: self.reached_by(100),
            p50: self.reached_by(500),
            p90: self.reached_by(900),
            p99: self.reached_by(990),
            p99_9: self.reached_by(999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// Values counted.
    pub samples: u64,
    /// Reached by 0.1 % of all values.
    pub p0_1: u64,
    /// Reached by 1 %.
    pub p1: u64,
    /// Reached by 5 %.
    pub p5: u64,
    /// Reached by 10 %.
    pub p10: u64,
    /// Reached by half of them.
    pub p50: u64,
    /// Reached by 90 %.
    pub p90: u64,
    /// Reached by 99 %.
    pub p99: u64,
    /// Reached by 99.9 %.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "[samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}]")
    }
}

/// Histograms to be shown together, a line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart(Vec<(String, Histogram)>);

impl AsciiChart {
    /// An empty chart.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a histogram under a name.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.0 {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_powers_of_two_below() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        histogram.record(0);
        histogram.record_n(5, 98);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p50, stats.p99), (100, 0, 4, 4));
        assert_eq!(stats.p99_9, 1 << 63);
    }
}

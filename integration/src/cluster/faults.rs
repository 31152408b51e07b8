//! What is wrong with a network, as rules for the packets that its bridge forwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, ensure};

/// What happens to packets, by the node they come from and the one they go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    lost_percent: BTreeMap<(usize, usize), u8>,
    held: BTreeMap<usize, Duration>,
}

impl Faults {
    /// Loses `percent` of what goes from one node to another.
    pub(crate) fn lose(&mut self, from: usize, to: usize, percent: u8) -> Result<()> {
        ensure!(percent <= 100, "{percent} percent: a loss is at most 100");
        self.lost_percent.insert((from, to), percent);
        Ok(())
    }

    /// Holds back everything that a node sends.
    pub(crate) fn hold(&mut self, from: usize, by: Duration) {
        self.held.insert(from, by);
    }

    /// By how much each node's packets are held back.
    pub(crate) fn held(&self) -> &BTreeMap<usize, Duration> {
        &self.held
    }

    /// Nodes that lose something.
    pub(crate) fn lossy(&self) -> BTreeSet<usize> {
        self.lost_percent.keys().flat_map(|(from, to)| [*from, *to]).collect()
    }

    /// All of them for `iptables-restore`. What is lost is never held.
    pub(crate) fn rules(&self) -> String {
        let mut rules = String::from("*filter\n:FORWARD ACCEPT\n");
        for ((from, to), percent) in &self.lost_percent {
            let way = format!("--physdev-in v{from} --physdev-out v{to}");
            let chance = match percent {
                0 => continue,
                100 => String::new(),
                part => format!("-m statistic --mode random --probability 0.{part:02} "),
            };
            // Writing to a String does not fail.
            writeln!(rules, "-A FORWARD -m physdev {way} {chance}-j DROP").ok();
        }
        for from in self.held.keys() {
            let way = format!("-m physdev --physdev-in v{from}");
            writeln!(rules, "-A FORWARD {way} -j NFQUEUE --queue-num {from}").ok();
        }
        rules + "COMMIT\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_say_what_is_lost_and_what_is_held() {
        let mut faults = Faults::default();
        assert_eq!(faults.rules(), "*filter\n:FORWARD ACCEPT\nCOMMIT\n");
        faults.lose(0, 1, 5).unwrap();
        faults.lose(1, 0, 100).unwrap();
        faults.lose(2, 0, 0).unwrap();
        faults.hold(2, Duration::from_millis(3));
        assert!(faults.lose(0, 1, 101).is_err());
        let wanted = "*filter\n:FORWARD ACCEPT\n\
            -A FORWARD -m physdev --physdev-in v0 --physdev-out v1 -m statistic --mode random --probability 0.05 -j DROP\n\
            -A FORWARD -m physdev --physdev-in v1 --physdev-out v0 -j DROP\n\
            -A FORWARD -m physdev --physdev-in v2 -j NFQUEUE --queue-num 2\n\
            COMMIT\n";
        assert_eq!(faults.rules(), wanted);
    }
}

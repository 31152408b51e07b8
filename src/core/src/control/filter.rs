//! What a node must have to run a task. Each filter says whether it applies, whether a node
//! passes, and what to tell the user when none does.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::constraint::{self, Constraint};
use super::loads::Load;
use crate::id::ServiceId;
use crate::model::node::{Availability, Node, NodeState};
use crate::model::task::{Resources, TaskSpec};

/// One condition.
#[derive(Debug)]
enum Filter<'a> {
    Ready,
    Resources(&'a Resources),
    Constraints(Vec<Constraint>),
    Platforms(&'a [(String, String)]),
    MaxReplicas(ServiceId, u64),
}

/// The conditions of one template.
#[derive(Debug)]
pub(super) struct Pipeline<'a> {
    filters: Vec<Filter<'a>>,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(service: ServiceId, spec: &'a TaskSpec) -> Self {
        let mut filters = Vec::from([Filter::Ready]);
        filters.extend(spec.reserved().map(Filter::Resources));
        if let Some(placement) = &spec.placement {
            let parsed = placement.constraints.iter().filter_map(|c| constraint::parse(c).ok());
            if !placement.constraints.is_empty() {
                filters.push(Filter::Constraints(parsed.collect()));
            }
            if !placement.platforms.is_empty() {
                filters.push(Filter::Platforms(&placement.platforms));
            }
            if placement.max_replicas > 0 {
                filters.push(Filter::MaxReplicas(service, placement.max_replicas));
            }
        }
        Self { filters }
    }

    /// Whether a node passes all.
    pub(super) fn admits(&self, node: &Node, load: Load<'_>) -> bool {
        self.filters.iter().all(|filter| filter.admits(node, load))
    }

    /// Why none of these nodes will do, in Docker's words. The first filter that turns a node
    /// away counts it.
    pub(super) fn explain<'n>(&self, nodes: impl Iterator<Item = (&'n Node, Load<'n>)>) -> String {
        let mut counted: Vec<(&Filter<'_>, u64)> =
            self.filters.iter().map(|filter| (filter, 0)).collect();
        for (node, load) in nodes {
            let turns_away = counted.iter_mut().find(|(filter, _)| !filter.admits(node, load));
            if let Some((_, count)) = turns_away {
                *count += 1;
            }
        }
        counted.retain(|(_, count)| *count > 0);
        counted.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
        let reasons: Vec<String> =
            counted.into_iter().map(|(filter, count)| filter.explain(count)).collect();
        if reasons.is_empty() {
            String::from("no suitable node")
        } else {
            format!("no suitable node ({})", reasons.join("; "))
        }
    }
}

impl Filter<'_> {
    fn admits(&self, node: &Node, load: Load<'_>) -> bool {
        match self {
            Self::Ready => {
                node.status.state == NodeState::Ready
                    && node.spec.availability == Availability::Active
            }
            Self::Resources(needs) => has_room(node, load, needs),
            Self::Constraints(all) => all.iter().all(|constraint| constraint.holds(node)),
            Self::Platforms(any) => any.iter().any(|(arch, os)| is_platform(node, arch, os)),
            Self::MaxReplicas(service, max) => load.tasks_of(service) < *max,
        }
    }

    fn explain(&self, count: u64) -> String {
        let nodes = if count == 1 { "node" } else { "nodes" };
        match self {
            Self::Ready => format!("{count} {nodes} not available for new tasks"),
            Self::Resources(_) => format!("insufficient resources on {count} {nodes}"),
            Self::Constraints(_) => {
                format!("scheduling constraints not satisfied on {count} {nodes}")
            }
            Self::Platforms(_) => format!("unsupported platform on {count} {nodes}"),
            Self::MaxReplicas(..) => String::from("max replicas per node limit exceed"),
        }
    }
}

fn has_room(node: &Node, load: Load<'_>, needs: &Resources) -> bool {
    let fits = |total: u64, held: u64, needed: u64| needed <= total.saturating_sub(held);
    let generic = needs.generic.iter().all(|(kind, needed)| {
        let total = node.description.generic.get(kind).copied().unwrap_or(0);
        fits(total, load.generic(kind), *needed)
    });
    generic
        && fits(node.description.nano_cpus, load.nano_cpus(), needs.nano_cpus)
        && fits(node.description.memory_bytes, load.memory_bytes(), needs.memory_bytes)
}

/// Whether a node is of a platform; an empty half admits any.
fn is_platform(node: &Node, arch: &str, os: &str) -> bool {
    let same = |wanted: &str, found: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(found);
    let found = constraint::architecture(&node.description.architecture);
    same(constraint::architecture(arch), found) && same(os, &node.description.os)
}

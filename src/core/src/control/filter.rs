//! What a node must have to run a task. Each filter says whether it applies, whether a node
//! passes, and what to tell the user when none does.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::constraint::{self, Constraint};
use crate::id::ServiceId;
use crate::model::node::{Availability, Node, NodeState};
use crate::model::task::{Resources, TaskSpec};
use crate::state::NodeLoad;

/// One condition.
#[derive(Debug)]
enum Filter<'a> {
    Ready,
    Resources(&'a Resources),
    Constraints(Vec<Constraint>),
    Platforms(&'a [(String, String)]),
    MaxReplicas(ServiceId, u64),
}

/// The conditions of one template, with how many nodes each turned away.
#[derive(Debug)]
pub(super) struct Pipeline<'a> {
    filters: Vec<(Filter<'a>, u64)>,
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
        Self { filters: filters.into_iter().map(|filter| (filter, 0)).collect() }
    }

    /// Whether a node passes all; the first filter that turns it away counts it.
    pub(super) fn admits(&mut self, node: &Node, load: &NodeLoad) -> bool {
        match self.filters.iter_mut().find(|(filter, _)| !filter.admits(node, load)) {
            Some((_, turned_away)) => {
                *turned_away += 1;
                false
            }
            None => true,
        }
    }

    /// Why no node is left, in Docker's words.
    pub(super) fn explain(&self) -> String {
        let mut counted: Vec<&(Filter<'_>, u64)> =
            self.filters.iter().filter(|(_, count)| *count > 0).collect();
        counted.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
        let reasons: Vec<String> =
            counted.into_iter().map(|(filter, count)| filter.explain(*count)).collect();
        if reasons.is_empty() {
            String::from("no suitable node")
        } else {
            format!("no suitable node ({})", reasons.join("; "))
        }
    }
}

impl Filter<'_> {
    fn admits(&self, node: &Node, load: &NodeLoad) -> bool {
        match self {
            Self::Ready => {
                node.status.state == NodeState::Ready
                    && node.spec.availability == Availability::Active
            }
            Self::Resources(needs) => has_room(node, load, needs),
            Self::Constraints(all) => all.iter().all(|constraint| constraint.holds(node)),
            Self::Platforms(any) => any.iter().any(|(arch, os)| is_platform(node, arch, os)),
            Self::MaxReplicas(service, max) => {
                load.by_service.get(service).is_none_or(|count| count < max)
            }
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

fn has_room(node: &Node, load: &NodeLoad, needs: &Resources) -> bool {
    let fits = |total: u64, held: u64, needed: u64| needed <= total.saturating_sub(held);
    let generic = needs.generic.iter().all(|(kind, needed)| {
        let of = |counts: &alloc::collections::BTreeMap<String, u64>| {
            counts.get(kind).copied().unwrap_or(0)
        };
        fits(of(&node.description.generic), of(&load.generic), *needed)
    });
    generic
        && fits(node.description.nano_cpus, load.nano_cpus, needs.nano_cpus)
        && fits(node.description.memory_bytes, load.memory_bytes, needs.memory_bytes)
}

/// Whether a node is of a platform; an empty half admits any.
fn is_platform(node: &Node, arch: &str, os: &str) -> bool {
    let same = |wanted: &str, found: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(found);
    let found = constraint::architecture(&node.description.architecture);
    same(constraint::architecture(arch), found) && same(os, &node.description.os)
}

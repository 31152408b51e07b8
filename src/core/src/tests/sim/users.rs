//! What users ask of a swarm, and what happens to it that nobody asked for.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::agent::Outbox;
use super::swarm::{Message, Swarm};
use crate::command::{Command, Outcome, Rejection};
use crate::control::SessionEvent;
use crate::id::{MaterialId, NodeId, ServiceId, TaskId};
use crate::model::material::{Grant, MaterialKind};
use crate::model::node::{Availability, NodeSpec};
use crate::model::service::{FailureAction, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder};
use crate::model::task::{
    Placement, ResourceNeeds, Resources, RestartCondition, RestartPolicy, TaskSpec,
};
use crate::sealed::Sealed;
use crate::task_machine::Local;
use crate::testing::{append, author, grant, material_spec, sealed, service_spec};
use crate::time::Span;

/// Tasks users ask for at most, all services together.
pub(super) const TASKS: u64 = 2_000;
/// Services there are at first.
const SERVICES: u64 = 36;

impl Swarm {
    /// What the swarm has before anything goes wrong.
    pub(super) fn furnish(&mut self) {
        for _ in 0..16 {
            self.add_material();
        }
        for _ in 0..SERVICES {
            self.create_service(TASKS / SERVICES);
        }
    }

    /// One thing a user does.
    pub(super) fn use_it(&mut self) {
        match self.random.below(22) {
            0 => self.add_material(),
            1 => {
                if let Some(id) = self.any_material() {
                    self.commit(Command::MaterialRemove { id });
                }
            }
            2 => self.append(),
            3..=5 => {
                let most = 2 * TASKS / SERVICES;
                self.create_service(most);
            }
            6 => {
                if let Some(id) = self.any_service() {
                    self.commit(Command::ServiceRemove { id });
                }
            }
            7 | 8 => self.roll_back(),
            9..=12 => self.scale(),
            13..=16 => self.update(),
            17 => self.set_availability(Availability::Drain),
            18 => self.set_availability(Availability::Pause),
            19 | 20 => self.change_role(),
            _ => self.set_availability(Availability::Active),
        }
    }

    /// One thing that goes wrong.
    pub(super) fn go_wrong(&mut self) {
        let Some(node) = self.any_node() else { return };
        let mut out = Outbox::default();
        let now = self.world.now;
        match self.random.below(30) {
            0..=11 => {
                for _ in 0..1 + self.random.below(8) {
                    let Some(node) = self.any_node() else { return };
                    let Some(agent) = self.agents.get_mut(&node).filter(|a| a.is_on) else {
                        continue;
                    };
                    let held: Vec<TaskId> = agent.held.keys().copied().collect();
                    let Some(task) = self.random.pick(&held) else { continue };
                    agent.fail(task, now, &mut self.random, &mut out);
                }
            }
            12..=15 => self.cut(node),
            16..=20 => {
                // Its session breaks, and the agent dials the next manager at once.
                self.cut(node);
                self.connect(node);
            }
            21 => {
                self.cut(node);
                self.send(Message::Session(SessionEvent::Closed(node)));
            }
            22 | 23 => {
                self.cut(node);
                if let Some(agent) = self.agents.get_mut(&node) {
                    agent.is_on = false;
                }
            }
            24..=26 => self.mend_one(),
            27 => self.remove_node(node),
            28 => {
                self.add_node();
                let id = crate::testing::id(self.ids);
                self.connect(id);
            }
            _ => {
                let gap = self.random.span(0, 3_000);
                self.elect(gap);
            }
        }
        self.post(out);
    }

    /// Its session is gone; some of what is on its way comes through all the same.
    fn cut(&mut self, node: NodeId) {
        if let Some(agent) = self.agents.get_mut(&node) {
            agent.session = None;
        }
        if self.random.once_in(2) {
            self.lose_messages_of(node);
        }
    }

    /// One node that is off or cut off comes back.
    fn mend_one(&mut self) {
        let away = self.agents.values().filter(|agent| agent.session.is_none());
        let away: Vec<NodeId> = away.map(|agent| agent.node).collect();
        if let Some(node) = self.random.pick(&away) {
            self.mend(node);
        }
    }

    fn mend(&mut self, node: NodeId) {
        let keeps_disk = !self.random.once_in(3);
        if let Some(agent) = self.agents.get_mut(&node).filter(|agent| !agent.is_on) {
            agent.reboot(keeps_disk);
        }
        self.connect(node);
    }

    /// Everything that is broken is mended, and all nodes but a few take tasks.
    pub(super) fn mend_all(&mut self) {
        self.has_faults = false;
        let away = self.agents.values().filter(|agent| agent.session.is_none());
        let away: Vec<NodeId> = away.map(|agent| agent.node).collect();
        away.into_iter().for_each(|node| self.mend(node));
        let nodes: Vec<NodeId> = self.agents.keys().copied().collect();
        for node in nodes {
            let availability = match self.random.below(40) {
                0 => Availability::Drain,
                1 => Availability::Pause,
                _ => Availability::Active,
            };
            self.set_node(node, availability);
        }
    }

    /// A node leaves for ever, with whatever it ran.
    fn remove_node(&mut self, node: NodeId) {
        let is_manager = self.world.state.node(&node).is_none_or(|node| node.manager.is_some());
        if is_manager || !self.random.once_in(3) {
            return;
        }
        self.lose_messages_of(node);
        self.agents.remove(&node);
        self.commit(Command::NodeRemove { id: node, force: true });
    }

    /// A node becomes a manager, or a manager a worker, if the swarm can afford it.
    fn change_role(&mut self) {
        let managers: Vec<NodeId> = self.world.state.managers().map(|(node, _)| node.id).collect();
        let command = if managers.len() < 3 || self.random.once_in(2) {
            let Some(node) = self.any_node().filter(|node| !managers.contains(node)) else {
                return;
            };
            self.ids += 1;
            self.world.promotion(node, self.ids)
        } else {
            let Some(node) = self.random.pick(&managers) else { return };
            self.world.demotion(node)
        };
        // Too few ready managers, or the last one: that is all that may keep it from happening.
        let outcome = self.commit(command);
        let is_kept = matches!(outcome, Outcome::Rejected(Rejection::Precondition(_)));
        assert!(is_kept || matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }

    /// A payload sealed with the key that is current.
    fn sealed(&self, size: u64) -> Sealed {
        let key = self.world.state.cluster().map_or(0, |cluster| cluster.ring.current);
        sealed(key, size)
    }

    fn any_node(&mut self) -> Option<NodeId> {
        let all: Vec<NodeId> = self.agents.keys().copied().collect();
        self.random.pick(&all)
    }

    fn any_service(&mut self) -> Option<ServiceId> {
        let all: Vec<ServiceId> = self.world.state.services().map(|service| service.id).collect();
        self.random.pick(&all)
    }

    fn any_material(&mut self) -> Option<MaterialId> {
        let all: Vec<MaterialId> = self.world.state.materials().map(|m| m.id).collect();
        self.random.pick(&all)
    }

    fn add_material(&mut self) {
        let id = self.fresh();
        let kind = if self.random.once_in(3) { MaterialKind::Config } else { MaterialKind::Secret };
        let spec = material_spec(&format!("m{}", self.random.below(40)));
        let payload = self.sealed(3);
        let by = author();
        self.commit(Command::MaterialCreate { id, kind, spec, size: 3, payload, by });
    }

    fn append(&mut self) {
        let Some(id) = self.any_material() else { return };
        let Some(material) = self.world.state.material(&id) else { return };
        let number = material.last_version + 1;
        let payload = self.sealed(4);
        self.commit(append(id, number, payload));
    }

    fn set_availability(&mut self, availability: Availability) {
        if let Some(node) = self.any_node() {
            self.set_node(node, availability);
        }
    }

    fn set_node(&mut self, id: NodeId, availability: Availability) {
        let Some(node) = self.world.state.node(&id).cloned() else { return };
        let spec = NodeSpec { availability, ..node.spec.clone() };
        self.commit(Command::NodeUpdate { id, version: node.meta.version, spec });
    }

    /// Replicas that are still to be had, at most `most`.
    fn replicas(&mut self, most: u64, without: Option<ServiceId>) -> u64 {
        let others = self.world.state.services().filter(|service| Some(service.id) != without);
        let asked = others.map(|service| match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            _ => 0,
        });
        let left = TASKS.saturating_sub(asked.sum());
        self.random.below(most + 1).min(left)
    }

    fn create_service(&mut self, most: u64) {
        let id = self.fresh();
        let replicas =
            if self.has_faults && self.step > 0 { self.replicas(most, None) } else { most };
        let mut spec = service_spec(&format!("web-{}", self.random.below(90)), replicas);
        let task = self.template();
        *spec.task.make_mut() = task;
        spec.update = Some(self.update_config());
        spec.rollback = Some(self.update_config());
        self.commit(Command::ServiceCreate { id, spec });
    }

    fn scale(&mut self) {
        let Some(id) = self.any_service() else { return };
        let replicas = self.replicas(3 * TASKS / SERVICES, Some(id));
        self.change(id, |spec| spec.mode = ServiceMode::Replicated { replicas });
    }

    fn update(&mut self) {
        let Some(id) = self.any_service() else { return };
        let (task, config) = (self.template(), self.update_config());
        let keeps_config = self.random.once_in(2);
        self.change(id, |spec| {
            *spec.task.make_mut() = task;
            if !keeps_config {
                spec.update = Some(config);
            }
        });
    }

    fn change(&mut self, id: ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let Some(service) = self.world.state.service(&id) else { return };
        let mut spec = ServiceSpec::clone(&service.spec);
        // Some read the service too early.
        let version = service.meta.version - u64::from(self.random.once_in(10));
        change(&mut spec);
        self.commit(Command::ServiceUpdate { id, version, spec });
    }

    fn roll_back(&mut self) {
        let Some(id) = self.any_service() else { return };
        let version = self.world.state.service(&id).map_or(0, |service| service.meta.version);
        self.commit(Command::ServiceRollback { id, version });
    }

    fn grants(&mut self) -> (Vec<Grant>, Vec<Grant>) {
        let (mut secrets, mut configs) = (Vec::new(), Vec::new());
        for _ in 0..self.random.below(4) {
            let Some(id) = self.any_material() else { break };
            let Some(material) = self.world.state.material(&id) else { break };
            let mut one = grant(id, &material.spec.name);
            if self.random.once_in(3) {
                one.pin = material.versions.first().map(|version| version.number);
            }
            match material.kind {
                MaterialKind::Secret => secrets.push(one),
                MaterialKind::Config => configs.push(one),
            }
        }
        (secrets, configs)
    }

    fn template(&mut self) -> TaskSpec {
        let mut task = TaskSpec::default();
        task.container.image = format!("app:{}", self.random.below(5));
        (task.container.secrets, task.container.configs) = self.grants();
        task.container.stop_grace = Some(self.random.span(1_000, 10_000));
        let delay = Some(self.random.span(0, 4_000));
        let mut restart = RestartPolicy { delay, ..RestartPolicy::default() };
        match self.random.below(12) {
            0 => restart.condition = Some(RestartCondition::None),
            1 => restart.condition = Some(RestartCondition::OnFailure),
            2 => {
                restart.max_attempts = Some(2);
                restart.window = Some(self.random.span(0, 20_000));
            }
            _ => {}
        }
        task.restart = Some(restart);
        let mut placement = Placement::default();
        match self.random.below(12) {
            0 => placement.constraints = vec![String::from("node.labels.zone==a")],
            1 => placement.constraints = vec![String::from("node.labels.zone!=b")],
            2 => placement.constraints = vec![String::from("node.labels.zone==nowhere")],
            3 => placement.max_replicas = 1 + self.random.below(2),
            4 => placement.platforms = vec![("amd64".to_string(), "linux".to_string())],
            5 | 6 => placement.spread = vec![String::from("node.labels.zone")],
            _ => {}
        }
        task.placement = Some(placement);
        if self.random.once_in(3) {
            let memory_bytes = (64 + self.random.below(1_500)) << 20;
            let reservations = Some(Resources { memory_bytes, ..Resources::default() });
            task.resources = Some(ResourceNeeds { reservations, limits: None });
        }
        task
    }

    fn update_config(&mut self) -> UpdateConfig {
        UpdateConfig {
            parallelism: self.random.pick(&[0, 3, 10, 20]).unwrap_or(0),
            delay: self.random.pick(&[Span(0), Span::from_millis(700)]).unwrap_or_default(),
            failure_action: match self.random.below(4) {
                0 => FailureAction::Rollback,
                1 => FailureAction::Pause,
                _ => FailureAction::Continue,
            },
            monitor: Some(self.random.span(0, 2_000)),
            max_failure_ratio_ppm: self.random.pick(&[0, 100_000, 500_000]).unwrap_or(0),
            order: match self.random.below(3) {
                0 => UpdateOrder::StartFirst,
                _ => UpdateOrder::StopFirst,
            },
        }
    }

    /// Whether a node's machine runs a task.
    pub(super) fn runs(&self, node: NodeId, task: TaskId) -> bool {
        let held = self.agents.get(&node).and_then(|agent| agent.held.get(&task));
        held.is_some_and(|held| matches!(held.local, Local::Running { .. }))
    }
}

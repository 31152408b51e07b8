//! Golden traces: what happens to a swarm, and what the control loop decides on it. A file of
//! `traces/` has lines `> event` and below each what followed; `#` begins a remark. With
//! `SKEP_TRACES=write` the files are written anew: then the diff is the thing to look at.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use std::{env, fs, path::PathBuf};

use super::sim::Sim;
use crate::command::{Command, Decision, NodeReport};
use crate::control::SessionEvent;
use crate::id::{NodeId, ServiceId, TaskId};
use crate::model::cluster::ClusterSpec;
use crate::model::material::{Grant, MaterialKind, OnChange};
use crate::model::node::{Availability, NodeSpec, NodeState, NodeStatus};
use crate::model::service::{FailureAction, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder};
use crate::model::task::{
    Placement, ResourceNeeds, Resources, RestartCondition, RestartPolicy, TaskState,
};
use crate::testing::{grant, id, service_spec};
use crate::time::{Span, Stamp};

/// A swarm whose objects have short names.
struct Stage {
    sim: Sim,
    start: Stamp,
    nodes: BTreeMap<String, NodeId>,
    services: BTreeMap<String, ServiceId>,
    tasks: Vec<TaskId>,
    output: String,
}

#[test]
fn traces_hold() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/traces");
    let mut files: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let written = fs::read_to_string(&file).unwrap();
        let played = play(&written);
        if env::var_os("SKEP_TRACES").is_some_and(|value| value == "write") {
            fs::write(&file, played).unwrap();
        } else {
            let name = file.file_name().unwrap().display();
            assert!(played == written, "{name} differs; it is now:\n{played}");
        }
    }
}

fn play(script: &str) -> String {
    let mut stage = Stage {
        sim: Sim::new(),
        start: Stamp(0),
        nodes: BTreeMap::new(),
        services: BTreeMap::new(),
        tasks: Vec::new(),
        output: String::new(),
    };
    stage.start = stage.sim.world.now;
    for line in script.lines() {
        if line.starts_with('#') || line.is_empty() {
            stage.say(line.to_string());
        } else if let Some(event) = line.strip_prefix("> ") {
            stage.say(line.to_string());
            let words: Vec<&str> = event.split_whitespace().collect();
            stage.play(words[0], &words[1..]);
            stage.tell();
        }
    }
    stage.output
}

impl Stage {
    fn say(&mut self, line: String) {
        self.output.push_str(&line);
        self.output.push('\n');
    }

    fn play(&mut self, verb: &str, words: &[&str]) {
        match verb {
            "node" => self.node(words),
            "close" => self.sim.event(SessionEvent::Closed(self.nodes[words[0]])),
            "heard" => self.sim.event(SessionEvent::heard(self.nodes[words[0]])),
            "late" => self.late(words),
            "leave" => {
                let id = self.nodes[words[0]];
                self.sim.run(Command::NodeRemove { id, force: true });
            }
            "history" => self.set_history(words[0].parse().unwrap()),
            "drain" => self.set_availability(words[0], Availability::Drain),
            "activate" => self.set_availability(words[0], Availability::Active),
            "secret" => {
                self.sim.world.secret(words[0]);
            }
            "append" => self.append(words[0]),
            "service" => {
                let mut spec = service_spec(words[0], 1);
                self.set(&mut spec, &words[1..]);
                let id = id(100 + self.services.len() as u64);
                self.services.insert(words[0].to_string(), id);
                self.sim.run(Command::ServiceCreate { id, spec });
            }
            "update" => {
                let id = self.services[words[0]];
                let service = self.sim.world.state.service(&id).unwrap().clone();
                let mut spec = ServiceSpec::clone(&service.spec);
                self.set(&mut spec, &words[1..]);
                self.sim.run(Command::ServiceUpdate { id, version: service.meta.version, spec });
            }
            "rollback" => {
                let id = self.services[words[0]];
                let version = self.sim.world.state.service(&id).unwrap().meta.version;
                self.sim.run(Command::ServiceRollback { id, version });
            }
            "remove" => self.sim.run(Command::ServiceRemove { id: self.services[words[0]] }),
            "report" => {
                let number: usize = words[0].trim_start_matches('t').parse().unwrap();
                match self.tasks.get(number - 1) {
                    Some(id) => self.sim.report(*id, state(words[1])),
                    None => self.say(String::from("  no such task")),
                }
            }
            "agents" => self.sim.agents(),
            "leader" => {
                self.sim.elect();
                self.sim.settle();
            }
            "wait" => {
                let until = self.start + span(words[0]);
                let mut lines = Vec::new();
                self.sim.sleep_until(until, |sim| lines.push((sim.world.now, sim.take_proposed())));
                for (at, proposed) in lines {
                    self.tell_of(Some(at), proposed);
                }
            }
            "silence" => {
                let node = self.nodes[words[0]];
                let time = words.get(1).unwrap_or(&"3s");
                self.sim.world.now = self.sim.world.now + span(time);
                let others = self.nodes.values().filter(|id| **id != node);
                let heard: Vec<_> = others.map(|id| SessionEvent::heard(*id)).collect();
                heard.into_iter().for_each(|event| self.sim.event(event));
                self.sim.settle();
            }
            other => panic!("no event {other}"),
        }
    }

    /// `node NAME [key=value…]` brings a node up; the first one is the swarm's first manager.
    fn node(&mut self, words: &[&str]) {
        let n = 1 + self.nodes.len() as u64;
        let id = if n == 1 { self.sim.world.node } else { self.sim.add_node(n, words[0]) };
        let id = *self.nodes.entry(words[0].to_string()).or_insert(id);
        let mut description = crate::testing::description(words[0]);
        let mut spec = NodeSpec::clone(&self.sim.world.state.node(&id).unwrap().spec);
        for (key, value) in words[1..].iter().filter_map(|word| word.split_once('=')) {
            match key {
                "mb" => description.memory_bytes = value.parse::<u64>().unwrap() << 20,
                "arch" => description.architecture = value.to_string(),
                label => {
                    spec.labels.insert(label.to_string(), value.to_string());
                }
            }
        }
        let version = self.sim.world.state.node(&id).unwrap().meta.version;
        self.sim.run(Command::NodeUpdate { id, version, spec });
        self.sim.node_up(id, description);
    }

    /// `late NAME STATE`: what a leader of the past proposed of a node.
    fn late(&mut self, words: &[&str]) {
        let id = self.nodes[words[0]];
        let state = match words[1] {
            "ready" => NodeState::Ready,
            _ => NodeState::Disconnected,
        };
        let since = self.sim.world.now;
        let status = Some(NodeStatus { state, since, ..NodeStatus::default() });
        let report = NodeReport { id, description: None, status, advertise: None };
        self.sim.run(Command::NodeReport(vec![report]));
    }

    /// `append NAME`: a secret gets its next version.
    fn append(&mut self, name: &str) {
        let secret = self.sim.world.state.material_named(MaterialKind::Secret, name).unwrap();
        let (id, number) = (secret.id, secret.last_version + 1);
        self.sim.run(crate::testing::append(id, number, crate::testing::sealed(1, 4)));
    }

    fn set_history(&mut self, history_limit: u64) {
        let cluster = self.sim.world.state.cluster().unwrap().clone();
        let spec = ClusterSpec { history_limit, ..cluster.spec.clone() };
        let version = cluster.meta.version;
        let (tokens, unlock_key) = (Default::default(), None);
        self.sim.run(Command::ClusterUpdate { version, spec, tokens, unlock_key });
    }

    fn set_availability(&mut self, name: &str, availability: Availability) {
        let node = self.sim.world.state.node(&self.nodes[name]).unwrap().clone();
        let spec = NodeSpec { availability, ..node.spec.clone() };
        self.sim.run(Command::NodeUpdate { id: node.id, version: node.meta.version, spec });
    }

    fn set(&self, spec: &mut ServiceSpec, words: &[&str]) {
        let secrets = &self.sim.world.state;
        for (key, value) in words.iter().map(|word| word.split_once('=').unwrap()) {
            let number = || value.parse::<u64>().unwrap();
            let task = spec.task.make_mut();
            let restart = task.restart.get_or_insert_with(RestartPolicy::default);
            match key {
                "restart" => {
                    restart.condition = Some(match value {
                        "none" => RestartCondition::None,
                        "on-failure" => RestartCondition::OnFailure,
                        _ => RestartCondition::Any,
                    });
                }
                "delay" => restart.delay = Some(span(value)),
                "max" => restart.max_attempts = Some(number()),
                "window" => restart.window = Some(span(value)),
                "image" => task.container.image = value.to_string(),
                "grace" => task.container.stop_grace = Some(span(value)),
                "secrets" => {
                    let named = |name: &str| -> Grant {
                        let (name, restarts) = match name.strip_suffix(":restart") {
                            Some(name) => (name, true),
                            None => (name, false),
                        };
                        let id = secrets.material_named(MaterialKind::Secret, name).unwrap().id;
                        let on_change =
                            if restarts { OnChange::Restart } else { OnChange::Nothing };
                        Grant { on_change, ..grant(id, name) }
                    };
                    task.container.secrets = value.split(',').map(named).collect();
                }
                "reserve-mb" => {
                    let memory_bytes = number() << 20;
                    let reservations = Some(Resources { memory_bytes, ..Resources::default() });
                    task.resources = Some(ResourceNeeds { reservations, limits: None });
                }
                "constraint" | "max-per-node" | "platform" | "spread" => {
                    let placement = task.placement.get_or_insert_with(Placement::default);
                    match key {
                        "constraint" => placement.constraints = vec![value.to_string()],
                        "spread" => {
                            placement.spread = value.split(',').map(String::from).collect();
                        }
                        "platform" => placement.platforms = vec![(value.into(), "linux".into())],
                        _ => placement.max_replicas = number(),
                    }
                }
                "replicas" => spec.mode = ServiceMode::Replicated { replicas: number() },
                "label" => {
                    spec.labels.insert(value.to_string(), String::new());
                }
                other => set_update(spec, other, value),
            }
        }
    }

    /// Writes down what the loop decided.
    fn tell(&mut self) {
        let proposed = self.sim.take_proposed();
        self.tell_of(None, proposed);
    }

    fn tell_of(
        &mut self,
        at: Option<Stamp>,
        (decisions, reports): (Vec<Decision>, Vec<NodeReport>),
    ) {
        if let Some(at) = at
            && !(decisions.is_empty() && reports.is_empty())
        {
            let ms = at.since(self.start).as_millis();
            self.say(format!("  at {}.{:03} s", ms / 1000, ms % 1000));
        }
        for report in reports {
            let Some(status) = report.status else { continue };
            let line = format!(
                "  node {} {:?} {}",
                self.node_name(&report.id),
                status.state,
                status.message
            );
            self.say(line.trim_end().to_string());
        }
        for decision in decisions {
            let line = self.line(decision);
            self.say(format!("  {line}"));
        }
    }

    fn line(&mut self, decision: Decision) -> String {
        match decision {
            Decision::TaskCreate(task) => {
                self.tasks.push(task.id);
                let number = self.tasks.len();
                let place = match task.node {
                    Some(node) => format!("on {}", self.node_name(&node)),
                    None => task.status.err.unwrap_or_default(),
                };
                let name = &task.service_name;
                let mut line = format!("create t{number} {name}.{} {place}", task.slot);
                if task.desired != TaskState::Running {
                    line += &format!(", {}", task.desired.word());
                }
                if let Some(at) = task.start_after {
                    let ms = at.since(self.start).as_millis();
                    line += &format!(" until {}.{:03} s", ms / 1000, ms % 1000);
                }
                line
            }
            Decision::TaskDesire { id, desired } => {
                format!("desire {} {}", self.task_name(&id), desired.word())
            }
            Decision::TaskAssign { id, node } => {
                format!("assign {} to {}", self.task_name(&id), self.node_name(&node))
            }
            Decision::TaskStatus { id, status } => {
                let err = status.err.unwrap_or_default();
                format!("explain {}: {}; {err}", self.task_name(&id), status.message)
            }
            Decision::TaskRemove { id } => format!("forget {}", self.task_name(&id)),
            Decision::ServiceStatus { id, update, .. } => {
                let message = self.rename(update.message);
                format!("{} {}: {message}", self.service_name(&id), update.state.word())
            }
            Decision::ServiceRollback { id, message, .. } => {
                let message = self.rename(message);
                format!("{} back: {message}", self.service_name(&id))
            }
        }
    }

    fn rename(&self, text: String) -> String {
        let tasks = self.tasks.iter().filter(|id| text.contains(id.as_str()));
        let named = tasks.map(|id| text.replace(id.as_str(), &self.task_name(id))).next();
        named.unwrap_or(text)
    }

    fn task_name(&self, id: &TaskId) -> String {
        format!("t{}", 1 + self.tasks.iter().position(|known| known == id).unwrap())
    }

    fn node_name(&self, id: &NodeId) -> String {
        self.nodes.iter().find(|(_, known)| *known == id).unwrap().0.clone()
    }

    fn service_name(&self, id: &ServiceId) -> String {
        self.services.iter().find(|(_, known)| *known == id).unwrap().0.clone()
    }
}

fn set_update(spec: &mut ServiceSpec, key: &str, value: &str) {
    let (config, key) = match key.strip_prefix("rollback-") {
        Some(key) => (spec.rollback.get_or_insert_with(UpdateConfig::default), key),
        None => (spec.update.get_or_insert_with(UpdateConfig::default), key),
    };
    match key {
        "parallelism" => config.parallelism = value.parse().unwrap(),
        "update-delay" => config.delay = span(value),
        "monitor" => config.monitor = Some(span(value)),
        "ratio" => config.max_failure_ratio_ppm = value.parse().unwrap(),
        "order" => {
            config.order = match value {
                "start-first" => UpdateOrder::StartFirst,
                _ => UpdateOrder::StopFirst,
            };
        }
        "on-failure" => {
            config.failure_action = match value {
                "continue" => FailureAction::Continue,
                "rollback" => FailureAction::Rollback,
                _ => FailureAction::Pause,
            };
        }
        other => panic!("no setting {other}"),
    }
}

fn span(text: &str) -> Span {
    match text.strip_suffix("ms") {
        Some(ms) => Span::from_millis(ms.parse().unwrap()),
        None => Span::from_secs(text.trim_end_matches('s').parse().unwrap()),
    }
}

fn state(word: &str) -> TaskState {
    match word {
        "ready" => TaskState::Ready,
        "running" => TaskState::Running,
        "complete" => TaskState::Complete,
        "shutdown" => TaskState::Shutdown,
        "failed" => TaskState::Failed,
        "rejected" => TaskState::Rejected,
        other => panic!("no state {other}"),
    }
}

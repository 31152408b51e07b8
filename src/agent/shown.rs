//! What a task's container looks like from outside: kept up to date by its actor, read by the
//! API.

use std::sync::Arc;

use serde_json::Value;
use skep_core::assign::TaskAssignment;
use skep_core::model::Labels;
use skep_core::shared::Shared;
use skep_core::time::Stamp;
use tokio::sync::watch;

use super::Context;
use super::link::ShimLink;
use super::store::Record;
use crate::gate::{ContainerState, ContainerView};
use crate::wire::launch::Launch;
use crate::wire::shim::{Exit, ShimState, ShimStatus};

/// The parts of a launch plan that inspect shows. The plan itself is not kept in memory.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    container_id: String,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    hostname: String,
    user: String,
    layers: Vec<String>,
}

/// A task as the API sees it.
#[derive(Debug)]
pub struct Shown {
    /// What is wanted of it.
    pub assignment: Arc<TaskAssignment>,
    /// Its record once it was planned.
    pub record: Option<Record>,
    /// Its shim while the container runs.
    pub link: Option<ShimLink>,
    /// What its shim said last.
    pub status: Option<ShimStatus>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Turns true once its process has ended.
    pub ended: watch::Sender<bool>,
    facts: Option<Facts>,
}

impl Shown {
    /// A task of which nothing was done yet.
    #[must_use]
    pub fn new(assignment: Arc<TaskAssignment>) -> Self {
        Self {
            assignment,
            record: None,
            link: None,
            status: None,
            exit: None,
            ended: watch::Sender::new(false),
            facts: None,
        }
    }

    /// Its container's id, once it was planned.
    #[must_use]
    pub fn container_id(&self) -> Option<&str> {
        self.facts.as_ref().map(|facts| facts.container_id.as_str())
    }

    /// Takes over what a plan says.
    pub fn set_plan(&mut self, launch: &Launch, record: Record) {
        let bundle: Value = serde_json::from_str(&launch.bundle).unwrap_or_default();
        let text = |pointer: &str| {
            bundle.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let list = |pointer: &str| -> Vec<String> {
            let values = bundle.pointer(pointer).and_then(Value::as_array);
            values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        self.facts = Some(Facts {
            container_id: launch.container_id.clone(),
            args: list("/process/args"),
            env: list("/process/env"),
            cwd: text("/process/cwd"),
            hostname: text("/hostname"),
            user: launch.user.clone(),
            layers: launch.layers.clone(),
        });
        self.record = Some(record);
    }

    /// The container for the API; none until it was planned.
    #[must_use]
    pub fn view(&self, context: &Context) -> Option<ContainerView> {
        let (facts, record) = (self.facts.clone()?, self.record.as_ref()?);
        let task = &self.assignment.task;
        let exit = self.exit.as_ref();
        let state = match (&self.status, exit) {
            (_, Some(_)) => ContainerState::Exited,
            (Some(status), None) if status.state == ShimState::Running => ContainerState::Running,
            _ => ContainerState::Created,
        };
        let started = match (exit, &self.status) {
            (Some(exit), _) => Stamp(exit.started_ns),
            (None, Some(status)) => status.started,
            (None, None) => Stamp(0),
        };
        let spec = &task.spec.container;
        Some(ContainerView {
            id: facts.container_id,
            task: Shared::new(task.clone()),
            node: context.node,
            image_id: record.image_id.clone(),
            exposed: record.exposed.clone(),
            args: facts.args,
            env: facts.env,
            cwd: facts.cwd,
            user: facts.user,
            hostname: facts.hostname,
            entrypoint: record.entrypoint.clone(),
            cmd: record.cmd.clone(),
            labels: self.labels(context),
            stop_signal: spec.stop_signal.clone(),
            state,
            pid: match state {
                ContainerState::Running => self.status.as_ref().map_or(0, |s| s.pid),
                _ => 0,
            },
            created: Stamp(record.created_ns),
            started,
            finished: exit.map_or(Stamp(0), |exit| Stamp(exit.at_ns)),
            exit_code: exit.map_or(0, |exit| exit.code),
            oom: match (exit, &self.status) {
                (Some(exit), _) => exit.oom,
                (None, status) => status.as_ref().is_some_and(|status| status.oom),
            },
            error: match (exit, &self.status) {
                (Some(exit), _) => exit.error.clone(),
                (None, status) => status.as_ref().and_then(|status| status.trouble.clone()),
            }
            .unwrap_or_default(),
            network: network(self).to_owned(),
            task_dir: context.task_dir(&task.id).to_string_lossy().into_owned(),
            layers: facts.layers,
            execs: Vec::new(),
        })
    }

    /// Labels of image and service, overridden by the task's own.
    fn labels(&self, context: &Context) -> Labels {
        let task = &self.assignment.task;
        let mut labels = self.record.as_ref().map(|r| r.image_labels.clone()).unwrap_or_default();
        labels.extend(task.spec.container.labels.clone());
        let own = [
            ("node.id", context.node.to_string()),
            ("service.id", task.service.to_string()),
            ("service.name", task.service_name.clone()),
            ("task", String::new()),
            ("task.id", task.id.to_string()),
            ("task.name", task.container_name()),
        ];
        labels.extend(own.map(|(key, value)| (format!("com.docker.swarm.{key}"), value)));
        labels
    }
}

fn network(shown: &Shown) -> &str {
    match shown.assignment.task.spec.networks.first().map(|n| n.target.as_str()) {
        Some(name @ ("host" | "none")) => name,
        _ => "default",
    }
}

//! A step's decisions while it makes them, and the slots they are about.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sha2::{Digest, Sha256};

use super::started_with;
use crate::codec;
use crate::command::Decision;
use crate::id::{ENTROPY_LEN, ServiceId, TaskId};
use crate::limits;
use crate::model::Meta;
use crate::model::service::{Service, UpdateState, UpdateStatus};
use crate::model::task::{Task, TaskState, TaskStatus};
use crate::state::State;
use crate::time::Stamp;

/// What a task says that waits for a node.
pub(crate) const PENDING: &str = "pending task scheduling";

/// Where task ids come from: hashes of a seed and a counter.
#[derive(Debug)]
pub(super) struct Mint {
    seed: [u8; 32],
    counter: u64,
}

impl Mint {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    fn task_id(&mut self, state: &State) -> TaskId {
        loop {
            self.counter += 1;
            let hash = Sha256::new()
                .chain_update(b"skep-task")
                .chain_update(self.seed)
                .chain_update(self.counter.to_be_bytes())
                .finalize();
            let mut entropy = [0; ENTROPY_LEN];
            entropy.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
            let id = TaskId::from_entropy(entropy);
            if state.task(&id).is_none() {
                return id;
            }
        }
    }
}

/// The tasks of one slot, as they will be once the draft is applied.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) tasks: Vec<Arc<Task>>,
}

impl Slot {
    pub(super) fn all(state: &State, service: &ServiceId) -> Vec<Self> {
        let mut slots: Vec<Self> = Vec::new();
        for task in state.tasks_of_service(service) {
            match slots.last_mut() {
                Some(slot) if slot.number == task.slot => slot.tasks.push(Arc::clone(task)),
                _ => slots.push(Self { number: task.slot, tasks: Vec::from([Arc::clone(task)]) }),
            }
        }
        slots
    }

    pub(super) fn load(state: &State, service: &ServiceId, number: u64) -> Self {
        Self { number, tasks: state.tasks_of_slot(service, number).cloned().collect() }
    }

    /// Tasks that are to run.
    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|task| task.desired <= TaskState::Running)
    }

    /// Tasks that fill the slot, or filled it and are history now; not those that are to go.
    fn kept(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|task| task.desired < TaskState::Remove)
    }

    /// Whether the slot counts as one of its service's. One whose task ended for good does.
    pub(super) fn is_occupied(&self) -> bool {
        self.kept().next().is_some()
    }

    /// The task the slot had last.
    pub(super) fn newest(&self) -> Option<&Arc<Task>> {
        self.kept().max_by_key(|task| task.age())
    }
}

/// What a step has decided so far.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) state: &'a State,
    pub(super) now: Stamp,
    pub(super) decisions: Vec<Decision>,
    /// Tasks that were told to end in this step.
    pub(super) ended: BTreeSet<TaskId>,
    made: usize,
    /// Bytes of the tasks made, and how many one task of the service looked at last has.
    bytes: usize,
    weight: Option<(ServiceId, usize)>,
    mint: &'a mut Mint,
    timers: &'a mut BTreeSet<(Stamp, ServiceId, u64)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        state: &'a State,
        now: Stamp,
        mint: &'a mut Mint,
        timers: &'a mut BTreeSet<(Stamp, ServiceId, u64)>,
    ) -> Self {
        let (decisions, ended) = (Vec::new(), BTreeSet::new());
        Self { state, now, decisions, ended, made: 0, bytes: 0, weight: None, mint, timers }
    }

    pub(super) fn is_full(&self) -> bool {
        self.decisions.len() >= limits::CONTROL_BATCH || self.bytes >= limits::CONTROL_BATCH_BYTES
    }

    pub(super) fn has_made(&self) -> bool {
        self.made > 0
    }

    /// Whether a task for a slot that is new has room.
    pub(super) fn has_room(&self) -> bool {
        self.state.tasks.len() + self.made < limits::TASKS
    }

    /// Whether a task that replaces another has room. If not, the service is looked at again.
    pub(super) fn has_spare_room(&mut self, service: ServiceId) -> bool {
        let fits = self.state.tasks.len() + self.made < limits::TASKS + limits::TASKS_SPARE;
        if !fits {
            self.wait_for_room(service);
        }
        fits
    }

    /// Looks at a service again when there may be room for more of its tasks.
    pub(super) fn wait_for_room(&mut self, service: ServiceId) {
        self.wake(self.now + limits::ROOM_RETRY, service, 0);
    }

    /// Looks at a slot (0 for the whole service) again at `at`.
    pub(super) fn wake(&mut self, at: Stamp, service: ServiceId, slot: u64) {
        self.timers.insert((at, service, slot));
    }

    /// A task for a slot from the service's present template. The caller creates it.
    pub(super) fn task(&mut self, service: &Service, slot: u64) -> Task {
        Task {
            id: self.mint.task_id(self.state),
            meta: Meta::new(self.now),
            service: service.id,
            service_name: service.spec.name.clone(),
            service_labels: service.spec.labels.clone().into(),
            slot,
            node: None,
            spec: service.spec.task.clone(),
            spec_version: service.spec_version,
            status: TaskStatus {
                at: self.now,
                state: TaskState::Pending,
                message: String::from(PENDING),
                err: None,
                container: None,
            },
            desired: TaskState::Running,
            start_after: None,
            attempts: 0,
            window_start: self.now,
            running_since: None,
            started_with: started_with(self.state, &service.spec.task),
        }
    }

    pub(super) fn create(&mut self, slot: &mut Slot, task: Task) {
        self.bytes += self.weigh(&task);
        self.decisions.push(Decision::TaskCreate(task.clone()));
        slot.tasks.push(Arc::new(task));
        self.made += 1;
    }

    /// Bytes of a task, much like those of the other tasks of its service.
    fn weigh(&mut self, task: &Task) -> usize {
        match self.weight {
            Some((service, bytes)) if service == task.service => bytes,
            _ => {
                let bytes = codec::length(task);
                self.weight = Some((task.service, bytes));
                bytes
            }
        }
    }

    /// Moves the desired state of those tasks of a slot that `which` picks.
    pub(super) fn desire(
        &mut self,
        slot: &mut Slot,
        desired: TaskState,
        which: impl Fn(&Task) -> bool,
    ) {
        for task in &mut slot.tasks {
            if task.desired < desired && which(task) {
                self.decisions.push(Decision::TaskDesire { id: task.id, desired });
                if desired > TaskState::Running {
                    self.ended.insert(task.id);
                }
                let task = Arc::make_mut(task);
                task.desired = desired;
                task.meta.updated = self.now;
            }
        }
    }

    pub(super) fn set_update(&mut self, service: &Service, state: UpdateState, message: String) {
        let ends = matches!(state, UpdateState::Completed | UpdateState::RollbackCompleted);
        let started = match &service.update {
            Some(update) if state != UpdateState::Updating => update.started,
            _ => self.now,
        };
        self.decisions.push(Decision::ServiceStatus {
            id: service.id,
            spec_version: service.spec_version,
            update: UpdateStatus {
                state,
                started,
                completed: ends.then_some(self.now),
                message,
                restarts: false,
            },
        });
    }
}

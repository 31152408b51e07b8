//! The agent's decisions on one task: what it does next and what it reports, given where the
//! task should go and what is known of it on the node.

use alloc::format;
use alloc::string::{String, ToString};

use crate::model::task::TaskState;

/// What is known of a task on its node. The order of the variants is the order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// Nothing was done for it yet.
    New,
    /// Its image is looked up and its shim started.
    Preparing,
    /// Its shim waits for payloads.
    Launched,
    /// Its shim holds every payload it needs.
    Loaded,
    /// The runtime works.
    Starting,
    /// Its process runs.
    Running {
        /// Pid of the process on the host.
        pid: u32,
    },
    /// Its process ended.
    Ended(End),
    /// It could not be run. The node is fine, the task is not: the same task fails elsewhere too.
    Rejected(String),
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// Exit code, 128 + signal when killed.
    pub code: i32,
    /// Whether the kernel killed it for memory.
    pub oom: bool,
    /// What went wrong beside the exit code; set if it never ran.
    pub error: Option<String>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wait for news.
    Wait,
    /// Look up the image, write the plan, start the shim.
    Prepare,
    /// Ask for payloads.
    Load,
    /// Start the container.
    Start,
    /// Ask the process to stop, kill it when its grace is over.
    Stop,
    /// End a shim whose container never ran.
    Abandon,
}

/// What to report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// State.
    pub state: TaskState,
    /// What happens, in Docker's words.
    pub message: &'static str,
    /// What went wrong.
    pub err: Option<String>,
    /// Exit code of an ended process.
    pub exit_code: i32,
    /// Pid of a running one.
    pub pid: u32,
}

impl Report {
    fn of(state: TaskState, message: &'static str) -> Self {
        Self { state, message, ..Self::default() }
    }
}

/// One step: the next action and the report that holds until the next step.
///
/// A task that waits in desired state `Ready` is prepared and loaded, but not started. Reports
/// only move forward; the manager drops those that do not.
#[must_use]
pub fn step(desired: TaskState, local: &Local) -> (Action, Report) {
    if desired > TaskState::Running {
        return finish(local);
    }
    match local {
        Local::New => (Action::Prepare, Report::of(TaskState::Accepted, "accepted")),
        Local::Preparing => (Action::Wait, Report::of(TaskState::Preparing, "preparing")),
        Local::Launched => (Action::Load, Report::of(TaskState::Preparing, "preparing")),
        Local::Loaded if desired < TaskState::Running => {
            (Action::Wait, Report::of(TaskState::Ready, "prepared"))
        }
        Local::Loaded => (Action::Start, Report::of(TaskState::Starting, "starting")),
        Local::Starting => (Action::Wait, Report::of(TaskState::Starting, "starting")),
        Local::Running { pid } => {
            (Action::Wait, Report { pid: *pid, ..Report::of(TaskState::Running, "started") })
        }
        Local::Ended(end) => (Action::Wait, ended(end)),
        Local::Rejected(why) => (Action::Wait, rejected(why)),
    }
}

/// The way out of a task that should not run.
fn finish(local: &Local) -> (Action, Report) {
    match local {
        Local::New => (Action::Wait, Report::of(TaskState::Shutdown, "shutdown")),
        // The shim is on its way: it is ended once it is there.
        Local::Preparing => (Action::Wait, Report::of(TaskState::Preparing, "preparing")),
        Local::Launched | Local::Loaded => {
            (Action::Abandon, Report::of(TaskState::Ready, "prepared"))
        }
        Local::Starting => (Action::Stop, Report::of(TaskState::Starting, "starting")),
        Local::Running { pid } => {
            (Action::Stop, Report { pid: *pid, ..Report::of(TaskState::Running, "started") })
        }
        Local::Ended(end) => {
            let report = Report::of(TaskState::Shutdown, "shutdown");
            (Action::Wait, Report { exit_code: end.code, ..report })
        }
        Local::Rejected(why) => (Action::Wait, rejected(why)),
    }
}

/// The report of a task that ended by itself.
fn ended(end: &End) -> Report {
    let failed = |err: String| Report {
        err: Some(err),
        exit_code: end.code,
        ..Report::of(TaskState::Failed, "started")
    };
    match (&end.error, end.code) {
        (Some(error), _) => failed(error.clone()),
        (None, 0) => Report::of(TaskState::Complete, "finished"),
        (None, code) if end.oom => {
            failed(format!("task: non-zero exit ({code}): killed by the kernel: out of memory"))
        }
        (None, code) => failed(format!("task: non-zero exit ({code})")),
    }
}

fn rejected(why: &str) -> Report {
    Report { err: Some(why.to_string()), ..Report::of(TaskState::Rejected, "preparing") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_task_runs_and_ends_well() {
        let way = [
            Local::New,
            Local::Preparing,
            Local::Launched,
            Local::Loaded,
            Local::Starting,
            Local::Running { pid: 7 },
            Local::Ended(End::default()),
        ];
        let steps: Vec<_> = way.iter().map(|local| step(TaskState::Running, local)).collect();
        let actions: Vec<_> = steps.iter().map(|(action, _)| *action).collect();
        use Action::{Load, Prepare, Start, Wait};
        assert_eq!(actions, [Prepare, Wait, Load, Start, Wait, Wait, Wait]);
        assert!(steps.is_sorted_by(|a, b| a.1.state <= b.1.state));
        assert_eq!(steps[6].1.state, TaskState::Complete);
    }

    #[test]
    fn a_delayed_task_waits_loaded() {
        let (action, report) = step(TaskState::Ready, &Local::Loaded);
        assert_eq!((action, report.state), (Action::Wait, TaskState::Ready));
    }

    #[test]
    fn an_unwanted_task_is_ended_wherever_it_is() {
        let act = |local| step(TaskState::Shutdown, &local).0;
        assert_eq!(act(Local::New), Action::Wait);
        assert_eq!(act(Local::Loaded), Action::Abandon);
        assert_eq!(act(Local::Running { pid: 1 }), Action::Stop);
        let end = End { code: 143, ..End::default() };
        let (action, report) = step(TaskState::Shutdown, &Local::Ended(end));
        assert_eq!((action, report.state), (Action::Wait, TaskState::Shutdown));
        assert_eq!(report.exit_code, 143);
    }

    #[test]
    fn failures_say_what_docker_says() {
        let end = End { code: 1, ..End::default() };
        let report = step(TaskState::Running, &Local::Ended(end)).1;
        assert_eq!(report.err.as_deref(), Some("task: non-zero exit (1)"));
        assert_eq!(report.state, TaskState::Failed);
    }
}

//! The agent's decisions on one task: what it does next and what it reports, given where the
//! task should go and what is known of it on the node.

use alloc::format;
use alloc::string::{String, ToString};

use crate::model::task::TaskState;

/// Exit code of a process that was killed outright.
const KILLED: i32 = 137;

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
    /// Whether it ran at all.
    pub ran: bool,
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
        (error, 0) => Report { err: error.clone(), ..Report::of(TaskState::Complete, "finished") },
        (Some(error), _) if !end.ran => failed(error.clone()),
        (error, code) => {
            let memory = end.oom.then_some(match code {
                KILLED => "killed by the kernel: out of memory",
                _ => "a process of it was killed by the kernel: out of memory",
            });
            let causes = memory.into_iter().chain(error.as_deref());
            let said = causes.fold(String::new(), |said, cause| said + ": " + cause);
            failed(format!("task: non-zero exit ({code}){said}"))
        }
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
        let err = |code, oom, error: Option<&str>, ran| {
            let end = End { code, oom, error: error.map(Into::into), ran };
            let report = step(TaskState::Running, &Local::Ended(end)).1;
            (report.state, report.err.unwrap_or_default())
        };
        let failed = |text: &str| (TaskState::Failed, text.to_string());
        let words = "starting container failed: x";
        assert_eq!(err(127, false, Some(words), false), failed(words));
        assert_eq!(err(3, false, Some("x"), true), failed("task: non-zero exit (3): x"));
        let words = "task: non-zero exit (137): killed by the kernel: out of memory";
        assert_eq!(err(137, true, None, true), failed(words));
        let words = "task: non-zero exit (3): a process of it was killed by the kernel: out of \
                     memory: x";
        assert_eq!(err(3, true, Some("x"), true), failed(words));
        assert_eq!(err(0, true, Some("x"), true), (TaskState::Complete, "x".to_string()));
    }
}

//! The end of the task.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{STOPPED_CODE, Task};
use crate::chain::chain;
use crate::shim::events::{Child, Event};
use crate::shim::materials::Materials;
use crate::shim::reaper::End;
use crate::shim::record::bounded;
use crate::shim::{leave, log, mounts};
use crate::wire::launch::LOG_FILE;
use crate::wire::shim::{Exit, FromShim, ShimState};

/// How long the container's other processes may take to die after its first one.
const KILL_REST: Duration = Duration::from_secs(2);
/// How long the end of the container's output is waited for.
const DRAIN_LOG: Duration = Duration::from_secs(2);
/// How long the runtime may take to forget the container.
const DELETE: Duration = Duration::from_secs(10);
/// How long the sentinel may take to leave.
const DISMISS: Duration = Duration::from_secs(1);
/// Exit codes from here on stand for a signal.
const KILLED_CODE: i32 = 128;

impl Task {
    /// The order of the end: no more reads, no plaintext, nothing of the container alive, its
    /// log whole, its record on disk; then everybody may know.
    pub(super) fn finish(
        &mut self,
        state: ShimState,
        mut exit: Exit,
        materials: Option<&mut Materials>,
    ) -> ! {
        let plan = Arc::clone(&self.plan);
        let materials = materials.map(|materials| {
            materials.end();
            &*materials
        });
        // Calls of the runtime first: one in the middle of its work would go on to make more
        // processes. What outlives the wait has no better judge than the daemon.
        let _ = plan.cgroups.kill_all(&plan.launch.shim_cgroup, &self.own(), KILL_REST);
        if let Err(error) = plan.cgroups.kill_all(&plan.launch.cgroup, &[], KILL_REST) {
            exit.error.get_or_insert_with(|| chain(&error));
        }
        exit.oom = plan.cgroups.oom_kills(&plan.launch.cgroup) > 0;
        if let Some(running) = &self.running {
            // Whoever else holds the pipes open is not in the container.
            let _ = running.log_ended.recv_timeout(DRAIN_LOG);
        }
        let late = self.queue.drain();
        self.explain(&mut exit, &late);
        // Whoever knows of the end may count on the audit. Losing it must not hide the end.
        if let Some(Err(error)) = materials.map(Materials::end_audit) {
            exit.error.get_or_insert_with(|| bounded(format!("its audit is not whole: {error}")));
        }
        if let Err(error) = self.record.write(&exit) {
            exit.error.get_or_insert_with(|| format!("no exit record: {error}"));
        }
        self.state = state;
        self.end_execs(late);
        self.say(&FromShim::Status(self.status(Some(exit))));
        if plan.runc.knows(&plan.launch.container_id) {
            // What a failed call leaves is removed by hand.
            let _ = self.reaper.call(&mut plan.runc.delete(&plan.launch.container_id), DELETE);
            plan.cgroups.kill_once(&plan.launch.shim_cgroup, &self.own());
            plan.forget_runtime_state();
        }
        mounts::detach(&plan.secrets);
        mounts::detach(&plan.rootfs);
        plan.clear_run_dir();
        if let Some(adoption) = self.adoption.take() {
            // Else it could come after the group's removal.
            let _ = adoption.join();
        }
        let sentinel = self.sentinel.pid();
        self.reaper.unwatch(sentinel);
        self.sentinel.dismiss();
        self.reaper.wait(sentinel, DISMISS);
        plan.cgroups.remove(&plan.launch.cgroup);
        plan.cgroups.abandon(&plan.launch.shim_cgroup, std::process::id());
        leave(0)
    }

    /// Adds what the end of the log tells of an exit.
    pub(super) fn explain(&mut self, exit: &mut Exit, late: &VecDeque<Event>) {
        for event in late {
            if let Event::Log(trouble) = event {
                self.trouble.clone_from(trouble);
            }
        }
        if self.never_ran {
            let path = self.plan.task_dir().join(LOG_FILE);
            // Where it was not killed, the runtime has written there why.
            let said = log::last_error(&path).filter(|_| exit.code < KILLED_CODE);
            let said = said.unwrap_or_else(|| "it ended before it ran its program".to_owned());
            exit.error.get_or_insert(bounded(said));
        }
        if let Some(trouble) = &self.trouble {
            exit.error.get_or_insert_with(|| bounded(trouble.clone()));
        }
    }

    /// Execs die with the container; those whose end has not come in yet died of that.
    pub(super) fn end_execs(&mut self, late: VecDeque<Event>) {
        for event in late.into_iter().chain(self.queue.drain()) {
            if let Event::Ended { child: Child::Exec(id), end: End { code, .. } } = event {
                self.execs.remove(&id);
                self.say(&FromShim::ExecExited { id, code, error: None });
            }
        }
        while let Some((id, _)) = self.execs.pop_first() {
            self.say(&FromShim::ExecExited { id, code: STOPPED_CODE, error: None });
        }
    }
}

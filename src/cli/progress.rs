//! Waiting until a service has converged, and showing how far it is.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::call::out;
use super::client::{Client, Filters, Target};
use super::error::CliError;
use super::{human, json, terminal};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How long tasks must stay well unless the service says otherwise.
const MONITOR: Duration = Duration::from_secs(5);
/// Tasks that get a line of their own, at most.
const LINES: u64 = 20;
/// States on the way to running.
const STEPS: u64 = 9;
/// Characters of the longest state.
const STATE_CHARS: usize = 9;
/// Characters of a task's error.
const ERROR_CHARS: usize = 75;
/// Narrowest terminal on which bars are drawn.
const BAR_COLUMNS: u16 = 110;

/// Waits until the service is as its spec says and stays so. Ctrl-C leaves it to itself.
///
/// # Errors
/// If the daemon cannot be asked, or the update was paused.
pub(super) fn wait(client: &mut Client, service: &str, quiet: bool) -> Result<(), CliError> {
    let mut view = Watch::new(Screen::new(quiet));
    loop {
        let object = client
            .get_json(&Target::new(&["services", service]).with("insertDefaults", "false"))?;
        if view.status(&object)? == Next::Done {
            return Ok(());
        }
        if let Some(since) = view.converged
            && since.elapsed() >= monitor(&object)
        {
            view.screen.set("verify", &format!("Service {service} converged"))?;
            if let Some(message) = view.epilogue.take() {
                view.screen.set("rollback", &message)?;
            }
            return Ok(());
        }
        let id = json::text(&object, &["ID"]);
        let filters = Filters::default().and("_up-to-date", "true").and("service", id);
        let tasks = client.get_json(&Target::new(&["tasks"]).filtered(&filters))?;
        let nodes = client.get_json(&Target::new(&["nodes"]))?;
        let down: HashSet<&str> = json::list(&nodes, &[])
            .iter()
            .filter(|node| json::text(node, &["Status", "State"]) == "down")
            .map(|node| json::text(node, &["ID"]))
            .collect();
        if !view.look(&object, json::list(&tasks, &[]), &down)? {
            return Ok(());
        }
        if client.pause(PAUSE) {
            if view.converged.is_none() {
                out(&format!(
                    "Operation continuing in background.\n\
                     Use `skep service ps {service}` to check progress.\n"
                ))?;
            }
            return Ok(());
        }
    }
}

fn monitor(service: &Value) -> Duration {
    match json::number(service, &["Spec", "UpdateConfig", "Monitor"]) {
        0 => MONITOR,
        nanos => Duration::from_nanos(nanos),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Look,
    Done,
}

/// What has been seen so far.
struct Watch {
    screen: Screen,
    converged: Option<Instant>,
    rollback: bool,
    epilogue: Option<String>,
    begun: bool,
    done: bool,
    lines: BTreeMap<String, u64>,
}

impl Watch {
    fn new(screen: Screen) -> Self {
        Self {
            screen,
            converged: None,
            rollback: false,
            epilogue: None,
            begun: false,
            done: false,
            lines: BTreeMap::new(),
        }
    }

    /// What the state of the service's update means for the wait.
    fn status(&mut self, service: &Value) -> Result<Next, CliError> {
        let message = json::text(service, &["UpdateStatus", "Message"]);
        match json::text(service, &["UpdateStatus", "State"]) {
            "updating" => self.rollback = false,
            "completed" if self.converged.is_none() => return Ok(Next::Done),
            "paused" => return Err(CliError::plain(format!("service update paused: {message}"))),
            "rollback_started" => {
                if !self.rollback && !message.is_empty() {
                    self.screen.set("rollback", message)?;
                }
                self.rollback = true;
            }
            "rollback_paused" => {
                return Err(CliError::plain(format!("service rollback paused: {message}")));
            }
            "rollback_completed" => {
                if self.converged.is_none() {
                    self.epilogue = Some(message.to_owned());
                }
                self.rollback = true;
            }
            _ => {}
        }
        Ok(Next::Look)
    }

    /// Shows the tasks; `false` if this kind of service cannot be waited for.
    fn look(
        &mut self,
        service: &Value,
        tasks: &[Value],
        down: &HashSet<&str>,
    ) -> Result<bool, CliError> {
        let mode = json::at(service, &["Spec", "Mode"]).unwrap_or(&Value::Null);
        let current = current_tasks(tasks, down);
        let wanted = match (mode.get("Replicated"), mode.get("Global")) {
            (Some(replicated), _) => json::number(replicated, &["Replicas"]),
            (None, Some(_)) if current.is_empty() => return Ok(true),
            (None, Some(_)) => current.len() as u64,
            (None, None) => return Ok(false),
        };
        if self.tasks(&current, wanted)? {
            let since = *self.converged.get_or_insert_with(Instant::now);
            if let Some(left) = monitor(service).checked_sub(since.elapsed()) {
                let text = format!(
                    "Waiting {} seconds to verify that tasks are stable...",
                    left.as_secs() + 1
                );
                self.screen.set("verify", &text)?;
            }
        } else if self.converged.take().is_some() {
            self.screen.set("verify", "Detected task failure")?;
        }
        Ok(true)
    }

    /// Shows each task and how many run; `true` if all do.
    fn tasks(&mut self, current: &BTreeMap<String, &Value>, wanted: u64) -> Result<bool, CliError> {
        if !self.begun {
            self.begun = true;
            self.overall(0, wanted)?;
            if wanted <= LINES {
                for line in 1..=wanted {
                    self.screen.set(&format!("{line}/{wanted}"), " ")?;
                }
            }
        }
        let runs = |task: &Value| json::text(task, &["Status", "State"]) == "running";
        if self.done && current.values().any(|task| !runs(task)) {
            self.done = false;
        }
        let mut running = 0;
        for (key, task) in current {
            let next = self.lines.len() as u64 + 1;
            let line = *self.lines.entry(key.clone()).or_insert(next);
            if runs(task) && !terminal(json::text(task, &["DesiredState"])) {
                running += 1;
            }
            if !self.done && wanted <= LINES && line <= wanted {
                self.task(&format!("{line}/{wanted}"), task)?;
            }
        }
        if !self.done {
            self.overall(running, wanted)?;
            self.done = running == wanted;
        }
        Ok(running == wanted)
    }

    fn task(&mut self, line: &str, task: &Value) -> Result<(), CliError> {
        let error = json::text(task, &["Status", "Err"]);
        if !error.is_empty() {
            let error = human::ellipsis(&error.replace('\n', " "), ERROR_CHARS);
            return self.screen.set(line, &error);
        }
        let state = json::text(task, &["Status", "State"]);
        if terminal(state) || terminal(json::text(task, &["DesiredState"])) {
            return Ok(());
        }
        let step = if self.rollback { STEPS.saturating_sub(rank(state)) } else { rank(state) };
        let bar = self.screen.bar(step, STEPS);
        self.screen.set(line, &format!("{state:STATE_CHARS$} {bar}"))
    }

    fn overall(&mut self, running: u64, wanted: u64) -> Result<(), CliError> {
        let what = if self.rollback { "rolling back update: " } else { "" };
        self.screen.set("overall progress", &format!("{what}{running} out of {wanted} tasks"))
    }
}

/// One task for each slot or node: of several, the one that is to last.
fn current_tasks<'a>(tasks: &'a [Value], down: &HashSet<&str>) -> BTreeMap<String, &'a Value> {
    let mut current: BTreeMap<String, &Value> = BTreeMap::new();
    for task in tasks {
        let ranks = |task: &Value| {
            let desired = rank(json::text(task, &["DesiredState"]));
            (desired, rank(json::text(task, &["Status", "State"])))
        };
        let (desired, state) = ranks(task);
        let node = json::text(task, &["NodeID"]);
        if desired == 0 || state == 0 || down.contains(node) {
            continue;
        }
        let key = match json::number(task, &["Slot"]) {
            0 => node.to_owned(),
            slot => format!("{slot:020}"),
        };
        match current.get(&key) {
            Some(known) if ranks(known) <= (desired, state) => {}
            _ => _ = current.insert(key, task),
        }
    }
    current
}

/// How far along its way a state is; 0 if it is none that counts.
fn rank(state: &str) -> u64 {
    const STATES: &[&str] = &[
        "new",
        "allocated",
        "pending",
        "assigned",
        "accepted",
        "preparing",
        "ready",
        "starting",
        "running",
        "complete",
        "failed",
        "rejected",
    ];
    STATES.iter().position(|known| *known == state).map_or(0, |at| at as u64 + 1)
}

/// Whether a task is past running.
fn terminal(state: &str) -> bool {
    matches!(state, "complete" | "shutdown" | "failed" | "rejected" | "orphaned" | "remove")
}

/// Lines with a name each, changed in place on a terminal, else written anew.
pub(super) struct Screen {
    quiet: bool,
    redraw: bool,
    lines: Vec<(String, String)>,
}

impl Screen {
    /// Nothing yet; a quiet one stays empty.
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, redraw: io::stdout().is_terminal(), lines: Vec::new() }
    }

    /// Has the line called `name` say `text`.
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), CliError> {
        let drawn = self.change(name, text);
        if self.quiet || drawn.is_empty() { Ok(()) } else { out(&drawn) }
    }

    /// What must be written so that the line called `name` says `text`.
    fn change(&mut self, name: &str, text: &str) -> String {
        let text = text.trim_end();
        match self.lines.iter().position(|(known, _)| known == name) {
            Some(at) if self.lines.get(at).is_some_and(|(_, old)| old == text) => String::new(),
            Some(at) => {
                let up = self.lines.len() - at;
                if let Some((_, old)) = self.lines.get_mut(at) {
                    text.clone_into(old);
                }
                match self.redraw {
                    true => format!("\x1b[{up}A\r\x1b[2K{name}: {text}\x1b[{up}B\r"),
                    false => format!("{name}: {text}\n"),
                }
            }
            None => {
                self.lines.push((name.to_owned(), text.to_owned()));
                format!("{name}: {text}\n")
            }
        }
    }

    /// A bar that is full at `total`; nothing where there is no room for it.
    pub(super) fn bar(&self, current: u64, total: u64) -> String {
        let columns = terminal::size().filter(|_| self.redraw).map_or(200, |(_, columns)| columns);
        if columns <= BAR_COLUMNS {
            return String::new();
        }
        let filled = usize::try_from(current * 50 / total.max(1)).unwrap_or(50).min(50);
        format!("[{}>{}] ", "=".repeat(filled), " ".repeat(50 - filled))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(replicas: u64) -> Value {
        json!({"Spec": {"Mode": {"Replicated": {"Replicas": replicas}}}})
    }

    fn task(slot: u64, desired: &str, state: &str) -> Value {
        json!({"Slot": slot, "NodeID": "n", "DesiredState": desired, "Status": {"State": state}})
    }

    fn watch() -> Watch {
        Watch::new(Screen { quiet: true, redraw: false, lines: Vec::new() })
    }

    fn line<'a>(watch: &'a Watch, name: &str) -> &'a str {
        watch.screen.lines.iter().find(|(known, _)| known == name).map_or("", |(_, text)| text)
    }

    #[test]
    fn a_service_converges() {
        let mut watch = watch();
        let none = HashSet::new();
        watch.look(&service(1), &[], &none).unwrap();
        assert_eq!(line(&watch, "overall progress"), "0 out of 1 tasks");
        watch.look(&service(1), &[task(1, "running", "preparing")], &none).unwrap();
        assert_eq!(
            line(&watch, "1/1"),
            format!("preparing [{}>{}]", "=".repeat(33), " ".repeat(17))
        );
        watch.look(&service(1), &[task(1, "running", "running")], &none).unwrap();
        assert_eq!(line(&watch, "1/1"), format!("running   [{}>]", "=".repeat(50)));
        assert_eq!(line(&watch, "overall progress"), "1 out of 1 tasks");
        assert_eq!(line(&watch, "verify"), "Waiting 5 seconds to verify that tasks are stable...");
        watch.look(&service(1), &[task(1, "running", "failed")], &none).unwrap();
        assert_eq!(line(&watch, "verify"), "Detected task failure");
    }

    #[test]
    fn update_states_end_the_wait() {
        let state = |state: &str| json!({"UpdateStatus": {"State": state, "Message": "why"}});
        assert_eq!(watch().status(&state("completed")).unwrap(), Next::Done);
        assert_eq!(watch().status(&state("updating")).unwrap(), Next::Look);
        assert_eq!(
            watch().status(&state("paused")).unwrap_err().to_string(),
            "service update paused: why"
        );
    }

    #[test]
    fn of_two_tasks_in_a_slot_the_one_to_last_counts() {
        let tasks = [task(1, "running", "running"), task(1, "ready", "preparing")];
        let none = HashSet::new();
        let current = current_tasks(&tasks, &none);
        assert_eq!(current.values().next().unwrap()["DesiredState"], "ready");
        assert!(current_tasks(&tasks, &HashSet::from(["n"])).is_empty());
        assert!(current_tasks(&[task(1, "shutdown", "running")], &none).is_empty());
    }

    #[test]
    fn a_terminal_is_redrawn_in_place() {
        let mut screen = Screen { quiet: false, redraw: true, lines: Vec::new() };
        assert_eq!(screen.change("a", "1"), "a: 1\n");
        assert_eq!(screen.change("b", "1"), "b: 1\n");
        assert_eq!(screen.change("a", "2"), "\x1b[2A\r\x1b[2Ka: 2\x1b[2B\r");
        assert_eq!(screen.change("a", "2"), "");
    }
}

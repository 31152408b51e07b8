//! Tables of tasks: `service ps` and `node ps`.

use std::collections::HashMap;

use serde_json::Value;

use super::call::Call;
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::Flag;
use super::output::{FILTER, Layout, QUIET, Row, print_list, row};
use super::{human, json};

/// Characters of a task's error in a table.
const ERROR_CHARS: usize = 30;

/// Flags of tables of tasks.
pub(super) const TASK_FLAGS: &[Flag] = &[
    FILTER,
    Flag::with("format", "string", "Pretty-print tasks using a Go template"),
    Flag::switch("no-resolve", "Do not map IDs to Names"),
    Flag::switch("no-trunc", "Do not truncate output"),
    Flag::switch("quiet", "Only display task IDs").short(QUIET_LETTER),
];

const QUIET_LETTER: char = match QUIET.short {
    Some(letter) => letter,
    None => 'q',
};

const LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t\
            {{.Error}}\t{{.Ports}}",
    quiet: "{{.ID}}",
    headers: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
};

/// Names of services and nodes by id, asked for once each.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<(&'static str, String), String>,
    raw: bool,
}

impl Names {
    /// Names, or ids themselves if `raw`.
    pub(super) fn new(raw: bool) -> Self {
        Self { known: HashMap::new(), raw }
    }

    /// The name of a service; its id if it is gone.
    pub(super) fn service(&mut self, client: &mut Client, id: &str) -> String {
        self.look_up(client, "services", id, |service| {
            json::text(service, &["Spec", "Name"]).to_owned()
        })
    }

    /// The name of a node; its id if it is gone.
    pub(super) fn node(&mut self, client: &mut Client, id: &str) -> String {
        self.look_up(client, "nodes", id, |node| match json::text(node, &["Spec", "Name"]) {
            "" => json::text(node, &["Description", "Hostname"]).to_owned(),
            name => name.to_owned(),
        })
    }

    fn look_up(
        &mut self,
        client: &mut Client,
        kind: &'static str,
        id: &str,
        name_of: impl Fn(&Value) -> String,
    ) -> String {
        if self.raw || id.is_empty() {
            return id.to_owned();
        }
        let key = (kind, id.to_owned());
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let target = Target::new(&[kind, id]);
        let target = match kind {
            "services" => target.with("insertDefaults", "false"),
            _ => target,
        };
        let object = client.get_json(&target).ok();
        let name = object.as_ref().map(name_of).filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| id.to_owned());
        self.known.insert(key, name.clone());
        name
    }
}

/// `service.slot`, or `service.node` for a task without slot.
pub(super) fn task_name(service: &str, task: &Value) -> String {
    match json::number(task, &["Slot"]) {
        0 => format!("{service}.{}", json::text(task, &["NodeID"])),
        slot => format!("{service}.{slot}"),
    }
}

/// Prints tasks: those of a slot together, the newest first, older ones marked.
pub(super) fn print_tasks(
    call: &Call,
    client: &mut Client,
    tasks: &[Value],
) -> Result<(), CliError> {
    let mut names = Names::new(call.on("no-resolve"));
    let mut named: Vec<(String, &Value)> = Vec::with_capacity(tasks.len());
    for task in tasks {
        let service = names.service(client, json::text(task, &["ServiceID"]));
        named.push((task_name(&service, task), task));
    }
    named.sort_by(|(name_a, a), (name_b, b)| {
        let created = |task| json::text(task, &["CreatedAt"]).parse::<jiff::Timestamp>().ok();
        human::natural(name_a, name_b).then_with(|| created(b).cmp(&created(a)))
    });
    let shape = call.get("format").unwrap_or("table");
    let as_table = shape == "table" || shape.starts_with("table ");
    let mut before = String::new();
    let mut rows = Vec::with_capacity(named.len());
    for (name, task) in named {
        let node = names.node(client, json::text(task, &["NodeID"]));
        let shown = match as_table && name == before {
            true => format!(" \\_ {name}"),
            false => name.clone(),
        };
        before = name;
        rows.push(task_row(task, shown, node, !call.on("no-trunc") && !call.on("quiet")));
    }
    print_list(call, &LAYOUT, &rows)
}

fn task_row(task: &Value, name: String, node: String, cut: bool) -> Row {
    let id = json::text(task, &["ID"]);
    let image = json::text(task, &["Spec", "ContainerSpec", "Image"]);
    let error = json::text(task, &["Status", "Err"]);
    let error = if cut { human::ellipsis(error, ERROR_CHARS) } else { error.to_owned() };
    let state = json::text(task, &["Status", "State"]);
    let since = human::ago(json::text(task, &["Status", "Timestamp"])).to_lowercase();
    row([
        ("ID", if cut { human::short_id(id).to_owned() } else { id.to_owned() }),
        ("Name", name),
        ("Image", if cut { human::familiar_image(image) } else { image.to_owned() }),
        ("Node", node),
        ("DesiredState", human::capital(json::text(task, &["DesiredState"]))),
        ("CurrentState", format!("{} {since}", human::capital(state))),
        ("Error", if error.is_empty() { error } else { format!("\"{error}\"") }),
        ("Ports", ports(task)),
    ])
}

fn ports(task: &Value) -> String {
    let published = json::list(task, &["Status", "PortStatus", "Ports"]).iter();
    let host = published.filter(|port| json::text(port, &["PublishMode"]) == "host");
    host.map(|port| {
        format!(
            "*:{}->{}/{}",
            json::number(port, &["PublishedPort"]),
            json::number(port, &["TargetPort"]),
            json::text(port, &["Protocol"])
        )
    })
    .collect::<Vec<_>>()
    .join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_of_a_failed_task() {
        let task = json!({"ID": "0123456789abcdefghijklmno", "Slot": 1, "DesiredState": "shutdown",
            "Spec": {"ContainerSpec": {"Image": "busybox:latest@sha256:aa"}},
            "Status": {"State": "failed", "Timestamp": "2020-01-01T00:00:00Z",
                "Err": "task: non-zero exit (1) and then a lot more"}});
        let row = task_row(&task, "x.1".to_owned(), "host".to_owned(), true);
        assert_eq!(json::text(&Value::Object(row.clone()), &["ID"]), "0123456789ab");
        assert_eq!(row["Image"], "busybox:latest");
        assert_eq!(row["DesiredState"], "Shutdown");
        assert_eq!(row["Error"], "\"task: non-zero exit (1) and t…\"");
        assert!(row["CurrentState"].as_str().unwrap().starts_with("Failed "));
        assert_eq!(task_name("web", &task), "web.1");
    }
}

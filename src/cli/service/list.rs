//! `skep service ls` and `skep service ps`.

use serde_json::Value;

use super::super::call::Call;
use super::super::client::{Filters, Target};
use super::super::error::CliError;
use super::super::output::{Layout, Row, print_list, row};
use super::super::task::print_tasks;
use super::super::{human, json};

const LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    quiet: "{{.ID}}",
    headers: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
};

/// `service ls`
pub(super) fn list(call: &Call) -> Result<u8, CliError> {
    let target = Target::new(&["services"]).filtered(&call.filters());
    let target = if call.on("quiet") { target } else { target.with("status", "true") };
    let answer = call.client()?.get_json(&target)?;
    let mut services: Vec<&Value> = json::list(&answer, &[]).iter().collect();
    services.sort_by(|a, b| {
        human::natural(json::text(a, &["Spec", "Name"]), json::text(b, &["Spec", "Name"]))
    });
    let rows: Vec<Row> = services.into_iter().map(service_row).collect();
    print_list(call, &LAYOUT, &rows)?;
    Ok(0)
}

fn service_row(service: &Value) -> Row {
    let image = json::text(service, &["Spec", "TaskTemplate", "ContainerSpec", "Image"]);
    row([
        ("ID", human::short_id(json::text(service, &["ID"])).to_owned()),
        ("Name", json::text(service, &["Spec", "Name"]).to_owned()),
        ("Mode", mode(service).to_owned()),
        ("Replicas", replicas(service)),
        ("Image", human::familiar_image(image)),
        ("Ports", ports(service)),
    ])
}

/// The word for a service's mode.
pub(super) fn mode(service: &Value) -> &'static str {
    let mode = json::at(service, &["Spec", "Mode"]).unwrap_or(&Value::Null);
    match mode {
        _ if mode.get("Global").is_some() => "global",
        _ if mode.get("ReplicatedJob").is_some() => "replicated job",
        _ if mode.get("GlobalJob").is_some() => "global job",
        _ => "replicated",
    }
}

fn replicas(service: &Value) -> String {
    let running = json::number(service, &["ServiceStatus", "RunningTasks"]);
    let desired = json::number(service, &["ServiceStatus", "DesiredTasks"]);
    match json::number(service, &["Spec", "TaskTemplate", "Placement", "MaxReplicas"]) {
        0 => format!("{running}/{desired}"),
        most => format!("{running}/{desired} (max {most} per node)"),
    }
}

fn ports(service: &Value) -> String {
    let mut ports: Vec<(u64, String)> = json::list(service, &["Endpoint", "Ports"])
        .iter()
        .filter(|port| json::text(port, &["PublishMode"]) == "ingress")
        .map(|port| {
            let published = json::number(port, &["PublishedPort"]);
            let target = json::number(port, &["TargetPort"]);
            (published, format!("*:{published}->{target}/{}", json::text(port, &["Protocol"])))
        })
        .collect();
    ports.sort();
    ports.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

/// `service ps`
pub(super) fn tasks(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let by = |key: &str| {
        call.args().iter().fold(Filters::default(), |filters, name| filters.and(key, name))
    };
    let by_id = client.get_json(&Target::new(&["services"]).filtered(&by("id")))?;
    let by_name = client.get_json(&Target::new(&["services"]).filtered(&by("name")))?;
    let mut filters = call.filters();
    let mut missing = Vec::new();
    for name in call.args() {
        match resolve(name, json::list(&by_id, &[]), json::list(&by_name, &[]))? {
            Some(id) => filters = filters.and("service", &id),
            None => missing.push(CliError::plain(format!("no such service: {name}"))),
        }
    }
    if missing.len() < call.args().len() {
        let tasks = client.get_json(&Target::new(&["tasks"]).filtered(&filters))?;
        print_tasks(call, &mut client, json::list(&tasks, &[]))?;
    }
    CliError::all(missing)
}

/// The id that a full id, a full name or the start of an id means.
fn resolve(name: &str, by_id: &[Value], by_name: &[Value]) -> Result<Option<String>, CliError> {
    let id = |service: &Value| json::text(service, &["ID"]).to_owned();
    let exact = by_id.iter().find(|service| id(service) == name);
    let named = by_name.iter().find(|service| json::text(service, &["Spec", "Name"]) == name);
    if let Some(service) = exact.or(named) {
        return Ok(Some(id(service)));
    }
    let mut starting = by_id.iter().filter(|service| id(service).starts_with(name));
    match (starting.next(), starting.next()) {
        (None, _) => Ok(None),
        (Some(service), None) => Ok(Some(id(service))),
        (Some(_), Some(_)) => {
            Err(CliError::plain(format!("multiple services found with provided prefix: {name}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_win_over_the_start_of_ids() {
        let service = |id: &str, name: &str| json!({"ID": id, "Spec": {"Name": name}});
        let by_id = [service("abc1", "x"), service("abc2", "y")];
        let by_name = [service("zzz", "abc")];
        assert_eq!(resolve("abc", &by_id, &by_name).unwrap().unwrap(), "zzz");
        assert_eq!(resolve("abc1", &by_id, &[]).unwrap().unwrap(), "abc1");
        assert_eq!(resolve("q", &[], &[]).unwrap(), None);
        assert!(resolve("abc", &by_id, &[]).is_err());
    }

    #[test]
    fn a_row_of_a_service() {
        let service = json!({"ID": "0123456789abcdefghijklmno", "Spec": {"Name": "app",
            "Mode": {"Replicated": {"Replicas": 1}},
            "TaskTemplate": {"ContainerSpec": {"Image": "busybox:latest@sha256:aa"}}},
            "Endpoint": {"Ports": [{"Protocol": "tcp", "TargetPort": 443, "PublishedPort": 3000,
                "PublishMode": "ingress"}]},
            "ServiceStatus": {"RunningTasks": 1, "DesiredTasks": 1}});
        let row = Value::Object(service_row(&service));
        for (field, text) in [
            ("ID", "0123456789ab"),
            ("Mode", "replicated"),
            ("Replicas", "1/1"),
            ("Image", "busybox:latest"),
            ("Ports", "*:3000->443/tcp"),
        ] {
            assert_eq!(row[field], text);
        }
    }
}

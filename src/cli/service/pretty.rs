//! `skep service inspect --pretty`.

use serde_json::Value;

use super::super::inspect::pretty_labels;
use super::super::{human, json};
use super::list::mode;

/// A service for people.
pub(super) fn service(service: &Value) -> String {
    let text = |path: &[&str]| json::text(service, path).to_owned();
    let mut out = format!("\nID:\t\t{}\nName:\t\t{}\n", text(&["ID"]), text(&["Spec", "Name"]));
    out += &pretty_labels(json::at(service, &["Spec", "Labels"]), " ");
    out += &format!("Service Mode:\t{}\n", human::capital(mode(service)));
    if let Some(replicas) = json::at(service, &["Spec", "Mode", "Replicated", "Replicas"]) {
        out += &format!(" Replicas:\t{replicas}\n");
    }
    out += &update_status(service);
    out += "Placement:\n";
    let placement = &["Spec", "TaskTemplate", "Placement"];
    let constraints = json::list(service, &[&placement[..], &["Constraints"]].concat());
    if !constraints.is_empty() {
        out += &format!(" Constraints:\t[{}]\n", words(constraints).join(" "));
    }
    out += &config("UpdateConfig", json::at(service, &["Spec", "UpdateConfig"]));
    out += &config("RollbackConfig", json::at(service, &["Spec", "RollbackConfig"]));
    out += &container(json::at(service, &["Spec", "TaskTemplate", "ContainerSpec"]));
    out += &resources(json::at(service, &["Spec", "TaskTemplate", "Resources"]));
    out += &format!("Endpoint Mode:\t{}\n", text(&["Spec", "EndpointSpec", "Mode"]));
    out += &ports(json::list(service, &["Endpoint", "Ports"]));
    out + "\n"
}

fn update_status(service: &Value) -> String {
    if json::at(service, &["UpdateStatus", "State"]).is_none() {
        return String::new();
    }
    let text = |key: &str| json::text(service, &["UpdateStatus", key]).to_owned();
    let mut out = format!("UpdateStatus:\n State:\t\t{}\n", text("State"));
    if !text("StartedAt").is_empty() {
        out += &format!(" Started:\t{}\n", human::ago(&text("StartedAt")).to_lowercase());
    }
    if text("State") == "completed" {
        out += &format!(" Completed:\t{}\n", human::ago(&text("CompletedAt")).to_lowercase());
    }
    out + &format!(" Message:\t{}\n", text("Message"))
}

fn words(list: &[Value]) -> Vec<&str> {
    list.iter().filter_map(Value::as_str).collect()
}

fn ports(ports: &[Value]) -> String {
    let lines = ports.iter().map(|port| {
        format!(
            " PublishedPort = {}\n  Protocol = {}\n  TargetPort = {}\n  PublishMode = {}\n",
            json::number(port, &["PublishedPort"]),
            json::text(port, &["Protocol"]),
            json::number(port, &["TargetPort"]),
            json::text(port, &["PublishMode"])
        )
    });
    match ports.is_empty() {
        true => String::new(),
        false => format!("Ports:\n{}", lines.collect::<String>()),
    }
}

fn config(name: &str, config: Option<&Value>) -> String {
    let Some(config) = config else { return String::new() };
    let mut out = format!("{name}:\n Parallelism:\t{}\n", json::number(config, &["Parallelism"]));
    let seconds = |key: &str| json::number(config, &[key]) as f64 / 1e9;
    if seconds("Delay") > 0.0 {
        out += &format!(" Delay:\t\t{}s\n", seconds("Delay"));
    }
    out += &format!(" On failure:\t{}\n", json::text(config, &["FailureAction"]));
    out += &format!(" Monitoring Period: {}s\n", seconds("Monitor"));
    let ratio = json::at(config, &["MaxFailureRatio"]).and_then(Value::as_f64).unwrap_or_default();
    out += &format!(" Max failure ratio: {ratio}\n");
    let order = if name == "UpdateConfig" { " Update order:" } else { " Rollback order:" };
    out + &format!("{order:20}{}\n", json::text(config, &["Order"]))
}

fn container(spec: Option<&Value>) -> String {
    let Some(spec) = spec else { return "ContainerSpec:\n".to_owned() };
    let mut out = format!("ContainerSpec:\n Image:\t\t{}\n", json::text(spec, &["Image"]));
    for key in ["Command", "Args", "Env"] {
        let words = words(json::list(spec, &[key]));
        if !words.is_empty() {
            out += &format!(" {key}:\t\t{} \n", words.join(" "));
        }
    }
    for key in ["Dir", "User"] {
        let value = json::text(spec, &[key]);
        if !value.is_empty() {
            out += &format!(" {key}:\t\t{value}\n");
        }
    }
    if let Some(init) = json::at(spec, &["Init"]) {
        out += &format!(" Init:\t\t{init}\n");
    }
    out += &mounts(json::list(spec, &["Mounts"]));
    for (title, source) in [("Configs", "ConfigName"), ("Secrets", "SecretName")] {
        let references = json::list(spec, &[title]);
        if !references.is_empty() {
            out += &format!("{title}:\n");
        }
        for one in references {
            let (target, name) = (json::text(one, &["File", "Name"]), json::text(one, &[source]));
            out += &format!(" Target:\t{target}\n  Source:\t{name}\n");
        }
    }
    out
}

fn mounts(mounts: &[Value]) -> String {
    let lines = mounts.iter().map(|mount| {
        format!(
            " Target:\t{}\n  Source:\t{}\n  ReadOnly:\t{}\n  Type:\t\t{}\n",
            json::text(mount, &["Target"]),
            json::text(mount, &["Source"]),
            json::flag(mount, &["ReadOnly"]),
            json::text(mount, &["Type"])
        )
    });
    match mounts.is_empty() {
        true => String::new(),
        false => format!("Mounts:\n{}", lines.collect::<String>()),
    }
}

fn resources(resources: Option<&Value>) -> String {
    let Some(resources) = resources else { return String::new() };
    let mut out = String::new();
    for (title, key) in [("Reservations", "Reservations"), ("Limits", "Limits")] {
        let cpus = json::number(resources, &[key, "NanoCPUs"]);
        let memory = json::number(resources, &[key, "MemoryBytes"]);
        if cpus == 0 && memory == 0 {
            continue;
        }
        out += &format!(" {title}:\n");
        if cpus > 0 {
            out += &format!("  CPU:\t\t{}\n", cpus as f64 / 1e9);
        }
        if memory > 0 {
            out += &format!("  Memory:\t{}\n", human::binary_size(memory as f64));
        }
    }
    if out.is_empty() { "Resources:\n".to_owned() } else { format!("Resources:\n{out}") }
}

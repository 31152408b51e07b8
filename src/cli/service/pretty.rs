//! `skep service inspect --pretty`.

use serde_json::Value;

use super::super::inspect::{go_time, pretty_labels};
use super::super::{human, json};
use super::list::mode;

/// A service for people.
pub(super) fn service(service: &Value) -> String {
    let text = |path: &[&str]| json::text(service, path).to_owned();
    let mut out = format!("\nID:\t\t{}\nName:\t\t{}\n", text(&["ID"]), text(&["Spec", "Name"]));
    out += &pretty_labels(json::at(service, &["Spec", "Labels"]), "");
    out += &format!("Service Mode:\t{}\n", human::capital(mode(service)));
    if let Some(replicas) = json::at(service, &["Spec", "Mode", "Replicated", "Replicas"]) {
        out += &format!(" Replicas:\t{replicas}\n");
    }
    if json::at(service, &["UpdateStatus", "State"]).is_some() {
        out += "UpdateStatus:\n";
        for (name, key) in [
            ("State", "State"),
            ("Started", "StartedAt"),
            ("Completed", "CompletedAt"),
            ("Message", "Message"),
        ] {
            let value = text(&["UpdateStatus", key]);
            if !value.is_empty() {
                let value = if key.ends_with("At") { human::ago(&value) } else { value };
                out += &format!(" {name}:\t{value}\n");
            }
        }
    }
    let constraints = json::list(service, &["Spec", "TaskTemplate", "Placement", "Constraints"]);
    out += "Placement:\n";
    if !constraints.is_empty() {
        let words: Vec<&str> = constraints.iter().filter_map(Value::as_str).collect();
        out += &format!(" Constraints:\t[{}]\n", words.join(" "));
    }
    out += &config("UpdateConfig", json::at(service, &["Spec", "UpdateConfig"]));
    out += &config("RollbackConfig", json::at(service, &["Spec", "RollbackConfig"]));
    out += "ContainerSpec:\n";
    out += &container(json::at(service, &["Spec", "TaskTemplate", "ContainerSpec"]));
    out += &resources(json::at(service, &["Spec", "TaskTemplate", "Resources"]));
    out += &format!("Endpoint Mode:\t{}\n", text(&["Endpoint", "Spec", "Mode"]));
    out += &format!("Created:\t{}\n", go_time(&text(&["CreatedAt"])));
    out
}

fn config(name: &str, config: Option<&Value>) -> String {
    let Some(config) = config else { return String::new() };
    let mut out = format!("{name}:\n Parallelism:\t{}\n", json::number(config, &["Parallelism"]));
    let seconds = |key: &str| json::number(config, &[key]) as f64 / 1e9;
    if seconds("Delay") > 0.0 {
        out += &format!(" Delay:\t\t{}s\n", seconds("Delay"));
    }
    let order = match name {
        "UpdateConfig" => "Update order",
        _ => "Rollback order",
    };
    out += &format!(" On failure:\t{}\n", json::text(config, &["FailureAction"]));
    out += &format!(" Monitoring Period: {}s\n", seconds("Monitor"));
    let ratio = json::at(config, &["MaxFailureRatio"]).and_then(Value::as_f64).unwrap_or_default();
    out += &format!(" Max failure ratio: {ratio}\n");
    out + &format!(" {order}:      {}\n", json::text(config, &["Order"]))
}

fn container(spec: Option<&Value>) -> String {
    let Some(spec) = spec else { return String::new() };
    let words = |key: &str| {
        let words: Vec<&str> = json::list(spec, &[key]).iter().filter_map(Value::as_str).collect();
        words.join(" ")
    };
    let mut out = format!(" Image:\t\t{}\n", json::text(spec, &["Image"]));
    for (name, value) in [
        ("Command", words("Command")),
        ("Args", words("Args")),
        ("Env", words("Env")),
        ("Dir", json::text(spec, &["Dir"]).to_owned()),
        ("User", json::text(spec, &["User"]).to_owned()),
    ] {
        if !value.is_empty() {
            out += &format!(" {name}:\t\t{value}\n");
        }
    }
    for (name, key, source) in
        [("Secrets", "Secrets", "SecretName"), ("Configs", "Configs", "ConfigName")]
    {
        if !json::list(spec, &[key]).is_empty() {
            out += &format!("{name}:\n");
        }
        for one in json::list(spec, &[key]) {
            let (target, name) = (json::text(one, &["File", "Name"]), json::text(one, &[source]));
            out += &format!(" Target:\t{target}\n  Source:\t{name}\n");
        }
    }
    out
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

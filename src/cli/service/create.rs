//! `skep service create`.

use serde_json::{Value, json};

use super::super::call::{Call, outln, warn};
use super::super::client::{Client, Target};
use super::super::error::CliError;
use super::super::json;
use super::super::material::Kind;
use super::super::values::{env_file, environment, labels};
use super::super::{human, progress};
use super::flags::{apply_settings, on_isolation};
use super::mounts;
use super::{grants, print_warnings};

/// `service create`
pub(super) fn create(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut spec = spec(call)?;
    grant(call, &mut client, &mut spec, Kind::Secret, "Secrets")?;
    grant(call, &mut client, &mut spec, Kind::Config, "Configs")?;
    let networks = networks(&mut client, call.matches.all("network"))?;
    if let (false, Some(task)) =
        (networks.is_empty(), json::object_at(&mut spec, &["TaskTemplate"]))
    {
        task.insert("Networks".to_owned(), Value::from(networks));
    }
    if !call.on("no-resolve-image") {
        resolve_image(&mut client, &mut spec)?;
    }
    let answer = client.post_json(&Target::new(&["services", "create"]), &spec)?;
    print_warnings(&answer);
    let id = json::text(&answer, &["ID"]);
    outln(id)?;
    if !call.on("detach") {
        progress::wait(&mut client, id, call.on("quiet"))?;
    }
    Ok(0)
}

/// The spec as far as the command line alone tells it.
fn spec(call: &Call) -> Result<Value, CliError> {
    let matches = &call.matches;
    let mut variables = Vec::new();
    for path in matches.all("env-file") {
        variables.extend(env_file(path).map_err(CliError::Plain)?);
    }
    variables.extend_from_slice(matches.all("env"));
    let mut container = json!({"Image": call.arg(0)});
    if let Some(container) = container.as_object_mut() {
        let mut set = |key: &str, value: Value, there: bool| {
            if there {
                container.insert(key.to_owned(), value);
            }
        };
        let args = call.args().get(1..).unwrap_or_default();
        let list = |name: &str| (json!(matches.all(name)), matches.has(name));
        let (groups, has_groups) = list("group");
        let (added, has_added) = list("cap-add");
        let (dropped, has_dropped) = list("cap-drop");
        let mut container_labels = matches.all("container-label").to_vec();
        container_labels.extend(on_isolation(matches));
        set("Labels", labels(&container_labels), !container_labels.is_empty());
        set("Args", json!(args), !args.is_empty());
        set("Env", json!(environment(&variables)), !variables.is_empty());
        set("Groups", groups, has_groups);
        set("Init", json!(false), true);
        set("DNSConfig", json!({}), true);
        set("Sysctls", labels(matches.all("sysctl")), matches.has("sysctl"));
        set("CapabilityAdd", added, has_added);
        set("CapabilityDrop", dropped, has_dropped);
        set("Mounts", Value::from(mounts(matches.all("mount"))?), matches.has("mount"));
    }
    let mut placement = json!({});
    if let (true, Some(placement)) = (matches.has("constraint"), placement.as_object_mut()) {
        placement.insert("Constraints".to_owned(), json!(matches.all("constraint")));
    }
    let mut spec = json!({
        "Name": call.get("name").unwrap_or_default(),
        "Labels": labels(matches.all("label")),
        "TaskTemplate": {
            "ContainerSpec": container,
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": placement,
            "ForceUpdate": 0,
        },
        "Mode": mode(call)?,
        "EndpointSpec": {"Mode": "vip"},
    });
    apply_settings(matches, &mut spec)?;
    apply_log_driver(call, &mut spec);
    Ok(spec)
}

fn mode(call: &Call) -> Result<Value, CliError> {
    let replicas = call.get("replicas");
    let count = |text: &str| text.parse::<u64>().map(Value::from).unwrap_or_default();
    Ok(match call.get("mode").unwrap_or("replicated") {
        "replicated" => match replicas {
            Some(text) => json!({"Replicated": {"Replicas": count(text)}}),
            None => json!({"Replicated": {}}),
        },
        _ if replicas.is_some() => {
            return Err(CliError::plain(
                "replicas can only be used with replicated or replicated-job mode",
            ));
        }
        "global" => json!({"Global": {}}),
        other => {
            return Err(CliError::plain(format!(
                "Unknown mode: {other}, only replicated and global supported"
            )));
        }
    })
}

/// `--log-driver` and `--log-opt`, on create and on update.
pub(super) fn apply_log_driver(call: &Call, spec: &mut Value) {
    let Some(driver) = call.get("log-driver").filter(|driver| !driver.is_empty()) else { return };
    let mut value = json!({"Name": driver});
    if let (true, Some(value)) = (call.matches.has("log-opt"), value.as_object_mut()) {
        value.insert("Options".to_owned(), labels(call.matches.all("log-opt")));
    }
    if let Some(task) = json::object_at(spec, &["TaskTemplate"]) {
        task.insert("LogDriver".to_owned(), value);
    }
}

/// Mounts as the API takes them.
pub(super) fn mounts(texts: &[String]) -> Result<Vec<Value>, CliError> {
    texts.iter().map(|text| mounts::parse(text).map_err(CliError::Plain)).collect()
}

fn grant(
    call: &Call,
    client: &mut Client,
    spec: &mut Value,
    kind: Kind,
    field: &str,
) -> Result<(), CliError> {
    let references = grants::references(client, kind, call.matches.all(kind.word()))?;
    let container = json::object_at(spec, &["TaskTemplate", "ContainerSpec"]);
    if let (false, Some(container)) = (references.is_empty(), container) {
        container.insert(field.to_owned(), Value::from(references));
    }
    Ok(())
}

/// Network attachments as the API takes them, each network looked up by name.
pub(super) fn networks(client: &mut Client, texts: &[String]) -> Result<Vec<Value>, CliError> {
    let mut attachments = Vec::new();
    for text in texts {
        let mut name = text.clone();
        let mut aliases = Vec::new();
        if text.contains('=') {
            name.clear();
            for field in super::super::values::csv(text).map_err(CliError::Plain)? {
                match field.split_once('=') {
                    Some(("name", value)) => value.clone_into(&mut name),
                    Some(("alias", value)) => aliases.push(value.to_owned()),
                    _ => return Err(CliError::plain(format!("invalid field {field}"))),
                }
            }
        }
        if name.is_empty() {
            return Err(CliError::plain("invalid network name or ID: value is empty"));
        }
        let network = client.get_json(&Target::new(&["networks", &name]).with("scope", "swarm"))?;
        let mut attachment = json!({"Target": json::text(&network, &["Id"])});
        if let (false, Some(attachment)) = (aliases.is_empty(), attachment.as_object_mut()) {
            attachment.insert("Aliases".to_owned(), json!(aliases));
        }
        attachments.push(attachment);
    }
    Ok(attachments)
}

/// Pins the image to the digest that the daemon knows for it, and the service to the platforms
/// it was made for. If the daemon does not know, the user is told what that means.
pub(super) fn resolve_image(client: &mut Client, spec: &mut Value) -> Result<(), CliError> {
    let image = json::text(spec, &["TaskTemplate", "ContainerSpec", "Image"]).to_owned();
    let found = match client.get_json(&Target::new(&["distribution", &image, "json"])) {
        Ok(found) => found,
        Err(CliError::Daemon { .. }) => {
            warn(&format!(
                "image {image} could not be accessed on a registry to record\n\
                 its digest. Each node will access {image} independently,\n\
                 possibly leading to different nodes running different\n\
                 versions of the image.\n"
            ));
            return Ok(());
        }
        Err(why) => return Err(why),
    };
    let digest = json::text(&found, &["Descriptor", "digest"]);
    if let Some(pinned) = pinned(&image, digest)
        && let Some(container) = json::object_at(spec, &["TaskTemplate", "ContainerSpec"])
    {
        container.insert("Image".to_owned(), Value::from(pinned));
    }
    let platforms: Vec<Value> = json::list(&found, &["Platforms"])
        .iter()
        .map(|one| {
            let architecture = match json::text(one, &["architecture"]) {
                "arm" => "",
                other => other,
            };
            json!({"Architecture": architecture, "OS": json::text(one, &["os"])})
        })
        .collect();
    if let (false, Some(placement)) =
        (platforms.is_empty(), json::object_at(spec, &["TaskTemplate", "Placement"]))
    {
        placement.insert("Platforms".to_owned(), Value::from(platforms));
    }
    Ok(())
}

/// `name:tag@digest`; none if the image names a digest or an id already.
fn pinned(image: &str, digest: &str) -> Option<String> {
    let is_id = image.len() == 64 && image.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digest.is_empty() || image.contains('@') || image.starts_with("sha256:") || is_id {
        return None;
    }
    let tagged = image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let tag = if tagged { "" } else { ":latest" };
    Some(human::familiar_image(&format!("{image}{tag}")) + "@" + digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_pinned_once() {
        assert_eq!(pinned("busybox", "sha256:a").unwrap(), "busybox:latest@sha256:a");
        assert_eq!(pinned("host:5000/x:1", "sha256:a").unwrap(), "host:5000/x:1@sha256:a");
        assert_eq!(pinned("busybox@sha256:b", "sha256:a"), None);
        assert_eq!(pinned(&"0".repeat(64), "sha256:a"), None);
        assert_eq!(pinned("busybox", ""), None);
    }
}

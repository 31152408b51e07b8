//! `skep service update` and `rollback`.

use serde_json::Value;

use super::super::call::{Call, outln};
use super::super::client::Client;
use super::super::error::CliError;
use super::super::json;
use super::super::material::Kind;
use super::super::progress;
use super::super::values::environment;
use super::create::{apply_log_driver, mounts, networks, resolve_image};
use super::flags::{apply_settings, on_isolation};
use super::{get, grants, put, set_replicas};

const CONTAINER: &[&str] = &["TaskTemplate", "ContainerSpec"];

/// `service update`
pub(super) fn update(call: &Call) -> Result<u8, CliError> {
    let name = call.arg(0);
    let mut client = call.client()?;
    let service = get(&mut client, name)?;
    let mut spec = json::at(&service, &["Spec"]).cloned().unwrap_or_default();
    let mut query = vec![("registryAuthFrom", "spec")];
    if call.on("rollback") {
        let clash = ["image", "args", "secret-add", "secret-rm", "replicas", "force"]
            .iter()
            .find(|flag| call.matches.has(flag));
        if let Some(flag) = clash {
            return Err(CliError::plain(format!(
                "other flags may not be combined with --rollback: --{flag}"
            )));
        }
        query.push(("rollback", "previous"));
    } else {
        change(call, &mut client, &mut spec)?;
    }
    put(&mut client, &service, &spec, &query)?;
    finish(call, &mut client, name)
}

/// `service rollback`
pub(super) fn rollback(call: &Call) -> Result<u8, CliError> {
    let name = call.arg(0);
    let mut client = call.client()?;
    let service = get(&mut client, name)?;
    let spec = json::at(&service, &["Spec"]).cloned().unwrap_or_default();
    put(&mut client, &service, &spec, &[("rollback", "previous")])?;
    finish(call, &mut client, name)
}

fn finish(call: &Call, client: &mut Client, name: &str) -> Result<u8, CliError> {
    outln(name)?;
    if !call.on("detach") {
        progress::wait(client, name, call.on("quiet"))?;
    }
    Ok(0)
}

/// Changes the spec as the flags say.
fn change(call: &Call, client: &mut Client, spec: &mut Value) -> Result<(), CliError> {
    let matches = &call.matches;
    apply_settings(matches, spec)?;
    apply_log_driver(call, spec);
    if let Some(text) = call.get("replicas") {
        let count = super::super::values::uint(text).map_err(CliError::Plain)?;
        set_replicas(spec, count, "replicas")?;
    }
    if let Some(image) = call.get("image") {
        if let Some(container) = json::object_at(spec, CONTAINER) {
            container.insert("Image".to_owned(), Value::from(image));
        }
        if !call.on("no-resolve-image") {
            resolve_image(client, spec)?;
        }
    }
    if call.on("force")
        && let Some(task) = json::object_at(spec, &["TaskTemplate"])
    {
        let before = task.get("ForceUpdate").and_then(Value::as_u64).unwrap_or_default();
        task.insert("ForceUpdate".to_owned(), Value::from(before + 1));
    }
    change_map(call, spec, &[], "Labels", "label");
    change_map(call, spec, CONTAINER, "Labels", "container-label");
    if let (Some(label), Some(labels)) =
        (on_isolation(matches), json::object_at(spec, &[CONTAINER, &["Labels"]].concat()))
        && let Some((key, value)) = label.split_once('=')
    {
        labels.insert(key.to_owned(), Value::from(value));
    }
    change_map(call, spec, CONTAINER, "Sysctls", "sysctl");
    let variables = environment(matches.all("env-add"));
    change_list(spec, CONTAINER, "Env", &variables, matches.all("env-rm"), name_of);
    let (add, remove) = (matches.all("constraint-add"), matches.all("constraint-rm"));
    change_list(spec, &["TaskTemplate", "Placement"], "Constraints", add, remove, whole);
    let (add, remove) = (matches.all("group-add"), matches.all("group-rm"));
    change_list(spec, CONTAINER, "Groups", add, remove, whole);
    change_grants(call, client, spec, Kind::Secret, "Secrets")?;
    change_grants(call, client, spec, Kind::Config, "Configs")?;
    change_mounts(call, spec)?;
    change_networks(call, client, spec)
}

/// `--<flag>-add k=v` and `--<flag>-rm k` on an object of labels.
fn change_map(call: &Call, spec: &mut Value, path: &[&str], field: &str, flag: &str) {
    let (add, remove) = (format!("{flag}-add"), format!("{flag}-rm"));
    if !call.matches.has(&add) && !call.matches.has(&remove) {
        return;
    }
    let path: Vec<&str> = path.iter().copied().chain([field]).collect();
    let Some(map) = json::object_at(spec, &path) else { return };
    for key in call.matches.all(&remove) {
        map.shift_remove(key);
    }
    for pair in call.matches.all(&add) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        map.insert(key.to_owned(), Value::from(value));
    }
}

fn name_of(text: &str) -> &str {
    text.split('=').next().unwrap_or(text)
}

fn whole(text: &str) -> &str {
    text
}

/// Takes `remove` out of a list of texts and puts `add` in, replacing what has the same key.
fn change_list(
    spec: &mut Value,
    path: &[&str],
    field: &str,
    add: &[String],
    remove: &[String],
    key: fn(&str) -> &str,
) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let Some(object) = json::object_at(spec, path) else { return };
    let before = object.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut texts: Vec<String> =
        before.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    texts.retain(|text| !remove.iter().any(|gone| key(text) == gone));
    for text in add {
        match texts.iter_mut().find(|old| key(old) == key(text)) {
            Some(old) => old.clone_from(text),
            None => texts.push(text.clone()),
        }
    }
    object.insert(field.to_owned(), Value::from(texts));
}

fn change_grants(
    call: &Call,
    client: &mut Client,
    spec: &mut Value,
    kind: Kind,
    field: &str,
) -> Result<(), CliError> {
    let (add, remove) = (format!("{}-add", kind.word()), format!("{}-rm", kind.word()));
    if !call.matches.has(&add) && !call.matches.has(&remove) {
        return Ok(());
    }
    let added = grants::references(client, kind, call.matches.all(&add))?;
    let Some(container) = json::object_at(spec, CONTAINER) else { return Ok(()) };
    let before = container.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let after = grants::updated(kind, &before, call.matches.all(&remove), added);
    match after.is_empty() {
        true => _ = container.shift_remove(field),
        false => _ = container.insert(field.to_owned(), Value::from(after)),
    }
    Ok(())
}

fn change_mounts(call: &Call, spec: &mut Value) -> Result<(), CliError> {
    let (add, remove) = (call.matches.all("mount-add"), call.matches.all("mount-rm"));
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let Some(container) = json::object_at(spec, CONTAINER) else { return Ok(()) };
    let before = container.get("Mounts").and_then(Value::as_array).cloned().unwrap_or_default();
    let target = |mount: &Value| json::text(mount, &["Target"]).to_owned();
    let added = mounts(add)?;
    let mut after: Vec<Value> = before
        .into_iter()
        .filter(|mount| !remove.contains(&target(mount)))
        .filter(|mount| !added.iter().any(|new| target(new) == target(mount)))
        .collect();
    after.extend(added);
    container.insert("Mounts".to_owned(), Value::from(after));
    Ok(())
}

fn change_networks(call: &Call, client: &mut Client, spec: &mut Value) -> Result<(), CliError> {
    let (add, remove) = (call.matches.all("network-add"), call.matches.all("network-rm"));
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let target = |network: &Value| json::text(network, &["Target"]).to_owned();
    let gone: Vec<String> = networks(client, remove)?.iter().map(target).collect();
    let added = networks(client, add)?;
    let Some(task) = json::object_at(spec, &["TaskTemplate"]) else { return Ok(()) };
    let mut after = task.get("Networks").and_then(Value::as_array).cloned().unwrap_or_default();
    after.retain(|network| !gone.contains(&target(network)));
    for network in added {
        if after.iter().any(|old| target(old) == target(&network)) {
            return Err(CliError::plain("service is already attached to network"));
        }
        after.push(network);
    }
    task.insert("Networks".to_owned(), Value::from(after));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_replaced_by_name() {
        let mut spec = json!({"TaskTemplate": {"ContainerSpec": {"Env": ["A=1", "B=2", "C=3"]}}});
        let add = ["A=9".to_owned(), "D=4".to_owned()];
        change_list(&mut spec, CONTAINER, "Env", &add, &["B".to_owned()], name_of);
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Env"], json!(["A=9", "C=3", "D=4"]));
    }

    #[test]
    fn lists_appear_where_there_were_none() {
        let mut spec = json!({"TaskTemplate": {"Placement": null}});
        let path = &["TaskTemplate", "Placement"];
        change_list(&mut spec, path, "Constraints", &["node.role==worker".to_owned()], &[], whole);
        assert_eq!(spec["TaskTemplate"]["Placement"]["Constraints"], json!(["node.role==worker"]));
    }
}

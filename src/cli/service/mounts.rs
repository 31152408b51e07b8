//! `--mount`.

use serde_json::{Map, Value, json};

use super::super::flags::parse_bool;
use super::super::values::{bytes, csv, uint_any_base};

/// Refuses what is no mount.
pub(super) fn check_mount(text: &str) -> Result<(), String> {
    parse(text).map(|_| ())
}

/// Reads `type=bind|volume|tmpfs,source=…,target=…,…` into what the API takes.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut mount = Map::new();
    mount.insert("Type".to_owned(), Value::from("volume"));
    for field in csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        if value.is_none() && !matches!(key.as_str(), "readonly" | "ro" | "volume-nocopy") {
            return Err(format!("invalid field '{field}' must be a key=value pair"));
        }
        let value = value.unwrap_or("true");
        let truth = || {
            parse_bool(value)
                .map(Value::from)
                .ok_or_else(|| format!("invalid value for {key}: {value}"))
        };
        let invalid = |why: String| format!("invalid value for {key}: {value} ({why})");
        match key.as_str() {
            "type" => _ = mount.insert("Type".to_owned(), Value::from(value.to_lowercase())),
            "source" | "src" => _ = mount.insert("Source".to_owned(), Value::from(value)),
            "target" | "dst" | "destination" => {
                mount.insert("Target".to_owned(), Value::from(value));
            }
            "readonly" | "ro" => _ = mount.insert("ReadOnly".to_owned(), truth()?),
            "bind-propagation" => {
                options(&mut mount, "BindOptions", "Propagation", json!(value.to_lowercase()));
            }
            "volume-nocopy" => options(&mut mount, "VolumeOptions", "NoCopy", truth()?),
            "volume-subpath" => options(&mut mount, "VolumeOptions", "Subpath", json!(value)),
            "tmpfs-size" => {
                let size = bytes(value).map_err(invalid)?;
                options(&mut mount, "TmpfsOptions", "SizeBytes", json!(size));
            }
            "tmpfs-mode" => {
                let mode = uint_any_base(&format!("0{value}")).map_err(invalid)?;
                options(&mut mount, "TmpfsOptions", "Mode", json!(mode));
            }
            _ => return Err(format!("unknown option '{key}' in '{field}'")),
        }
    }
    verify(&mount)?;
    Ok(Value::Object(mount))
}

fn options(mount: &mut Map<String, Value>, object: &str, key: &str, value: Value) {
    let object = mount.entry(object).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(object) = object {
        object.insert(key.to_owned(), value);
    }
}

fn verify(mount: &Map<String, Value>) -> Result<(), String> {
    let kind = mount.get("Type").and_then(Value::as_str).unwrap_or_default();
    for (object, of) in
        [("BindOptions", "bind"), ("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs")]
    {
        if kind != of && mount.contains_key(object) {
            return Err(format!("cannot mix '{of}-*' options with mount type '{kind}'"));
        }
    }
    match mount.contains_key("Target") {
        true => Ok(()),
        false => Err("target is required".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        assert_eq!(
            parse("type=bind,src=/a,dst=/b,readonly").unwrap(),
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true})
        );
        assert_eq!(
            parse("type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap(),
            json!({"Type": "tmpfs", "Target": "/t",
                "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 448}})
        );
        assert_eq!(parse("foo").unwrap_err(), "invalid field 'foo' must be a key=value pair");
        assert_eq!(parse("type=bind,source=/a").unwrap_err(), "target is required");
        assert_eq!(parse("target=/a,x=y").unwrap_err(), "unknown option 'x' in 'x=y'");
        assert!(parse("type=bind,target=/a,tmpfs-size=1").is_err());
    }
}

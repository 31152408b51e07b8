//! `--secret` and `--config`: which secrets and configs a service is granted, and as which
//! files.

use std::collections::HashMap;

use serde_json::{Value, json};
use skep_core::model::material::OnChange;
use skep_core::model::name;

use super::super::client::{Client, Filters, Target};
use super::super::error::CliError;
use super::super::json;
use super::super::material::Kind;
use super::super::values::{csv, uint_any_base};

/// Mode of a granted file unless the user says otherwise: readable by all.
const MODE: u32 = 0o444;

/// A grant as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    source: String,
    target: String,
    uid: String,
    gid: String,
    mode: u32,
    /// What becomes of running tasks on a change; none for what it was, or nothing.
    on_change: Option<OnChange>,
}

/// A name without the version it may be pinned to.
fn unpinned(name: &str) -> &str {
    name::pinned(name).map_or(name, |(name, _)| name)
}

/// Refuses what is no grant of a secret.
pub(super) fn check_secret(text: &str) -> Result<(), String> {
    parse(Kind::Secret, text).map(|_| ())
}

/// Refuses what is no grant of a config.
pub(super) fn check_config(text: &str) -> Result<(), String> {
    parse(Kind::Config, text).map(|_| ())
}

/// Reads `NAME` or `source=NAME,target=FILE,uid=U,gid=G,mode=M,on-change=C`. `NAME@VERSION` is
/// pinned to a version.
fn parse(kind: Kind, text: &str) -> Result<Grant, String> {
    let fields = csv(text)?;
    let mut grant = Grant {
        source: String::new(),
        target: String::new(),
        uid: "0".to_owned(),
        gid: "0".to_owned(),
        mode: MODE,
        on_change: None,
    };
    if let [only] = fields.as_slice()
        && !only.contains('=')
    {
        grant.source.clone_from(only);
        unpinned(only).clone_into(&mut grant.target);
        return Ok(grant);
    }
    for field in &fields {
        let pair = field.split_once('=').filter(|(key, _)| !key.is_empty());
        let Some((key, value)) = pair else {
            return Err(format!("invalid field '{field}' must be a key=value pair"));
        };
        match key.to_lowercase().as_str() {
            "source" | "src" => value.clone_into(&mut grant.source),
            "target" => value.clone_into(&mut grant.target),
            "uid" => value.clone_into(&mut grant.uid),
            "gid" => value.clone_into(&mut grant.gid),
            "mode" => {
                grant.mode =
                    uint_any_base(value).map_err(|why| format!("invalid mode specified: {why}"))?;
            }
            "on-change" => {
                grant.on_change = Some(OnChange::parse(value).map_err(|why| why.to_string())?);
            }
            _ => return Err(format!("invalid field in {} request: {key}", kind.word())),
        }
    }
    if grant.source.is_empty() {
        return Err("source is required".to_owned());
    }
    if grant.target.is_empty() {
        unpinned(&grant.source).clone_into(&mut grant.target);
    }
    Ok(grant)
}

/// The references that the spec of a service carries for these grants, their sources looked
/// up by name.
pub(super) fn references(
    client: &mut Client,
    kind: Kind,
    texts: &[String],
) -> Result<Vec<Value>, CliError> {
    let grants: Vec<Grant> = texts
        .iter()
        .map(|text| parse(kind, text))
        .collect::<Result<_, _>>()
        .map_err(CliError::Plain)?;
    if let Some(twice) = duplicate(&grants) {
        return Err(CliError::plain(format!(
            "duplicate {} target for {twice} not allowed",
            kind.word()
        )));
    }
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let filters =
        grants.iter().fold(Filters::default(), |filters, grant| filters.and("name", &grant.source));
    let found = client.get_json(&Target::new(&[kind.path()]).filtered(&filters))?;
    // The filter matches prefixes; only whole names count.
    let ids: HashMap<&str, &str> = json::list(&found, &[])
        .iter()
        .map(|one| (json::text(one, &["Spec", "Name"]), json::text(one, &["ID"])))
        .collect();
    grants
        .iter()
        .map(|grant| match ids.get(grant.source.as_str()) {
            Some(id) => Ok(reference(kind, grant, id)),
            None => Err(CliError::plain(format!("{} not found: {}", kind.word(), grant.source))),
        })
        .collect()
}

/// The source of a grant whose target is taken by one before it.
fn duplicate(grants: &[Grant]) -> Option<&str> {
    grants
        .iter()
        .enumerate()
        .find(|(at, grant)| grants.iter().take(*at).any(|before| before.target == grant.target))
        .map(|(_, grant)| grant.source.as_str())
}

fn reference(kind: Kind, grant: &Grant, id: &str) -> Value {
    let file = json!({
        "Name": grant.target, "UID": grant.uid, "GID": grant.gid, "Mode": grant.mode,
    });
    let mut reference = match kind {
        Kind::Secret => json!({"File": file, "SecretID": id, "SecretName": grant.source}),
        Kind::Config => json!({"File": file, "ConfigID": id, "ConfigName": grant.source}),
    };
    if let (Some(on_change), Some(fields)) = (grant.on_change, reference.as_object_mut()) {
        fields.insert("OnChange".to_owned(), Value::from(on_change.to_string()));
    }
    reference
}

/// The references after an update: those of `removed` sources dropped, `added` behind the rest.
/// An added one takes the place of an old one with the same source and target, whatever version
/// either is pinned to. A name without version removes it in any.
pub(super) fn updated(
    kind: Kind,
    before: &[Value],
    removed: &[String],
    added: Vec<Value>,
) -> Vec<Value> {
    let key = if kind == Kind::Secret { "SecretName" } else { "ConfigName" };
    let mut references: Vec<Value> = before
        .iter()
        .filter(|one| {
            let source = json::text(one, &[key]);
            !removed.iter().any(|name| name == source || name == unpinned(source))
        })
        .cloned()
        .collect();
    for one in added {
        let same = |old: &&mut Value| {
            unpinned(json::text(old, &[key])) == unpinned(json::text(&one, &[key]))
                && json::text(old, &["File", "Name"]) == json::text(&one, &["File", "Name"])
        };
        match references.iter_mut().find(same) {
            Some(old) => *old = one,
            None => references.push(one),
        }
    }
    references
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Kind::Secret, text).unwrap_err()
    }

    #[test]
    fn short_and_long_forms() {
        let short = parse(Kind::Secret, "db_pass").unwrap();
        assert_eq!((short.source.as_str(), short.target.as_str()), ("db_pass", "db_pass"));
        assert_eq!((short.uid.as_str(), short.gid.as_str(), short.mode), ("0", "0", 292));
        let long =
            parse(Kind::Secret, "SRC=db_pass,target=password,uid=2000,gid=3000,mode=0400").unwrap();
        assert_eq!((long.source.as_str(), long.target.as_str()), ("db_pass", "password"));
        assert_eq!((long.uid.as_str(), long.gid.as_str(), long.mode), ("2000", "3000", 256));
        assert_eq!(parse(Kind::Secret, "source=a,mode=400").unwrap().mode, 400);
        assert_eq!(parse(Kind::Secret, "source=a,mode=0x100").unwrap().mode, 256);
        assert_eq!(parse(Kind::Secret, "source=a").unwrap().target, "a");
    }

    #[test]
    fn errors_are_in_dockers_words() {
        assert_eq!(error(""), "EOF");
        assert_eq!(error("a,target=x"), "invalid field 'a' must be a key=value pair");
        assert_eq!(error("foo=bar"), "invalid field in secret request: foo");
        assert_eq!(error("target=x"), "source is required");
        assert_eq!(
            error("source=a,mode=zz"),
            "invalid mode specified: strconv.ParseUint: parsing \"zz\": invalid syntax"
        );
        assert_eq!(
            parse(Kind::Config, "foo=bar").unwrap_err(),
            "invalid field in config request: foo"
        );
    }

    #[test]
    fn one_target_once() {
        let grants: Vec<_> = ["source=a,target=t", "source=b,target=t"]
            .iter()
            .map(|text| parse(Kind::Secret, text).unwrap())
            .collect();
        assert_eq!(duplicate(&grants), Some("b"));
        assert_eq!(duplicate(grants.get(..1).unwrap()), None);
    }

    #[test]
    fn a_target_freed_is_taken_in_the_same_step() {
        let old = |source: &str, target: &str| {
            let text = format!("source={source},target={target}");
            reference(Kind::Secret, &parse(Kind::Secret, &text).unwrap(), "id")
        };
        let before = [old("mypass", "mypass"), old("other", "x")];
        let after =
            updated(Kind::Secret, &before, &["mypass".to_owned()], vec![old("mypass2", "mypass")]);
        assert_eq!(after, [old("other", "x"), old("mypass2", "mypass")]);
        let again = updated(Kind::Secret, &after, &[], vec![old("other", "x")]);
        assert_eq!(again, after);
        let pinned = updated(Kind::Secret, &after, &[], vec![old("other@2", "x")]);
        assert_eq!(pinned, [old("other@2", "x"), old("mypass2", "mypass")]);
        let other = updated(Kind::Secret, &pinned, &["other@1".to_owned()], vec![]);
        assert_eq!(other, pinned);
        for name in ["other", "other@2"] {
            let gone = updated(Kind::Secret, &pinned, &[name.to_owned()], vec![]);
            assert_eq!(gone, [old("mypass2", "mypass")], "{name}");
        }
    }

    #[test]
    fn pins_and_changes() {
        let pinned = parse(Kind::Secret, "db@3").unwrap();
        assert_eq!((pinned.source.as_str(), pinned.target.as_str()), ("db@3", "db"));
        let long = parse(Kind::Config, "source=db@3,on-change=signal:hup").unwrap();
        assert_eq!((long.source.as_str(), long.target.as_str()), ("db@3", "db"));
        let shown = reference(Kind::Config, &long, "id");
        assert_eq!(
            (&shown["ConfigName"], &shown["OnChange"]),
            (&json!("db@3"), &json!("signal:SIGHUP"))
        );
        assert_eq!(reference(Kind::Secret, &pinned, "id").get("OnChange"), None);
        assert!(error("source=db,on-change=explode").contains("it may be nothing, restart, or"));
        assert!(error("source=db,on-change=signal:SIGKILL").contains("cannot catch"));
    }
}

//! References to secrets and configs in a service spec, as sent and as shown. Two things in them
//! are skep's own, made so that Docker's clients carry them along:
//!
//! * The name `db@3` is the secret `db`, pinned to version 3. No name has an `@` in it.
//! * `OnChange` says what becomes of running tasks when a new version comes: `nothing`, `restart` or
//!   `signal:SIGHUP`. Docker's clients read a whole spec, drop the fields that they do not know, and
//!   send the rest back: a reference that says nothing keeps what the same grant had (the same
//!   secret or config, at the same target). Their users say it by a label of the service,
//!   `skep.secret.NAME.on-change`, which such clients do carry. What a label says is shown nowhere
//!   else, so whoever takes the label away takes it back.

use skep_core::model::Labels;
use skep_core::model::material::{Grant, MaterialKind, OnChange};
use skep_core::model::name;
use skep_core::model::service::ServiceSpec;
use skep_core::on_change::{label, label_of};

use crate::api::error::ApiError;
use crate::api::types::spec as wire;

/// What a service says of its grants outside of its references.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    labels: &'a Labels,
    /// The spec that an update replaces.
    before: Option<&'a ServiceSpec>,
}

/// A reference as sent, to a secret or to a config.
pub(super) struct Sent {
    id: String,
    name: String,
    file: Option<wire::FileTarget>,
    on_change: String,
}

impl From<wire::SecretReference> for Sent {
    fn from(sent: wire::SecretReference) -> Self {
        let wire::SecretReference { file, secret_id, secret_name, on_change } = sent;
        Self { id: secret_id, name: secret_name, file, on_change }
    }
}

impl From<wire::ConfigReference> for Sent {
    fn from(sent: wire::ConfigReference) -> Self {
        let wire::ConfigReference { file, config_id, config_name, on_change, .. } = sent;
        Self { id: config_id, name: config_name, file, on_change }
    }
}

impl<'a> Around<'a> {
    /// `before` is the spec that an update replaces.
    pub(super) fn new(labels: &'a Labels, before: Option<&'a ServiceSpec>) -> Self {
        Self { labels, before }
    }

    /// The grants of one kind.
    pub(super) fn grants(
        &self,
        kind: MaterialKind,
        sent: impl IntoIterator<Item = impl Into<Sent>>,
    ) -> Result<Vec<Grant>, ApiError> {
        let mut grants: Vec<Grant> = Vec::new();
        for sent in sent {
            let (grant, is_default) = self.grant(kind, sent.into())?;
            // A client that adds the same pin once more does not see that it is there already: it
            // was shown under the target that its own default became.
            let is_same = |old: &Grant| {
                (old.id, old.pin, &old.target) == (grant.id, grant.pin, &grant.target)
            };
            match grants.iter_mut().find(|old| is_default && is_same(old)) {
                Some(old) => *old = grant,
                None => grants.push(grant),
            }
        }
        self.check_labels(kind, &grants)?;
        Ok(grants)
    }

    /// A grant, and whether its target is the one that it has by default.
    fn grant(&self, kind: MaterialKind, sent: Sent) -> Result<(Grant, bool), ApiError> {
        let word = kind.kind().word();
        let Sent { id, name: said, file, on_change } = sent;
        let Some(file) = file.filter(|file| !file.name.is_empty()) else {
            return Err(ApiError::invalid(&format!(
                "malformed {word} reference {said}: File.Name, the target, is missing"
            )));
        };
        let number = |field: &str, text: &str| match text {
            "" => Ok(0),
            _ => text.parse().map_err(|_| {
                ApiError::invalid(&format!(
                    "invalid {field} {text:?} for {word} {said}: a number from 0 to 4294967295 is \
                     due"
                ))
            }),
        };
        if file.mode > 0o7777 {
            return Err(ApiError::invalid(&format!(
                "invalid mode {} for {word} {said}: permission bits are due, in decimal",
                file.mode
            )));
        }
        let (uid, gid) = (number("UID", &file.uid)?, number("GID", &file.gid)?);
        let (name, pin) = name_and_pin(word, &said)?;
        // Docker's clients make the name they were given the target if the user names none. A file
        // that is really to be called so takes an absolute target.
        let is_default = pin.is_some() && file.name == said;
        let target = if is_default { name.to_owned() } else { file.name };
        let id = id.parse().map_err(|_| ApiError::invalid(&format!("{word} not found: {said}")))?;
        let mut grant = Grant {
            id,
            uid,
            gid,
            name: name.to_owned(),
            target,
            mode: file.mode,
            pin,
            on_change: OnChange::Nothing,
        };
        grant.on_change = self.on_change(kind, &grant, &on_change)?;
        Ok((grant, is_default))
    }

    fn on_change(
        &self,
        kind: MaterialKind,
        grant: &Grant,
        sent: &str,
    ) -> Result<OnChange, ApiError> {
        let word = kind.kind().word();
        let parse = |of: &str, text: &str| {
            OnChange::parse(text).map_err(|error| ApiError::invalid(&format!("{of}: {error}")))
        };
        let sent = match sent {
            "" => None,
            text => Some(parse(&format!("OnChange of {word} {}", grant.name), text)?),
        };
        let label = label(kind, &grant.name);
        let Some(text) = self.labels.get(&label) else {
            return Ok(sent.unwrap_or_else(|| self.kept(kind, grant)));
        };
        let labelled = parse(&format!("label {label}"), text)?;
        match sent {
            Some(sent) if sent != labelled => Err(ApiError::invalid(&format!(
                "label {label} says {labelled} and the reference to {word} {} says {sent}: remove \
                 the label, or have both say the same",
                grant.name
            ))),
            _ => Ok(labelled),
        }
    }

    /// What the same grant said before, unless a label said it.
    fn kept(&self, kind: MaterialKind, grant: &Grant) -> OnChange {
        let Some(before) = self.before else { return OnChange::Nothing };
        if before.labels.contains_key(&label(kind, &grant.name)) {
            return OnChange::Nothing;
        }
        let mut old = of_kind(before, kind).iter();
        let old = old.find(|old| old.id == grant.id && old.target == grant.target);
        old.map(|old| old.on_change).unwrap_or_default()
    }

    /// Refuses labels that speak of what is not granted: a name that is written wrong would do
    /// nothing, and nobody would know.
    fn check_labels(&self, kind: MaterialKind, grants: &[Grant]) -> Result<(), ApiError> {
        let spoken_of = self.labels.keys().filter_map(|label| Some((label, label_of(label)?)));
        let of_kind = spoken_of.filter(|(_, (other, _))| *other == kind);
        for (label, (_, name)) in of_kind {
            if !grants.iter().any(|grant| grant.name == name) {
                let word = kind.kind().word();
                let names: Vec<&str> = grants.iter().map(|grant| grant.name.as_str()).collect();
                let granted = match names.as_slice() {
                    [] => format!("no {word}"),
                    names => names.join(", "),
                };
                return Err(ApiError::invalid(&format!(
                    "label {label} speaks of {word} {name}, which the service is not granted (it \
                     is granted {granted}): correct the label, or remove it"
                )));
            }
        }
        Ok(())
    }
}

fn of_kind(spec: &ServiceSpec, kind: MaterialKind) -> &[Grant] {
    match kind {
        MaterialKind::Secret => &spec.task.container.secrets,
        MaterialKind::Config => &spec.task.container.configs,
    }
}

fn name_and_pin<'a>(word: &str, said: &'a str) -> Result<(&'a str, Option<u64>), ApiError> {
    match name::pinned(said) {
        Some((name, pin)) => Ok((name, Some(pin))),
        None if said.contains('@') => Err(ApiError::invalid(&format!(
            "{word} not found: {said}; what follows the @ is the number of a version, as in db@3"
        ))),
        None => Ok((said, None)),
    }
}

fn file(grant: &Grant) -> Option<wire::FileTarget> {
    Some(wire::FileTarget {
        name: grant.target.clone(),
        uid: grant.uid.to_string(),
        gid: grant.gid.to_string(),
        mode: grant.mode,
    })
}

/// What a reference itself shows; empty if there is nothing to say, or a label of the service says
/// it.
fn shown_on_change(kind: MaterialKind, grant: &Grant, labels: &Labels) -> String {
    match grant.on_change {
        OnChange::Nothing => String::new(),
        _ if labels.contains_key(&label(kind, &grant.name)) => String::new(),
        on_change => on_change.to_string(),
    }
}

/// A secret as it is referred to; `labels` are those of the service.
pub(super) fn secret(grant: &Grant, labels: &Labels) -> wire::SecretReference {
    wire::SecretReference {
        file: file(grant),
        secret_id: grant.id.to_string(),
        secret_name: grant.reference(),
        on_change: shown_on_change(MaterialKind::Secret, grant, labels),
    }
}

/// A config as it is referred to; `labels` are those of the service.
pub(super) fn config(grant: &Grant, labels: &Labels) -> wire::ConfigReference {
    wire::ConfigReference {
        file: file(grant),
        runtime: None,
        config_id: grant.id.to_string(),
        config_name: grant.reference(),
        on_change: shown_on_change(MaterialKind::Config, grant, labels),
    }
}

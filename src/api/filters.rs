//! The `filters` parameter: a map of maps from the docker CLI, a map of lists from others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skep_core::model::Labels;

use super::error::ApiError;
use super::query::Query;

/// Values by key. No values for a key: it does not restrict.
#[derive(Debug, Default)]
pub(super) struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads the filters of a query and refuses keys that are not among `known`.
    pub(super) fn of(query: &Query, known: &[&str]) -> Result<Self, ApiError> {
        let filters = Self::parse(query.get("filters"))?;
        match filters.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::bad(format!("Invalid filter '{key}'"))),
            None => Ok(filters),
        }
    }

    fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let bad = || ApiError::bad("invalid filters: a map of maps or of lists of strings is due");
        let Ok(Value::Object(keys)) = serde_json::from_str(text) else { return Err(bad()) };
        let mut filters = BTreeMap::new();
        for (key, values) in keys {
            let values: Option<BTreeSet<String>> = match values {
                Value::Object(map) => Some(
                    map.into_iter()
                        .filter(|(_, on)| on != &Value::Bool(false))
                        .map(|e| e.0)
                        .collect(),
                ),
                Value::Array(list) => {
                    list.into_iter().map(|v| v.as_str().map(str::to_owned)).collect()
                }
                Value::String(one) => Some(BTreeSet::from([one])),
                Value::Null => Some(BTreeSet::new()),
                _ => None,
            };
            filters.insert(key, values.ok_or_else(bad)?);
        }
        Ok(Self(filters))
    }

    /// The values of a key.
    pub(super) fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Whether a key restricts.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// Whether the key does not restrict, or one of its values passes the test.
    pub(super) fn any(&self, key: &str, test: impl FnMut(&str) -> bool) -> bool {
        !self.has(key) || self.values(key).any(test)
    }

    /// Whether the key does not restrict, or `text` starts with one of its values.
    pub(super) fn prefix(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| text.starts_with(value))
    }

    /// Whether `labels` have everything this key asks for, as `name` or `name=value`.
    pub(super) fn labels(&self, key: &str, labels: &Labels) -> bool {
        self.values(key).all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        })
    }

    /// A key that is true or false; none if it is not there.
    pub(super) fn truth(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let mut found = None;
        for value in self.values(key) {
            found = match value {
                "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
                "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
                _ => return Err(ApiError::bad(format!("Invalid filter '{key}={value}'"))),
            };
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(text: &str) -> Result<Filters, ApiError> {
        let mut query = String::from("filters=");
        query.push_str(&text.replace('+', "%2B"));
        Filters::of(&Query::parse(&query), &["label", "name", "dangling"])
    }

    #[test]
    fn both_encodings_say_the_same() {
        for text in [r#"{"label":{"a=b":true,"c":true}}"#, r#"{"label":["a=b","c"]}"#] {
            let filters = filters(text).unwrap();
            let labels = |pairs: &[(&str, &str)]| {
                pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
            };
            assert!(filters.labels("label", &labels(&[("a", "b"), ("c", "")])));
            assert!(!filters.labels("label", &labels(&[("a", "x"), ("c", "")])));
            assert!(!filters.labels("label", &labels(&[("a", "b")])));
            assert!(!filters.has("name") && filters.prefix("name", "anything"));
        }
    }

    #[test]
    fn unknown_keys_and_other_shapes_are_refused() {
        let text = |r: Result<Filters, ApiError>| r.unwrap_err().answer().1;
        assert_eq!(text(filters(r#"{"bogus":["x"]}"#)), "Invalid filter 'bogus'");
        for bad in ["[]", "{", r#"{"label":[1]}"#, r#"{"label":7}"#] {
            assert!(text(filters(bad)).starts_with("invalid filters"), "{bad}");
        }
        assert!(filters(r#"{"label":null}"#).is_ok_and(|f| !f.has("label")));
        assert!(filters(r#"{"dangling":["perhaps"]}"#).unwrap().truth("dangling").is_err());
        assert_eq!(
            filters(r#"{"dangling":["1"]}"#).unwrap().truth("dangling").ok(),
            Some(Some(true))
        );
    }
}

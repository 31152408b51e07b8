//! JSON as Go reads it: keys match without regard to case, the last of two equal keys counts,
//! `null` is the same as absent, and what is not known is ignored. Keys of maps, such as labels,
//! are data and stay as they are.

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde_json::{Error, Value};

/// Reads a value of Docker's JSON.
///
/// # Errors
/// If it is not JSON, or not of this shape.
pub(super) fn from_slice<'de, T: Deserialize<'de>>(bytes: &[u8]) -> Result<T, Error> {
    let value =
        if bytes.trim_ascii().is_empty() { Value::Null } else { serde_json::from_slice(bytes)? };
    from_value(value)
}

/// Reads a part that was parsed before.
///
/// # Errors
/// If it is not of this shape.
pub(super) fn from_value<'de, T: Deserialize<'de>>(value: Value) -> Result<T, Error> {
    T::deserialize(Fold(value))
}

/// A value whose structs read their keys without regard to case.
struct Fold(Value);

impl<'de> IntoDeserializer<'de, Error> for Fold {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Fold {
    fn wrong(&self, due: &str) -> Error {
        let found = match &self.0 {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        Error::custom(format!("found {found} where {due} is due"))
    }
}

impl<'de> Deserializer<'de> for Fold {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Fold)))
            }
            Value::Object(entries) => visitor
                .visit_map(MapDeserializer::new(entries.into_iter().map(|(k, v)| (k, Fold(v))))),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let entries = match self.0 {
            Value::Null => serde_json::Map::new(),
            Value::Object(entries) => entries,
            _ => return Err(self.wrong("an object")),
        };
        let mut known: Vec<(&'static str, Fold)> = Vec::new();
        for (key, value) in entries {
            let Some(field) = fields.iter().find(|field| field.eq_ignore_ascii_case(&key)) else {
                continue;
            };
            if value.is_null() {
                continue;
            }
            match known.iter_mut().find(|(name, _)| name == field) {
                Some(slot) => slot.1 = Fold(value),
                None => known.push((*field, Fold(value))),
            }
        }
        let known = known.into_iter().map(|(k, v)| (StrDeserializer::<Error>::new(k), v));
        visitor.visit_map(MapDeserializer::new(known))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => {
                visitor.visit_map(MapDeserializer::new(std::iter::empty::<(String, Fold)>()))
            }
            Value::Object(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong("an object")),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<Fold>())),
            Value::Array(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong("a list")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_str(""),
            Value::String(text) => visitor.visit_string(text),
            _ => Err(self.wrong("a string")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_string(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        tuple tuple_struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Outer {
        labels: BTreeMap<String, String>,
        mode: Option<Inner>,
        list: Vec<String>,
        name: String,
        count: u64,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Inner {
        replicated: Option<u64>,
    }

    fn read(text: &str) -> Result<Outer, Error> {
        from_slice(text.as_bytes())
    }

    #[test]
    fn keys_of_structs_fold_and_keys_of_maps_do_not() {
        let outer =
            read(r#"{"LABELS":{"a":"1","A":"2"},"mode":{"replicated":3},"Name":"x","name":"y"}"#)
                .unwrap();
        assert_eq!(outer.labels.len(), 2);
        assert_eq!(outer.mode, Some(Inner { replicated: Some(3) }));
        assert_eq!(outer.name, "y");
    }

    #[test]
    fn null_is_absent_everywhere() {
        let text = r#"{"Labels":null,"Mode":null,"List":null,"Name":null,"Count":null,"x":null}"#;
        assert_eq!(read(text).unwrap(), Outer::default());
        assert_eq!(read("").unwrap(), Outer::default());
        assert_eq!(read("null").unwrap(), Outer::default());
        assert_eq!(read(r#"{"List":[null,"a"]}"#).unwrap().list, ["", "a"]);
        assert_eq!(read(r#"{"Labels":{"a":null}}"#).unwrap().labels["a"], "");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        for bad in ["{", "[]", r#"{"Labels":[]}"#, r#"{"Count":-1}"#, r#"{"Name":7}"#, "{} {}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

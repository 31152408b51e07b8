//! Docker's JSON as it is on the wire: fields in Docker's order, left out, `null` or empty where
//! Docker has them so. Nothing outside `api` sees these.

pub(super) mod audit;
pub(super) mod container;
pub(super) mod exec;
pub(super) mod holder;
pub(super) mod image;
pub(super) mod material;
pub(super) mod network;
pub(super) mod node;
pub(super) mod service;
pub(super) mod spec;
pub(super) mod swarm;
pub(super) mod system;
pub(super) mod task;

use serde::{Deserialize, Serialize, Serializer};

/// Whether a number is zero, for fields that Docker leaves out then.
pub(super) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A ratio as Go prints it: whole numbers without a point.
pub(super) fn ratio<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

/// The write counter of an object.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) index: u64,
}

/// An answer that is only an id.
#[derive(Debug, Serialize)]
pub(super) struct Created {
    #[serde(rename = "ID")]
    pub(super) id: String,
}

/// A named driver with options.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Driver {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    #[serde(skip_serializing_if = "skep_core::model::Labels::is_empty")]
    pub(super) options: skep_core::model::Labels,
}

//! Placement constraints: expressions over what is known of a node.

use alloc::string::{String, ToString};
use core::fmt;
use core::net::IpAddr;

use crate::model::Labels;
use crate::model::node::{Node, Role};

/// `key == value` or `key != value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: Key,
    value: String,
    negated: bool,
}

/// What of a node a constraint looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Address,
    Role,
    Os,
    Architecture,
    Label(String),
    EngineLabel(String),
    /// Nobody knows it.
    Other,
}

/// A text that is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseConstraintError {
    /// It has neither `==` nor `!=`.
    Operator,
    /// What stands before the operator.
    Key(String),
    /// What stands after it.
    Value(String),
}

impl fmt::Display for ParseConstraintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("constraint expected one operator from ==, !="),
            Self::Key(key) => write!(f, "key '{key}' is invalid"),
            Self::Value(value) => write!(f, "value '{value}' is invalid"),
        }
    }
}

impl core::error::Error for ParseConstraintError {}

/// Reads a constraint such as `node.labels.zone==a`.
///
/// # Errors
/// If it is none.
pub fn parse(text: &str) -> Result<Constraint, ParseConstraintError> {
    let (negated, (key, value)) = match (text.split_once("=="), text.split_once("!=")) {
        (Some(parts), _) => (false, parts),
        (None, Some(parts)) => (true, parts),
        (None, None) => return Err(ParseConstraintError::Operator),
    };
    let (key, value) = (key.trim(), value.trim());
    if !is_key(key) {
        return Err(ParseConstraintError::Key(key.to_string()));
    }
    if !is_value(value) {
        return Err(ParseConstraintError::Value(value.to_string()));
    }
    Ok(Constraint { key: Key::of(key), value: value.to_string(), negated })
}

fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && key.len() > 1
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_value(value: &str) -> bool {
    let admits = |b: u8| {
        b.is_ascii_alphanumeric() || b.is_ascii_whitespace() || b":-_.*()?+[]\\^$|/".contains(&b)
    };
    !value.is_empty() && value.bytes().all(admits)
}

impl Key {
    fn of(text: &str) -> Self {
        let label = |prefix: &str| {
            let (start, name) = text.split_at_checked(prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then(|| name.to_string())
        };
        match text.to_ascii_lowercase().as_str() {
            "node.id" => Self::Id,
            "node.hostname" => Self::Hostname,
            "node.ip" => Self::Address,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Architecture,
            _ => {
                let node = label("node.labels.").map(Self::Label);
                let engine = || label("engine.labels.").map(Self::EngineLabel);
                node.or_else(engine).unwrap_or(Self::Other)
            }
        }
    }
}

impl Constraint {
    /// Whether it holds for `node`. A key nobody knows holds nowhere.
    #[must_use]
    pub fn holds(&self, node: &Node) -> bool {
        let description = &node.description;
        let equal = match &self.key {
            Key::Id => self.is(node.id.as_str()),
            Key::Hostname => self.is(&description.hostname),
            Key::Address => is_address_in(&node.status.addr, &self.value),
            Key::Role => self.is(match node.spec.role {
                Role::Worker => "worker",
                Role::Manager => "manager",
            }),
            Key::Os => self.is(&description.os),
            Key::Architecture => architecture(&description.architecture)
                .eq_ignore_ascii_case(architecture(&self.value)),
            Key::Label(name) => self.is_label(&node.spec.labels, name),
            Key::EngineLabel(name) => self.is_label(&description.engine_labels, name),
            Key::Other => return false,
        };
        equal != self.negated
    }

    fn is(&self, found: &str) -> bool {
        self.value.eq_ignore_ascii_case(found)
    }

    /// A label that is not there is empty, so `!=` holds.
    fn is_label(&self, labels: &Labels, name: &str) -> bool {
        self.is(labels.get(name).map_or("", String::as_str))
    }
}

/// One name for each architecture: the kernel's and the image format's differ.
pub(crate) fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether `addr` is the address `wanted`, or in the range `wanted` as in `10.0.0.0/8`.
fn is_address_in(addr: &str, wanted: &str) -> bool {
    let (network, bits) = wanted.split_once('/').map_or((wanted, None), |(n, b)| (n, Some(b)));
    let (Ok(addr), Ok(network)) = (addr.parse::<IpAddr>(), network.parse::<IpAddr>()) else {
        return false;
    };
    let Some(bits) = bits else { return addr == network };
    let Ok(bits) = bits.parse::<u32>() else { return false };
    match (addr, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            (a.to_bits() ^ n.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            (a.to_bits() ^ n.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

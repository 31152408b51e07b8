//! Where a grant appears in the task.

use crate::limits;

/// Where relative targets live in the task.
pub const SECRETS_DIR: &str = "/run/secrets";

/// A parsed target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Names below [`SECRETS_DIR`], at least one.
    Below(Vec<String>),
    /// An absolute path elsewhere, in its shortest form.
    Absolute(String),
}

/// Why a target cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No name at all.
    #[error("it is empty or names a directory")]
    Empty,
    /// A path or name longer than Linux has them.
    #[error("it is too long")]
    TooLong,
    /// A NUL byte.
    #[error("it contains a NUL byte")]
    Nul,
    /// A `..` somewhere.
    #[error("it leaves its directory by '..'")]
    Parent,
    /// Names that begin with `..` are kept for sets.
    #[error("names that begin with '..' are reserved")]
    Reserved,
}

impl Place {
    /// Empty names and `.` are dropped, so `a//./b` is `a/b`; an absolute path below
    /// [`SECRETS_DIR`] is the relative one.
    pub(super) fn parse(target: &str) -> Result<Place, TargetError> {
        if target.len() > limits::TARGET_BYTES {
            return Err(TargetError::TooLong);
        }
        if target.contains('\0') {
            return Err(TargetError::Nul);
        }
        if target.ends_with('/') || target.ends_with("/.") {
            return Err(TargetError::Empty);
        }
        let names: Vec<&str> =
            target.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        if names.is_empty() {
            return Err(TargetError::Empty);
        }
        if names.contains(&"..") {
            return Err(TargetError::Parent);
        }
        if names.iter().any(|name| name.len() > limits::NAME_BYTES) {
            return Err(TargetError::TooLong);
        }
        let below = match names.as_slice() {
            ["run", "secrets"] if target.starts_with('/') => return Err(TargetError::Empty),
            ["run", "secrets", below @ ..] if target.starts_with('/') => below,
            _ if target.starts_with('/') => {
                return Ok(Place::Absolute(format!("/{}", names.join("/"))));
            }
            below => below,
        };
        if below.iter().any(|name| name.starts_with("..")) {
            return Err(TargetError::Reserved);
        }
        Ok(Place::Below(below.iter().map(|&name| name.to_owned()).collect()))
    }

    /// The path in the task.
    pub(super) fn path(&self) -> String {
        match self {
            Place::Below(names) => format!("{SECRETS_DIR}/{}", names.join("/")),
            Place::Absolute(path) => path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_docker_users_write() {
        let below = |names: &[&str]| Ok(Place::Below(names.iter().map(|&n| n.into()).collect()));
        let absolute = |path: &str| Ok(Place::Absolute(path.into()));
        let cases = [
            ("db_pass", below(&["db_pass"])),
            ("tls/site.key", below(&["tls", "site.key"])),
            ("./tls//site.key", below(&["tls", "site.key"])),
            ("/run/secrets/a/b", below(&["a", "b"])),
            ("/etc/nginx//conf.d/site.conf", absolute("/etc/nginx/conf.d/site.conf")),
            ("/run/secrets2", absolute("/run/secrets2")),
            ("/..odd/name", absolute("/..odd/name")),
            ("run/secrets/a", below(&["run", "secrets", "a"])),
            (".hidden", below(&[".hidden"])),
            ("", Err(TargetError::Empty)),
            ("/", Err(TargetError::Empty)),
            ("dir/", Err(TargetError::Empty)),
            ("dir/.", Err(TargetError::Empty)),
            ("/run/secrets", Err(TargetError::Empty)),
            ("../x", Err(TargetError::Parent)),
            ("/etc/../x", Err(TargetError::Parent)),
            ("..current", Err(TargetError::Reserved)),
            ("a/..1", Err(TargetError::Reserved)),
            ("a\0b", Err(TargetError::Nul)),
        ];
        for (target, expected) in cases {
            assert_eq!(Place::parse(target), expected, "{target:?}");
        }
        assert_eq!(Place::parse(&"x".repeat(256)), Err(TargetError::TooLong));
        assert_eq!(Place::parse(&"x/".repeat(3_000)), Err(TargetError::TooLong));
    }
}

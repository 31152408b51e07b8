//! Names and the rules they obey.

use crate::limits;

/// Whether `name` may name a secret or config: 1 to 64 of `[a-zA-Z0-9-_.]`, with a letter or
/// digit at either end.
#[must_use]
pub fn is_material_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= limits::NAME_CHARS
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Whether `name` may name a service: it becomes a host name, so 1 to 63 of `[a-zA-Z0-9-_]`
/// with a letter or digit at either end.
#[must_use]
pub fn is_service_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() < limits::NAME_CHARS
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
}

/// A name and the version it is pinned to, of a text such as `db@3`; none if it is no such text.
/// No name has an `@` in it, so nothing else can be meant.
#[must_use]
pub fn pinned(text: &str) -> Option<(&str, u64)> {
    let (name, version) = text.rsplit_once('@')?;
    let is_number = version.bytes().all(|byte| byte.is_ascii_digit());
    let version = version.parse().ok().filter(|version| is_number && *version > 0)?;
    is_material_name(name).then_some((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_both_ends() {
        assert!(
            is_material_name("a")
                && is_material_name("app_passwd.v1")
                && is_material_name("MYSECRETS")
        );
        for bad in ["", "bad name", "-a", "a-", ".a", "ä"] {
            assert!(!is_material_name(bad), "{bad}");
        }
        assert!(
            is_service_name("determined_knuth")
                && !is_service_name("a.b")
                && !is_service_name("a_")
        );
    }
    #[test]
    fn a_pin_is_a_name_and_a_version() {
        assert_eq!(pinned("db@3"), Some(("db", 3)));
        assert_eq!(pinned("a.b@12"), Some(("a.b", 12)));
        for other in
            ["db", "db@", "@3", "db@0", "db@x", "db@+3", "db@1@2", "db@99999999999999999999"]
        {
            assert_eq!(pinned(other), None, "{other}");
        }
        assert!(!is_material_name("db@3"));
    }
}

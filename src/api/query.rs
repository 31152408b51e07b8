//! The query of a URL.

use super::error::ApiError;

/// Names and values in the order they were sent.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of this name; empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str())
    }

    /// All values of this name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Docker's loose rule: anything but nothing, `0`, `no`, `false` and `none` is true.
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.get(name).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "f" | "no" | "false" | "none")
    }

    /// The version that an update of a `kind` must name.
    pub(super) fn version(&self, kind: &str) -> Result<u64, ApiError> {
        let value = self.get("version");
        value.parse().map_err(|_| {
            ApiError::bad(format!(
                "invalid {kind} version '{value}': strconv.ParseUint: parsing {value:?}: invalid \
                 syntax"
            ))
        })
    }

    /// A number that may be missing.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            value => value.parse().map(Some).map_err(|_| {
                ApiError::bad(format!("invalid value {value:?} for {name}: not a number in range"))
            }),
        }
    }
}

/// Resolves `%XX`, and in queries `+`. What is no escape stays as it is; what is no UTF-8 becomes
/// the replacement character.
pub(super) fn decode(text: &str, plus: bool) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match (byte, hex(bytes.get(at)), hex(bytes.get(at + 1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 2;
            }
            (b'+', ..) if plus => out.push(b' '),
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_resolved_once() {
        assert_eq!(decode("a%2Fb+c%2525", true), "a/b c%25");
        assert_eq!(decode("a+b", false), "a+b");
        assert_eq!(decode("100%", true), "100%");
        assert_eq!(decode("%zz%f", true), "%zz%f");
        assert_eq!(decode("%ff", true), "\u{fffd}");
    }

    #[test]
    fn flags_and_versions_are_read_as_docker_reads_them() {
        let query = Query::parse("a=1&b=True&c=0&d=False&e=&f&version=7");
        assert!(query.flag("a") && query.flag("b"));
        assert!(!query.flag("c") && !query.flag("d") && !query.flag("e") && !query.flag("f"));
        assert_eq!(query.version("secret").ok(), Some(7));
        let (status, text) = Query::default().version("secret").unwrap_err().answer();
        assert_eq!(status.as_u16(), 400);
        assert!(text.starts_with("invalid secret version '': strconv.ParseUint"), "{text}");
    }
}

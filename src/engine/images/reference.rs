//! Names of images: what a user types, the normalised form that is stored, and the short form
//! that is shown.

use std::fmt;

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It does not have the form `[host/]name[:tag][@digest]`.
    #[error("invalid reference format")]
    Format,
    /// The name has upper-case letters.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// The name is 64 hex characters and would be taken for an id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// A digest where a name is given.
    #[error("refusing to create a tag with a digest reference")]
    HasDigest,
    /// The name is longer than 255 characters.
    #[error("repository name must not be more than {NAME_CHARS} characters")]
    TooLong,
}

const NAME_CHARS: usize = 255;
const TAG_CHARS: usize = 128;
const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_PREFIX: &str = "library/";

/// A normalised reference: host and path are always said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads what a user typed: `busybox`, `host:5000/team/app:1`, `app:1@sha256:…`.
    ///
    /// # Errors
    /// If it has not the form of a reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(ReferenceError::Format),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to the port of the host.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(ReferenceError::Format);
        }
        Ok(Self { repository: normalise(name)?, tag: tag.map(str::to_owned), digest })
    }

    /// The same with the tag `latest` if neither tag nor digest is said.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository with this tag and no digest.
    ///
    /// # Errors
    /// If it is no tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        Ok(Self { repository: self.repository.clone(), tag: Some(tag.to_owned()), digest: None })
    }

    /// Host and path.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, if said.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest with its algorithm, if said.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The form that is shown: without the default host and its `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.written(familiar_repository(&self.repository))
    }

    fn written(&self, repository: &str) -> String {
        let mut text = repository.to_owned();
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest);
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written(&self.repository))
    }
}

/// A repository as it is shown.
#[must_use]
pub fn familiar_repository(repository: &str) -> &str {
    match repository.strip_prefix("docker.io/") {
        Some(path) => match path.strip_prefix(DEFAULT_PREFIX) {
            Some(name) if !name.contains('/') => name,
            _ => path,
        },
        None => repository,
    }
}

/// Whether this is `sha256:` and 64 hex characters in lower case.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && is_hex(hex))
}

/// Whether these are hex characters in lower case.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= TAG_CHARS
        && tag.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')))
}

fn normalise(name: &str) -> Result<String, ReferenceError> {
    if name.len() == 64 && is_hex(name) {
        return Err(ReferenceError::LooksLikeId(name.to_owned()));
    }
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let prefix = if host == DEFAULT_HOST && !path.contains('/') { DEFAULT_PREFIX } else { "" };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::Uppercase(format!("{prefix}{path}")));
    }
    if !host_is_valid(host) || !path.split('/').all(is_path_component) {
        return Err(ReferenceError::Format);
    }
    let repository = format!("{host}/{prefix}{path}");
    if repository.len() > NAME_CHARS {
        return Err(ReferenceError::TooLong);
    }
    Ok(repository)
}

/// Whether the first word before a slash is a host rather than part of the path.
fn is_host(word: &str) -> bool {
    word == "localhost" || word.contains(['.', ':']) || word.bytes().any(|b| b.is_ascii_uppercase())
}

fn host_is_valid(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((ip, "")) => (ip, None),
            Some((ip, port)) => match port.strip_prefix(':') {
                Some(port) => (ip, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let port_is_valid = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let name_is_valid = if host.starts_with('[') {
        name.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') && !name.is_empty()
    } else {
        name.split('.').all(is_label)
    };
    port_is_valid && name_is_valid
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Lower-case words joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    for c in component.chars() {
        if u8::try_from(c).is_ok_and(word) {
            let is_fine = match separator.as_str() {
                "" | "." | "_" | "__" => true,
                dashes => dashes.bytes().all(|b| b == b'-'),
            };
            if !is_fine {
                return false;
            }
            separator.clear();
        } else {
            separator.push(c);
        }
    }
    separator.is_empty() && component.bytes().next().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn short_names_are_normalised_and_shown_short() {
        for (typed, stored, shown) in [
            ("busybox", "docker.io/library/busybox", "busybox"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("docker.io/library/x:a", "docker.io/library/x:a", "x:a"),
            ("index.docker.io/x", "docker.io/library/x", "x"),
            ("docker.io/x", "docker.io/library/x", "x"),
            ("team/app", "docker.io/team/app", "team/app"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("host:5000/app:1", "host:5000/app:1", "host:5000/app:1"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("a.b/c__d/e--f.g_h", "a.b/c__d/e--f.g_h", "a.b/c__d/e--f.g_h"),
        ] {
            let parsed = Reference::parse(typed).unwrap();
            assert_eq!(parsed.to_string(), stored, "{typed}");
            assert_eq!(parsed.familiar(), shown, "{typed}");
            assert_eq!(Reference::parse(stored).unwrap(), parsed);
        }
    }

    #[test]
    fn tag_and_digest_can_stand_together() {
        let parsed = Reference::parse(&format!("app:1@sha256:{HEX}")).unwrap();
        assert_eq!(parsed.tag(), Some("1"));
        assert_eq!(parsed.digest(), Some(format!("sha256:{HEX}").as_str()));
        assert_eq!(parsed.clone().or_latest(), parsed);
        let digest_only = Reference::parse(&format!("app@sha256:{HEX}")).unwrap();
        assert_eq!(digest_only.or_latest().tag(), None);
        assert_eq!(Reference::parse("app").unwrap().or_latest().tag(), Some("latest"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            ":",
            "@",
            "a:",
            ":a",
            "a@",
            "a@sha256:12",
            "-a",
            "a-",
            "a..b",
            "a/",
            "/a",
            "a//b",
            "a b",
            "a:b c",
            "a___b",
            "a._b",
            "host:x/a",
            "../a",
            "a:-b",
            "é",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert!(
            matches!(Reference::parse("Foo"), Err(ReferenceError::Uppercase(n)) if n == "library/Foo")
        );
        assert!(matches!(Reference::parse(HEX), Err(ReferenceError::LooksLikeId(_))));
        assert_eq!(Reference::parse(&"a/".repeat(200)), Err(ReferenceError::Format));
        assert_eq!(Reference::parse(&"a".repeat(300)), Err(ReferenceError::TooLong));
        assert!(Reference::parse(&format!("a:{}", "b".repeat(129))).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "[a-zA-Z0-9.:/@_-]{0,80}") {
            if let Ok(parsed) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&parsed.to_string()).unwrap(), parsed.clone());
                prop_assert_eq!(Reference::parse(&parsed.familiar()).unwrap(), parsed);
            }
        }
    }
}

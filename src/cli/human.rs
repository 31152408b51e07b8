//! Times, sizes and other values as people read them.

use jiff::Timestamp;
use serde_json::Value;

/// A length of time in words: "5 seconds", "About an hour".
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let minutes = whole / 60;
    let hours = (seconds.max(0.0) / 3600.0 + 0.5) as u64;
    match (whole, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{whole} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., 2..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1_440) => format!("{} weeks", hours / 24 / 7),
        (.., 1_440..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", whole / 3600 / 24 / 365),
    }
}

/// How long ago an RFC 3339 time was: "5 seconds ago". Empty if it is no time.
pub(super) fn ago(stamp: &str) -> String {
    match stamp.parse::<Timestamp>() {
        Ok(then) => format!("{} ago", duration(seconds_since(then))),
        Err(_) => String::new(),
    }
}

/// The same for a time in seconds since 1970.
pub(super) fn ago_unix(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(then) => format!("{} ago", duration(seconds_since(then))),
        Err(_) => String::new(),
    }
}

fn seconds_since(then: Timestamp) -> f64 {
    Timestamp::now().duration_since(then).as_secs_f64()
}

/// Bytes with decimal units and so many digits: "4.43MB".
pub(super) fn size(bytes: f64, digits: usize) -> String {
    scaled(bytes, 1000.0, digits, &["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"])
}

/// Bytes with binary units: "7.772GiB".
pub(super) fn binary_size(bytes: f64) -> String {
    scaled(bytes, 1024.0, 4, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"])
}

fn scaled(bytes: f64, base: f64, digits: usize, units: &[&str]) -> String {
    let mut value = bytes;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", general(value, digits), units.get(unit).copied().unwrap_or_default())
}

/// A number as C's `%.<digits>g` prints one of ordinary size.
fn general(value: f64, digits: usize) -> String {
    let magnitude = if value < 1.0 { 0 } else { value.log10().floor() as usize };
    let decimals = digits.saturating_sub(1 + magnitude);
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The first `width` characters, the last of them an ellipsis if that cuts something off.
pub(super) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The first 12 characters of an id, its algorithm left out.
pub(super) fn short_id(id: &str) -> &str {
    let bare = id.split_once(':').map_or(id, |(_, bare)| bare);
    bare.get(..12).unwrap_or(bare)
}

/// The text with a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}

/// An image as the user wrote it: without the digest if there is a tag, without the default
/// registry.
pub(super) fn familiar_image(image: &str) -> String {
    let tagged = match image.split_once('@') {
        Some((name, _)) if name.rsplit('/').next().is_some_and(|last| last.contains(':')) => name,
        _ => image,
    };
    let short = tagged.strip_prefix("docker.io/library/");
    short.or_else(|| tagged.strip_prefix("docker.io/")).unwrap_or(tagged).to_owned()
}

/// Compares names so that `web.2` comes before `web.10`.
pub(super) fn natural(left: &str, right: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (left, right);
    loop {
        let (head_l, rest_l) = chunk(left);
        let (head_r, rest_r) = chunk(right);
        if head_l.is_empty() || head_r.is_empty() {
            return head_l.len().cmp(&head_r.len());
        }
        let order = match (head_l.parse::<u64>(), head_r.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b).then(head_l.len().cmp(&head_r.len())),
            _ => head_l.cmp(head_r),
        };
        if order.is_ne() {
            return order;
        }
        (left, right) = (rest_l, rest_r);
    }
}

/// The digits, or the other characters, at the start of `text`, and the rest.
fn chunk(text: &str) -> (&str, &str) {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    text.split_at(end)
}

/// Labels as `a=b,c=d`, by key.
pub(super) fn labels(labels: Option<&Value>) -> String {
    let Some(Value::Object(labels)) = labels else { return String::new() };
    let mut pairs: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_words() {
        let cases = [
            (0.4, "Less than a second"),
            (1.9, "1 second"),
            (5.0, "5 seconds"),
            (59.9, "59 seconds"),
            (60.0, "About a minute"),
            (119.0, "About a minute"),
            (16.0 * 60.0, "16 minutes"),
            (3599.0, "59 minutes"),
            (3600.0, "About an hour"),
            (5399.0, "About an hour"),
            (5400.0, "2 hours"),
            (47.0 * 3600.0, "47 hours"),
            (48.0 * 3600.0, "2 days"),
            (15.0 * 86400.0, "2 weeks"),
            (70.0 * 86400.0, "2 months"),
            (800.0 * 86400.0, "2 years"),
            (-3.0, "Less than a second"),
        ];
        for (seconds, words) in cases {
            assert_eq!(duration(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size(4_430_000.0, 3), "4.43MB");
        assert_eq!(size(999.0, 3), "999B");
        assert_eq!(size(0.0, 3), "0B");
        assert_eq!(size(1_000.0, 3), "1kB");
        assert_eq!(size(142_000_000.0, 3), "142MB");
        assert_eq!(binary_size(8_345_000_000.0), "7.772GiB");
        assert_eq!(binary_size(67_108_864.0), "64MiB");
    }

    #[test]
    fn cut_texts() {
        assert_eq!(ellipsis("abcdef", 4), "abc…");
        assert_eq!(ellipsis("abcd", 4), "abcd");
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(capital("running"), "Running");
    }

    #[test]
    fn images_lose_what_nobody_typed() {
        assert_eq!(familiar_image("busybox:latest@sha256:ab"), "busybox:latest");
        assert_eq!(familiar_image("busybox@sha256:ab"), "busybox@sha256:ab");
        assert_eq!(familiar_image("docker.io/library/x:1"), "x:1");
        assert_eq!(familiar_image("host:5000/x@sha256:ab"), "host:5000/x@sha256:ab");
    }

    #[test]
    fn names_sort_by_number() {
        let mut names = ["web.10", "web.2", "db", "web", "a1b", "a01b"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a1b", "a01b", "db", "web", "web.2", "web.10"]);
    }
}

//! Times as Docker writes them.

use jiff::Timestamp;
use skep_core::time::Stamp;

/// Go's zero time, which stands for "never".
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 in UTC with up to nine digits after the second and no zeros at the end.
pub(super) fn rfc3339(stamp: Stamp) -> String {
    if stamp == Stamp(0) {
        return NEVER.to_owned();
    }
    Timestamp::from_nanosecond(i128::from(stamp.0))
        .map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

/// The same with exactly nine digits, as log lines carry it: they sort as text.
pub(super) fn rfc3339_fixed(stamp: Stamp) -> String {
    Timestamp::from_nanosecond(i128::from(stamp.0))
        .map_or_else(|_| NEVER.to_owned(), |time| format!("{time:.9}"))
}

/// Reads a point in time out of a query: Unix seconds with an optional fraction, or RFC 3339.
/// Nothing and `0` are the beginning of time.
pub(super) fn parse(text: &str) -> Option<Stamp> {
    if text.is_empty() {
        return Some(Stamp(0));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return u64::try_from(time.as_nanosecond()).ok().map(Stamp);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos).map(Stamp)
}

/// Now.
pub(super) fn now() -> Stamp {
    Stamp(u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_trimmed_as_go_trims_them() {
        assert_eq!(rfc3339(Stamp(1_795_337_018_797_056_990)), "2026-11-22T08:43:38.79705699Z");
        assert_eq!(rfc3339(Stamp(1_795_337_018_000_000_000)), "2026-11-22T08:43:38Z");
        assert_eq!(rfc3339(Stamp(0)), NEVER);
        assert_eq!(
            rfc3339_fixed(Stamp(1_795_337_018_500_000_000)),
            "2026-11-22T08:43:38.500000000Z"
        );
    }

    #[test]
    fn times_in_queries_are_seconds_or_rfc3339() {
        assert_eq!(parse("1795337018.5"), Some(Stamp(1_795_337_018_500_000_000)));
        assert_eq!(parse("1795337018.000000001"), Some(Stamp(1_795_337_018_000_000_001)));
        assert_eq!(parse("2026-11-22T08:43:38Z"), Some(Stamp(1_795_337_018_000_000_000)));
        assert_eq!(parse("0"), Some(Stamp(0)));
        assert_eq!(parse(""), Some(Stamp(0)));
        for bad in ["soon", "-1", "1.0000000001", "1.x", "99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

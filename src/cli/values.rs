//! Values of flags: read, and refused in the docker CLI's words.

use serde_json::{Map, Value};

/// Refuses what is not `name=value`.
pub(super) fn check_filter(text: &str) -> Result<(), String> {
    match text.contains('=') || text.is_empty() {
        true => Ok(()),
        false => Err("bad format of filter (expected name=value)".to_owned()),
    }
}

/// Refuses a label without name.
pub(super) fn check_label(text: &str) -> Result<(), String> {
    match text.split('=').next().unwrap_or_default().trim() {
        "" => Err(format!("invalid label '{text}': empty name")),
        _ => Ok(()),
    }
}

/// Refuses an environment variable without name.
pub(super) fn check_env(text: &str) -> Result<(), String> {
    match text.is_empty() || text.starts_with('=') {
        true => Err(format!("invalid environment variable: {text}")),
        false => Ok(()),
    }
}

/// Refuses what is not a whole number from 0.
pub(super) fn check_uint(text: &str) -> Result<(), String> {
    uint(text).map(|_| ())
}

/// Refuses what is not a whole number.
pub(super) fn check_int(text: &str) -> Result<(), String> {
    match text.parse::<i64>() {
        Ok(_) => Ok(()),
        Err(why) => Err(number_error("ParseInt", text, why.kind())),
    }
}

/// Refuses what is not a number.
pub(super) fn check_float(text: &str) -> Result<(), String> {
    match text.parse::<f64>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("strconv.ParseFloat: parsing {text:?}: invalid syntax")),
    }
}

/// Refuses what is not a length of time.
pub(super) fn check_duration(text: &str) -> Result<(), String> {
    duration(text).map(|_| ())
}

/// Refuses what is not an amount of memory.
pub(super) fn check_bytes(text: &str) -> Result<(), String> {
    bytes(text).map(|_| ())
}

/// Refuses what is not an amount of CPU.
pub(super) fn check_cpus(text: &str) -> Result<(), String> {
    nano_cpus(text).map(|_| ())
}

/// A whole number from 0.
pub(super) fn uint(text: &str) -> Result<u64, String> {
    text.parse::<u64>().map_err(|why| number_error("ParseUint", text, why.kind()))
}

/// A whole number in the base that its prefix tells, as Go reads it: `0400` is octal,
/// `0x100` hexadecimal, `400` decimal.
pub(super) fn uint_any_base(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, base) = match lower.as_bytes() {
        [b'0', b'x', ..] => (lower.get(2..), 16),
        [b'0', b'b', ..] => (lower.get(2..), 2),
        [b'0', b'o', ..] => (lower.get(2..), 8),
        [b'0', _, ..] => (lower.get(1..), 8),
        _ => (Some(lower.as_str()), 10),
    };
    let digits = digits.filter(|digits| !digits.starts_with('+')).unwrap_or_default();
    u32::from_str_radix(digits, base).map_err(|why| number_error("ParseUint", text, why.kind()))
}

fn number_error(function: &str, text: &str, kind: &std::num::IntErrorKind) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let what = match kind {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {text:?}: {what}")
}

/// A length of time as Go reads it, in nanoseconds: `1m30s`, `500ms`, `-1.5h`.
pub(super) fn duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(end);
        let number: f64 = digits.parse().map_err(|_| invalid())?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        nanos += number * scale;
        rest = after;
    }
    match nanos <= i64::MAX as f64 {
        true => Ok((sign * nanos).round() as i64),
        false => Err(invalid()),
    }
}

/// Bytes of memory: `64M`, `1.5g`, `512KiB`; all units are binary.
pub(super) fn bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let end = text.rfind(|c: char| c.is_ascii_digit()).map(|at| at + 1).ok_or_else(invalid)?;
    let (digits, suffix) = text.split_at(end);
    let number: f64 = digits.parse().map_err(|_| invalid())?;
    if number < 0.0 {
        return Err(invalid());
    }
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix);
    let scale = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(format!("invalid suffix: '{suffix}'")),
    };
    let bytes = number * 1024f64.powi(scale);
    match bytes < i64::MAX as f64 {
        true => Ok(bytes as i64),
        false => Err(invalid()),
    }
}

/// CPUs in billionths: `0.5`, `1/2`.
pub(super) fn nano_cpus(text: &str) -> Result<i64, String> {
    let invalid = || format!("failed to parse {text} as a rational number");
    let decimal = |text: &str| -> Option<(i128, i128)> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        if part.len() > 18 || whole.len() > 18 || part.contains(['-', '+']) {
            return None;
        }
        let digits = format!("{whole}{part}").parse::<i128>().ok()?;
        Some((digits, 10i128.pow(u32::try_from(part.len()).ok()?)))
    };
    let (top, bottom) = match text.split_once('/') {
        Some((top, bottom)) => {
            let (a, b) = decimal(top).ok_or_else(invalid)?;
            let (c, d) = decimal(bottom).filter(|(c, _)| *c != 0).ok_or_else(invalid)?;
            (a * d, b * c)
        }
        None => decimal(text).ok_or_else(invalid)?,
    };
    let nanos = top.checked_mul(1_000_000_000).ok_or_else(invalid)?;
    match nanos % bottom {
        0 => i64::try_from(nanos / bottom).map_err(|_| invalid()),
        _ => Err("value is too precise".to_owned()),
    }
}

/// Labels as an object: `a=b`, or `a` alone for an empty value.
pub(super) fn labels(list: &[String]) -> Value {
    let mut map = Map::new();
    for label in list {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        map.insert(key.to_owned(), Value::from(value));
    }
    Value::Object(map)
}

/// Environment variables: a bare name takes its value from this process, or is left out
/// if it has none here.
pub(super) fn environment(list: &[String]) -> Vec<String> {
    let mut variables: Vec<String> = Vec::new();
    for one in list {
        let variable = match one.contains('=') {
            true => one.clone(),
            false => match std::env::var(one) {
                Ok(value) => format!("{one}={value}"),
                Err(_) => continue,
            },
        };
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        match variables.iter_mut().find(|known| known.split('=').next() == Some(name.as_str())) {
            Some(known) => *known = variable,
            None => variables.push(variable),
        }
    }
    variables
}

/// The lines of an environment file, comments and blank lines left out.
pub(super) fn env_file(path: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|why| open_error(path, &why))?;
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty());
    let lines = lines.filter(|line| !line.starts_with('#'));
    lines
        .map(|line| match line.split('=').next() {
            Some(name) if name.contains(char::is_whitespace) => {
                Err(format!("invalid env file ({path}): variable '{name}' contains whitespaces"))
            }
            Some("") => {
                Err(format!("invalid env file ({path}): no variable name on line '{line}'"))
            }
            _ => Ok(line.to_owned()),
        })
        .collect()
}

/// Why a file could not be opened, as Go says it.
pub(super) fn open_error(path: &str, why: &std::io::Error) -> String {
    let reason = match why.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => why.to_string(),
    };
    format!("open {path}: {reason}")
}

/// The fields of one line of comma-separated values; quotes hold commas together.
pub(super) fn csv(line: &str) -> Result<Vec<String>, String> {
    if line.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        let Some(field) = fields.last_mut() else { break };
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            '"' => return Err("parse error: bare \" in non-quoted-field".to_owned()),
            ',' if !quoted => fields.push(String::new()),
            letter => field.push(letter),
        }
    }
    match quoted {
        true => Err("parse error: extraneous or missing \" in quoted-field".to_owned()),
        false => Ok(fields),
    }
}

/// Words of a command line as a shell would split them.
pub(super) fn shell_words(line: &str) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match letters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("EOF found after escape character".to_owned()),
            },
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    match quote {
        Some(_) => Err("EOF found when expecting closing quote".to_owned()),
        None => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_follow_their_prefix() {
        assert_eq!(uint_any_base("0400"), Ok(256));
        assert_eq!(uint_any_base("400"), Ok(400));
        assert_eq!(uint_any_base("0x100"), Ok(256));
        assert_eq!(uint_any_base("0o444"), Ok(292));
        assert_eq!(uint_any_base("0"), Ok(0));
        assert_eq!(
            uint_any_base("zz").unwrap_err(),
            "strconv.ParseUint: parsing \"zz\": invalid syntax"
        );
        assert_eq!(
            uint_any_base("99999999999").unwrap_err(),
            "strconv.ParseUint: parsing \"99999999999\": value out of range"
        );
        assert!(uint_any_base("0+7").is_err() && uint_any_base("09").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1m30s"), Ok(90_000_000_000));
        assert_eq!(duration("500ms"), Ok(500_000_000));
        assert_eq!(duration("1.5h"), Ok(5_400_000_000_000));
        assert_eq!(duration("-5s"), Ok(-5_000_000_000));
        assert_eq!(duration("0"), Ok(0));
        assert_eq!(duration("foo").unwrap_err(), "time: invalid duration \"foo\"");
        assert_eq!(duration("5").unwrap_err(), "time: missing unit in duration \"5\"");
        assert_eq!(duration("5x").unwrap_err(), "time: unknown unit \"x\" in duration \"5x\"");
        assert!(duration("").is_err());
    }

    #[test]
    fn amounts() {
        assert_eq!(bytes("64M"), Ok(67_108_864));
        assert_eq!(bytes("1.5g"), Ok(1_610_612_736));
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("foo").unwrap_err(), "invalid size: 'foo'");
        assert_eq!(bytes("1x").unwrap_err(), "invalid suffix: 'x'");
        assert_eq!(nano_cpus("0.5"), Ok(500_000_000));
        assert_eq!(nano_cpus("1/2"), Ok(500_000_000));
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        assert_eq!(nano_cpus("0.0000000001").unwrap_err(), "value is too precise");
        assert_eq!(nano_cpus("1/3").unwrap_err(), "value is too precise");
        assert_eq!(nano_cpus("foo").unwrap_err(), "failed to parse foo as a rational number");
    }

    #[test]
    fn lists() {
        assert_eq!(csv("a=b,\"c,d\",e").unwrap(), ["a=b", "c,d", "e"]);
        assert_eq!(csv("").unwrap_err(), "EOF");
        assert!(csv("\"a").is_err());
        assert_eq!(
            shell_words("sh -c 'a b' \"c\\\"d\" ''").unwrap(),
            ["sh", "-c", "a b", "c\"d", ""]
        );
        assert!(shell_words("'a").is_err());
        let list = ["A=1".to_owned(), "B=2".to_owned(), "A=3".to_owned()];
        assert_eq!(environment(&list), ["A=3", "B=2"]);
    }
}

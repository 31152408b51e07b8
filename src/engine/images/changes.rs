//! Dockerfile instructions that change an image's configuration.

use super::error::ImageError;
use super::view::ImageConfig;
use crate::limits::IMAGE_CHANGE_BYTES;

/// Applies instructions in order. Each may hold several lines; a backslash at the end of a line
/// joins it with the next.
pub(super) fn apply(config: &mut ImageConfig, changes: &[String]) -> Result<(), ImageError> {
    if changes.iter().map(String::len).sum::<usize>() > IMAGE_CHANGE_BYTES {
        return Err(bad(format!("the changes are longer than {IMAGE_CHANGE_BYTES} bytes")));
    }
    for change in changes {
        let joined = change.replace("\\\r\n", " ").replace("\\\n", " ");
        for line in joined.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                instruction(config, line)?;
            }
        }
    }
    Ok(())
}

fn bad(message: String) -> ImageError {
    ImageError::Change(message)
}

fn instruction(config: &mut ImageConfig, line: &str) -> Result<(), ImageError> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (word, rest) = (word.to_ascii_uppercase(), rest.trim());
    if rest.is_empty() {
        return Err(bad(format!("{word} requires at least one argument")));
    }
    let one = |config: &ImageConfig| -> Result<String, ImageError> {
        match words(rest, config)?.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(bad(format!("{word} requires exactly one argument"))),
        }
    };
    match word.as_str() {
        "CMD" => config.cmd = command(rest),
        "ENTRYPOINT" => config.entrypoint = command(rest),
        "ENV" => {
            for (name, value) in pairs(&word, rest, config)? {
                set_env(&mut config.env, &name, &value);
            }
        }
        "LABEL" => config.labels.extend(pairs(&word, rest, config)?),
        "USER" => config.user = one(config)?,
        "STOPSIGNAL" => config.stop_signal = one(config)?,
        "WORKDIR" => config.working_dir = join(&config.working_dir, &one(config)?),
        "EXPOSE" => {
            for port in words(rest, config)? {
                expose(&mut config.exposed_ports, &port)?;
            }
        }
        "VOLUME" => {
            let paths = json_list(rest).map_or_else(|| words(rest, config), Ok)?;
            config.volumes.extend(paths);
            config.volumes.sort();
            config.volumes.dedup();
        }
        _ => return Err(bad(format!("{word} is not a valid change command"))),
    }
    Ok(())
}

/// `["exec", "form"]`, or a line for the shell.
fn command(rest: &str) -> Vec<String> {
    json_list(rest).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()])
}

fn json_list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// `NAME=value NAME="some value"`, or `NAME everything else`.
fn pairs(
    word: &str,
    rest: &str,
    config: &ImageConfig,
) -> Result<Vec<(String, String)>, ImageError> {
    let first = rest.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| bad(format!("{word} must have two arguments")))?;
        return Ok(vec![(name.to_owned(), words(value, config)?.join(" "))]);
    }
    let pair = |text: String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(bad(format!(
            "Syntax error - can't find = in {text:?}. Must be of the form: name=value"
        ))),
    };
    words(rest, config)?.into_iter().map(pair).collect()
}

/// Splits at spaces outside of quotes, takes quotes and backslashes off, and puts in the values
/// of `$NAME` and `${NAME}`.
fn words(text: &str, config: &ImageConfig) -> Result<Vec<String>, ImageError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (' ' | '\t', None) => words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            ('$', None | Some('"')) => {
                let is_braced = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                let in_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
                while let Some(c) = chars.next_if(in_name) {
                    name.push(c);
                }
                if is_braced && chars.next() != Some('}') {
                    return Err(bad(format!("unsupported substitution in {text:?}")));
                }
                word.get_or_insert_default().push_str(env(config, &name));
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(bad(format!(
            "unexpected end of statement while looking for matching quote in {text:?}"
        )));
    }
    words.extend(word);
    Ok(words)
}

fn env<'a>(config: &'a ImageConfig, name: &str) -> &'a str {
    let value = |pair: &'a String| match pair.split_once('=') {
        Some((n, value)) if n == name => Some(value),
        _ => None,
    };
    config.env.iter().find_map(value).unwrap_or_default()
}

fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let pair = format!("{name}={value}");
    match env.iter_mut().find(|p| p.split_once('=').is_some_and(|(n, _)| n == name)) {
        Some(old) => *old = pair,
        None => env.push(pair),
    }
}

fn join(before: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{}/{path}", before.trim_end_matches('/')),
    }
}

/// `80`, `80/udp` or `8000-8010/tcp`.
fn expose(ports: &mut Vec<String>, text: &str) -> Result<(), ImageError> {
    let invalid = || bad(format!("invalid containerPort: {text}"));
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let first: u16 = first.parse().map_err(|_| invalid())?;
    let last: u16 = last.parse().map_err(|_| invalid())?;
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") || first > last || first == 0 {
        return Err(invalid());
    }
    ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
    ports.sort();
    ports.dedup();
    Ok(())
}

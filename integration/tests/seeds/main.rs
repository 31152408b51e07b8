//! The acceptance list, item by item: `s066_…` is its item S66. Every scenario runs twice, driven by
//! the docker CLI and by skep's own, on one node. busybox stands in for the applications.

mod access;
mod promises;
mod secrets;
mod services;
mod walk;

/// Whether `text` is an id as the API mints them: 25 characters of base 36.
fn is_id(text: &str) -> bool {
    text.len() == 25 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The line of a table whose cells contain `cell`.
fn row<'a>(table: &'a str, cell: &str) -> Option<&'a str> {
    table.lines().find(|line| line.split_whitespace().any(|word| word == cell))
}

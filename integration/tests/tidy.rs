//! The rules of the house that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use skep_integration::{BUDGETS, PROMISES, SWARM_BUDGETS};

/// Longest file, in lines.
const LINES: usize = 600;
/// What may stand at the top of the repository, besides what git does not know.
const TOP: [&str; 19] = [
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "fuse",
    "integration",
    "raft",
    "rustfmt.toml",
    "scripts",
    "src",
    "target",
];
/// What the core may be built of.
const CORE: [&str; 2] = ["minicbor", "sha2"];
/// Floors of the node that do not import one another: `node.rs` composes them.
const FLATS: [&str; 5] = ["api", "cli", "agent", "manager", "shim"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file below the repository, by its path from the top, with its text.
fn files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        if ["target", ".git"].iter().any(|other| path == Path::new(other)) {
            continue;
        }
        if let Ok(entries) = fs::read_dir(top().join(&path)) {
            open.extend(entries.flatten().map(|entry| path.join(entry.file_name())));
        } else if let Ok(text) = fs::read_to_string(top().join(&path)) {
            found.push((path.display().to_string(), text));
        }
    }
    assert!(found.len() > 20, "where is the repository?");
    found.sort();
    found
}

fn rust() -> Vec<(String, String)> {
    files().into_iter().filter(|(path, _)| path.ends_with(".rs")).collect()
}

/// Lines outside tests and comments, with their numbers.
fn product(path: &str, text: &str) -> Vec<(usize, String)> {
    let parts: Vec<_> = Path::new(path).iter().map(|part| part.to_string_lossy()).collect();
    let tests = ["tests", "testing.rs", "integration"];
    if path.ends_with("tests.rs") || parts.iter().any(|part| tests.contains(&part.as_ref())) {
        return Vec::new();
    }
    // By custom the tests of a file are its last item.
    let own = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = own.lines().enumerate().map(|(at, line)| (at + 1, line.trim().to_owned()));
    lines.filter(|(_, line)| !line.starts_with("//")).collect()
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn files_are_short() {
    let long = rust().into_iter().map(|(path, text)| (path, text.lines().count()));
    let long: Vec<_> = long.filter(|(_, lines)| *lines > LINES).collect();
    none(
        "too long",
        &long.iter().map(|(path, lines)| format!("{lines} {path}")).collect::<Vec<_>>(),
    );
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let calls = [concat!("to", "do!("), concat!("unimpl", "emented!(")];
    let mut found = Vec::new();
    for (path, text) in files() {
        for (at, line) in text.lines().enumerate() {
            let mut parts = line.split(|letter: char| !letter.is_ascii_alphanumeric());
            let marked = parts.any(|part| words.contains(&part));
            if marked || calls.iter().any(|call| line.contains(call)) {
                found.push(format!("{path}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none("left for later", &found);
}

#[test]
fn nothing_panics_on_purpose() {
    let calls = [".unwrap()", ".expect(\"", "panic!(", "unreachable!("];
    let mut found = Vec::new();
    for (path, text) in rust() {
        for (at, line) in product(&path, &text) {
            if calls.iter().any(|call| line.contains(call)) {
                found.push(format!("{path}:{at}: {line}"));
            }
        }
    }
    none("may panic outside tests", &found);
}

#[test]
fn nothing_is_silenced_or_decorated() {
    let dead = concat!("allow(dead", "_code");
    let mut found = Vec::new();
    for (path, text) in rust() {
        for (at, line) in text.lines().enumerate() {
            let rule = line.trim_start().trim_start_matches('/').trim();
            let banner = line.trim_start().starts_with("//")
                && rule.len() > 3
                && rule.bytes().all(|byte| b"-=*#~".contains(&byte));
            if banner || line.contains(dead) {
                found.push(format!("{path}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none("dead code allowed, or a banner", &found);
}

#[test]
fn the_top_is_as_laid_out() {
    let entries = fs::read_dir(top()).expect("the top");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let names = names.map(|name| name.expect("a plain name"));
    none(
        "not in the layout",
        &names.filter(|name| !TOP.contains(&name.as_str())).collect::<Vec<_>>(),
    );
}

#[test]
fn only_raft_knows_the_consensus_library() {
    let users = files().into_iter().filter(|(path, text)| {
        let code = path.ends_with(".rs") && !path.starts_with("integration/");
        let manifest = path.ends_with("Cargo.toml");
        let uses = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let mut uses = uses.map(|line| line.contains("openraft::") || line.starts_with("openraft"));
        (code || manifest) && !path.starts_with("raft/") && uses.any(|hit| hit)
    });
    none("uses openraft", &users.map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn the_flats_do_not_import_one_another() {
    let mut found = Vec::new();
    for (path, text) in rust() {
        let own = FLATS.iter().find(|flat| {
            path.starts_with(&format!("src/{flat}/")) || path == format!("src/{flat}.rs")
        });
        let Some(own) = own else { continue };
        for (at, line) in product(&path, &text) {
            for other in FLATS.iter().filter(|flat| *flat != own) {
                if line.contains(&format!("crate::{other}::")) {
                    found.push(format!("{path}:{at}: {line}"));
                }
            }
        }
    }
    none("imports its neighbour", &found);
}

#[test]
fn the_core_cannot_do_io() {
    let text = |path: &str| fs::read_to_string(top().join(path)).expect("a file of the core");
    let attributes = text("src/core/src/lib.rs");
    assert!(attributes.lines().any(|line| line == "#![no_std]"), "the core is not no_std");
    let manifest = text("src/core/Cargo.toml");
    let section = manifest.split("[dependencies]").nth(1).expect("dependencies");
    let section = section.split("\n[").next().expect("a section");
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    let names = names.filter(|name| !name.is_empty() && !CORE.contains(name));
    none("not for the core", &names.map(str::to_owned).collect::<Vec<_>>());
    let uses = rust().into_iter().filter(|(path, _)| path.starts_with("src/core/src/"));
    let uses = uses.filter(|(path, text)| {
        product(path, text).iter().any(|(_, line)| line.contains("std::") && !line.contains("cfg("))
    });
    none("uses std", &uses.map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn nothing_reaches_outside_the_repository() {
    // Put together here, so that this file does not find itself.
    let places = [concat!("../", "shared"), concat!("/wo", "rk/"), concat!("/ro", "ot/.")];
    let mut found = Vec::new();
    for (path, text) in files() {
        for (at, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                found.push(format!("{path}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none("names a place that a clone does not have", &found);
}

#[test]
fn the_specification_names_real_checks() {
    let rust = rust();
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let mut missing = Vec::new();
    for promise in PROMISES {
        for check in promise.checks {
            let name = format!("fn {check}(");
            if !rust.iter().any(|(_, text)| text.contains(&name)) {
                missing.push(format!("{}: no test {check}", promise.id));
            }
        }
        if !readme.contains(&format!("| {} | {} |", promise.id, promise.text)) {
            missing.push(format!("{}: not in the README's table", promise.id));
        }
    }
    for budget in BUDGETS.iter().chain(SWARM_BUDGETS) {
        if !readme.contains(&format!("| {} | {} |", budget.what, budget.bound)) {
            missing.push(format!("{}: not in the README's table", budget.row));
        }
    }
    none("the specification and the README differ (scripts/bench --readme)", &missing);
}

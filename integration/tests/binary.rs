//! The binary itself: one file that runs anywhere.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Node, Options};

/// Bytes of the largest binary that may be handed out.
const SIZE: usize = 25 << 20;

fn number(bytes: &[u8], at: usize, size: usize) -> Result<usize> {
    let field = bytes.get(at..at + size).context("a short file")?;
    Ok(field.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// Position-independent, without a dynamic loader and without libraries.
#[test]
fn static_and_position_independent() -> Result<()> {
    let node = Node::prepare(Options::default())?;
    let bytes = fs::read(node.binary())?;
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "no 64-bit ELF");
    ensure!(number(&bytes, 16, 2)? == 3, "not position-independent");
    let (table, size, count) =
        (number(&bytes, 32, 8)?, number(&bytes, 54, 2)?, number(&bytes, 56, 2)?);
    for at in 0..count {
        let header = table + at * size;
        match number(&bytes, header, 4)? {
            3 => anyhow::bail!("asks for a dynamic loader"),
            2 => {
                let (start, length) =
                    (number(&bytes, header + 8, 8)?, number(&bytes, header + 32, 8)?);
                for entry in (start..start + length).step_by(16) {
                    ensure!(number(&bytes, entry, 8)? != 1, "needs a shared library");
                }
            }
            _ => {}
        }
    }
    if !node.binary().components().any(|part| part.as_os_str() == "debug") {
        ensure!(bytes.len() <= SIZE, "{} bytes", bytes.len());
    }
    Ok(())
}

/// Whoever wants to know more of errors has them told all the same.
#[test]
fn errors_are_told_where_backtraces_are_asked_for() -> Result<()> {
    let node = Node::prepare(Options::default())?;
    let out = Command::new(node.binary())
        .args(["daemon", "--data-root", "/dev/null/data", "--run-root", "/dev/null/run"])
        .env("RUST_BACKTRACE", "full")
        .env("RUST_LIB_BACKTRACE", "1")
        .output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.code() == Some(1), "{:?}: {said}", out.status);
    ensure!(said.contains("/dev/null"), "{said}");
    Ok(())
}

/// Exit codes and texts of the command line without a node.
#[test]
fn command_line_errors() -> Result<()> {
    let node = Node::prepare(Options::default())?;
    let run = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        node.run_binary(&words, Duration::from_secs(10))
    };
    let version = run(&["--version"])?;
    ensure!(
        version.code == 0 && version.stdout.to_lowercase().starts_with("skep version "),
        "{version:?}"
    );
    let flag = run(&["secret", "ls", "--nonsense"])?;
    ensure!(flag.code == 125 && flag.stderr.contains("--nonsense"), "{flag:?}");
    for words in [&["secret", "create"][..], &["secret", "nonsense"]] {
        let out = run(words)?;
        ensure!(out.code == 1 && !out.stderr.is_empty(), "{out:?}");
    }
    let host = format!("unix://{}", node.socket().display());
    let out = run(&["-H", &host, "secret", "ls"])?;
    ensure!(out.code == 1 && out.stderr.contains("skep.sock"), "names the socket: {out:?}");
    Ok(())
}

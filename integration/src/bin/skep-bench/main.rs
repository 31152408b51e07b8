//! Figures of a node under load, one JSON line each.

mod leak;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: skep-bench leak [--minutes N] [--rounds N] [--services N] \
                     [--secrets N] [--socket PATH]";

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("leak") => leak::run(leak_options(args)?),
        other => bail!("{other:?} is no bench\n{USAGE}"),
    }
}

fn leak_options(mut args: impl Iterator<Item = String>) -> Result<leak::Options> {
    let mut options = leak::Options::default();
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("{flag} needs a value\n{USAGE}"))?;
        match flag.as_str() {
            "--minutes" => options.minutes = value.parse().context("--minutes")?,
            "--rounds" => options.rounds = Some(value.parse().context("--rounds")?),
            "--services" => options.services = value.parse().context("--services")?,
            "--secrets" => options.secrets = value.parse().context("--secrets")?,
            "--socket" => options.socket = Some(PathBuf::from(value)),
            other => bail!("unknown flag {other}\n{USAGE}"),
        }
    }
    Ok(options)
}

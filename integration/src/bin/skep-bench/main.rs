//! Figures of skep, one JSON object a line.

mod control;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| -> Result<usize> {
        let at = args.iter().position(|arg| arg == flag);
        let value = at.and_then(|at| args.get(at + 1)).with_context(|| format!("{flag} N"))?;
        Ok(value.parse()?)
    };
    match args.first().map(String::as_str) {
        Some("control") => control::run(value("--nodes")?, value("--tasks")?),
        _ => bail!("usage: skep-bench control --nodes N --tasks M"),
    }
}

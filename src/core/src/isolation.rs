//! What becomes of a service's tasks on a node that has lost its managers: kept for ever, or
//! stopped after a while. It is a label of the container, since Docker has no word for it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::id::TaskId;
use crate::limits::{ISOLATION_MAX, ISOLATION_MIN};
use crate::model::container::ContainerSpec;
use crate::time::Span;

/// The label that says it.
pub const LABEL: &str = "skep.on-isolation";

/// What becomes of a task on a node without a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OnIsolation {
    /// It goes on.
    #[default]
    Keep,
    /// It is stopped once the node has heard of no manager for this long.
    Stop(Span),
}

/// A text says neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolationError(String);

impl fmt::Display for IsolationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for IsolationError {}

impl OnIsolation {
    /// Reads `keep`, or `stop=` with a length of time such as `90s` or `1h30m`.
    ///
    /// # Errors
    /// [`IsolationError`] names the text and what it may be.
    pub fn parse(text: &str) -> Result<Self, IsolationError> {
        if text == "keep" {
            return Ok(Self::Keep);
        }
        let span = text.strip_prefix("stop=").and_then(span).ok_or_else(|| {
            IsolationError(format!(
                "{text:?} does not say what to do on isolation: it may be keep, or stop=DURATION \
                 such as stop=30s or stop=1h30m"
            ))
        })?;
        if span < ISOLATION_MIN || span > ISOLATION_MAX {
            return Err(IsolationError(format!(
                "stop={} on isolation is out of range: from {} s, so that a session has time to \
                 move to another manager, to {} days",
                &text["stop=".len()..],
                ISOLATION_MIN.as_millis() / 1_000,
                ISOLATION_MAX.as_millis() / 86_400_000,
            )));
        }
        Ok(Self::Stop(span))
    }

    /// What a container's labels say. What is no such text was refused when it was told.
    #[must_use]
    pub fn of(container: &ContainerSpec) -> Self {
        container.labels.get(LABEL).and_then(|text| Self::parse(text).ok()).unwrap_or_default()
    }
}

/// Which of some tasks are to stop on a node that has been without a session for so long.
#[must_use]
pub fn stops<'a>(
    alone: Span,
    tasks: impl IntoIterator<Item = (&'a TaskId, OnIsolation)>,
) -> Vec<TaskId> {
    let is_due = |policy| matches!(policy, OnIsolation::Stop(after) if alone >= after);
    tasks.into_iter().filter(|(_, policy)| is_due(*policy)).map(|(id, _)| *id).collect()
}

/// A length of time of whole numbers with units from `h` to `ms`.
fn span(text: &str) -> Option<Span> {
    let mut rest = text;
    let mut nanos = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let scale = match rest.get(..unit)? {
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(number.checked_mul(scale)?)?;
        rest = rest.get(unit..)?;
    }
    (!text.is_empty()).then_some(Span(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[test]
    fn it_says_keep_or_stop() {
        let stop = |s| Ok(OnIsolation::Stop(Span::from_secs(s)));
        assert_eq!(OnIsolation::parse("keep"), Ok(OnIsolation::Keep));
        assert_eq!(OnIsolation::parse("stop=30s"), stop(30));
        assert_eq!(OnIsolation::parse("stop=1h30m"), stop(5_400));
        assert_eq!(OnIsolation::parse("stop=5000ms"), stop(5));
        assert_eq!(OnIsolation::parse("stop=720h"), stop(720 * 3_600));
        let long = ["stop=", "99999999999999999999h"].concat();
        for wrong in ["", "stop", "stop=", "stop=5", "stop=s", "stop=-5s", "Keep", "stop=1d", &long]
        {
            let said = format!("{}", OnIsolation::parse(wrong).unwrap_err());
            assert!(
                said.contains(&format!("{wrong:?}")) && said.contains("stop=DURATION"),
                "{said}"
            );
        }
        for wrong in ["stop=4999ms", "stop=0s", "stop=721h"] {
            let said = format!("{}", OnIsolation::parse(wrong).unwrap_err());
            assert!(
                said.contains(wrong) && said.contains("5 s") && said.contains("30 days"),
                "{said}"
            );
        }
    }

    #[test]
    fn each_task_stops_in_its_time() {
        let ids: [TaskId; 3] =
            [1, 2, 3].map(|seed| Id::from_entropy([seed; crate::id::ENTROPY_LEN]));
        let policy = |s| OnIsolation::Stop(Span::from_secs(s));
        let tasks = [(&ids[0], OnIsolation::Keep), (&ids[1], policy(5)), (&ids[2], policy(60))];
        let due = |ms| stops(Span::from_millis(ms), tasks);
        assert_eq!(due(4_999), []);
        assert_eq!(due(5_000), [ids[1]]);
        assert_eq!(due(60_000), [ids[1], ids[2]]);
    }
}

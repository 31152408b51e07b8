//! Signals by name and number. Linux counts them alike wherever skep runs.

use alloc::format;
use alloc::string::String;

/// Names without `SIG`, the first of number 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The real-time signals a program may use.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;
/// Those that no process can catch: SIGKILL and SIGSTOP.
const DEADLY: [i32; 2] = [9, 19];

/// The number of a signal: `SIGUSR1`, `usr1`, `10`, `RTMIN+3`; none if there is no such signal.
#[must_use]
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let from = |start: i32, rest: &str| match rest {
        "" => Some(start),
        offset => start.checked_add(offset.parse::<i32>().ok()?),
    };
    let number = if let Some(rest) = bare.strip_prefix("RTMIN") {
        from(RTMIN, rest)?
    } else if let Some(rest) = bare.strip_prefix("RTMAX") {
        from(RTMAX, rest)?
    } else {
        let at = NAMES.iter().position(|name| *name == bare)?;
        return i32::try_from(at + 1).ok();
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// The name of a signal, or its number where it has none.
#[must_use]
pub fn name(number: i32) -> String {
    let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    match at.and_then(|at| NAMES.get(at)) {
        Some(name) => format!("SIG{name}"),
        None if (RTMIN..=RTMAX).contains(&number) => format!("SIGRTMIN+{}", number - RTMIN),
        None => format!("{number}"),
    }
}

/// Whether a process can take this signal as news: it exists, and can be caught.
#[must_use]
pub fn is_news(number: i32) -> bool {
    (1..=RTMAX).contains(&number) && !DEADLY.contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for signal in 1..=RTMAX {
            assert_eq!(number(&name(signal)), Some(signal), "{}", name(signal));
        }
        assert_eq!((name(1).as_str(), name(15).as_str()), ("SIGHUP", "SIGTERM"));
        assert_eq!((name(37).as_str(), name(32).as_str()), ("SIGRTMIN+3", "32"));
        for text in ["0", "65", "-1", "SIGNONSENSE", "RTMIN+99", "RTMAX+2147483647", ""] {
            assert_eq!(number(text), None, "{text}");
        }
        assert!(is_news(1) && is_news(64));
        assert!(!is_news(9) && !is_news(19) && !is_news(0) && !is_news(65));
    }
}

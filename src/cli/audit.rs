//! `skep secret audit` and `skep config audit`: who reads what, which Docker has no words for.

use std::collections::BTreeMap;

use http::Method;
use serde_json::Value;

use super::call::{Call, out, outln, warn};
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::help::BEYOND;
use super::logs::moment;
use super::material::Kind;
use super::output::{LIST_FORMAT, Layout, Row, list, row};
use super::values::check_uint;
use super::{human, json};

/// Bytes of one line of the answer.
const LINE_BYTES: usize = 4 << 20;

/// Exit code if something is missing or changed.
const WRONG: u8 = 1;
/// Exit code if nothing was found wrong, but not all could be checked.
const UNCHECKED: u8 = 2;

const FLAGS: &[Flag] = &[
    Flag::switch("follow", "Go on with what is read from now on").short('f'),
    LIST_FORMAT,
    Flag::with("limit", "uint", "Show only so many rows, the latest").short('n').check(check_uint),
    Flag::with("node", "string", "Show only what happened on this node"),
    Flag::with(
        "since",
        "string",
        "Show what happened since a timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for 42 minutes)",
    ),
    Flag::with("task", "string", "Show only this task (e.g. \"web.1\", or its ID if it is gone)"),
    Flag::with(
        "until",
        "string",
        "Show what happened before a timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for 42 minutes)",
    ),
    Flag::switch(
        "verify",
        "Check that no record is missing or changed; the exit code is 1 if one is, else 2 if not all could be checked",
    ),
];

pub(super) const SECRET_AUDIT: Command = Command::client(
    "audit",
    "[OPTIONS] [SECRET]",
    "Show who has read a secret, or all secrets and configs",
    |call| audit(call, Kind::Secret),
)
.flags(FLAGS)
.section(BEYOND)
.takes(Arity::Between(0, 1));

pub(super) const CONFIG_AUDIT: Command =
    Command::client("audit", "[OPTIONS] CONFIG", "Show who has read a config", |call| {
        audit(call, Kind::Config)
    })
    .flags(FLAGS)
    .section(BEYOND)
    .takes(Arity::Exactly(1));

const LAYOUT: Layout = Layout {
    table: "{{.Time}}\t{{.Node}}\t{{.Task}}\t{{.Name}}\t{{.Version}}\t{{.UID}}\t\
            {{.ExecutableClaim}}\t{{.Opened}}\t{{.Refused}}\t{{.What}}",
    quiet: "{{.TaskID}}",
    headers: &[
        ("Time", "TIME"),
        ("First", "FIRST"),
        ("Last", "LAST"),
        ("Node", "NODE"),
        ("NodeID", "NODE ID"),
        ("Task", "TASK"),
        ("TaskID", "TASK ID"),
        ("Service", "SERVICE"),
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Version", "VERSION"),
        ("UID", "UID"),
        ("GID", "GID"),
        ("ExecutableClaim", "EXECUTABLE (CLAIMED)"),
        ("Opened", "OPENS"),
        ("Refused", "REFUSED"),
        ("Event", "EVENT"),
        ("What", "WHAT"),
        ("Record", "RECORD"),
    ],
};

const VERDICT_LAYOUT: Layout = Layout {
    table: "{{.Task}}\t{{.Node}}\t{{.Records}}\t{{.Verdict}}",
    quiet: "{{.TaskID}}",
    headers: &[
        ("Task", "TASK"),
        ("TaskID", "TASK ID"),
        ("Service", "SERVICE"),
        ("Node", "NODE"),
        ("NodeID", "NODE ID"),
        ("Records", "RECORDS"),
        ("Intact", "INTACT"),
        ("Verdict", "VERDICT"),
    ],
};

fn target(call: &Call, kind: Kind) -> Result<Target, CliError> {
    let mut target = match call.arg(0) {
        "" => Target::new(&["skep", "v1", "audit"]),
        name => Target::new(&["skep", "v1", kind.path(), name, "audit"]),
    };
    for name in ["since", "until"] {
        if let Some(text) = call.get(name).filter(|text| !text.is_empty()) {
            target = target.with(name, &moment(name, text)?);
        }
    }
    for name in ["task", "node", "limit"] {
        target = target.with_some(name, call.get(name).filter(|text| !text.is_empty()));
    }
    for name in ["follow", "verify"] {
        target = if call.on(name) { target.with(name, "1") } else { target };
    }
    Ok(target)
}

fn audit(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let target = target(call, kind)?;
    let mut shown = Shown::new(call.get("format"), call.on("follow"), call.on("verify"));
    let mut lines = Lines::default();
    call.client()?.stream(Method::GET, &target, None, &mut |piece| {
        lines.take(piece, &mut |line| shown.take(line))
    })?;
    lines.end(&mut |line| shown.take(line))?;
    shown.end()
}

/// Parts what comes into lines.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(
        &mut self,
        piece: &[u8],
        each: &mut dyn FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.0.extend_from_slice(part);
            if self.0.len() > LINE_BYTES {
                let why = format!("the daemon sent a line of more than {LINE_BYTES} bytes");
                return Err(CliError::plain(why));
            }
            if self.0.ends_with(b"\n") {
                each(&std::mem::take(&mut self.0))?;
            }
        }
        Ok(())
    }

    fn end(&mut self, each: &mut dyn FnMut(&[u8]) -> Result<(), CliError>) -> Result<(), CliError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => each(&std::mem::take(&mut self.0)),
        }
    }
}

/// Shows lines of the answer: as they come where that can be, else all at the end.
struct Shown<'a> {
    format: Option<&'a str>,
    follows: bool,
    verifies: bool,
    layout: &'static Layout,
    rows: Vec<Row>,
    widths: Widths,
    has_findings: bool,
    has_unchecked: bool,
}

/// The widest cell of each field so far, so that what follows stands below it.
#[derive(Debug, Default)]
struct Widths(BTreeMap<String, String>);

impl Widths {
    fn add(&mut self, row: &Row) {
        for (name, cell) in row {
            let Value::String(cell) = cell else { continue };
            let widest = self.0.entry(name.clone()).or_default();
            if cell.chars().count() > widest.chars().count() {
                widest.clone_from(cell);
            }
        }
    }

    fn row(&self) -> Row {
        self.0.iter().map(|(name, cell)| (name.clone(), Value::from(cell.as_str()))).collect()
    }
}

impl<'a> Shown<'a> {
    fn new(format: Option<&'a str>, follows: bool, verifies: bool) -> Self {
        let layout = if verifies { &VERDICT_LAYOUT } else { &LAYOUT };
        let format = format.filter(|format| !format.is_empty());
        let (rows, widths) = (Vec::new(), Widths::default());
        let (has_findings, has_unchecked) = (false, false);
        Self { format, follows, verifies, layout, rows, widths, has_findings, has_unchecked }
    }

    fn take(&mut self, line: &[u8]) -> Result<(), CliError> {
        let line = String::from_utf8_lossy(line);
        let object: Value = serde_json::from_str(&line)
            .map_err(|why| CliError::plain(format!("cannot read the daemon's answer: {why}")))?;
        if json::at(&object, &["Notice"]).is_some() {
            let word = json::text(&object, &["Notice"]);
            self.has_unchecked |= self.verifies && matches!(word, "cut" | "absent" | "damaged");
            warn(&format!("skep: {}", json::text(&object, &["Message"])));
            return Ok(());
        }
        if json::at(&object, &["Findings"]).is_some() {
            self.has_findings |= is_wrong(&object);
            self.has_unchecked |= json::flag(&object, &["Cut"]);
            return self.show(verdict_row(&object), &line);
        }
        self.show(audit_row(&object), &line)
    }

    fn show(&mut self, row: Row, line: &str) -> Result<(), CliError> {
        if self.format == Some("json") {
            return outln(line.trim_end());
        }
        if !self.follows {
            self.rows.push(row);
            return Ok(());
        }
        self.widths.add(&row);
        let is_first = std::mem::take(&mut self.rows).is_empty();
        let text = self.followed(&row, is_first)?;
        self.rows.push(row);
        out(&text)
    }

    /// One row as it comes, below those before; the header comes with the first.
    fn followed(&self, row: &Row, is_first: bool) -> Result<String, CliError> {
        let alone = list(self.format, false, self.layout, std::slice::from_ref(row))?;
        let is_table = self.format.is_none_or(|one| one == "table" || one.starts_with("table "));
        if !is_table {
            return Ok(alone);
        }
        let all = list(self.format, false, self.layout, &[self.widths.row(), row.clone()])?;
        let mut lines: Vec<&str> = all.lines().collect();
        let (row, header) = (lines.pop().unwrap_or_default(), lines.first().copied());
        Ok(match header.filter(|_| is_first) {
            Some(header) => format!("{header}\n{row}\n"),
            None => format!("{row}\n"),
        })
    }

    fn end(self) -> Result<u8, CliError> {
        if !self.follows && self.format != Some("json") {
            out(&list(self.format, false, self.layout, &self.rows)?)?;
        }
        Ok(self.code())
    }

    fn code(&self) -> u8 {
        match (self.has_findings, self.has_unchecked) {
            (true, _) => WRONG,
            (false, true) => UNCHECKED,
            (false, false) => 0,
        }
    }
}

/// A number or text of a line, as text; empty if it has none.
fn text(object: &Value, name: &str) -> String {
    match json::at(object, &[name]) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// A name, or the id of what has lost its name.
fn named(object: &Value, name: &str, id: &str) -> String {
    match json::text(object, &[name]) {
        "" => human::short_id(json::text(object, &[id])).to_owned(),
        name => name.to_owned(),
    }
}

/// Cells hold no control characters: an executable may be called anything.
fn printable(text: String) -> String {
    match text.contains(char::is_control) {
        true => text.escape_debug().to_string(),
        false => text,
    }
}

fn audit_row(object: &Value) -> Row {
    let field = |name: &str| text(object, name);
    let is_opens = json::text(object, &["Event"]) == "opens";
    let claim = match (is_opens, json::at(object, &["ExecutableClaim"])) {
        (true, None) => "unknown".to_owned(),
        _ => printable(field("ExecutableClaim")),
    };
    row([
        ("Time", field("Time")),
        ("First", field("First")),
        ("Last", field("Last")),
        ("Node", named(object, "Hostname", "NodeID")),
        ("NodeID", field("NodeID")),
        ("Task", named(object, "TaskName", "TaskID")),
        ("TaskID", field("TaskID")),
        ("Service", named(object, "ServiceName", "ServiceID")),
        ("ID", field("ID")),
        ("Name", field("Name")),
        ("Version", field("Version")),
        ("UID", field("UID")),
        ("GID", field("GID")),
        ("ExecutableClaim", claim),
        ("Opened", field("Opened")),
        ("Refused", field("Refused")),
        ("Event", field("Event")),
        ("What", printable(what(object))),
        ("Record", field("Record")),
    ])
}

/// What happened, in words.
fn what(object: &Value) -> String {
    let field = |name: &str| text(object, name);
    match json::text(object, &["Event"]) {
        "opens" if json::at(object, &["UID"]).is_none() => {
            "opens by readers that had no row of their own".to_owned()
        }
        "switched" => format!("switched from version {}", field("From")),
        "refused" => format!("delivery {} refused: {}", field("Delivery"), field("Reason")),
        "signalled" => format!("signal {} sent on delivery {}", field("Signal"), field("Delivery")),
        "begun" => "supervisor begun".to_owned(),
        "ended" => "task ended".to_owned(),
        "rotated" => format!("file rotated: its node keeps records from {} on", field("KeptFrom")),
        "lost" => {
            let (events, writes) = (field("LostEvents"), field("FailedWrites"));
            format!("{events} events lost, {writes} writes failed: {}", field("Reason"))
        }
        other => other.to_owned(),
    }
}

fn verdict_row(object: &Value) -> Row {
    row([
        ("Task", named(object, "TaskName", "TaskID")),
        ("TaskID", text(object, "TaskID")),
        ("Service", named(object, "ServiceName", "ServiceID")),
        ("Node", named(object, "Hostname", "NodeID")),
        ("NodeID", text(object, "NodeID")),
        ("Records", text(object, "Records")),
        ("Intact", text(object, "Intact")),
        ("Verdict", verdict(object)),
    ])
}

/// Whether a verdict found anything that age does not explain.
fn is_wrong(object: &Value) -> bool {
    json::list(object, &["Findings"]).iter().any(|finding| !json::flag(finding, &["Explained"]))
}

/// What was found, in words.
fn verdict(object: &Value) -> String {
    let number = |name: &str| json::number(object, &[name]);
    let (intact, anchored, unbound) = (number("IntactTo"), number("AnchoredTo"), number("Unbound"));
    let mut parts = Vec::new();
    for finding in json::list(object, &["Findings"]) {
        parts.push(json::text(finding, &["Message"]).to_owned());
    }
    parts.push(match intact {
        0 => "no record is intact from the beginning on".to_owned(),
        intact => format!("intact up to record {intact}"),
    });
    parts.push(match (anchored, unbound) {
        (0, 0) => "nothing is anchored".to_owned(),
        (0, _) => "no record is bound to anything yet".to_owned(),
        (_, 0) => format!("anchored up to record {anchored}"),
        _ => format!(
            "anchored up to record {anchored}; {unbound} after it not bound to anything yet"
        ),
    });
    if json::flag(object, &["Cut"]) {
        parts.push("too long to check all of it".to_owned());
    }
    let head = match (is_wrong(object), json::flag(object, &["Cut"])) {
        (true, _) => "NOT INTACT: ",
        (false, true) => "NOT VERIFIED: ",
        (false, false) => "",
    };
    format!("{head}{}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn opens() -> Value {
        json!({
            "Event": "opens", "Time": "2026-11-22T08:43:42Z", "First": "2026-11-22T08:43:41Z",
            "Last": "2026-11-22T08:43:42Z", "NodeID": "n1", "Hostname": "one", "TaskID": "t1",
            "TaskName": "web.1", "ServiceID": "s1", "ServiceName": "web", "Record": 3, "ID": "m1",
            "Name": "db", "Version": 2, "Opened": 7, "Refused": 1, "UID": 1000, "GID": 100,
            "ExecutableClaim": "/bin/app",
        })
    }

    fn shown(rows: &[Row]) -> String {
        list(None, false, &LAYOUT, rows).unwrap()
    }

    #[test]
    fn rows_say_that_the_executable_is_a_claim() {
        let event = json!({
            "Event": "switched", "Time": "2026-11-22T08:43:43Z", "NodeID": "n1",
            "Hostname": "", "TaskID": "t2abcdefghijklmn", "TaskName": "", "ID": "m1", "Name": "db",
            "Version": 3, "From": 2,
        });
        let text = shown(&[audit_row(&opens()), audit_row(&event)]);
        let expected = "\
TIME                   NODE      TASK           NAME      VERSION   UID       EXECUTABLE (CLAIMED)   OPENS     REFUSED   WHAT
2026-11-22T08:43:42Z   one       web.1          db        2         1000      /bin/app               7         1         opens
2026-11-22T08:43:43Z   n1        t2abcdefghij   db        3                                                              switched from version 2
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_name_with_control_characters_cannot_draw_a_row() {
        let mut object = opens();
        object["ExecutableClaim"] = json!("/bin/a\n2026 fake\u{1b}[2J");
        let text = shown(&[audit_row(&object)]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains(r"/bin/a\n2026 fake\u{1b}[2J"), "{text}");
        object["ExecutableClaim"] = Value::Null;
        assert!(shown(&[audit_row(&object)]).contains("unknown"));
    }

    #[test]
    fn verdicts_in_words() {
        let clean = json!({
            "Intact": true, "IntactTo": 12, "AnchoredTo": 10, "Unbound": 2, "Findings": [],
        });
        assert_eq!(
            verdict(&clean),
            "intact up to record 12; anchored up to record 10; 2 after it not bound to anything yet"
        );
        let wrong = json!({
            "Intact": false, "IntactTo": 3, "AnchoredTo": 5, "Unbound": 0,
            "Findings": [{"Message": "record 5 is not the one that the managers remember"}],
        });
        assert_eq!(
            verdict(&wrong),
            "NOT INTACT: record 5 is not the one that the managers remember; intact up to record \
             3; anchored up to record 5"
        );
    }

    #[test]
    fn findings_make_the_exit_code() {
        let run = |object: Value| {
            let mut shown = Shown::new(Some("{{.TaskID}}"), false, true);
            shown.take(object.to_string().as_bytes()).unwrap();
            (shown.code(), shown.rows.len())
        };
        let verdict = |is_cut: bool, findings: Value| json!({"TaskID": "t", "Intact": false, "Cut": is_cut, "Findings": findings});
        assert_eq!(run(verdict(false, json!([]))), (0, 1));
        assert_eq!(run(verdict(false, json!([{"Explained": true}]))), (0, 1));
        assert_eq!(run(verdict(false, json!([{"Explained": false}]))), (WRONG, 1));
        // What was not checked is not called right.
        assert_eq!(run(verdict(true, json!([]))), (UNCHECKED, 1));
        assert_eq!(run(verdict(true, json!([{"Explained": false}]))), (WRONG, 1));
        // A notice is no row.
        for word in ["absent", "damaged", "cut"] {
            assert_eq!(run(json!({"Notice": word, "Message": "x"})), (UNCHECKED, 0));
        }
        assert_eq!(run(json!({"Notice": "dropped", "Message": "x"})), (0, 0));
    }

    #[test]
    fn a_notice_about_what_is_only_shown_is_no_failure() {
        let mut shown = Shown::new(None, false, false);
        shown.take(json!({"Notice": "cut", "Message": "x"}).to_string().as_bytes()).unwrap();
        assert_eq!(shown.code(), 0);
    }

    #[test]
    fn what_was_not_checked_to_its_end_is_said_to_be_so() {
        let cut = json!({
            "Intact": false, "Cut": true, "IntactTo": 3, "AnchoredTo": 3, "Findings": [],
        });
        let text = verdict(&cut);
        assert!(text.starts_with("NOT VERIFIED: intact up to record 3"), "{text}");
    }

    #[test]
    fn followed_rows_stand_below_one_another() {
        let mut shown = Shown::new(None, true, false);
        let mut one = audit_row(&opens());
        shown.widths.add(&one);
        let first = shown.followed(&one, true).unwrap();
        one.insert("Task".to_owned(), Value::from("a-long-name.1"));
        shown.widths.add(&one);
        let second = shown.followed(&one, false).unwrap();
        one.insert("Task".to_owned(), Value::from("w.1"));
        let third = shown.followed(&one, false).unwrap();
        assert_eq!((first.lines().count(), second.lines().count()), (2, 1));
        assert!(first.starts_with("TIME "));
        assert_eq!(second.find(" db "), third.find(" db "));
    }

    #[test]
    fn lines_are_parted_however_they_come() {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut keep = |line: &[u8]| {
            found.push(line.to_vec());
            Ok(())
        };
        for piece in [b"{\"a\"".as_slice(), b":1}\n{}", b"\n{", b"}"] {
            lines.take(piece, &mut keep).unwrap();
        }
        lines.end(&mut keep).unwrap();
        assert_eq!(found, [b"{\"a\":1}\n".to_vec(), b"{}\n".to_vec(), b"{}".to_vec()]);
        let long = vec![b'x'; LINE_BYTES + 1];
        assert!(lines.take(&long, &mut |_| Ok(())).is_err());
    }
}

//! Lists in the shapes of `--format` and `--quiet`.

use serde_json::{Map, Value};

use super::call::{Call, out};
use super::error::CliError;
use super::flags::Flag;
use super::table;
use super::template::{Template, TemplateError, go_json};
use super::values::check_filter;

/// How a kind of list is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// The columns, as a template without `table `.
    pub(super) table: &'static str,
    /// What `--quiet` prints per row, as a template.
    pub(super) quiet: &'static str,
    /// Headers of all fields, those outside the default table too.
    pub(super) headers: &'static [(&'static str, &'static str)],
}

/// The fields of one row, by the names of templates.
pub(super) type Row = Map<String, Value>;

/// A row of texts.
pub(super) fn row<const N: usize>(fields: [(&str, String); N]) -> Row {
    fields.into_iter().map(|(name, text)| (name.to_owned(), Value::String(text))).collect()
}

/// Prints the rows as the call asks.
pub(super) fn print_list(call: &Call, layout: &Layout, rows: &[Row]) -> Result<(), CliError> {
    let format = call.get("format").filter(|format| !format.is_empty());
    out(&list(format, call.on("quiet"), layout, rows)?)
}

/// The rows as text.
pub(super) fn list(
    format: Option<&str>,
    quiet: bool,
    layout: &Layout,
    rows: &[Row],
) -> Result<String, TemplateError> {
    let format = format.map(|format| format.replace("\\t", "\t").replace("\\n", "\n"));
    let (template, as_table) = match format.as_deref().map(str::trim_start) {
        _ if quiet && format.as_deref().is_none_or(|one| one == "table") => (layout.quiet, false),
        None | Some("table") => (layout.table, true),
        Some("json") => ("{{json .}}", false),
        Some(format) => match format.strip_prefix("table ") {
            Some(format) => (format.trim(), true),
            None => (format, false),
        },
    };
    let template = Template::parse(template)?;
    let mut text = String::new();
    if as_table {
        let headers = layout
            .headers
            .iter()
            .map(|(name, header)| ((*name).to_owned(), Value::from(*header)))
            .collect();
        text = template.render(&Value::Object(headers))?;
        text.push('\n');
    }
    for row in rows {
        let mut fields: Vec<_> = row.clone().into_iter().collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        text.push_str(&template.render(&Value::Object(fields.into_iter().collect()))?);
        text.push('\n');
    }
    Ok(if as_table { table::columns(&text) } else { text })
}

/// One object by the template of an inspect command.
pub(super) fn inspect_text(format: &str, value: &Value) -> Result<String, TemplateError> {
    if format == "json" {
        return Ok(go_json(value));
    }
    Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n"))?.render(value)
}

impl From<TemplateError> for CliError {
    fn from(why: TemplateError) -> Self {
        Self::Plain(why.to_string())
    }
}

/// `--filter` of lists.
pub(super) const FILTER: Flag =
    Flag::with("filter", "filter", "Filter output based on conditions provided")
        .short('f')
        .check(check_filter);

/// `--format` of lists.
pub(super) const LIST_FORMAT: Flag = Flag::with(
    "format",
    "string",
    "Format output using a custom template:\n\
     'table':            Print output in table format with column headers (default)\n\
     'table TEMPLATE':   Print output in table format using the given Go template\n\
     'json':             Print in JSON format\n\
     'TEMPLATE':         Print output using the given Go template.\n\
     Fields, pipelines, if, range, with and Docker's functions are understood",
);

/// `--format` of inspect commands.
pub(super) const INSPECT_FORMAT: Flag = Flag::with(
    "format",
    "string",
    "Format output using a custom template:\n\
     'json':             Print in JSON format\n\
     'TEMPLATE':         Print output using the given Go template.\n\
     Fields, pipelines, if, range, with and Docker's functions are understood",
)
.short('f');

/// `--quiet` of lists.
pub(super) const QUIET: Flag = Flag::switch("quiet", "Only display IDs").short('q');

/// `--pretty` of inspect commands.
pub(super) const PRETTY: Flag =
    Flag::switch("pretty", "Print the information in a human friendly format");

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        table: "{{.ID}}\t{{.Name}}",
        quiet: "{{.ID}}",
        headers: &[("ID", "ID"), ("Name", "NAME"), ("Driver", "DRIVER")],
    };

    fn shown(format: Option<&str>, quiet: bool) -> String {
        let rows = [
            row([("Name", "x<".to_owned()), ("ID", "a".to_owned()), ("Driver", String::new())]),
            row([("Name", "y".to_owned()), ("ID", "b".to_owned()), ("Driver", "d".to_owned())]),
        ];
        list(format, quiet, &LAYOUT, &rows).unwrap()
    }

    #[test]
    fn every_shape_of_a_list() {
        assert_eq!(shown(None, false), "ID        NAME\na         x<\nb         y\n");
        assert_eq!(shown(None, true), "a\nb\n");
        assert_eq!(shown(Some("{{.Name}}={{.ID}}"), false), "x<=a\ny=b\n");
        assert_eq!(
            shown(Some("table {{.Driver}}\\t{{.ID}}"), false),
            "DRIVER    ID\n          a\nd         b\n"
        );
        assert_eq!(
            shown(Some("json"), false).lines().next().unwrap(),
            r#"{"Driver":"","ID":"a","Name":"x\u003c"}"#
        );
        assert!(list(Some("{{.Nope}}"), false, &LAYOUT, &[row([])]).is_err());
    }
}

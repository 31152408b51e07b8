//! The part of Go's text templates that `--format` needs: fields, variables, pipelines, `if`,
//! `range`, `with`, and the functions of the docker CLI.

mod eval;
mod lex;
mod parse;

use serde_json::Value;

pub(super) use parse::Template;

/// Why a template could not be read or filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template parsing error: {0}")]
pub(super) struct TemplateError(pub(super) String);

impl Template {
    /// Fills in `value`.
    ///
    /// # Errors
    /// If it names what `value` lacks, or calls a function wrongly.
    pub(super) fn render(&self, value: &Value) -> Result<String, TemplateError> {
        eval::render(self, value)
    }
}

/// JSON as Go writes it: `<`, `>` and `&` escaped.
pub(super) fn go_json(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str, value: &Value) -> String {
        Template::parse(template).unwrap().render(value).unwrap()
    }

    #[test]
    fn fields_functions_and_pipes() {
        let value = json!({"ID": "abc", "Spec": {"Name": "x", "Labels": {"b": "2", "a": "1"}},
            "N": 292, "List": ["p", "q"], "F": 0.5, "Null": null});
        assert_eq!(fill("{{.ID}}: {{ .Spec.Name }}!", &value), "abc: x!");
        assert_eq!(fill("{{json .Spec}}", &value), r#"{"Name":"x","Labels":{"b":"2","a":"1"}}"#);
        assert_eq!(fill("{{.Spec.Labels}} {{.List}} {{.N}}", &value), "map[a:1 b:2] [p q] 292");
        assert_eq!(fill("{{index .Spec.Labels \"a\"}}{{index .List 1}}", &value), "1q");
        assert_eq!(fill("{{.ID | upper | json}}", &value), "\"ABC\"");
        assert_eq!(fill("{{join .List \", \"}} {{len .List}}", &value), "p, q 2");
        assert_eq!(
            fill("{{printf \"%s-%03d %q %v\" .ID .N .ID .F}}", &value),
            "abc-292 \"abc\" 0.5"
        );
        assert_eq!(fill("{{(index .List 0)}}{{/* nothing */}}", &value), "p");
        let nested = json!({"L": [{"A": {"B": 5}}]});
        assert_eq!(fill("{{(index .L 0).A.B}}{{len (index .L 0).A}}", &nested), "51");
        assert_eq!(fill("{{truncate .ID 2}}{{pad \"x\" 1 2}}|", &value), "ab x  |");
    }

    #[test]
    fn control_structures() {
        let value = json!({"L": [{"A": 1}, {"A": 2}], "M": {"k": "v"}, "E": [], "T": true});
        assert_eq!(fill("{{range .L}}<{{.A}}>{{end}}", &value), "<1><2>");
        assert_eq!(fill("{{range $i, $e := .L}}{{$i}}={{$e.A}} {{end}}", &value), "0=1 1=2 ");
        assert_eq!(fill("{{range $k, $v := .M}}{{$k}}={{$v}}{{end}}", &value), "k=v");
        assert_eq!(fill("{{range .E}}x{{else}}none{{end}}", &value), "none");
        assert_eq!(fill("{{if .T}}yes{{else}}no{{end}}", &value), "yes");
        assert_eq!(fill("{{if eq (len .L) 3}}a{{else if .Missing}}b{{else}}c{{end}}", &value), "c");
        assert_eq!(fill("{{with .M}}{{.k}}{{end}}", &value), "v");
        assert_eq!(fill("{{if and .T (not .E)}}x{{end}}{{if or .E .T}}y{{end}}", &value), "xy");
        assert_eq!(fill("a {{- \"b\" -}} c", &value), "abc");
        assert_eq!(fill("{{$x := .M}}{{$x.k}}{{println \"z\" 1}}", &value), "vz 1\n");
    }

    #[test]
    fn mistakes_are_told() {
        let value = json!({"A": 1});
        assert!(Template::parse("{{.A").is_err());
        assert!(Template::parse("{{if .A}}").is_err());
        assert!(Template::parse("{{nosuch .A}}").is_err());
        assert!(Template::parse("{{end}}").is_err());
        let missing = Template::parse("{{.Foo}}").unwrap().render(&value).unwrap_err();
        assert_eq!(missing.to_string(), "template parsing error: map has no entry for key \"Foo\"");
        assert!(Template::parse(&"{{if .A}}".repeat(200)).is_err());
    }
}

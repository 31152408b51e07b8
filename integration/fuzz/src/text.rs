//! Words that users write: references, constraints, templates, values of flags, command lines.

use serde_json::{Value, json};
use skep::cli::fuzz;
use skep::engine::images::reference::Reference;
use skep_core::control::constraint;
use skep_core::id::NodeId;
use skep_core::model::name::{is_material_name, is_service_name};

use crate::Target;
use crate::cursor::{Cursor, input};

pub(crate) const TARGET: Target = Target { name: "text", run, seeds, mutations: 60_000 };

/// Bytes a template may make of a value a hundred times smaller.
const RENDERED: usize = 4 << 20;

fn run(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    match cursor.byte() % 6 {
        0 => reference(&cursor.rest_text()),
        1 => names(&cursor.rest_text()),
        2 => template(&cursor.rest_text()),
        3 => fuzz::value(&cursor.rest_text()),
        4 => {
            let words: Vec<String> = cursor
                .pieces(32)
                .into_iter()
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            fuzz::command_line(&words);
        }
        _ => {
            let pieces = cursor.pieces(16);
            let all: usize = pieces.iter().map(|piece| piece.len()).sum();
            assert!(fuzz::frames(&pieces) <= all, "frames carry more than came");
        }
    }
}

fn reference(text: &str) {
    let Ok(found) = Reference::parse(text) else { return };
    let shown = found.to_string();
    assert_eq!(Reference::parse(&shown).as_ref(), Ok(&found), "{shown}");
    let familiar = found.familiar();
    assert_eq!(Reference::parse(&familiar).as_ref(), Ok(&found), "{familiar}");
    let _ = (found.tag(), found.digest(), found.repository().len(), found.with_tag("x"));
    let _ = found.or_latest();
}

fn names(text: &str) {
    let _ = (constraint::parse(text), is_material_name(text), is_service_name(text));
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string(), text);
    }
}

fn template(text: &str) {
    let value: Value = json!({"ID": "abc", "N": 5, "F": 0.5, "Null": null, "T": true,
        "L": [{"A": 1}, {"A": 2}], "M": {"k": "v", "é": [1, [2]]}});
    if let Some(length) = fuzz::template(text, &value) {
        assert!(length <= RENDERED, "{length} bytes of {text:?}");
    }
}

/// Command lines.
const LINES: [&[&str]; 6] = [
    &[
        "service",
        "create",
        "--secret",
        "source=a,target=b,uid=1,gid=2,mode=0400",
        "--mount",
        "type=bind,src=/a,dst=/b,readonly,bind-propagation=rprivate",
        "--replicas=3",
        "busybox",
        "sh",
    ],
    &[
        "service",
        "update",
        "--env-add",
        "A=b",
        "--limit-cpu",
        ".5",
        "--limit-memory",
        "8m",
        "--constraint-add",
        "node.role==worker",
        "--mount-add",
        "type=tmpfs,dst=/t,tmpfs-size=1m",
        "w",
    ],
    &["secret", "create", "-l", "a=b", "s", "-"],
    &["up", "--data-root", "/d", "--listen-addr", "0.0.0.0:0", "--vault", "mlock"],
    &["exec", "-it", "-u", "1", "--env=A=b", "x", "sh", "-c", "y"],
    &["-H", "unix:///x", "help", "swarm", "init"],
];

fn seeds() -> Vec<Vec<u8>> {
    let behind = |first: u8, text: &str| [&[first], text.as_bytes()].concat();
    let digest = format!("a/b:c@sha256:{}", "0".repeat(64));
    let references = ["busybox", "localhost:5000/x/y:tag", "[::1]:5000/a", &digest];
    let names = [
        "node.labels.zone==a",
        "engine.labels.x != y",
        "node.ip==10.0.0.0/8",
        "0123456789abcdefghijklmno",
        "name_1.x-y",
    ];
    let templates = [
        "{{.ID}}: {{json .M}} {{index .L 1}}",
        "{{range $i, $e := .L}}{{$i}}={{$e.A}}{{else}}n{{end}}",
        "{{if and .T (not .Null) (eq .N 5)}}x{{else if or .F}}y{{end}}{{with .M}}{{.k}}{{end}}",
        "{{printf \"%s-%03d %q %v %5.2f\" .ID .N .ID .M .F}}",
        "{{$x := .M}}{{$x.k | upper | json}}",
        "a {{- \"b\" -}} c{{/* n */}}",
        "{{join (split .ID \"b\") \", \"}}{{len .L}}{{truncate .ID 2}}",
        "{{pad .ID 3 4}}{{title .ID}}{{lower .ID}}{{println .N}}",
        "{{range .L}}{{range $.L}}{{.A}}{{end}}{{end}}",
    ];
    let values = [
        "1h2m3.5s",
        "10.5g",
        "0.25",
        "a=b,\"c,d\"\"e\",f",
        "sh -c 'a b' \"c\\\"d\" e\\ f",
        "0o644",
        "2026-01-02T03:04:05.678Z",
        "{\"a\":[1,\"<\"]}",
        "docker.io/library/busybox:latest",
    ];
    let mut seeds = Vec::new();
    seeds.extend(references.map(|text| behind(0, text)));
    seeds.extend(names.map(|text| behind(1, text)));
    seeds.extend(templates.map(|text| behind(2, text)));
    seeds.extend(values.map(|text| behind(3, text)));
    seeds.extend(
        LINES
            .iter()
            .map(|words| input(4, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())),
    );
    seeds.push(input(5, &[b"\x01\0\0\0\0\0\0\x03abc\x02\0\0", b"\0\0\0\0\x01x"]));
    seeds
}

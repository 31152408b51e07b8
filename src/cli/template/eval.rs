//! A template and a value to text.

use std::fmt::Write as _;

use serde_json::{Number, Value};

use super::parse::{Node, Operand, Pipeline, Template};
use super::{TemplateError, go_json};

/// A value, or the name of what was not there.
type Found = Result<Value, String>;

struct Scope<'a> {
    root: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
}

/// Fills `value` into `template`.
pub(super) fn render(template: &Template, value: &Value) -> Result<String, TemplateError> {
    let mut scope = Scope { root: value, variables: Vec::new(), out: String::new() };
    scope.nodes(&template.0, value)?;
    Ok(scope.out)
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        let kept = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(kept);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), TemplateError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let value = present(self.pipeline(pipeline, dot)?)?;
                self.out.push_str(&go_text(&value));
            }
            Node::Set(name, pipeline) => {
                let value = self.pipeline(pipeline, dot)?.unwrap_or(Value::Null);
                match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
                    Some((_, old)) => *old = value,
                    None => self.variables.push((name.clone(), value)),
                }
            }
            Node::If { pipeline, with, then, otherwise } => {
                let value = self.pipeline(pipeline, dot)?.unwrap_or(Value::Null);
                match (truth(&value), with) {
                    (true, true) => self.nodes(then, &value)?,
                    (true, false) => self.nodes(then, dot)?,
                    (false, _) => self.nodes(otherwise, dot)?,
                }
            }
            Node::Range { names, pipeline, each, none } => {
                let value = self.pipeline(pipeline, dot)?.unwrap_or(Value::Null);
                self.range(names, value, each, none, dot)?;
            }
        }
        Ok(())
    }

    fn range(
        &mut self,
        names: &[String],
        value: Value,
        each: &[Node],
        none: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let pairs: Vec<(Value, Value)> = match value {
            Value::Array(list) => {
                list.into_iter().enumerate().map(|(at, one)| (Value::from(at), one)).collect()
            }
            Value::Object(map) => {
                let mut pairs: Vec<_> =
                    map.into_iter().map(|(key, one)| (Value::from(key), one)).collect();
                pairs.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
                pairs
            }
            Value::Null => Vec::new(),
            other => {
                return Err(TemplateError(format!("range can't iterate over {}", go_text(&other))));
            }
        };
        if pairs.is_empty() {
            return self.nodes(none, dot);
        }
        for (key, one) in pairs {
            let kept = self.variables.len();
            match names {
                [name] => self.variables.push((name.clone(), one.clone())),
                [first, second] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), one.clone()));
                }
                _ => {}
            }
            self.nodes(each, &one)?;
            self.variables.truncate(kept);
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Found, TemplateError> {
        let mut before: Option<Value> = None;
        let mut found = Ok(Value::Null);
        for command in pipeline {
            found = self.command(command, before.take(), dot)?;
            before = Some(match &found {
                Ok(value) => value.clone(),
                Err(_) => Value::Null,
            });
        }
        Ok(found)
    }

    fn command(
        &self,
        command: &[Operand],
        before: Option<Value>,
        dot: &Value,
    ) -> Result<Found, TemplateError> {
        let Some((first, rest)) = command.split_first() else { return Ok(Ok(Value::Null)) };
        let Operand::Function(name) = first else {
            return match rest.is_empty() && before.is_none() {
                true => self.operand(first, dot),
                false => Err(TemplateError("can't give argument to non-function".to_owned())),
            };
        };
        let mut args = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            args.push(self.operand(operand, dot)?.unwrap_or(Value::Null));
        }
        args.extend(before);
        call(name, &args).map(Ok)
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Found, TemplateError> {
        Ok(match operand {
            Operand::Field(names) => walk(dot, names),
            Operand::Variable(name, fields) if name.is_empty() => walk(self.root, fields),
            Operand::Variable(name, fields) => {
                match self.variables.iter().rev().find(|(known, _)| known == name) {
                    Some((_, value)) => walk(value, fields),
                    None => return Err(TemplateError(format!("undefined variable \"${name}\""))),
                }
            }
            Operand::Function(_) => self.command(std::slice::from_ref(operand), None, dot)?,
            Operand::Text(text) => Ok(Value::from(text.as_str())),
            Operand::Number(number) => Ok(of_number(*number)),
            Operand::Bool(truth) => Ok(Value::from(*truth)),
            Operand::Nil => Ok(Value::Null),
            Operand::Nested(pipeline, fields) => {
                self.pipeline(pipeline, dot)?.and_then(|value| walk(&value, fields))
            }
        })
    }
}

fn present(found: Found) -> Result<Value, TemplateError> {
    found.map_err(|name| TemplateError(format!("map has no entry for key {name:?}")))
}

fn walk(value: &Value, names: &[String]) -> Found {
    let mut value = value;
    for name in names {
        value = value.get(name).ok_or_else(|| name.clone())?;
    }
    Ok(value.clone())
}

fn of_number(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 9e15 {
        true => Value::from(number as i64),
        false => Number::from_f64(number).map_or(Value::Null, Value::Number),
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as Go prints it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(go_text).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let mut pairs: Vec<String> =
                map.iter().map(|(key, one)| format!("{key}:{}", go_text(one))).collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

/// Whether there is a function of that name.
pub(super) fn is_function(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "and", "eq", "ge", "gt", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not",
        "or", "pad", "print", "printf", "println", "slice", "split", "title", "truncate", "upper",
    ];
    NAMES.contains(&name)
}

fn call(name: &str, args: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || TemplateError(format!("wrong arguments for {name}"));
    let first = args.first().ok_or_else(wrong)?;
    let text = |at: usize| args.get(at).and_then(Value::as_str).ok_or_else(wrong);
    let whole = |at: usize| {
        let number = args.get(at).and_then(Value::as_u64).ok_or_else(wrong)?;
        usize::try_from(number.min(4096)).map_err(|_| wrong())
    };
    Ok(match name {
        "json" => Value::from(go_json(first)),
        "lower" => Value::from(go_text(first).to_lowercase()),
        "upper" => Value::from(go_text(first).to_uppercase()),
        "title" => Value::from(super::super::human::capital(&go_text(first))),
        "truncate" => Value::from(text(0)?.chars().take(whole(1)?).collect::<String>()),
        "pad" => Value::from(match text(0)? {
            "" => String::new(),
            inner => format!("{}{inner}{}", " ".repeat(whole(1)?), " ".repeat(whole(2)?)),
        }),
        "split" => Value::from(text(0)?.split(text(1)?).map(Value::from).collect::<Vec<_>>()),
        "join" => {
            let list = first.as_array().ok_or_else(wrong)?;
            Value::from(list.iter().map(go_text).collect::<Vec<_>>().join(text(1)?))
        }
        "len" => Value::from(match first {
            Value::String(text) => text.len(),
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => return Err(wrong()),
        }),
        "index" => index(args)?,
        "slice" => {
            let (from, to) = (whole(1)?, args.get(2).map(|_| whole(2)).transpose()?);
            let text = text(0)?;
            Value::from(text.get(from..to.unwrap_or(text.len())).ok_or_else(wrong)?)
        }
        "eq" => Value::from(args.iter().skip(1).any(|other| same(first, other))),
        "ne" => Value::from(!same(first, args.get(1).ok_or_else(wrong)?)),
        "lt" | "le" | "gt" | "ge" => Value::from(ordered(name, args).ok_or_else(wrong)?),
        "not" => Value::from(!truth(first)),
        "and" => args.iter().find(|one| !truth(one)).or(args.last()).cloned().unwrap_or_default(),
        "or" => args.iter().find(|one| truth(one)).or(args.last()).cloned().unwrap_or_default(),
        "print" => Value::from(args.iter().map(go_text).collect::<String>()),
        "println" => Value::from(args.iter().map(go_text).collect::<Vec<_>>().join(" ") + "\n"),
        "printf" => Value::from(printf(text(0)?, args.get(1..).unwrap_or_default())),
        _ => return Err(wrong()),
    })
}

fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => left == right,
    }
}

fn ordered(name: &str, args: &[Value]) -> Option<bool> {
    let (left, right) = (args.first()?, args.get(1)?);
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b)?,
        _ => left.as_str()?.cmp(right.as_str()?),
    };
    Some(match name {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    })
}

fn index(args: &[Value]) -> Result<Value, TemplateError> {
    let (first, keys) = args.split_first().unwrap_or((&Value::Null, &[]));
    let mut value = first;
    for key in keys {
        value = match (value, key) {
            (Value::Object(map), Value::String(key)) => match map.get(key) {
                Some(inner) => inner,
                None => return Ok(Value::from("")),
            },
            (Value::Array(list), Value::Number(at)) => {
                let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| list.get(at))
                    .ok_or_else(|| TemplateError(format!("index out of range: {key}")))?
            }
            _ => {
                return Err(TemplateError(format!("can't index {}", go_text(value))));
            }
        };
    }
    Ok(value.clone())
}

/// Go's Printf for the verbs that templates use.
fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let end = after.find(|c: char| !c.is_ascii_digit() && !"-+. ".contains(c));
        let (options, verb) = after.split_at(end.unwrap_or(after.len()));
        let mut letters = verb.chars();
        let verb = letters.next();
        rest = letters.as_str();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let Some(arg) = args.next() else {
            out.push_str("%!(MISSING)");
            continue;
        };
        let text = match verb {
            Some('q') => format!("{:?}", go_text(arg)),
            Some('x') => arg.as_u64().map_or_else(|| go_text(arg), |n| format!("{n:x}")),
            Some('o') => arg.as_u64().map_or_else(|| go_text(arg), |n| format!("{n:o}")),
            _ => go_text(arg),
        };
        let left = options.starts_with('-');
        let zero = options.starts_with('0');
        let digits = options.trim_start_matches(['-', '+', ' ', '0']);
        let width =
            digits.split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0usize).min(256);
        let _ = match (left, zero) {
            (true, _) => write!(out, "{text:<width$}"),
            (_, true) => write!(out, "{text:0>width$}"),
            _ => write!(out, "{text:>width$}"),
        };
    }
    out.push_str(rest);
    out
}

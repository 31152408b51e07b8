//! Cuts a template into text and actions, and actions into tokens.

use super::TemplateError;

/// A stretch of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// As it stands.
    Text(String),
    /// What stood between `{{` and `}}`.
    Action(Vec<Token>),
}

/// A token of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// `.A.B`; empty for `.` alone.
    Field(Vec<String>),
    /// `.A.B` right behind a parenthesis.
    Suffix(Vec<String>),
    /// `$x.A.B`; the name is without `$`.
    Variable(String, Vec<String>),
    /// A keyword or function.
    Word(String),
    /// A quoted string.
    Text(String),
    /// A number.
    Number(f64),
    /// `|`, `(`, `)`, `,`.
    Sign(char),
    /// `:=` or `=`.
    Assign,
}

/// Cuts `source` up.
pub(super) fn pieces(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut trim_next = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, behind) = end_of_action(after)?;
        let (action, trim_before) = match action.strip_prefix('-') {
            Some(trimmed) if trimmed.starts_with(char::is_whitespace) => (trimmed, true),
            _ => (action, false),
        };
        let (action, trim_after) = match action.strip_suffix('-') {
            Some(trimmed) if trimmed.ends_with(char::is_whitespace) => (trimmed, true),
            _ => (action, false),
        };
        push_text(&mut pieces, before, trim_next, trim_before);
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            pieces.push(Piece::Action(tokens(action)?));
        }
        trim_next = trim_after;
        rest = behind;
    }
    push_text(&mut pieces, rest, trim_next, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    let text = if trim_start { text.trim_start() } else { text };
    let text = if trim_end { text.trim_end() } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Splits at the `}}` that is not within quotes.
fn end_of_action(text: &str) -> Result<(&str, &str), TemplateError> {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some('"'), '\\') => escaped = true,
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`') => quote = Some(letter),
            (None, '}') if text.get(at..).is_some_and(|rest| rest.starts_with("}}")) => {
                let (action, behind) = text.split_at(at);
                return Ok((action, behind.get(2..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(TemplateError("unclosed action".to_owned()))
}

fn tokens(action: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = action.trim_start();
    let mut spaced = true;
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '.' if !spaced && tokens.last() == Some(&Token::Sign(')')) => {
                let (fields, after) = fields(rest)?;
                (Token::Suffix(fields), after)
            }
            '.' => {
                let (fields, after) = fields(rest)?;
                (Token::Field(fields), after)
            }
            '$' => {
                let (name, after) = word(rest.get(1..).unwrap_or_default());
                let (fields, after) =
                    if after.starts_with('.') { fields(after)? } else { (Vec::new(), after) };
                (Token::Variable(name.to_owned(), fields), after)
            }
            '"' | '`' => quoted(rest, first)?,
            '|' | '(' | ')' | ',' => (Token::Sign(first), rest.get(1..).unwrap_or_default()),
            ':' | '=' => match rest.strip_prefix(":=").or_else(|| rest.strip_prefix('=')) {
                Some(after) => (Token::Assign, after),
                None => return Err(TemplateError("expected :=".to_owned())),
            },
            '0'..='9' | '-' => number(rest)?,
            letter if letter.is_alphabetic() || letter == '_' => {
                let (name, after) = word(rest);
                (Token::Word(name.to_owned()), after)
            }
            other => {
                return Err(TemplateError(format!("unexpected {other:?} in action")));
            }
        };
        tokens.push(token);
        rest = after.trim_start();
        spaced = rest.len() < after.len();
    }
    Ok(tokens)
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

/// `.A.B` as its names.
fn fields(text: &str) -> Result<(Vec<String>, &str), TemplateError> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(after) = rest.strip_prefix('.') {
        let (name, after) = word(after);
        if name.is_empty() {
            return match names.is_empty() {
                true => Ok((names, after)),
                false => Err(TemplateError("unexpected <.> in operand".to_owned())),
            };
        }
        names.push(name.to_owned());
        rest = after;
    }
    Ok((names, rest))
}

fn number(text: &str) -> Result<(Token, &str), TemplateError> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-');
    let (digits, after) = text.split_at(end.unwrap_or(text.len()));
    match digits.parse() {
        Ok(number) => Ok((Token::Number(number), after)),
        Err(_) => Err(TemplateError(format!("bad number syntax: {digits:?}"))),
    }
}

fn quoted(text: &str, quote: char) -> Result<(Token, &str), TemplateError> {
    let mut out = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == quote {
            let after = text.get(at + 1..).unwrap_or_default();
            return Ok((Token::Text(out), after));
        }
        if letter != '\\' || quote == '`' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some((_, 'n')) => out.push('\n'),
            Some((_, 't')) => out.push('\t'),
            Some((_, other)) => out.push(other),
            None => break,
        }
    }
    Err(TemplateError("unterminated quoted string".to_owned()))
}

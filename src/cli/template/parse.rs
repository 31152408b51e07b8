//! Tokens to a tree.

use super::TemplateError;
use super::eval::is_function;
use super::lex::{Piece, Token, pieces};

/// How deep actions and parentheses may nest.
const DEPTH: usize = 64;

/// A template, ready to be filled in.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct Template(pub(super) Vec<Node>);

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// As it stands.
    Text(String),
    /// Print what the pipeline gives.
    Print(Pipeline),
    /// Remember what the pipeline gives.
    Set(String, Pipeline),
    /// Take the first branch if the pipeline gives something; `with` also moves the dot.
    If { pipeline: Pipeline, with: bool, then: Vec<Node>, otherwise: Vec<Node> },
    /// Once for each element; the names are those of key and element.
    Range { names: Vec<String>, pipeline: Pipeline, each: Vec<Node>, none: Vec<Node> },
}

/// Commands, each of which gets the result of the one before as its last argument.
pub(super) type Pipeline = Vec<Vec<Operand>>;

/// A part of a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// A field of the dot.
    Field(Vec<String>),
    /// A field of a variable.
    Variable(String, Vec<String>),
    /// A function.
    Function(String),
    /// A string.
    Text(String),
    /// A number.
    Number(f64),
    /// A truth value.
    Bool(bool),
    /// Nothing.
    Nil,
    /// A pipeline in parentheses, and a field of what it gives.
    Nested(Pipeline, Vec<String>),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// If it is not one.
    pub(in crate::cli) fn parse(source: &str) -> Result<Self, TemplateError> {
        let pieces = pieces(source)?;
        let mut parser = Parser { pieces: pieces.into_iter(), depth: 0 };
        match parser.nodes()? {
            (nodes, End::Source) => Ok(Self(nodes)),
            (_, End::Else(_)) => Err(TemplateError("unexpected {{else}}".to_owned())),
            (_, End::Closed) => Err(TemplateError("unexpected {{end}}".to_owned())),
        }
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
}

/// What ended a list of nodes.
enum End {
    Source,
    Closed,
    /// With the tokens behind `else`.
    Else(Vec<Token>),
}

impl Parser {
    fn nodes(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(TemplateError("nested too deeply".to_owned()));
        }
        let mut nodes = Vec::new();
        let end = loop {
            match self.pieces.next() {
                None => break End::Source,
                Some(Piece::Text(text)) => nodes.push(Node::Text(text)),
                Some(Piece::Action(tokens)) => match tokens.first() {
                    Some(Token::Word(word)) if word == "end" => break End::Closed,
                    Some(Token::Word(word)) if word == "else" => {
                        break End::Else(tokens.get(1..).unwrap_or_default().to_vec());
                    }
                    _ => nodes.push(self.action(&tokens)?),
                },
            }
        };
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn action(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        match tokens {
            [Token::Word(word), rest @ ..] if word == "if" || word == "with" => {
                let pipeline = pipeline(rest)?;
                let (then, otherwise) = self.branches()?;
                Ok(Node::If { pipeline, with: word == "with", then, otherwise })
            }
            [Token::Word(word), rest @ ..] if word == "range" => {
                let (names, rest) = range_names(rest);
                let pipeline = pipeline(rest)?;
                let (each, none) = self.branches()?;
                Ok(Node::Range { names, pipeline, each, none })
            }
            [Token::Variable(name, fields), Token::Assign, rest @ ..] if fields.is_empty() => {
                Ok(Node::Set(name.clone(), pipeline(rest)?))
            }
            tokens => Ok(Node::Print(pipeline(tokens)?)),
        }
    }

    /// The nodes up to `else` or `end`, and those between `else` and `end`.
    fn branches(&mut self) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
        let unclosed = || TemplateError("unexpected EOF".to_owned());
        match self.nodes()? {
            (then, End::Closed) => Ok((then, Vec::new())),
            (_, End::Source) => Err(unclosed()),
            (then, End::Else(tokens)) if tokens.is_empty() => match self.nodes()? {
                (otherwise, End::Closed) => Ok((then, otherwise)),
                _ => Err(unclosed()),
            },
            (then, End::Else(tokens)) => {
                self.depth += 1;
                if self.depth > DEPTH {
                    return Err(TemplateError("nested too deeply".to_owned()));
                }
                let node = self.action(&tokens)?;
                self.depth -= 1;
                Ok((then, vec![node]))
            }
        }
    }
}

fn range_names(tokens: &[Token]) -> (Vec<String>, &[Token]) {
    match tokens {
        [
            Token::Variable(key, _),
            Token::Sign(','),
            Token::Variable(each, _),
            Token::Assign,
            rest @ ..,
        ] => (vec![key.clone(), each.clone()], rest),
        [Token::Variable(each, _), Token::Assign, rest @ ..] => (vec![each.clone()], rest),
        _ => (Vec::new(), tokens),
    }
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline, TemplateError> {
    let mut tokens = tokens.iter();
    nested(&mut tokens, 0)
}

/// Reads to the end, or to the parenthesis that closes it.
fn nested(
    tokens: &mut std::slice::Iter<'_, Token>,
    depth: usize,
) -> Result<Pipeline, TemplateError> {
    if depth > DEPTH {
        return Err(TemplateError("nested too deeply".to_owned()));
    }
    let mut commands = vec![Vec::new()];
    let mut closed = false;
    while let Some(token) = tokens.next() {
        let operand = match token {
            Token::Sign('|') => {
                commands.push(Vec::new());
                continue;
            }
            Token::Sign(')') => {
                closed = true;
                break;
            }
            Token::Sign('(') => Operand::Nested(nested(tokens, depth + 1)?, Vec::new()),
            Token::Suffix(names) => {
                if let Some(Operand::Nested(_, fields)) =
                    commands.last_mut().and_then(|c: &mut Vec<Operand>| c.last_mut())
                {
                    fields.clone_from(names);
                }
                continue;
            }
            Token::Field(names) => Operand::Field(names.clone()),
            Token::Variable(name, fields) => Operand::Variable(name.clone(), fields.clone()),
            Token::Text(text) => Operand::Text(text.clone()),
            Token::Number(number) => Operand::Number(*number),
            Token::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                name if is_function(name) => Operand::Function(name.to_owned()),
                name => return Err(TemplateError(format!("function {name:?} not defined"))),
            },
            Token::Sign(sign) => return Err(TemplateError(format!("unexpected {sign:?}"))),
            Token::Assign => return Err(TemplateError("unexpected :=".to_owned())),
        };
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
    }
    match (closed, depth) {
        (true, 0) => Err(TemplateError("unexpected right paren".to_owned())),
        (false, 1..) => Err(TemplateError("unclosed left paren".to_owned())),
        _ if commands.iter().any(Vec::is_empty) => {
            Err(TemplateError("missing value for command".to_owned()))
        }
        _ => Ok(commands),
    }
}

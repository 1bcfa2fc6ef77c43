//! The text of a condition as a tree, with the place of every part.

use std::ops::Range;

use winnow::ascii::{digit1, multispace0};
use winnow::combinator::{
    Infix, Prefix, alt, cut_err, delimited, dispatch, empty, eof, expression, fail, not, opt, peek,
    preceded, separated, terminated,
};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::stream::LocatingSlice;
use winnow::token::{any, one_of, take_till, take_while};

use super::Mistake;

/// Longest text of a condition, in bytes. It bounds how deep the parser goes.
const MAX_LENGTH: usize = 400;

/// Words that are no names.
const RESERVED: [&str; 4] = ["and", "or", "not", "for"];

type Input<'a> = LocatingSlice<&'a str>;
type Answer<T> = Result<T, ErrMode<ContextError>>;

/// A part of a condition and where it stands, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) span: Range<usize>,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Number(f64),
    /// In seconds.
    Duration(f64),
    Text(String),
    /// A function, or a word without arguments.
    Call(String, Vec<Node>),
    Prefix(PrefixOp, Box<Node>),
    Infix(InfixOp, Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefixOp {
    Not,
    Minus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InfixOp {
    Or,
    And,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Plus,
    Minus,
    Times,
    Over,
}

/// A condition and the seconds that it must hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    pub(super) root: Node,
    pub(super) hold: f64,
}

pub(super) fn parse(text: &str) -> Result<Condition, Mistake> {
    if text.len() > MAX_LENGTH {
        return Err(Mistake { at: MAX_LENGTH, what: format!("longer than {MAX_LENGTH} bytes") });
    }
    let hold = opt(preceded(word("for"), cut_err(spaced(duration))));
    let end = preceded(multispace0, eof).context(expected("an operator, `for` or the end"));
    let mut condition = (tree, hold, cut_err(end));
    match condition.parse(LocatingSlice::new(text)) {
        Ok((root, hold, _)) => Ok(Condition { root, hold: hold.map_or(0.0, |(s, _)| s) }),
        Err(error) => {
            // The innermost comes first.
            let wanted = error.inner().context().find_map(|c| match c {
                StrContext::Expected(StrContextValue::Description(what)) => Some(*what),
                _ => None,
            });
            let what = format!("expected {}", wanted.unwrap_or("a number, a function or `(`"));
            Err(Mistake { at: error.offset(), what })
        }
    }
}

/// A number of seconds, as `2s`, `500ms`, `5min` or `1h`.
pub(super) fn parse_duration(text: &str) -> Option<f64> {
    spaced(duration).parse(LocatingSlice::new(text.trim())).ok().map(|(seconds, _)| seconds)
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

fn spaced<'a, T>(
    inner: impl Parser<Input<'a>, T, ErrMode<ContextError>>,
) -> impl Parser<Input<'a>, (T, Range<usize>), ErrMode<ContextError>> {
    preceded(multispace0, inner.with_span())
}

/// A word that is not the start of a longer one.
fn word<'a>(word: &'static str) -> impl Parser<Input<'a>, (), ErrMode<ContextError>> {
    let ends = peek(not(one_of(|c: char| c.is_ascii_alphanumeric() || c == '_')));
    preceded(multispace0, terminated(word, ends)).void()
}

fn sign<'a>(sign: &'static str) -> impl Parser<Input<'a>, (), ErrMode<ContextError>> {
    preceded(multispace0, sign).void()
}

fn tree(input: &mut Input<'_>) -> Answer<Node> {
    let prefix = alt((
        (spaced("-"))
            .map(|_| Prefix(7, |_: &mut Input<'_>, a: Node| Ok(prefixed(PrefixOp::Minus, a)))),
        word("not").map(|()| Prefix(3, |_: &mut Input<'_>, a| Ok(prefixed(PrefixOp::Not, a)))),
    ));
    let logic = alt((
        word("or")
            .map(|()| Infix::Left(1, |_: &mut Input<'_>, a, b| Ok(joined(InfixOp::Or, a, b)))),
        word("and").map(|()| Infix::Left(2, |_: &mut _, a, b| Ok(joined(InfixOp::And, a, b)))),
    ));
    let comparison = alt((
        sign("<=").map(|()| {
            Infix::Left(4, |_: &mut Input<'_>, a, b| Ok(joined(InfixOp::LessEqual, a, b)))
        }),
        sign("<").map(|()| Infix::Left(4, |_: &mut _, a, b| Ok(joined(InfixOp::Less, a, b)))),
        sign(">=")
            .map(|()| Infix::Left(4, |_: &mut _, a, b| Ok(joined(InfixOp::GreaterEqual, a, b)))),
        sign(">").map(|()| Infix::Left(4, |_: &mut _, a, b| Ok(joined(InfixOp::Greater, a, b)))),
    ));
    let sum = alt((
        sign("+")
            .map(|()| Infix::Left(5, |_: &mut Input<'_>, a, b| Ok(joined(InfixOp::Plus, a, b)))),
        sign("-").map(|()| Infix::Left(5, |_: &mut _, a, b| Ok(joined(InfixOp::Minus, a, b)))),
        sign("*").map(|()| Infix::Left(6, |_: &mut _, a, b| Ok(joined(InfixOp::Times, a, b)))),
        sign("/").map(|()| Infix::Left(6, |_: &mut _, a, b| Ok(joined(InfixOp::Over, a, b)))),
    ));
    let infix = alt((logic, comparison, sum));
    expression(operand).prefix(prefix).infix(infix).parse_next(input)
}

fn prefixed(op: PrefixOp, a: Node) -> Node {
    Node { span: a.span.clone(), kind: Kind::Prefix(op, Box::new(a)) }
}

fn joined(op: InfixOp, a: Node, b: Node) -> Node {
    Node { span: a.span.start..b.span.end, kind: Kind::Infix(op, Box::new(a), Box::new(b)) }
}

fn operand(input: &mut Input<'_>) -> Answer<Node> {
    multispace0.parse_next(input)?;
    dispatch! { peek(any);
        '(' => delimited('(', cut_err(tree), cut_err(sign(")")).context(expected("`)`"))),
        '\'' | '"' => text,
        c if c.is_ascii_digit() => number,
        c if c.is_ascii_alphabetic() => call,
        _ => fail,
    }
    .context(expected("a number, a function or `(`"))
    .parse_next(input)
}

fn text(input: &mut Input<'_>) -> Answer<Node> {
    let quote = one_of(['\'', '"']).parse_next(input)?;
    let (inner, mut span) = take_till(0.., quote).with_span().parse_next(input)?;
    cut_err(quote).context(expected("the closing quote")).parse_next(input)?;
    span = span.start - 1..span.end + 1;
    Ok(Node { span, kind: Kind::Text(inner.to_owned()) })
}

fn decimal(input: &mut Input<'_>) -> Answer<f64> {
    (digit1, opt(('.', digit1))).take().try_map(str::parse).parse_next(input)
}

fn duration(input: &mut Input<'_>) -> Answer<f64> {
    let unit = alt(("ms".value(1e-3), "min".value(60.0), "s".value(1.0), "h".value(3600.0)));
    let ends = peek(not(one_of(|c: char| c.is_ascii_alphanumeric())));
    (decimal, terminated(unit, ends))
        .map(|(value, unit): (f64, f64)| value * unit)
        .context(expected("a time such as 2s, 500ms, 5min or 1h"))
        .parse_next(input)
}

fn number(input: &mut Input<'_>) -> Answer<Node> {
    let kind = alt((duration.map(Kind::Duration), decimal.map(Kind::Number)));
    let ((kind, span), ()) = (
        kind.with_span(),
        cut_err(peek(not(one_of(|c: char| c.is_ascii_alphanumeric()))))
            .context(expected("a unit of ms, s, min or h, or nothing behind the number")),
    )
        .parse_next(input)?;
    Ok(Node { span, kind })
}

fn call(input: &mut Input<'_>) -> Answer<Node> {
    let name = take_while(1.., |c: char| c.is_ascii_alphanumeric() || c == '_')
        .verify(|name: &str| !RESERVED.contains(&name));
    let (name, span) = name.with_span().parse_next(input)?;
    let argument = alt((preceded(multispace0, text), tree));
    let list =
        (separated(0.., argument, sign(",")), cut_err(sign(")")).context(expected("`,` or `)`")))
            .map(|(list, ())| list);
    let arguments: Option<Vec<Node>> =
        alt((preceded(sign("("), list).map(Some), empty.value(None))).parse_next(input)?;
    Ok(Node { span, kind: Kind::Call(name.to_owned(), arguments.unwrap_or_default()) })
}

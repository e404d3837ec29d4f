//! The native evaluator: three-valued, so that what a request lacks is neither true nor false.

use std::borrow::Cow;
use std::cmp::Ordering;

use regex::Regex;

use super::super::request::RequestCx;
use super::attribute::{Attr, Val};
use super::fallback::Fallback;

/// A lowered expression.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Box<str>),
    /// A list of literals.
    List(Box<[Self]>),
    Attr(Attr),
    Has(Attr),
    Not(Box<Self>),
    And(Box<(Self, Self)>),
    Or(Box<(Self, Self)>),
    If(Box<(Self, Self, Self)>),
    Compare(Comparison, Box<(Self, Self)>),
    In(Box<(Self, Self)>),
    Test(Test, Box<(Self, Self)>),
    Matches(Box<Self>, Regex),
    /// Left to the `cel` crate.
    Cel(Box<Fallback>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    StartsWith,
    EndsWith,
    Contains,
}

impl Node {
    /// The truth of it, `None` where it has none. `&&` and `||` absorb a side without truth as CEL says:
    /// `false && error` is false, `true || error` is true, whatever the order.
    pub(super) fn truth(&self, rq: &RequestCx) -> Option<bool> {
        match self {
            Self::And(sides) => match (sides.0.truth(rq), || sides.1.truth(rq)) {
                (Some(false), _) => Some(false),
                (Some(true), right) => right(),
                (None, right) => right().filter(|r| !r),
            },
            Self::Or(sides) => match (sides.0.truth(rq), || sides.1.truth(rq)) {
                (Some(true), _) => Some(true),
                (Some(false), right) => right(),
                (None, right) => right().filter(|r| *r),
            },
            Self::Not(inner) => inner.truth(rq).map(|b| !b),
            Self::Has(attr) => Some(attr.read(rq).is_some()),
            Self::If(arms) => {
                if arms.0.truth(rq)? {
                    arms.1.truth(rq)
                } else {
                    arms.2.truth(rq)
                }
            }
            Self::Compare(how, sides) => {
                // The common shape, attribute against text, without building a value for the literal.
                if let (Self::Attr(attr), Self::Text(text)) = (&sides.0, &sides.1)
                    && matches!(how, Comparison::Equal | Comparison::NotEqual)
                {
                    let same = matches!(attr.read(rq)?, Val::Text(t) if *t == **text);
                    return Some(same == (*how == Comparison::Equal));
                }
                how.judge(&sides.0.value(rq)?, &sides.1.value(rq)?)
            }
            Self::In(sides) => {
                let item = sides.0.value(rq)?;
                match &sides.1 {
                    Self::List(list) => Some(list.iter().any(|l| l.value(rq).is_some_and(|l| item.equals(&l)))),
                    list => item.within(&list.value(rq)?),
                }
            }
            Self::Test(how, sides) => match (sides.0.value(rq)?, sides.1.value(rq)?) {
                (Val::Text(whole), Val::Text(part)) => Some(match how {
                    Test::StartsWith => whole.starts_with(part.as_ref()),
                    Test::EndsWith => whole.ends_with(part.as_ref()),
                    Test::Contains => whole.contains(part.as_ref()),
                }),
                _ => None,
            },
            Self::Matches(whole, regex) => match whole.value(rq)? {
                Val::Text(whole) => Some(regex.is_match(&whole)),
                _ => None,
            },
            Self::Cel(fallback) => fallback.truth(rq),
            Self::Bool(b) => Some(*b),
            Self::Attr(attr) => match attr.read(rq)? {
                Val::Bool(b) => Some(b),
                _ => None,
            },
            Self::Null | Self::Int(_) | Self::Float(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    /// Its value. Lists of literals and fallbacks that give lists have none here: they only stand right of `in`.
    pub(super) fn value<'a>(&'a self, rq: &'a RequestCx) -> Option<Val<'a>> {
        match self {
            Self::Null => Some(Val::Null),
            Self::Bool(b) => Some(Val::Bool(*b)),
            Self::Int(i) => Some(Val::Int(*i)),
            Self::Float(f) => Some(Val::Float(*f)),
            Self::Text(t) => Some(Val::Text(Cow::Borrowed(t))),
            Self::Attr(attr) => attr.read(rq),
            Self::If(arms) => {
                if arms.0.truth(rq)? {
                    arms.1.value(rq)
                } else {
                    arms.2.value(rq)
                }
            }
            Self::Cel(fallback) => fallback.value(rq),
            Self::List(_) => None,
            _ => self.truth(rq).map(Val::Bool),
        }
    }
}

impl Comparison {
    #[expect(clippy::cast_precision_loss, reason = "CEL compares int and double as doubles")]
    fn judge(self, a: &Val<'_>, b: &Val<'_>) -> Option<bool> {
        let order = match (self, a, b) {
            (Self::Equal, ..) => return Some(a.equals(b)),
            (Self::NotEqual, ..) => return Some(!a.equals(b)),
            (_, Val::Int(a), Val::Int(b)) => a.cmp(b),
            (_, Val::Float(a), Val::Float(b)) => a.partial_cmp(b)?,
            (_, Val::Int(a), Val::Float(b)) => (*a as f64).partial_cmp(b)?,
            (_, Val::Float(a), Val::Int(b)) => a.partial_cmp(&(*b as f64))?,
            (_, Val::Text(a), Val::Text(b)) => a.cmp(b),
            (_, Val::Bool(a), Val::Bool(b)) => a.cmp(b),
            (_, Val::Null, Val::Null) => Ordering::Equal,
            _ => return None,
        };
        Some(match self {
            Self::Less => order == Ordering::Less,
            Self::LessEqual => order != Ordering::Greater,
            Self::Greater => order == Ordering::Greater,
            _ => order != Ordering::Less,
        })
    }
}

//! Expressions: CEL, checked when a config is compiled, evaluated per request.
//!
//! Variables: `user` (`sub`, `scopes`, `claims.NAME` or `NAME`), `consumer` (`name`, `plan`, `scopes`), `workload` (`id`,
//! `trustDomain`, `namespace`, `serviceAccount`), `route.name`, `request` (`method`, `path`, `host`, `scheme`, `id`,
//! `headers`, `query`), `client.ip`, `listener.name`.
//!
//! The shapes that rules are made of (field access, comparisons, `in`, `startsWith`, `endsWith`, `contains`, `matches`,
//! `has`, `&&`, `||`, `!`, `?:`) are lowered to a native evaluator which borrows from the request and allocates only for
//! repeated header fields, encoded query parameters and `client.ip`. Anything else is left to the `cel` crate.
//!
//! An attribute that the request lacks has no value: what depends on it is neither true nor false. An allow rule takes
//! that as "no match" ([`Expr::bool`]), a deny rule as a match ([`Expr::truth`]).

mod attribute;
mod eval;
mod fallback;
mod response;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, EntryExpr, Expr as Cel, operators};
use cel::common::value::CelVal;

use super::request::RequestCx;
use super::section::{ConfigError, Span, suggest};
use attribute::{Attr, ROOTS, Val};
use eval::{Comparison, Node, Test};
use fallback::{FUNCTIONS, Fallback};
pub use response::{Ended, ResponseExpr};

/// Longest expression, in bytes.
const MAX_TEXT: usize = 4096;
/// Most nodes of a parsed expression.
const MAX_NODES: usize = 512;
/// Deepest nesting of the parsed tree: evaluation recurses.
const MAX_DEPTH: usize = 48;
/// Most open brackets, and most conditionals: the parser recurses.
const MAX_NESTING: usize = 32;
/// Stack for the parser, which takes more than 10 KiB a level; only touched as far as it is used.
const PARSER_STACK: usize = 64 << 20;

/// A compiled expression.
#[derive(Debug)]
pub struct Expr {
    node: Node,
}

impl Expr {
    /// Compiles and checks.
    ///
    /// # Errors
    /// Bad syntax, an unknown variable, field or function, too costly.
    pub fn compile(text: &str, span: Span) -> Result<Self, ConfigError> {
        on_own_stack(text, span, || Self::checked(text, span))
    }

    fn checked(text: &str, span: Span) -> Result<Self, ConfigError> {
        let tree = parse(text).map_err(|e| {
            ConfigError::at(span, format!("`{text}` is not an expression: {e}"))
                .help("expressions are CEL, such as `'orders' in user.scopes`")
        })?;
        let mut check = Check::new(span, ROOTS);
        check.tree(&tree)?;
        Ok(Self { node: lower(&tree).map_err(|message| ConfigError::at(span, message))? })
    }

    /// Compiles what must be true or false.
    ///
    /// # Errors
    /// As [`Expr::compile`], and if it can only be something else.
    pub fn condition(text: &str, span: Span) -> Result<Self, ConfigError> {
        let expr = Self::compile(text, span)?;
        let kind = match &expr.node {
            Node::Null => "null",
            Node::Int(_) | Node::Float(_) => "a number",
            Node::Text(_) => "text",
            Node::List(_) => "a list",
            Node::Attr(attr) if attr.is_text() => "text",
            Node::Attr(attr) if attr.is_list() => "a list",
            _ => return Ok(expr),
        };
        Err(ConfigError::at(span, format!("`{text}` is {kind}, not a condition"))
            .help("compare it with something, such as `user.sub == 'alice'`"))
    }

    /// Whether it holds; false where the request lacks what it asks for.
    #[must_use]
    pub fn bool(&self, rq: &RequestCx) -> bool {
        self.truth(rq) == Some(true)
    }

    /// Whether it holds; `None` where the request lacks what it asks for.
    #[must_use]
    pub fn truth(&self, rq: &RequestCx) -> Option<bool> {
        self.node.truth(rq)
    }

    /// Its value as text (strings, numbers, booleans), borrowed from the request where possible.
    #[must_use]
    pub fn text<'a>(&'a self, rq: &'a RequestCx) -> Option<Cow<'a, str>> {
        Some(match self.node.value(rq)? {
            Val::Text(t) => t,
            Val::Int(i) => Cow::Owned(i.to_string()),
            Val::Float(f) => Cow::Owned(f.to_string()),
            Val::Bool(b) => Cow::Borrowed(if b { "true" } else { "false" }),
            Val::Null | Val::Texts(_) | Val::Json(_) => return None,
        })
    }

    /// Its value as JSON, with its type: numbers stay numbers, claims that are lists or maps stay such.
    #[must_use]
    pub fn json(&self, rq: &RequestCx) -> Option<serde_json::Value> {
        use serde_json::Value;
        Some(match self.node.value(rq)? {
            Val::Text(t) => Value::String(t.into_owned()),
            Val::Int(i) => Value::from(i),
            Val::Float(f) => Value::from(f),
            Val::Bool(b) => Value::Bool(b),
            Val::Null => Value::Null,
            Val::Texts(list) => list.iter().map(|text| Value::from(&**text)).collect(),
            Val::Json(json) => json.clone(),
        })
    }
    /// Its value as a number; text that reads as one counts.
    #[must_use]
    pub fn number(&self, rq: &RequestCx) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "what is counted is far below 2^53")]
        match self.node.value(rq)? {
            Val::Int(i) => Some(i as f64),
            Val::Float(f) => Some(f),
            Val::Text(t) => t.trim().parse().ok(),
            Val::Null | Val::Bool(_) | Val::Texts(_) | Val::Json(_) => None,
        }
    }

    /// Whether it runs natively as a whole; for tests and `explain`.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.node.is_native()
    }
}

/// Compiles on a thread of its own: neither the parser's stack nor a panic in its generated code may hurt the process.
fn on_own_stack<T: Send>(
    text: &str,
    span: Span,
    compile: impl FnOnce() -> Result<T, ConfigError> + Send,
) -> Result<T, ConfigError> {
    if text.len() > MAX_TEXT {
        return Err(ConfigError::at(span, format!("the expression is longer than {MAX_TEXT} bytes")));
    }
    if nesting(text) > MAX_NESTING {
        return Err(ConfigError::at(span, format!("the expression is nested deeper than {MAX_NESTING} levels")));
    }
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, compile)
            .map_err(|e| ConfigError::at(span, format!("cannot compile the expression: {e}")))?
            .join()
            .unwrap_or_else(|_| Err(ConfigError::at(span, format!("`{text}` is not an expression"))))
    })
}

fn parse(text: &str) -> Result<IdedExpr, String> {
    cel::parser::Parser::new()
        .parse(text)
        .map_err(|errors| errors.errors.first().map_or_else(|| "syntax error".to_owned(), |e| e.msg.clone()))
}

/// How deep the parser would recurse, at most: open brackets (those in quotes too, which only errs on the safe side)
/// plus conditionals.
fn nesting(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0usize);
    for c in text.bytes() {
        match c {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'?' => most += 1,
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Walks a tree once before it is lowered: names, functions, cost.
struct Check {
    span: Span,
    nodes: usize,
    depth: usize,
    /// Variables of the macros around.
    bound: Vec<String>,
    /// Variables there are, with their fields.
    roots: &'static [(&'static str, &'static [&'static str])],
    /// Paths it names.
    paths: Vec<Vec<String>>,
}

impl Check {
    const fn new(span: Span, roots: &'static [(&'static str, &'static [&'static str])]) -> Self {
        Self { span, nodes: 0, depth: 0, bound: Vec::new(), roots, paths: Vec::new() }
    }

    fn error<T>(&self, message: impl Into<String>, help: impl Into<String>) -> Result<T, ConfigError> {
        Err(ConfigError::at(self.span, message).help(help))
    }

    fn tree(&mut self, at: &IdedExpr) -> Result<(), ConfigError> {
        self.nodes += 1;
        self.depth += 1;
        if self.nodes > MAX_NODES || self.depth > MAX_DEPTH {
            return self.error("the expression is too large", format!("at most {MAX_NODES} parts, {MAX_DEPTH} deep"));
        }
        let checked = self.part(at);
        self.depth -= 1;
        checked
    }

    fn part(&mut self, at: &IdedExpr) -> Result<(), ConfigError> {
        if let Some(path) = path(at)
            && !self.bound.iter().any(|b| b == path[0])
        {
            self.paths.push(path.iter().map(|name| (*name).to_owned()).collect());
            return self.path(&path);
        }
        match &at.expr {
            Cel::Ident(_) | Cel::Literal(_) => Ok(()),
            Cel::Select(select) => self.tree(&select.operand),
            Cel::Call(call) => self.call(call),
            Cel::List(list) => list.elements.iter().try_for_each(|e| self.tree(e)),
            Cel::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(e) => self.tree(&e.key).and_then(|()| self.tree(&e.value)),
                EntryExpr::StructField(_) => self.error("messages are not supported", "use a map or a list"),
            }),
            Cel::Comprehension(c) => {
                if !self.bound.is_empty() {
                    return self
                        .error("a macro stands inside another macro", "one level of `exists`, `all`, ... is allowed");
                }
                self.tree(&c.iter_range)?;
                self.bound = vec![c.iter_var.clone(), c.accu_var.clone()];
                self.bound.extend(c.iter_var2.clone());
                let parts = [&c.accu_init, &c.loop_cond, &c.loop_step, &c.result];
                let checked = parts.into_iter().try_for_each(|p| self.tree(p));
                self.bound.clear();
                checked
            }
            Cel::Struct(_) | Cel::Unspecified => self.error("messages are not supported", "use a map or a list"),
        }
    }

    fn path(&self, path: &[&str]) -> Result<(), ConfigError> {
        let Some((root, fields)) = self.roots.iter().find(|(r, _)| *r == path[0]) else {
            let roots: Vec<&str> = self.roots.iter().map(|(r, _)| *r).collect();
            return self.error(format!("there is no variable `{}`", path[0]), suggest(path[0], &roots));
        };
        match path.get(1) {
            Some(field) if *fields != ["*"] && !fields.contains(field) => {
                self.error(format!("`{root}` has no field `{field}`"), suggest(field, fields))
            }
            Some(&"headers") if path.get(2).is_some_and(|n| n.bytes().any(|b| b.is_ascii_uppercase())) => {
                self.error(format!("`{}` would never match", path[2]), "names in `request.headers` are lower-case")
            }
            _ => Ok(()),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), ConfigError> {
        let name = call.func_name.as_str();
        let operator = name.contains('_') || name.starts_with('@') || name == operators::NEGATE;
        if name == operators::OPT_INDEX || name == operators::OPT_SELECT {
            return self.error("optional access is not supported", "use `has(...)`");
        }
        if !operator && !FUNCTIONS.contains(&name) {
            return self.error(format!("there is no function `{name}`"), suggest(name, FUNCTIONS));
        }
        if name == operators::NEGATE
            && !matches!(&call.args[0].expr, Cel::Literal(CelVal::Int(i)) if *i != i64::MIN)
            && !matches!(&call.args[0].expr, Cel::Literal(CelVal::Double(_)))
        {
            return self.error("only a literal can be negated", "write `0 - x`");
        }
        if let ("matches", [arg]) | ("matches", [_, arg]) = (name, call.args.as_slice()) {
            let Cel::Literal(CelVal::String(pattern)) = &arg.expr else {
                return self.error("the pattern of `matches` must be a literal", "write it in quotes");
            };
            if let Err(e) = fallback::pattern_of(pattern) {
                return self.error(format!("`{pattern}` is not a regular expression: {e}"), "RE2 syntax, linear time");
            }
        }
        call.target.iter().try_for_each(|t| self.tree(t))?;
        call.args.iter().try_for_each(|a| self.tree(a))
    }
}

/// `a.b.c`, `a.b['c']` as names, root first; `None` for what is not a plain path.
fn path(at: &IdedExpr) -> Option<Vec<&str>> {
    match &at.expr {
        Cel::Ident(name) => Some(vec![name]),
        Cel::Select(select) if !select.test => {
            let mut path = path(&select.operand)?;
            path.push(&select.field);
            Some(path)
        }
        Cel::Call(CallExpr { func_name, target: None, args }) if func_name == operators::INDEX => match &args[1].expr {
            Cel::Literal(CelVal::String(name)) => {
                let mut path = path(&args[0])?;
                path.push(name);
                Some(path)
            }
            _ => None,
        },
        _ => None,
    }
}

/// Lowers a checked tree. What has no native form becomes one fallback leaf.
fn lower(at: &IdedExpr) -> Result<Node, String> {
    if let Some(attr) = path(at).and_then(|p| Attr::of(&p)) {
        return Ok(Node::Attr(attr));
    }
    let pair = |args: &[IdedExpr]| Ok::<_, String>(Box::new((lower(&args[0])?, lower(&args[1])?)));
    let native = match &at.expr {
        Cel::Literal(CelVal::Null) => Some(Node::Null),
        Cel::Literal(CelVal::Boolean(b)) => Some(Node::Bool(*b)),
        Cel::Literal(CelVal::Int(i)) => Some(Node::Int(*i)),
        Cel::Literal(CelVal::Double(f)) => Some(Node::Float(*f)),
        Cel::Literal(CelVal::String(s)) => Some(Node::Text(s.as_str().into())),
        Cel::List(list) => {
            let items = list.elements.iter().map(lower).collect::<Result<Vec<_>, _>>()?;
            items.iter().all(Node::is_literal).then(|| Node::List(items.into()))
        }
        Cel::Select(select) if select.test => path(&select.operand)
            .map(|mut p| {
                p.push(&select.field);
                p
            })
            .and_then(|p| Attr::of(&p))
            .map(Node::Has),
        Cel::Call(call) => match (call.func_name.as_str(), &call.target, call.args.as_slice()) {
            (operators::LOGICAL_NOT, None, [inner]) => Some(Node::Not(Box::new(lower(inner)?))),
            (operators::LOGICAL_AND, None, args @ [_, _]) => Some(Node::And(pair(args)?)),
            (operators::LOGICAL_OR, None, args @ [_, _]) => Some(Node::Or(pair(args)?)),
            (operators::CONDITIONAL, None, [a, b, c]) => Some(Node::If(Box::new((lower(a)?, lower(b)?, lower(c)?)))),
            (operators::IN, None, args @ [_, _]) => {
                // A computed list has no native form: then the whole `in` is left to the fallback.
                let sides = pair(args)?;
                let native = matches!(sides.1, Node::List(_) | Node::Attr(_));
                (native && sides.0.is_scalar()).then_some(Node::In(sides))
            }
            (name, None, args @ [_, _]) if comparison(name).is_some() => {
                let sides = pair(args)?;
                let how = comparison(name).expect("checked in the guard");
                (sides.0.is_scalar() && sides.1.is_scalar()).then_some(Node::Compare(how, sides))
            }
            ("matches", Some(whole), [pattern]) => match (lower(whole)?, &pattern.expr) {
                (whole, Cel::Literal(CelVal::String(p))) if whole.is_scalar() => {
                    Some(Node::Matches(Box::new(whole), fallback::pattern_of(p).map_err(|e| e.to_string())?))
                }
                _ => None,
            },
            (name, Some(whole), [part]) => match (test(name), lower(whole)?, lower(part)?) {
                // `contains` also has a list form, which only text provably is not.
                (Some(how), whole, part) if whole.is_scalar() && part.is_scalar() && how.fits(&whole) => {
                    Some(Node::Test(how, Box::new((whole, part))))
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    Ok(native.unwrap_or_else(|| {
        let roots = ROOTS.iter().map(|(r, _)| *r).filter(|r| at.references().has_variable(r)).collect();
        Node::Cel(Box::new(Fallback::new(at, roots)))
    }))
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        operators::EQUALS => Comparison::Equal,
        operators::NOT_EQUALS => Comparison::NotEqual,
        operators::LESS => Comparison::Less,
        operators::LESS_EQUALS => Comparison::LessEqual,
        operators::GREATER => Comparison::Greater,
        operators::GREATER_EQUALS => Comparison::GreaterEqual,
        _ => return None,
    })
}

fn test(name: &str) -> Option<Test> {
    Some(match name {
        "startsWith" => Test::StartsWith,
        "endsWith" => Test::EndsWith,
        "contains" => Test::Contains,
        _ => return None,
    })
}

impl Test {
    const fn fits(self, whole: &Node) -> bool {
        match (self, whole) {
            (Self::Contains, Node::Attr(attr)) => attr.is_text(),
            (Self::Contains, node) => matches!(node, Node::Text(_)),
            _ => true,
        }
    }
}

impl Node {
    const fn is_literal(&self) -> bool {
        matches!(self, Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_))
    }

    /// Whether [`Node::value`] can give it: all but lists that are not attributes.
    const fn is_scalar(&self) -> bool {
        match self {
            Self::List(_) | Self::Cel(_) => false,
            Self::If(arms) => arms.1.is_scalar() && arms.2.is_scalar(),
            _ => true,
        }
    }

    fn is_native(&self) -> bool {
        match self {
            Self::Cel(_) => false,
            Self::Not(a) | Self::Matches(a, _) => a.is_native(),
            Self::And(s) | Self::Or(s) | Self::Compare(_, s) | Self::In(s) | Self::Test(_, s) => {
                s.0.is_native() && s.1.is_native()
            }
            Self::If(s) => s.0.is_native() && s.1.is_native() && s.2.is_native(),
            _ => true,
        }
    }
}

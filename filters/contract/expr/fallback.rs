//! Whatever is not lowered goes to the `cel` crate, with only the referenced variables bound.
//!
//! Three of the crate's habits are replaced while the tree is prepared, because they would let a request through or
//! panic on a stranger's data: a missing map key is an error (there it is null), `in` between strings is an error (there
//! it is a substring test), and a comprehension over anything but a short list or a map is an error (there it panics).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr as Cel, operators};
use cel::extractors::This;
use cel::objects::{Key, Map};
use cel::{Context, ExecutionError, IdedExpr, Value};
use quick_cache::sync::Cache;
use regex::Regex;
use serde_json::Value as Json;

use super::super::request::RequestCx;
use super::attribute::{self, Val};

/// Items a comprehension may run over: what bounds the cost of an expression whatever a token holds.
const MAX_ITEMS: usize = 1024;

const AT: &str = "@at";
const MEMBER: &str = "@member";
const ITEMS: &str = "@items";

/// A prepared tree and the roots it names.
#[derive(Debug)]
pub(super) struct Fallback {
    tree: IdedExpr,
    roots: Vec<&'static str>,
}

/// Functions, built once: evaluation only adds variables.
static ROOT: LazyLock<Context<'static>> = LazyLock::new(|| {
    let mut context = Context::default();
    context.add_function(AT, at);
    context.add_function(MEMBER, member);
    context.add_function(ITEMS, items);
    context.add_function("matches", matches);
    context
});

/// Patterns of `matches` that are not literals of a lowered expression.
static PATTERNS: LazyLock<Cache<String, Option<Regex>>> = LazyLock::new(|| Cache::new(256));

fn at(container: Value, key: Value) -> Result<Value, ExecutionError> {
    match (&container, &key) {
        (Value::List(list), Value::Int(i)) => usize::try_from(*i).ok().and_then(|i| list.get(i)).cloned(),
        (Value::Map(map), Value::String(name)) => map.get(&Key::String(name.clone())).cloned(),
        _ => None,
    }
    .ok_or_else(|| ExecutionError::no_such_key("index"))
}

fn member(item: Value, of: Value) -> Result<bool, ExecutionError> {
    match (item, of) {
        (item, Value::List(list)) => Ok(list.contains(&item)),
        (Value::String(name), Value::Map(map)) => Ok(map.get(&Key::String(name)).is_some()),
        (_, Value::Map(_)) => Ok(false),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

fn items(of: Value) -> Result<Value, ExecutionError> {
    match &of {
        Value::List(list) if list.len() <= MAX_ITEMS => Ok(of),
        Value::Map(map) if map.map.len() <= MAX_ITEMS => Ok(of),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the crate's extractors own their values")]
fn matches(This(this): This<Arc<String>>, pattern: Arc<String>) -> Result<bool, ExecutionError> {
    let regex = PATTERNS.get(pattern.as_str()).unwrap_or_else(|| {
        let made = pattern_of(&pattern).ok();
        PATTERNS.insert(pattern.to_string(), made.clone());
        made
    });
    regex.map(|r| r.is_match(&this)).ok_or(ExecutionError::NoSuchOverload)
}

/// Compiles a pattern; linear time and bounded size, as the regex crate guarantees.
pub(super) fn pattern_of(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).size_limit(1 << 20).build()
}

/// Functions an expression may call, macros apart.
pub(super) const FUNCTIONS: &[&str] = &[
    "contains",
    "size",
    "max",
    "min",
    "startsWith",
    "endsWith",
    "string",
    "bytes",
    "double",
    "int",
    "uint",
    "matches",
];

impl Fallback {
    pub(super) fn new(tree: &IdedExpr, roots: Vec<&'static str>) -> Self {
        let mut tree = tree.clone();
        prepare(&mut tree);
        Self { tree, roots }
    }

    fn run(&self, rq: &RequestCx) -> Option<Value> {
        let mut context = ROOT.new_inner_scope();
        for root in &self.roots {
            context.add_variable_from_value(*root, bind(root, rq));
        }
        context.resolve(&self.tree).ok()
    }

    /// Its value as a number, with one variable.
    pub(super) fn number_with(&self, root: &'static str, value: Value) -> Option<f64> {
        let mut context = ROOT.new_inner_scope();
        context.add_variable_from_value(root, value);
        #[expect(clippy::cast_precision_loss, reason = "what is counted is far below 2^53")]
        match context.resolve(&self.tree).ok()? {
            Value::Int(i) => Some(i as f64),
            Value::UInt(u) => Some(u as f64),
            Value::Float(f) => Some(f),
            _ => None,
        }
    }

    pub(super) fn truth(&self, rq: &RequestCx) -> Option<bool> {
        match self.run(rq)? {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    pub(super) fn value(&self, rq: &RequestCx) -> Option<Val<'static>> {
        Some(match self.run(rq)? {
            Value::Null => Val::Null,
            Value::Bool(b) => Val::Bool(b),
            Value::Int(i) => Val::Int(i),
            Value::UInt(u) => i64::try_from(u).map_or(Val::Null, Val::Int),
            Value::Float(f) => Val::Float(f),
            Value::String(s) => Val::Text(Cow::Owned(Arc::unwrap_or_clone(s))),
            _ => return None,
        })
    }
}

/// See the module: replaces what must not act as the crate has it.
fn prepare(at: &mut IdedExpr) {
    match &mut at.expr {
        Cel::Call(call) => {
            match call.func_name.as_str() {
                operators::INDEX => AT.clone_into(&mut call.func_name),
                operators::IN => MEMBER.clone_into(&mut call.func_name),
                _ => {}
            }
            call.target.iter_mut().for_each(|t| prepare(t));
            call.args.iter_mut().for_each(prepare);
        }
        Cel::Comprehension(c) => {
            for part in [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result] {
                prepare(part);
            }
            let range = std::mem::take(&mut c.iter_range);
            c.iter_range.id = range.id;
            c.iter_range.expr =
                Cel::Call(cel::common::ast::CallExpr { func_name: ITEMS.to_owned(), target: None, args: vec![range] });
        }
        Cel::List(list) => list.elements.iter_mut().for_each(prepare),
        Cel::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(e) = &mut entry.expr {
                    prepare(&mut e.key);
                    prepare(&mut e.value);
                }
            }
        }
        Cel::Select(select) => prepare(&mut select.operand),
        Cel::Unspecified | Cel::Ident(_) | Cel::Literal(_) | Cel::Struct(_) => {}
    }
}

pub(super) fn text(s: &str) -> Value {
    Value::String(Arc::new(s.to_owned()))
}

fn texts(list: &[Arc<str>]) -> Value {
    Value::List(Arc::new(list.iter().map(|s| text(s)).collect()))
}

pub(super) fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let entries = entries.into_iter().map(|(k, v)| (Key::String(Arc::new(k)), v)).collect::<HashMap<_, _>>();
    Value::Map(Map { map: Arc::new(entries) })
}

pub(super) fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::NAN)), Value::Int),
        Json::String(s) => text(s),
        Json::Array(a) => Value::List(Arc::new(a.iter().map(of_json).collect())),
        Json::Object(o) => map(o.iter().map(|(k, v)| (k.clone(), of_json(v)))),
    }
}

/// A root variable as a map without the attributes that the request lacks.
fn bind(root: &str, rq: &RequestCx) -> Value {
    let mut fields: Vec<(String, Value)> = Vec::new();
    let mut put = |name: &str, value: Option<Value>| fields.extend(value.map(|v| (name.to_owned(), v)));
    match root {
        "user" => {
            if let Some(user) = &rq.user {
                for (name, claim) in &user.claims {
                    put(name, Some(of_json(claim)));
                }
                put("claims", Some(map(user.claims.iter().map(|(k, v)| (k.clone(), of_json(v))))));
                put("scopes", Some(texts(&user.scopes)));
            }
        }
        "consumer" => {
            if let Some(consumer) = &rq.consumer {
                put("name", Some(text(&consumer.name)));
                put("plan", consumer.plan.as_ref().map(|p| text(&p.name)));
                put("scopes", Some(texts(&consumer.scopes)));
            }
        }
        "workload" => {
            put("id", rq.workload.as_ref().map(|w| text(&w.id)));
            if let Some(id) = attribute::spiffe(rq) {
                put("trustDomain", Some(text(id.trust_domain)));
                put("namespace", id.namespace.map(text));
                put("serviceAccount", id.service_account.map(text));
            }
        }
        "route" => put("name", Some(text(&rq.route.name))),
        "request" => {
            put("method", Some(text(rq.method.as_str())));
            put("path", Some(text(rq.path())));
            put("host", Some(text(rq.host())));
            put("scheme", Some(text(if rq.https { "https" } else { "http" })));
            put("id", rq.request_id.to_str().ok().map(text));
            let headers = rq
                .headers
                .keys()
                .filter_map(|name| attribute::header(&rq.headers, name).map(|v| (name.as_str().to_owned(), text(&v))));
            put("headers", Some(map(headers)));
            let mut query = HashMap::new();
            for (name, value) in attribute::parameters(rq.target.query().unwrap_or_default()) {
                query.entry(name.into_owned()).or_insert_with(|| text(&value));
            }
            put("query", Some(map(query)));
        }
        "client" => put("ip", Some(text(&rq.client_ip.to_string()))),
        _ => put("name", Some(text(&rq.conn.listener))),
    }
    map(fields)
}

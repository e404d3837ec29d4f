//! The whole configuration with its defaults, as a file that loads to the same plan.
//!
//! What was written is shown as written (`${env.NAME}` too, so no value of the environment leaks); what was not is
//! added from the same raw types and schemas that reading uses, and marked. Secrets are replaced; a text with a replaced
//! secret is refused by the reader until the secret is put back.

use std::path::Path;

use onehop_filters::contract::section::{Key, Value as Tree};
use onehop_filters::contract::units::REDACTED;
use onehop_filters::contract::{Entry, Node, Role};
use serde_json::{Map, Value};

use super::load::{self, SECTIONS};
use super::plan::Plan;
use super::report::Files;
use super::schema::of_entry;
use super::{env, lower, text};

/// The effective configuration as YAML, defaults marked with `# default`.
#[must_use]
pub fn effective(plan: &Plan, entries: &[Entry]) -> String {
    let mut out = String::new();
    block(&shown(&plan.files, &plan.dir, entries), 0, &mut out);
    out
}

/// The effective configuration as JSON, without marks.
#[must_use]
pub fn effective_json(plan: &Plan, entries: &[Entry]) -> Value {
    effective_of(&plan.files, &plan.dir, entries)
}

/// As [`effective_json`], of a configuration that is in force: of its plan only this much is kept.
#[must_use]
pub fn effective_of(files: &Files, dir: &Path, entries: &[Entry]) -> Value {
    fn json(shown: &Shown) -> Value {
        match &shown.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::Seq(items) => items.iter().map(json).collect(),
            Kind::Map(map) => map.iter().map(|(k, v)| (k.clone(), json(v))).collect(),
        }
    }
    json(&shown(files, dir, entries))
}

fn shown(files: &Files, dir: &Path, entries: &[Entry]) -> Shown {
    let source = load::source(files);
    let mut root = source.clone();
    env::resolve(&mut root, &|name| std::env::var(name).ok(), &mut Vec::new());
    let filled = lower::filled(root, entries, dir);
    let mut shown = merge(&source, &filled);
    for entry in entries {
        let (schema, definitions) = of_entry(entry);
        complete(&mut shown, entry, &Schema { schema: &schema, definitions: &definitions });
    }
    if let Kind::Map(map) = &mut shown.kind {
        map.sort_by_key(|(key, _)| SECTIONS.iter().position(|(name, _)| name == key));
    }
    redact(&mut shown, "");
    shown
}

/// A tree that knows what was written.
struct Shown {
    kind: Kind,
    default: bool,
}

enum Kind {
    Scalar(Value),
    Seq(Vec<Shown>),
    Map(Vec<(String, Shown)>),
}

impl Shown {
    fn written(node: &Node) -> Self {
        let kind = match &node.value {
            Tree::Seq(items) => Kind::Seq(items.iter().map(Self::written).collect()),
            Tree::Map(map) => Kind::Map(map.iter().map(|(k, n)| (k.name.clone(), Self::written(n))).collect()),
            _ => Kind::Scalar(node.to_json()),
        };
        Self { kind, default: false }
    }
    fn default(value: &Value) -> Self {
        let kind = match value {
            Value::Array(items) => Kind::Seq(items.iter().map(Self::default).collect()),
            Value::Object(map) => {
                let set = map.iter().filter(|(_, v)| !v.is_null());
                Kind::Map(set.map(|(k, v)| (k.clone(), Self::default(v))).collect())
            }
            other => Kind::Scalar(other.clone()),
        };
        Self { kind, default: true }
    }
    fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        match &mut self.kind {
            Kind::Map(map) => map.iter_mut().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }
    fn sections(&mut self, key: &str) -> impl Iterator<Item = &mut Self> {
        let list: Vec<&mut Self> = match self.get_mut(key).map(|s| &mut s.kind) {
            Some(Kind::Map(map)) => map.iter_mut().map(|(_, v)| v).collect(),
            Some(Kind::Seq(items)) => items.iter_mut().collect(),
            _ => Vec::new(),
        };
        list.into_iter()
    }
}

/// What was written, and behind it what was not.
fn merge(node: &Node, filled: &Value) -> Shown {
    let kind = match (&node.value, filled) {
        (Tree::Map(map), Value::Object(all)) => {
            let one = |(key, node): &(Key, Node)| {
                let shown = all.get(&key.name).map_or_else(|| Shown::written(node), |f| merge(node, f));
                (key.name.clone(), shown)
            };
            let mut merged: Vec<_> = map.iter().map(one).collect();
            let missing = all.iter().filter(|(k, v)| !v.is_null() && node.get(k).is_none());
            merged.extend(missing.map(|(k, v)| (k.clone(), Shown::default(v))));
            Kind::Map(merged)
        }
        (Tree::Seq(items), Value::Array(all)) if items.len() == all.len() => {
            Kind::Seq(items.iter().zip(all).map(|(n, f)| merge(n, f)).collect())
        }
        // `limits:` with nothing behind it.
        (Tree::Null, Value::Object(_) | Value::Array(_)) => return Shown::default(filled),
        _ => return Shown::written(node),
    };
    Shown { kind, default: false }
}

/// Adds the defaults of a filter's own section, wherever the section stands, and hides its secrets.
fn complete(root: &mut Shown, entry: &Entry, schema: &Schema<'_>) {
    let name = entry.name;
    match entry.role {
        Role::Api { .. } => {
            for owner in ["routes", "plans"] {
                root.sections(owner).filter_map(|r| r.get_mut(name)).for_each(|s| schema.apply(s));
            }
        }
        Role::Answer(_) | Role::Note(_) => {
            root.sections("routes").filter_map(|r| r.get_mut(name)).for_each(|s| schema.apply(s));
        }
        Role::Identity(_) => root.sections("identities").filter_map(|i| i.get_mut(name)).for_each(|s| schema.apply(s)),
        Role::Credential(_) => {
            root.sections("consumers").filter_map(|c| c.get_mut(name)).for_each(|s| schema.apply(s));
        }
        Role::Discover(_) => {
            let discover = root.sections("services").filter_map(|s| s.get_mut("discover"));
            discover.filter_map(|d| d.get_mut(name)).for_each(|s| schema.apply(s));
        }
        Role::Balance(_) => {
            for section in root.sections("services").filter_map(|s| s.get_mut("loadBalancer")) {
                let policy = section.get_mut("policy").map(|p| &p.kind);
                if matches!(policy, Some(Kind::Scalar(Value::String(p))) if p == name) {
                    schema.apply(section);
                }
            }
        }
        // Built for every service, written or not.
        Role::Gate(_) | Role::Retry(_) => {
            for service in root.sections("services") {
                if let Some(section) = service.get_mut(name) {
                    schema.apply(section);
                } else if let (Kind::Map(map), Some(section)) = (&mut service.kind, schema.defaults()) {
                    map.push((name.to_owned(), section));
                }
            }
        }
        Role::Affinity(_) | Role::Check(_) => {
            root.sections("services").filter_map(|s| s.get_mut(name)).for_each(|s| schema.apply(s))
        }
    }
}

/// A part of a JSON Schema.
#[derive(Clone, Copy)]
struct Schema<'a> {
    schema: &'a Value,
    definitions: &'a Map<String, Value>,
}

impl<'a> Schema<'a> {
    fn at(self, schema: &'a Value) -> Self {
        Self { schema, ..self }
    }

    /// Follows references and chooses the alternative that fits.
    fn of(self, shown: &Shown) -> Option<Self> {
        let mut here = self;
        // Schemas are finite; the bound is against one that refers to itself.
        for _ in 0..32 {
            let s = here.schema;
            if s.get("writeOnly").is_some() {
                return Some(here);
            }
            if let Some(name) = s.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next()) {
                here = here.at(here.definitions.get(name)?);
            } else if let Some(Value::Array(all)) = s.get("allOf")
                && s.get("properties").is_none()
            {
                here = here.at(all.first()?);
            } else if let Some(Value::Array(any)) = s.get("anyOf").or_else(|| s.get("oneOf")) {
                here = any.iter().find_map(|s| here.at(s).of(shown).filter(|s| s.fits(shown)))?;
            } else {
                return Some(here);
            }
        }
        None
    }

    fn requires(self, key: &str) -> bool {
        self.schema.get("required").and_then(Value::as_array).is_some_and(|all| all.iter().any(|r| r == key))
    }

    /// The defaults of a section that is not written and acts all the same; nullable sections do not.
    fn defaults(self) -> Option<Shown> {
        if self.schema.get("anyOf").or_else(|| self.schema.get("oneOf")).is_some() {
            return None;
        }
        let mut section = Shown { kind: Kind::Map(Vec::new()), default: true };
        if self.of(&section).is_none_or(|s| s.schema.get("required").is_some()) {
            return None;
        }
        self.apply(&mut section);
        Some(section).filter(|s| matches!(&s.kind, Kind::Map(m) if !m.is_empty()))
    }

    fn fits(self, shown: &Shown) -> bool {
        let is = |name: &str| match self.schema.get("type") {
            Some(Value::String(t)) => t == name,
            Some(Value::Array(all)) => all.iter().any(|t| t == name),
            _ => false,
        };
        match &shown.kind {
            Kind::Map(map) => {
                let known = self.schema.get("properties").and_then(Value::as_object);
                is("object") && known.is_none_or(|p| map.iter().all(|(k, _)| p.contains_key(k)))
            }
            Kind::Seq(_) => is("array"),
            Kind::Scalar(_) => self.schema.get("writeOnly").is_some() || !(is("object") || is("array") || is("null")),
        }
    }

    fn apply(self, shown: &mut Shown) {
        let Some(here) = self.of(shown) else { return };
        if here.schema.get("writeOnly").is_some() {
            hide(shown);
            return;
        }
        let properties = here.schema.get("properties").and_then(Value::as_object);
        match &mut shown.kind {
            Kind::Map(map) => {
                for (key, value) in map.iter_mut() {
                    let known = properties.and_then(|p| p.get(key));
                    let other = here.schema.get("additionalProperties").filter(|v| v.is_object());
                    if let Some(schema) = known.or(other) {
                        here.at(schema).apply(value);
                    }
                }
                for (key, schema) in properties.into_iter().flatten() {
                    if map.iter().any(|(k, _)| k == key) || here.requires(key) {
                        continue;
                    }
                    if let Some(default) = schema.get("default") {
                        if !default.is_null() {
                            map.push((key.clone(), Shown::default(default)));
                        }
                    } else if let Some(section) = here.at(schema).defaults() {
                        map.push((key.clone(), section));
                    }
                }
            }
            Kind::Seq(items) => {
                if let Some(schema) = here.schema.get("items") {
                    items.iter_mut().for_each(|item| here.at(schema).apply(item));
                }
            }
            Kind::Scalar(_) => {}
        }
    }
}

/// A secret given as text; `{file: PATH}` and `{env: NAME}` only say where it is.
fn hide(shown: &mut Shown) {
    match &mut shown.kind {
        Kind::Scalar(Value::String(s)) if !points_to_env(s) => *s = REDACTED.to_owned(),
        Kind::Scalar(Value::Null | Value::Bool(_) | Value::String(_)) => {}
        Kind::Scalar(other) => *other = Value::String(REDACTED.to_owned()),
        Kind::Seq(items) => items.iter_mut().for_each(hide),
        Kind::Map(map) => {
            for (key, value) in map {
                if key != "file" && key != "env" {
                    hide(value);
                }
            }
        }
    }
}

/// `${env.NAME}` alone: a name, not the secret (a default behind `:-` could be one).
fn points_to_env(text: &str) -> bool {
    let name = text.strip_prefix("${env.").and_then(|t| t.strip_suffix('}'));
    name.is_some_and(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// The second net, for schemas that do not say what is secret: names of keys, and passwords in URLs.
fn redact(shown: &mut Shown, key: &str) {
    const NAMES: [&str; 7] = ["apikeys", "secret", "password", "passphrase", "privatekey", "inline", "authtoken"];
    let lower = key.to_ascii_lowercase();
    if NAMES.iter().any(|n| lower.ends_with(n)) {
        hide(shown);
        return;
    }
    match &mut shown.kind {
        Kind::Scalar(Value::String(s)) => {
            if let Some((scheme, rest)) = s.split_once("://")
                && let Some((user, host)) = rest.split_once('@')
                && !user.contains('/')
                && user.contains(':')
            {
                *s = format!("{scheme}://{REDACTED}@{host}");
            }
        }
        Kind::Scalar(_) => {}
        Kind::Seq(items) => items.iter_mut().for_each(|item| redact(item, key)),
        Kind::Map(map) => map.iter_mut().for_each(|(k, v)| redact(v, k)),
    }
}

/// Block style; lists of scalars in one line.
fn block(shown: &Shown, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match &shown.kind {
        Kind::Map(map) => {
            for (key, value) in map {
                out.push_str(&format!("{pad}{}:", scalar(&Value::String(key.clone()))));
                after(value, depth, out);
            }
        }
        Kind::Seq(items) => {
            for item in items {
                out.push_str(&format!("{pad}-"));
                // A map in a list begins on the dash's line.
                if let Kind::Map(map) = &item.kind
                    && !map.is_empty()
                {
                    let mut inner = String::new();
                    block(item, depth + 1, &mut inner);
                    out.push(' ');
                    out.push_str(inner.trim_start());
                } else {
                    after(item, depth, out);
                }
            }
        }
        Kind::Scalar(value) => out.push_str(&format!("{pad}{}\n", scalar(value))),
    }
}

fn after(value: &Shown, depth: usize, out: &mut String) {
    let mark = if value.default { " # default\n" } else { "\n" };
    let flat = |items: &[Shown]| {
        let texts = items.iter().map(|i| match &i.kind {
            Kind::Scalar(v) => Some(scalar(v)),
            _ => None,
        });
        texts.collect::<Option<Vec<_>>>()
    };
    match &value.kind {
        Kind::Scalar(v) => out.push_str(&format!(" {}{mark}", scalar(v))),
        Kind::Map(map) if map.is_empty() => out.push_str(&format!(" {{}}{mark}")),
        Kind::Seq(items) => match flat(items) {
            Some(texts) => out.push_str(&format!(" [{}]{mark}", texts.join(", "))),
            None => {
                out.push('\n');
                block(value, depth + 1, out);
            }
        },
        Kind::Map(_) => {
            out.push_str(mark);
            block(value, depth + 1, out);
        }
    }
}

/// Plain where that reads back as the same text, else quoted (JSON's quoting is YAML's).
fn scalar(value: &Value) -> String {
    let Value::String(s) = value else { return value.to_string() };
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '%' | '=');
    let plain = s.chars().all(safe) && s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let same = text::parse(0, s.as_bytes()).is_ok_and(|n| n.value == Tree::Str(s.clone()));
    if plain && same && !is_yaml_1_1_bool(s) { s.clone() } else { value.to_string() }
}

/// Words that a reader of YAML 1.1 takes for booleans.
fn is_yaml_1_1_bool(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "y" | "n" | "yes" | "no" | "on" | "off")
}

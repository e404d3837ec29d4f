//! Reading sections so that one mistake does not hide the next.

use std::collections::{BTreeMap, BTreeSet};

use onehop_filters::contract::section::{Key, Value, suggest};
use onehop_filters::contract::{Node, Span};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Lower;

/// Mistakes of one section that are reported at once.
const MAX_MISTAKES: usize = 20;

impl Lower<'_> {
    /// Reads a section. A wrong part is reported and cut out, then the rest is read again, so that all mistakes of a
    /// section show at once. `None` if what is left makes no section.
    pub(super) fn read<T: DeserializeOwned>(&mut self, node: &Node) -> Option<T> {
        let mut left: Option<Node> = None;
        let mut cut = BTreeSet::new();
        for _ in 0..MAX_MISTAKES {
            let e = match left.as_ref().unwrap_or(node).read() {
                Ok(section) => return Some(section),
                Err(e) => e,
            };
            let span = e.span.unwrap_or(node.span);
            // What the cut itself caused is no news.
            let caused = cut.iter().any(|k: &String| e.message == format!("`{k}` is missing"))
                || (!cut.is_empty() && e.message.ends_with("found nothing"));
            let by_key = e.message.starts_with("unknown key");
            if by_key && let Some(meant) = e.help.as_deref().and_then(|h| h.strip_prefix("did you mean `")) {
                cut.insert(meant.trim_end_matches("`?").to_owned());
            }
            if !caused {
                self.errors.push(e);
            }
            if !prune(left.get_or_insert_with(|| node.clone()), span, by_key, &mut cut) {
                return None;
            }
        }
        None
    }

    /// A top-level section, or its default.
    pub(super) fn top<T: DeserializeOwned + Default + Serialize>(&mut self, root: &Node, key: &str) -> T {
        let section = match root.get(key) {
            Some(node) if node.value != Value::Null => self.read(node).unwrap_or_default(),
            _ => T::default(),
        };
        self.fill(key, || serde_json::to_value(&section).unwrap_or_default());
        section
    }

    /// A map of named sections. What cannot be lowered is left out.
    pub(super) fn named<T>(
        &mut self,
        root: &Node,
        key: &str,
        what: &str,
        mut lower: impl FnMut(&mut Self, &str, Span, &Node) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let mut all = BTreeMap::new();
        let Some(node) = root.get(key) else { return all };
        match &node.value {
            Value::Map(map) => {
                for (name, section) in map {
                    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
                    if name.name.is_empty() || !name.name.chars().all(fits) {
                        let help = "use letters, digits, `-`, `_` and `.`";
                        self.error(name.span, format!("`{}` is not a name for {what}", name.name), help);
                    }
                    if let Some(lowered) = lower(self, &name.name, name.span, section) {
                        all.insert(name.name.clone(), lowered);
                    }
                }
            }
            Value::Null => {}
            _ => self.error(
                node.span,
                format!("`{key}` is a map"),
                format!("write the name of each {what} and its section"),
            ),
        }
        all
    }

    /// Parts a section into the engine's keys and those of filters. Unknown keys are reported.
    pub(super) fn split(
        &mut self,
        node: &Node,
        engine: &[String],
        filters: &[&str],
    ) -> Option<(Node, Vec<(Key, Node)>)> {
        let Value::Map(entries) = &node.value else {
            self.error(node.span, "expected a map", format!("keys here: {}", engine.join(", ")));
            return None;
        };
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for (key, section) in entries {
            if engine.contains(&key.name) {
                own.push((key.clone(), section.clone()));
            } else if filters.contains(&key.name.as_str()) {
                others.push((key.clone(), section.clone()));
            } else {
                let known: Vec<&str> = engine.iter().map(String::as_str).chain(filters.iter().copied()).collect();
                self.error(key.span, format!("unknown key `{}`", key.name), suggest(&key.name, &known));
            }
        }
        Some((Node { span: node.span, value: Value::Map(own) }, others))
    }

    pub(super) fn fill(&mut self, key: &str, section: impl FnOnce() -> serde_json::Value) {
        if let Some(filled) = &mut self.filled {
            filled.insert(key.to_owned(), section());
        }
    }
    pub(super) fn fill_at<T: Serialize>(&mut self, key: &str, name: &str, section: &T) {
        if let Some(filled) = &mut self.filled {
            let map = filled.entry(key).or_insert_with(|| serde_json::json!({}));
            if let Some(map) = map.as_object_mut() {
                map.insert(name.to_owned(), serde_json::to_value(section).unwrap_or_default());
            }
        }
    }
}

/// The keys of a section type, from its schema: there is no second list.
pub(super) fn keys<T: JsonSchema>() -> Vec<String> {
    let schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
    schema.get("properties").and_then(|p| p.as_object()).map(|p| p.keys().cloned().collect()).unwrap_or_default()
}

/// A node without one key, for keys that are looked at apart.
pub(super) fn without(node: &Node, key: &str) -> Node {
    let value = match &node.value {
        Value::Map(m) => Value::Map(m.iter().filter(|(k, _)| k.name != key).cloned().collect()),
        other => other.clone(),
    };
    Node { span: node.span, value }
}

/// Cuts the part an error is about out of the tree; false if that is the whole tree. A block map and its first key have
/// the same place, so the kind of the error decides which is meant.
fn prune(node: &mut Node, at: Span, by_key: bool, cut: &mut BTreeSet<String>) -> bool {
    match &mut node.value {
        Value::Map(map) => {
            let hit = map.iter().position(|(k, n)| if by_key { k.span == at } else { n.span == at });
            if let Some(index) = hit {
                cut.insert(map.remove(index).0.name);
                return true;
            }
            map.iter_mut().any(|(_, n)| prune(n, at, by_key, cut))
        }
        Value::Seq(items) => {
            if !by_key && let Some(index) = items.iter().position(|n| n.span == at) {
                items.remove(index);
                return true;
            }
            items.iter_mut().any(|n| prune(n, at, by_key, cut))
        }
        _ => false,
    }
}

/// As a problem of one place.
pub(super) fn split_help(text: &str) -> (String, String) {
    let (message, help) = text.split_once('\n').unwrap_or((text, "see the documentation of this key"));
    (message.to_owned(), help.to_owned())
}

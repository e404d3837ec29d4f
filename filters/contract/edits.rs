//! Edits of header fields: set, then add, then remove. Names are parsed and values compiled when the configuration is read.

use http::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::request::RequestCx;
use super::section::{ConfigError, Node, Spot, Value};
use super::template::Template;

/// Fields that belong to the connection or frame the message: the engine's alone (RFC 9110 section 7.6.1, RFC 9112).
const PROTECTED: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Edits of a list of names and values; values are templates, and one that has no value removes the name (`set`) or does
/// nothing (`add`).
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edits {
    /// Replaces what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub set: Option<Node>,
    /// Adds to what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub add: Option<Node>,
    /// Removes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<Spot<String>>,
}

/// Edits of header fields, compiled.
#[derive(Debug, Default)]
pub struct FieldEdits {
    set: Vec<(HeaderName, Template)>,
    add: Vec<(HeaderName, Template)>,
    remove: Vec<HeaderName>,
}

/// What templates gave for one message.
pub type Values = SmallVec<[Option<HeaderValue>; 6]>;

impl FieldEdits {
    /// Reads edits.
    ///
    /// # Errors
    /// A name that is none or belongs to the connection, a bad template.
    pub fn read(edits: &Edits) -> Result<Self, ConfigError> {
        let named = |node: Option<&Node>| {
            let spans = node.map_or(&[][..], Node::entries).iter().map(|(key, _)| key.span);
            let pairs = pairs(node)?;
            spans
                .zip(pairs)
                .map(|(span, (name, value))| Ok((field(&Spot { span, value: name })?, value)))
                .collect::<Result<Vec<_>, ConfigError>>()
        };
        Ok(Self {
            set: named(edits.set.as_ref())?,
            add: named(edits.add.as_ref())?,
            remove: edits.remove.iter().map(field).collect::<Result<_, _>>()?,
        })
    }

    /// Whether it edits nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// The values for set and add: all of them see the request as it is now, before any edit.
    pub fn values(&self, rq: &RequestCx) -> Values {
        self.set.iter().chain(&self.add).map(|(_, template)| template.render(rq)).collect()
    }

    /// Set, add, remove.
    pub fn apply(&self, headers: &mut HeaderMap, values: Values) {
        let mut values = values.into_iter();
        for ((name, _), value) in self.set.iter().zip(&mut values) {
            match value {
                Some(value) => {
                    headers.insert(name, value);
                }
                // Set or removed, never what a stranger sent.
                None => {
                    headers.remove(name);
                }
            }
        }
        for ((name, _), value) in self.add.iter().zip(values) {
            if let Some(value) = value {
                headers.append(name, value);
            }
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Names and templates in file order.
///
/// # Errors
/// Not a map, a value that is not text, a bad template.
pub fn pairs(node: Option<&Node>) -> Result<Vec<(String, Template)>, ConfigError> {
    let Some(node) = node else { return Ok(Vec::new()) };
    if !matches!(node.value, Value::Map(_)) {
        return Err(ConfigError::at(node.span, "a map of names and values stands here"));
    }
    node.entries()
        .iter()
        .map(|(key, value)| {
            let text = match &value.value {
                Value::Str(text) => text.clone(),
                Value::Int(i) => i.to_string(),
                Value::Bool(b) => b.to_string(),
                _ => return Err(ConfigError::at(value.span, format!("the value of `{}` is not text", key.name))),
            };
            Ok((key.name.clone(), Template::compile(&text, value.span)?))
        })
        .collect()
}

fn field(name: &Spot<String>) -> Result<HeaderName, ConfigError> {
    let parsed = HeaderName::try_from(&name.value)
        .map_err(|_| ConfigError::at(name.span, format!("`{}` is not a header name", name.value)))?;
    if PROTECTED.contains(&parsed.as_str()) {
        let help = if parsed == http::header::HOST { "use `transform.host`" } else { "it belongs to the connection" };
        return Err(ConfigError::at(name.span, format!("`{parsed}` cannot be transformed")).help(help));
    }
    Ok(parsed)
}

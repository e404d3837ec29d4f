//! What etcd says over its JSON gateway; pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::contract::mesh::Found;
use crate::mesh::discover::endpoint::{Full, Item, Place, merge};

#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Header {
    /// A 64-bit number, which JSON carries as text.
    revision: String,
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

/// An answer to a range question.
pub struct Answer {
    /// What changes after it is newer.
    pub revision: u64,
    /// Endpoints.
    pub found: Vec<Found>,
    /// Values that were none, for the log.
    pub wrong: Vec<String>,
}

/// Reads the answer to a range question.
pub fn parse(text: &[u8]) -> Result<Answer, String> {
    let range: Range = serde_json::from_slice(text).map_err(|e| format!("answer: {e}"))?;
    let revision = range.header.revision.parse().map_err(|_| "the answer has no revision")?;
    let mut found = Vec::with_capacity(range.kvs.len());
    let mut wrong = Vec::new();
    for pair in range.kvs {
        match value(&pair.value) {
            Ok(endpoint) => found.push(endpoint),
            // One bad value takes none of its neighbours with it.
            Err(why) => {
                let key = STANDARD.decode(&pair.key).unwrap_or_default();
                wrong.push(format!("{}: {why}", String::from_utf8_lossy(&key)));
            }
        }
    }
    Ok(Answer { revision, found: merge(found), wrong })
}

/// A value: `10.0.0.1:80`, an endpoint as our own lists have it, or what etcd's gRPC resolver writes.
fn value(encoded: &str) -> Result<Found, String> {
    let bytes = STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "not text")?;
    let text = text.trim();
    let item = if text.starts_with('{') {
        let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match value.get_mut("Addr").map(Value::take) {
            Some(Value::String(address)) => {
                let labels = value.get("Metadata").and_then(Value::as_object).into_iter().flatten();
                let labels = labels.filter_map(|(name, v)| Some((name.clone(), v.as_str()?.to_owned()))).collect();
                Item::Full(Full { labels, ..Full::at(address) })
            }
            _ => Item::Full(serde_json::from_value(value).map_err(|e| e.to_string())?),
        }
    } else {
        Item::Plain(text.to_owned())
    };
    let written = item.parse()?;
    match &written.place {
        Place::At(address) => Ok(written.at(address.clone())),
        Place::Named(name, _) => Err(format!("`{name}` is a name, not an address")),
    }
}

/// The end of all keys with a prefix: the prefix with its last byte one higher.
pub fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // Everything: etcd's own word for it.
    vec![0]
}

/// What a line of a watch means.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// It stands.
    Nothing,
    /// Something below the prefix changed.
    Changed,
}

#[derive(Deserialize)]
struct Line {
    result: Option<Watched>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Watched {
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default)]
    events: Vec<Value>,
}

/// Reads a line of a watch; an error ends it.
pub fn told(line: &[u8]) -> Result<Told, String> {
    let line: Line = serde_json::from_slice(line).map_err(|e| format!("watch: {e}"))?;
    match line {
        Line { result: Some(watched), .. } if watched.canceled => Err(format!("watch: {}", watched.cancel_reason)),
        Line { result: Some(watched), .. } if watched.events.is_empty() => Ok(Told::Nothing),
        Line { result: Some(_), .. } => Ok(Told::Changed),
        Line { error, .. } => Err(format!("watch: {}", error.unwrap_or_default())),
    }
}

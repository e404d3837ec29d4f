//! Claims as header fields.

use http::{HeaderName, HeaderValue};
use serde_json::Value as Json;

use crate::contract::{ConfigError, Spot};

/// A header name.
pub fn field_name(name: &Spot<String>) -> Result<HeaderName, ConfigError> {
    HeaderName::try_from(&name.value)
        .map_err(|_| ConfigError::at(name.span, format!("`{}` is not a header name", name.value)))
}

/// A field that a claim may become: not one that carries credentials or belongs to the connection, for those are removed
/// from what clients send.
pub fn claim_field(name: &Spot<String>) -> Result<HeaderName, ConfigError> {
    let field = field_name(name)?;
    let taken = [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if taken.contains(&field.as_str()) {
        return Err(ConfigError::at(name.span, format!("a claim cannot become `{field}`")).help("such as `x-user`"));
    }
    Ok(field)
}

/// A claim as a field: text, numbers and booleans as they are, lists of those joined by commas.
pub fn field_value(claim: &Json) -> Option<HeaderValue> {
    fn plain(claim: &Json) -> Option<String> {
        match claim {
            Json::String(s) => Some(s.clone()),
            Json::Number(n) => Some(n.to_string()),
            Json::Bool(b) => Some(b.to_string()),
            _ => None,
        }
    }
    let text = match claim {
        // An item with a comma could pose as two.
        Json::Array(list) => {
            list.iter().map(|item| plain(item).filter(|t| !t.contains(','))).collect::<Option<Vec<_>>>()?.join(",")
        }
        one => plain(one)?,
    };
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

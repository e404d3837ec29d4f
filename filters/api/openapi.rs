//! What several filters read in OpenAPI documents.

use serde_json::Value;

/// The path of the first server.
pub fn server_path(document: &Value) -> String {
    let url = document.pointer("/servers/0/url").and_then(Value::as_str).unwrap_or_default();
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => url,
    };
    if path.contains('{') { String::new() } else { path.trim_end_matches('/').to_owned() }
}

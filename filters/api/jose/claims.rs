//! Claims by name or path, and scopes among them.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

/// A claim by its name, or by the path to it: `realm_access.roles`. A name with dots of its own (`https://a.b/roles`)
/// is found as it stands.
pub fn claim<'a>(claims: &'a Map<String, Json>, path: &str) -> Option<&'a Json> {
    if let Some(found) = claims.get(path) {
        return Some(found);
    }
    let (first, mut rest) = path.split_once('.')?;
    let mut at = claims.get(first)?;
    loop {
        let map = at.as_object()?;
        if let Some(found) = map.get(rest) {
            return Some(found);
        }
        let (name, further) = rest.split_once('.')?;
        (at, rest) = (map.get(name)?, further);
    }
}

/// `scope` (RFC 8693 section 4.2, space-delimited) and the lists `scp` and `scopes` that others write; each may be either.
pub const SCOPES: [&str; 3] = ["scope", "scp", "scopes"];

/// Everything a token may do, once each.
pub fn scopes_at(claims: &Map<String, Json>, paths: &[impl AsRef<str>]) -> Vec<Arc<str>> {
    let mut scopes: Vec<Arc<str>> = Vec::new();
    for found in paths.iter().filter_map(|path| claim(claims, path.as_ref())) {
        let words: Vec<&str> = match found {
            Json::String(text) => text.split_ascii_whitespace().collect(),
            Json::Array(list) => list.iter().filter_map(Json::as_str).collect(),
            _ => Vec::new(),
        };
        for word in words {
            if !scopes.iter().any(|s| **s == *word) {
                scopes.push(word.into());
            }
        }
    }
    scopes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(json: Json) -> Map<String, Json> {
        json.as_object().expect("an object").clone()
    }

    #[test]
    fn claims_are_found_by_name_and_by_path() {
        let claims = map(json!({
            "sub": "ann", "a.b": 1, "a": {"b": 2, "c": {"d.e": 3, "d": {"f": 4}}},
            "https://x.y/roles": ["r"], "list": [{"x": 1}],
        }));
        for (path, found) in [
            ("sub", Some(json!("ann"))),
            ("a.b", Some(json!(1))),
            ("a.c.d.e", Some(json!(3))),
            ("a.c.d.f", Some(json!(4))),
            ("https://x.y/roles", Some(json!(["r"]))),
            ("a.x", None),
            ("list.0", None),
            ("sub.x", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(claim(&claims, path), found.as_ref(), "{path}");
        }
    }

    #[test]
    fn scopes_are_words_or_lists_from_wherever_they_stand() {
        let claims = map(json!({"scope": "a b", "scp": ["b", "c"], "realm_access": {"roles": ["x", 7]}}));
        let of = |paths: &[&str]| scopes_at(&claims, paths).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(&SCOPES), ["a", "b", "c"]);
        assert_eq!(of(&["realm_access.roles", "scope"]), ["x", "a", "b"]);
        assert!(of(&["sub"]).is_empty());
    }
}

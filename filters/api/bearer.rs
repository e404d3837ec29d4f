//! What bearer tokens have in common, however they are checked (RFC 6750): where they stand, what their claims become,
//! and the challenge for those who have none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::contract::filter::AuthError;
use crate::contract::principal::Consumer;
use crate::contract::{Build, ConfigError, Entry, Found, Held, Place, RequestCx, Role, Spot};

/// `consumers.NAME.clientIds`.
pub const CLIENT_IDS: Entry = Entry {
    name: "clientIds",
    summary: "OAuth client ids of a consumer, as tokens name them",
    readme: include_str!("jwt/README.md"),
    example: include_str!("jwt/example.yaml"),
    schema: |g| g.subschema_for::<Vec<String>>(),
    role: Role::Credential(|held, _| client_ids(held).1),
};

/// Places of the token; those written are tried in the order header, cookie, query.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// A header field; in `authorization` after `Bearer`, elsewhere the bare token (`Bearer` is allowed).
    pub header: Option<Spot<String>>,
    /// A cookie.
    pub cookie: Option<Spot<String>>,
    /// A query parameter (RFC 6750 section 5.3 advises against it: URLs are logged).
    pub query: Option<Spot<String>>,
}

/// A header name.
pub fn field_name(name: &Spot<String>) -> Result<HeaderName, ConfigError> {
    HeaderName::try_from(&name.value)
        .map_err(|_| ConfigError::at(name.span, format!("`{}` is not a header name", name.value)))
}

/// Where tokens are looked for.
pub fn places(from: Option<&Spot<From>>) -> Result<Vec<Place>, ConfigError> {
    let Some(Spot { span, value }) = from else { return Ok(vec![Place::Header(AUTHORIZATION)]) };
    let mut places = Vec::new();
    if let Some(header) = &value.header {
        places.push(Place::Header(field_name(header)?));
    }
    places.extend(value.cookie.as_ref().map(|c| Place::Cookie(c.value.as_str().into())));
    places.extend(value.query.as_ref().map(|q| Place::Query(q.value.as_str().into())));
    if places.is_empty() {
        return Err(ConfigError::at(*span, "`from` names no place").help("write `header`, `cookie` or `query`"));
    }
    Ok(places)
}

/// The first token, and the position of its place.
pub fn find<'a>(places: &[Place], rq: &'a RequestCx) -> Result<Option<(Cow<'a, str>, usize)>, AuthError> {
    for (at, place) in places.iter().enumerate() {
        if let Some(token) = token(place, rq)? {
            return Ok(Some((token, at)));
        }
    }
    Ok(None)
}

/// The token in a place. In `Authorization` only the scheme `Bearer` is ours (RFC 6750 section 2.1).
fn token<'a>(place: &Place, rq: &'a RequestCx) -> Result<Option<Cow<'a, str>>, AuthError> {
    const AMBIGUOUS: AuthError = AuthError { code: "invalid_request", description: "more than one token was sent" };
    let Place::Header(name) = place else {
        return match place.find(rq) {
            Found::Absent => Ok(None),
            Found::One(token) => Ok(Some(Cow::Owned(token))),
            Found::Ambiguous => Err(AMBIGUOUS),
        };
    };
    let mut values = rq.headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AMBIGUOUS);
    }
    let Ok(value) = value.to_str() else {
        return Err(AuthError { code: "invalid_request", description: "the token is malformed" });
    };
    match value.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(Cow::Borrowed(token.trim_start()))),
        None if name != AUTHORIZATION => Ok(Some(Cow::Borrowed(value.trim()))),
        _ => Ok(None),
    }
}

/// RFC 6750 section 3; no error code where no token was sent.
pub fn challenge(realm: &str, error: Option<&AuthError>) -> String {
    match error {
        None => format!("Bearer realm=\"{realm}\""),
        Some(e) => format!("Bearer realm=\"{realm}\", error=\"{}\", error_description=\"{}\"", e.code, e.description),
    }
}

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
fn scopes(claims: &Map<String, Json>, paths: &[String]) -> Vec<Arc<str>> {
    let mut scopes: Vec<Arc<str>> = Vec::new();
    for found in paths.iter().filter_map(|path| claim(claims, path)) {
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

/// What claims become.
pub struct Effects {
    headers: Vec<(String, HeaderName)>,
    /// Fields of `headers`.
    pub fields: Vec<HeaderName>,
    scopes: Vec<String>,
    consumer: Option<String>,
    /// By client id, and by their own name.
    consumers: BTreeMap<String, Arc<Consumer>>,
}

/// Fields of the config that say so.
pub struct Wanted {
    pub headers: BTreeMap<String, Spot<String>>,
    pub scopes: Option<Vec<String>>,
    pub consumer: Option<String>,
}

impl Effects {
    pub fn new(wanted: Wanted, places: &[Place], build: &Build<'_>) -> Result<Self, ConfigError> {
        let mut headers = Vec::with_capacity(wanted.headers.len());
        for (claim, field) in wanted.headers {
            let name = claim_field(&field)?;
            if places.contains(&Place::Header(name.clone())) {
                let message = format!("`{name}` carries the token and cannot carry a claim");
                return Err(ConfigError::at(field.span, message).help("choose another field, such as `x-user`"));
            }
            headers.push((claim, name));
        }
        let mut consumers = build.directory.consumers.clone();
        if wanted.consumer.is_some() {
            let (ids, mut errors) = client_ids(build.directory.held(CLIENT_IDS.name));
            if let Some(e) = errors.drain(..).next() {
                return Err(e);
            }
            let owner = |(id, owner): (String, String)| Some((id, build.directory.consumers.get(&owner)?.clone()));
            consumers.extend(ids.into_iter().filter_map(owner));
        }
        Ok(Self {
            fields: headers.iter().map(|(_, field)| field.clone()).collect(),
            headers,
            scopes: wanted.scopes.unwrap_or_else(|| SCOPES.map(str::to_owned).into()),
            consumer: wanted.consumer,
            consumers,
        })
    }

    pub fn scopes(&self, claims: &Map<String, Json>) -> Vec<Arc<str>> {
        scopes(claims, &self.scopes)
    }

    /// Claims as fields.
    pub fn values(&self, claims: &Map<String, Json>) -> Box<[(HeaderName, HeaderValue)]> {
        let one = |(path, field): &(String, HeaderName)| Some((field.clone(), field_value(claim(claims, path)?)?));
        self.headers.iter().filter_map(one).collect()
    }

    /// Set or removed, never passed through.
    pub fn write(&self, headers: &mut HeaderMap, values: &[(HeaderName, HeaderValue)]) {
        for field in &self.fields {
            headers.remove(field);
        }
        for (field, value) in values {
            headers.insert(field.clone(), value.clone());
        }
    }

    /// Makes the caller the consumer that the claims name, where the config asks for that.
    pub fn consumer(&self, rq: &mut RequestCx, claims: &Map<String, Json>) {
        if let Some(path) = &self.consumer {
            let named = claim(claims, path).and_then(Json::as_str);
            rq.consumer = named.and_then(|name| self.consumers.get(name)).cloned();
        }
    }
}

/// Client ids of all consumers. Every mistake is found.
fn client_ids(held: &[Held]) -> (BTreeMap<String, String>, Vec<ConfigError>) {
    let mut all = BTreeMap::new();
    let mut errors = Vec::new();
    for Held { owner, section } in held {
        let ids: Vec<Spot<String>> = section.read().unwrap_or_else(|e| {
            errors.push(e);
            Vec::new()
        });
        for id in ids {
            if let Some(first) = all.insert(id.value.clone(), owner.clone()) {
                let message = format!("`{}` is a client of consumer `{first}` already", id.value);
                errors.push(ConfigError::at(id.span, message).help("a client has one owner: remove one"));
            }
        }
    }
    (all, errors)
}

/// A field that a claim may become: not one that carries credentials or belongs to the connection, for those are removed
/// from what clients send.
fn claim_field(name: &Spot<String>) -> Result<HeaderName, ConfigError> {
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
fn field_value(claim: &Json) -> Option<HeaderValue> {
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
        let of = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            scopes(&claims, &paths).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(&SCOPES), ["a", "b", "c"]);
        assert_eq!(of(&["realm_access.roles", "scope"]), ["x", "a", "b"]);
        assert!(of(&["sub"]).is_empty());
    }
}

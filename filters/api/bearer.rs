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

use super::jose::claims::{SCOPES, claim, scopes_at};
use super::jose::fields::{claim_field, field_name, field_value};
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
    // What `to_str` would say of a field value, which has no controls; looked at many bytes at once.
    let text = std::str::from_utf8(value.as_bytes()).ok().filter(|text| text.is_ascii());
    let Some(value) = text else {
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
        scopes_at(claims, &self.scopes)
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

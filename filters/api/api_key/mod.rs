//! Identity kind `apiKey`: a key that belongs to a consumer.

mod config;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderName;

use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::Consumer;
use crate::contract::{Build, ConfigError, Entry, Found, Held, Node, Place, RequestCx, Role};
use config::Config;
use keys::{Digest, Owned, digest_of};

/// Longer keys are refused unread.
const MAX_KEY: usize = 1024;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "apiKey",
    summary: "API keys owned by consumers, from a header, a query parameter or a cookie",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Identity(build),
};

/// `consumers.NAME.apiKeys`.
pub const KEYS: Entry = Entry {
    name: "apiKeys",
    summary: "API keys of a consumer, as digests or as secrets",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<config::Key>>(),
    role: Role::Credential(|held, dir| keys::read(held, dir).1),
};

/// SHA-256 of every key that consumers hold, with its owner; keys that cannot be read are left out.
#[must_use]
pub fn digests(held: &[Held]) -> BTreeMap<[u8; 32], String> {
    keys::read(held, Path::new("")).0.into_iter().map(|(digest, owned)| (digest, owned.owner)).collect()
}

struct ApiKey {
    name: Box<str>,
    place: Place,
    /// By SHA-256: what a lookup leaks by its time is the digest of a guess, which helps nobody.
    owners: BTreeMap<Digest, Owner>,
    accepted: Counter,
    refused: Counter,
}

struct Owner {
    consumer: Arc<Consumer>,
    expires: Option<SystemTime>,
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    let config: Config = node.read()?;
    let place = match (config.header, config.query, config.cookie) {
        (None, None, None) => Place::Header(HeaderName::from_static("x-api-key")),
        (Some(header), None, None) => Place::Header(
            HeaderName::try_from(&header.value)
                .map_err(|_| ConfigError::at(header.span, format!("`{}` is not a header name", header.value)))?,
        ),
        (None, Some(name), None) => Place::Query(name.value.into()),
        (None, None, Some(name)) => Place::Cookie(name.value.into()),
        _ => return Err(ConfigError::at(node.span, "exactly one of `header`, `query`, `cookie` may stand here")),
    };
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope);
    let (keys, mut errors) = keys::read(build.directory.held(KEYS.name), &build.dir);
    if let Some(e) = errors.drain(..).next() {
        return Err(e);
    }
    let owner = |(digest, Owned { owner, expires }): (Digest, Owned)| {
        let consumer = build.directory.consumers.get(&owner)?.clone();
        Some((digest, Owner { consumer, expires }))
    };
    let owners = keys.into_iter().filter_map(owner).collect();
    let count = |result| {
        build.metrics.counter(
            "onehop_api_keys_total",
            "API keys that were looked up, by result",
            &[("identity", name), ("result", result)],
        )
    };
    Ok(Arc::new(ApiKey { name: name.into(), place, owners, accepted: count("accepted"), refused: count("refused") }))
}

impl ApiKey {
    fn look_up(&self, rq: &RequestCx) -> Result<Option<Arc<Consumer>>, AuthError> {
        let refuse = |code, description| AuthError { code, description };
        let key = match self.place.find(rq) {
            Found::Absent => return Ok(None),
            Found::Ambiguous => return Err(refuse("invalid_request", "more than one API key was sent")),
            Found::One(key) if key.is_empty() || key.len() > MAX_KEY => {
                return Err(refuse("invalid_request", "the API key has no acceptable length"));
            }
            Found::One(key) => key,
        };
        match self.owners.get(&digest_of(key.as_bytes())) {
            Some(Owner { expires: Some(expires), .. }) if *expires <= SystemTime::now() => {
                Err(refuse("invalid_token", "the API key has expired"))
            }
            Some(owner) => Ok(Some(owner.consumer.clone())),
            None => Err(refuse("invalid_token", "the API key is not known")),
        }
    }
}

impl Authenticator for ApiKey {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        AuthStep::Done(match self.look_up(rq) {
            Ok(None) => AuthVerdict::Absent,
            Ok(Some(owner)) => {
                self.accepted.inc();
                self.place.strip(rq);
                rq.consumer = Some(owner);
                AuthVerdict::Accepted
            }
            Err(error) => {
                self.refused.inc();
                AuthVerdict::Refused(error)
            }
        })
    }

    /// There is no registered scheme for API keys; the challenge says where the key is looked for.
    fn challenge(&self, error: Option<&AuthError>) -> String {
        let (kind, name) = match &self.place {
            Place::Header(name) => ("header", name.as_str()),
            Place::Query(name) => ("query", &**name),
            Place::Cookie(name) => ("cookie", &**name),
        };
        let mut challenge = format!("ApiKey realm=\"{}\", {kind}=\"{name}\"", self.name);
        if let Some(e) = error {
            challenge.push_str(&format!(", error=\"{}\", error_description=\"{}\"", e.code, e.description));
        }
        challenge
    }
}

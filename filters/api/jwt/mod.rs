//! Identity kind `jwt`: signed tokens of an issuer (RFC 7519, RFC 8725).

mod config;
mod core;
mod digest;
mod keys;
mod source;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use quick_cache::sync::Cache;
use serde_json::Value as Json;

use self::core::{MAX_TOKEN, Rules, Token, scopes};
use self::keys::{Algorithm, Signature};
use self::source::{Counters, Source, Store, keep_fresh};
use crate::contract::client::Remote;
use crate::contract::clock::recent;
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::{Consumer, User};
use crate::contract::section::Value;
use crate::contract::{Build, ConfigError, Entry, Found, Node, Place, RequestCx, Role, Spot, now};
use config::Config;

/// Verified tokens remembered per identity.
const CACHED: usize = 10_000;
/// Longest life of a cached verdict, against tokens that expire in a century.
const MAX_LIFE: f64 = 86_400.0 * 365.0;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "jwt",
    summary: "Signed tokens (JWT) of an issuer, checked against its JWKS",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Identity(build),
};

struct Jwt {
    name: Arc<str>,
    rules: Rules,
    algorithms: Vec<Algorithm>,
    places: Vec<Place>,
    forward: bool,
    claims: Vec<(String, HeaderName)>,
    fields: Vec<HeaderName>,
    consumer_claim: Option<String>,
    consumers: BTreeMap<String, Arc<Consumer>>,
    store: Arc<Store>,
    /// By SHA-256 of the whole token. Shards are locked for a look-up only; readers do not exclude each other.
    cache: Arc<Cache<[u8; 32], Arc<Pass>>>,
    hits: Counter,
    verified: Counter,
    refused: Counter,
}

/// A token that was found good.
struct Pass {
    user: Arc<User>,
    /// Of the keys that vouched for it.
    generation: u64,
    fields: Box<[(HeaderName, HeaderValue)]>,
}

/// What a look at a request gave.
enum Judged {
    Absent,
    Good {
        pass: Arc<Pass>,
        place: usize,
    },
    Refused(AuthError),
    /// Perhaps good, once newer keys are there.
    UnknownKey,
    /// No keys at all yet.
    NoKeys,
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    Ok(Arc::new(jwt(node, build)?))
}

fn jwt(node: &Node, build: &mut Build<'_>) -> Result<Jwt, ConfigError> {
    let config: Config = node.read()?;
    if config.issuer.value.is_empty() {
        return Err(ConfigError::at(config.issuer.span, "the issuer is empty"));
    }
    if config.audiences.value.is_empty() {
        return Err(ConfigError::at(config.audiences.span, "no audience is accepted").help("name at least one"));
    }
    if config.algorithms.value.is_empty() {
        return Err(ConfigError::at(config.algorithms.span, "no algorithm is accepted"));
    }
    let leeway = config.leeway.as_ref().map_or(config::LEEWAY, |l| l.value.0);
    if let Some(l) = config.leeway.as_ref().filter(|_| leeway > config::MAX_LEEWAY) {
        return Err(ConfigError::at(l.span, format!("a leeway of {} is too long", l.value)).help("at most 5m"));
    }
    let claims = config
        .claims_to_headers
        .iter()
        .map(|(claim, field)| Ok((claim.clone(), claim_field(field)?)))
        .collect::<Result<Vec<_>, ConfigError>>()?;
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope).to_owned();
    let places = places(config.from.as_ref())?;
    if let Some((_, field)) = claims.iter().find(|(_, f)| places.contains(&Place::Header(f.clone()))) {
        return Err(ConfigError::at(node.span, format!("`{field}` carries the token and cannot carry a claim")));
    }
    let store = store(&config, &name, build)?;
    // Anything that changes what a good token is, or what is made of it, starts with an empty cache.
    let cache = build.keep("tokens", &node.to_json().to_string(), || Cache::new(CACHED));
    let count = |result| {
        let labels = [("identity", name.as_str()), ("result", result)];
        build.metrics.counter("onehop_jwt_tokens_total", "Tokens that were judged, by result", &labels)
    };
    Ok(Jwt {
        rules: Rules {
            issuer: config.issuer.value,
            audiences: config.audiences.value,
            leeway: leeway.as_secs_f64(),
            typ: config.required_typ,
        },
        algorithms: config.algorithms.value,
        places,
        forward: config.forward_token,
        fields: claims.iter().map(|(_, f)| f.clone()).collect(),
        claims,
        consumer_claim: config.consumer_claim,
        consumers: build.directory.consumers.clone(),
        store,
        cache,
        hits: count("cached"),
        verified: count("verified"),
        refused: count("refused"),
        name: name.into(),
    })
}

/// Finds or makes the keys' home. Only a new one gets a background task.
fn store(config: &Config, name: &str, build: &mut Build<'_>) -> Result<Arc<Store>, ConfigError> {
    let jwks = &config.jwks.value;
    let at = config.jwks.span;
    let refresh = jwks.refresh.as_ref().map_or(config::REFRESH, |r| r.value.0);
    if let Some(r) = jwks.refresh.as_ref().filter(|_| refresh < Duration::from_secs(1)) {
        return Err(ConfigError::at(r.span, format!("a refresh every {} is too often", r.value)).help("at least 1s"));
    }
    let secret = config.algorithms.value.iter().any(|a| a.is_symmetric());
    let (source, first) = match (&jwks.url, &jwks.file, &jwks.inline) {
        (Some(url), None, None) => {
            if secret {
                return Err(ConfigError::at(config.algorithms.span, "shared secrets cannot be fetched from a URL")
                    .help("use `jwks.file`, or an asymmetric algorithm"));
            }
            let ca = jwks.ca.as_ref().map(|ca| build.path(&ca.value));
            let remote = Remote::new(&url.value, ca.as_deref(), jwks.allow_plaintext).map_err(|e| {
                ConfigError::at(url.span, e)
                    .help("`https://...`; `http` for loopback hosts, or with `allowPlaintext: true`")
            })?;
            (Source::Remote { remote, refresh }, None)
        }
        (None, Some(file), None) => (Source::File(build.path(&file.value)), Some(file.span)),
        (None, None, Some(inline)) => (Source::Inline, Some(inline.span)),
        _ => return Err(ConfigError::at(at, "exactly one of `url`, `file`, `inline` must stand in `jwks`")),
    };
    let shape = format!(
        "{:?} {:?} {:?} {:?} {refresh:?} {:?}",
        jwks.url.as_ref().map(|u| &u.value),
        jwks.file.as_ref().map(|f| &f.value),
        jwks.inline.as_ref().map(Node::to_json),
        jwks.ca.as_ref().map(|c| &c.value),
        config.algorithms.value,
    );
    let mut made = None;
    let kept = build.keep("keys", &shape, || {
        let store = Store::new(config.algorithms.value.clone(), !matches!(source, Source::Inline));
        let text = match &source {
            Source::Remote { .. } => None,
            Source::File(path) => Some(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))),
            Source::Inline => jwks.inline.as_ref().map(|inline| Ok(text_of(inline))),
        };
        made = Some(text.map_or(Ok(()), |text| text.and_then(|text| store.install(&text))));
        store
    });
    if let Some(result) = made {
        result.map_err(|e| ConfigError::at(first.unwrap_or(at), e))?;
        if !matches!(source, Source::Inline) {
            let metrics = &build.metrics;
            let count = |result| {
                let labels = [("identity", name), ("result", result)];
                metrics.counter("onehop_jwks_refreshes_total", "Fetches of a key set, by result", &labels)
            };
            let counters = Counters {
                refreshed: count("ok"),
                failed: count("failed"),
                keys_since: metrics.gauge(
                    "onehop_jwks_fetched_timestamp_seconds",
                    "When the keys in use were last fetched, in Unix seconds",
                    &[("identity", name)],
                ),
            };
            build.background(keep_fresh(Arc::downgrade(&kept), source, name.to_owned(), counters));
        }
    }
    Ok(kept)
}

fn text_of(inline: &Node) -> Vec<u8> {
    match &inline.value {
        Value::Str(text) => text.clone().into_bytes(),
        _ => inline.to_json().to_string().into_bytes(),
    }
}

fn field_name(name: &Spot<String>) -> Result<HeaderName, ConfigError> {
    HeaderName::try_from(&name.value)
        .map_err(|_| ConfigError::at(name.span, format!("`{}` is not a header name", name.value)))
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

fn places(from: Option<&Spot<config::From>>) -> Result<Vec<Place>, ConfigError> {
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

impl Jwt {
    fn judge(&self, rq: &RequestCx) -> Judged {
        for (place, at) in self.places.iter().enumerate() {
            match token(at, rq) {
                Ok(None) => {}
                Ok(Some(token)) => return self.judge_token(&token, place),
                Err(error) => return Judged::Refused(error),
            }
        }
        Judged::Absent
    }

    fn judge_token(&self, text: &str, place: usize) -> Judged {
        if text.len() > MAX_TOKEN {
            return Judged::Refused(AuthError { code: "invalid_token", description: "the token is too long" });
        }
        let generation = self.store.generation();
        if generation == 0 {
            // A token of another issuer need not wait for our keys.
            return match self.read(text) {
                Ok(_) => Judged::NoKeys,
                Err(error) => Judged::Refused(error),
            };
        }
        let now = recent();
        let key = digest::of(text);
        if let Some(pass) = self.cache.get(&key) {
            if pass.generation == generation && now < pass.user.expires {
                self.hits.inc();
                return Judged::Good { pass, place };
            }
            self.cache.remove(&key);
        }
        match self.verify(text) {
            Ok(pass) => {
                self.verified.inc();
                let pass = Arc::new(pass);
                self.cache.insert(key, pass.clone());
                Judged::Good { pass, place }
            }
            Err(Some(error)) => Judged::Refused(error),
            Err(None) => Judged::UnknownKey,
        }
    }

    /// What can be said without keys: form, algorithm, claims. Gives the seconds the token is good for, too.
    fn read<'t>(&self, text: &'t str) -> Result<(Token<'t>, f64), AuthError> {
        let token = Token::parse(text)?;
        if !self.algorithms.contains(&token.algorithm) {
            return Err(AuthError { code: "invalid_token", description: "the algorithm is not accepted" });
        }
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let left = token.check(&self.rules, unix)?;
        Ok((token, left))
    }

    /// The full check: claims first, as they are cheaper than a signature and tell tokens of other issuers apart.
    /// `Err(None)`: the key is not known.
    fn verify(&self, text: &str) -> Result<Pass, Option<AuthError>> {
        let refuse = |description| Some(AuthError { code: "invalid_token", description });
        let (token, left) = self.read(text).map_err(Some)?;
        let keys = self.store.keys();
        match keys.verify(token.kid.as_deref(), token.algorithm, token.signed, &token.signature) {
            Signature::Good => {}
            Signature::Bad => return Err(refuse("the signature is wrong")),
            Signature::WrongAlgorithm => return Err(refuse("the algorithm does not fit the key")),
            Signature::UnknownKey => return Err(None),
        }
        let claims = token.claims;
        let fields = self
            .claims
            .iter()
            .filter_map(|(claim, field)| Some((field.clone(), field_value(claims.get(claim)?)?)))
            .collect();
        let user = User {
            identity: self.name.clone(),
            subject: claims.get("sub").and_then(Json::as_str).unwrap_or_default().into(),
            scopes: scopes(&claims),
            claims,
            expires: now() + Duration::from_secs_f64(left.min(MAX_LIFE)),
        };
        Ok(Pass { user: Arc::new(user), generation: keys.generation, fields })
    }

    fn settle(&self, rq: &mut RequestCx, judged: Judged) -> AuthVerdict {
        match judged {
            Judged::Absent => AuthVerdict::Absent,
            Judged::NoKeys => AuthVerdict::Unavailable("the issuer's keys have not been fetched yet"),
            Judged::Refused(error) => {
                self.refused.inc();
                AuthVerdict::Refused(error)
            }
            Judged::UnknownKey => {
                self.refused.inc();
                AuthVerdict::Refused(AuthError { code: "invalid_token", description: "the key is not known" })
            }
            Judged::Good { pass, place } => {
                if !self.forward {
                    self.places[place].strip(rq);
                }
                self.write_fields(&mut rq.headers, &pass);
                if let Some(claim) = &self.consumer_claim {
                    let named = pass.user.claims.get(claim).and_then(Json::as_str);
                    rq.consumer = named.and_then(|name| self.consumers.get(name)).cloned();
                }
                rq.user = Some(pass.user.clone());
                AuthVerdict::Accepted
            }
        }
    }

    /// Set or removed, never passed through.
    fn write_fields(&self, headers: &mut HeaderMap, pass: &Pass) {
        for field in &self.fields {
            headers.remove(field);
        }
        for (field, value) in &pass.fields {
            headers.insert(field.clone(), value.clone());
        }
    }
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

impl Authenticator for Jwt {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        let judged = self.judge(rq);
        let waits = match judged {
            Judged::UnknownKey => self.store.may_refetch(now()),
            // The first fetch may be under way; after that, callers are told at once.
            Judged::NoKeys => self.store.may_refetch(now()),
            _ => false,
        };
        if !waits {
            return AuthStep::Done(self.settle(rq, judged));
        }
        AuthStep::Wait(Box::pin(async move {
            self.store.refetch().await;
            let judged = self.judge(rq);
            self.settle(rq, judged)
        }))
    }

    fn claims_headers(&self) -> &[HeaderName] {
        &self.fields
    }

    /// RFC 6750 section 3; no error code where no token was sent.
    fn challenge(&self, error: Option<&AuthError>) -> String {
        match error {
            None => format!("Bearer realm=\"{}\"", self.name),
            Some(e) => {
                format!("Bearer realm=\"{}\", error=\"{}\", error_description=\"{}\"", self.name, e.code, e.description)
            }
        }
    }
}

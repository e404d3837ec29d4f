//! Identity kind `jwt`: signed tokens of an issuer (RFC 7519, RFC 8725).

mod config;
mod digest;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue};
use quick_cache::sync::Cache;
use serde_json::Value as Json;

use super::bearer::{self, Effects, Wanted};
use crate::api::jose::claims::claim;
use crate::api::jose::discovery::Discovery;
use crate::api::jose::keys::{Algorithm, Signature};
use crate::api::jose::source::{Counters, Source, Store, keep_fresh};
use crate::api::jose::token::{MAX_TOKEN, NOT_YET, Rules, Token};
use crate::api::jose::unix;
use crate::contract::client::Remote;
use crate::contract::clock::recent;
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::User;
use crate::contract::section::Value;
use crate::contract::{Build, ConfigError, Entry, Node, Place, RequestCx, Role, Spot, now};
use config::Config;

/// Verified tokens remembered per identity.
const CACHED: usize = 10_000;
/// Refused ones, apart: what strangers invent must not push out what is good.
const REFUSED: usize = 1_000;
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
    effects: Effects,
    store: Arc<Store>,
    memory: Arc<Memory>,
    hits: Counter,
    verified: Counter,
    refused: Counter,
}

/// Verdicts by SHA-256 of the whole token. Shards are locked for a look-up only; readers do not exclude each other.
struct Memory {
    good: Cache<[u8; 32], Arc<Pass>>,
    /// Refusals that time does not undo, with the generation of the keys.
    bad: Cache<[u8; 32], (u64, AuthError)>,
}

/// A token that was found good.
struct Pass {
    user: Arc<User>,
    /// Of the keys that vouched for it.
    generation: u64,
    fields: Box<[(HeaderName, HeaderValue)]>,
    /// The certificate that it is bound to (RFC 8705 section 3.1).
    bound: Option<[u8; 32]>,
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
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope).to_owned();
    let places = bearer::places(config.from.as_ref())?;
    let store = store(&config, &name, node, build)?;
    // Anything that changes what a good token is, or what is made of it, starts with an empty cache.
    let memory = build
        .keep("tokens", &node.to_json().to_string(), || Memory { good: Cache::new(CACHED), bad: Cache::new(REFUSED) });
    let wanted =
        Wanted { headers: config.claims_to_headers, scopes: config.scope_claims, consumer: config.consumer_claim };
    let effects = Effects::new(wanted, &places, build)?;
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
        effects,
        store,
        memory,
        hits: count("cached"),
        verified: count("verified"),
        refused: count("refused"),
        name: name.into(),
    })
}

/// Finds or makes the keys' home. Only a new one gets a background task.
fn store(config: &Config, name: &str, node: &Node, build: &mut Build<'_>) -> Result<Arc<Store>, ConfigError> {
    let by_itself = Spot { span: node.span, value: config::Jwks { discovery: true, ..Default::default() } };
    let Spot { span: at, value: jwks } = config.jwks.as_ref().unwrap_or(&by_itself);
    let at = *at;
    let refresh = jwks.refresh.as_ref().map_or(config::REFRESH, |r| r.value.0);
    if let Some(r) = jwks.refresh.as_ref().filter(|_| refresh < Duration::from_secs(1)) {
        return Err(ConfigError::at(r.span, format!("a refresh every {} is too often", r.value)).help("at least 1s"));
    }
    let max_stale = jwks.max_stale.as_ref().map_or(config::MAX_STALE, |m| m.value.0);
    let secret = config.algorithms.value.iter().any(|a| a.is_symmetric());
    let ca = jwks.ca.as_ref().map(|ca| build.path(&ca.value));
    if secret && (jwks.url.is_some() || jwks.discovery) {
        return Err(ConfigError::at(config.algorithms.span, "shared secrets cannot be fetched from a URL")
            .help("use `jwks.file`, or an asymmetric algorithm"));
    }
    let (source, first) = match (&jwks.url, &jwks.file, &jwks.inline, jwks.discovery) {
        (Some(url), None, None, false) => {
            let remote = Remote::new(&url.value, ca.as_deref(), jwks.allow_plaintext).map_err(|e| {
                ConfigError::at(url.span, e)
                    .help("`https://...`; `http` for loopback hosts, or with `allowPlaintext: true`")
            })?;
            (Source::Remote { remote, refresh }, None)
        }
        (None, None, None, true) => {
            let discovery = Discovery::new(&config.issuer.value, ca, jwks.allow_plaintext).map_err(|e| {
                let help = "discovery needs an issuer that is an `https` URL; else name the keys in `jwks`";
                ConfigError::at(config.issuer.span, e).help(help)
            })?;
            (Source::Discovered { discovery: Box::new(discovery), refresh }, None)
        }
        (None, Some(file), None, false) => (Source::File(build.path(&file.value)), Some(file.span)),
        (None, None, Some(inline), false) => (Source::Inline, Some(inline.span)),
        _ => {
            return Err(ConfigError::at(
                at,
                "exactly one of `url`, `file`, `inline`, `discovery` must stand in `jwks`",
            )
            .help("such as `jwks: { url: https://id.example.com/jwks.json }`"));
        }
    };
    let shape = format!(
        "{:?} {:?} {:?} {:?} {refresh:?} {max_stale:?} {:?} {:?}",
        jwks.url.as_ref().map(|u| &u.value),
        jwks.file.as_ref().map(|f| &f.value),
        jwks.inline.as_ref().map(Node::to_json),
        jwks.ca.as_ref().map(|c| &c.value),
        config.algorithms.value,
        jwks.discovery.then_some(&config.issuer.value),
    );
    let mut made = None;
    let kept = build.keep("keys", &shape, || {
        let store =
            Store::new(config.algorithms.value.clone(), !matches!(source, Source::Inline)).stale_after(max_stale);
        let text = match &source {
            Source::Remote { .. } | Source::Discovered { .. } => None,
            Source::File(path) => Some(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))),
            Source::Inline => jwks.inline.as_ref().map(|inline| Ok(text_of(inline))),
        };
        made = Some(text.map_or(Ok(()), |text| text.and_then(|text| store.install(&text))));
        store
    });
    if let Some(result) = made {
        result.map_err(|e| ConfigError::at(first.unwrap_or(at), e))?;
        if !matches!(source, Source::Inline) {
            let counters = Counters::new(&build.metrics, name);
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

impl Jwt {
    fn judge(&self, rq: &RequestCx) -> Judged {
        let (token, place) = match bearer::find(&self.places, rq) {
            Ok(None) => return Judged::Absent,
            Ok(Some(found)) => found,
            Err(error) => return Judged::Refused(error),
        };
        match self.judge_token(&token, place) {
            Judged::Good { pass, .. } if !is_holder(&pass, rq) => {
                let description = "the token is bound to another certificate";
                Judged::Refused(AuthError { code: "invalid_token", description })
            }
            judged => judged,
        }
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
        if let Some(pass) = self.memory.good.get(&key) {
            if pass.generation == generation && now < pass.user.expires {
                self.hits.inc();
                return Judged::Good { pass, place };
            }
            self.memory.good.remove(&key);
        }
        if let Some((_, error)) = self.memory.bad.get(&key).filter(|(of, _)| *of == generation) {
            return Judged::Refused(error);
        }
        match self.verify(text) {
            Ok(pass) => {
                self.verified.inc();
                let pass = Arc::new(pass);
                self.memory.good.insert(key, pass.clone());
                Judged::Good { pass, place }
            }
            Err(Some(error)) => {
                if error.description != NOT_YET {
                    self.memory.bad.insert(key, (generation, error.clone()));
                }
                Judged::Refused(error)
            }
            Err(None) => Judged::UnknownKey,
        }
    }

    /// What can be said without keys: form, algorithm, claims. Gives the seconds the token is good for, too.
    fn read<'t>(&self, text: &'t str) -> Result<(Token<'t>, f64), AuthError> {
        let token = Token::parse(text)?;
        if !self.algorithms.contains(&token.algorithm) {
            return Err(AuthError { code: "invalid_token", description: "the algorithm is not accepted" });
        }
        let left = token.check(&self.rules, unix())?;
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
        let bound = match claim(&claims, "cnf.x5t#S256") {
            None => None,
            Some(print) => Some(thumbprint(print).ok_or(refuse("the token is bound to something unreadable"))?),
        };
        let fields = self.effects.values(&claims);
        let user = User {
            identity: self.name.clone(),
            subject: claims.get("sub").and_then(Json::as_str).unwrap_or_default().into(),
            scopes: self.effects.scopes(&claims),
            claims,
            expires: now() + Duration::from_secs_f64(left.min(MAX_LIFE)),
        };
        Ok(Pass { user: Arc::new(user), generation: keys.generation, fields, bound })
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
                self.effects.write(&mut rq.headers, &pass.fields);
                self.effects.consumer(rq, &pass.user.claims);
                rq.user = Some(pass.user.clone());
                AuthVerdict::Accepted
            }
        }
    }
}

/// Whether the caller holds the certificate that the token is bound to, if it is.
fn is_holder(pass: &Pass, rq: &RequestCx) -> bool {
    let shown = rq.workload.as_ref().map(|w| w.thumbprint);
    pass.bound.is_none_or(|bound| shown == Some(bound))
}

fn thumbprint(print: &Json) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(print.as_str()?).ok()?.try_into().ok()
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
        &self.effects.fields
    }

    fn challenge(&self, error: Option<&AuthError>) -> String {
        bearer::challenge(&self.name, error)
    }
}

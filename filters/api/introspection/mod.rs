//! Identity kind `introspection`: tokens that their issuer is asked about (RFC 7662).

mod config;
mod core;
mod flight;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderName, HeaderValue, StatusCode};
use quick_cache::sync::Cache;
use serde_json::Value as Json;

use self::config::{ClientAuth, Config};
use self::core::{Rules, Said};
use self::flight::Flights;
use super::bearer::{self, Effects, Wanted};
use crate::contract::client::{Bounds, Remote};
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::User;
use crate::contract::units::Duration as Time;
use crate::contract::{Build, ConfigError, Entry, Moment, Node, Place, RequestCx, Role, Spot, now};

/// Active tokens remembered per identity.
const ACTIVE: usize = 10_000;
/// Others, apart: what strangers invent must not push out what is good.
const INACTIVE: usize = 10_000;
/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "introspection",
    summary: "Tokens that their issuer is asked about",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Identity(build),
};

struct Introspection {
    name: Arc<str>,
    places: Vec<Place>,
    forward: bool,
    effects: Arc<Effects>,
    issuer: Arc<Issuer>,
    counters: Counters,
}

struct Counters {
    cached: Counter,
    active: Counter,
    inactive: Counter,
    failed: Counter,
}

/// Whom to ask, and what it said before. Outlives configs.
struct Issuer {
    remote: Remote,
    client: (String, String, ClientAuth),
    rules: Rules,
    bounds: Bounds,
    life: Duration,
    negative_life: Duration,
    active: Cache<[u8; 32], Arc<Pass>>,
    inactive: Cache<[u8; 32], (AuthError, Moment)>,
    flights: Arc<Flights<Verdict>>,
}

/// An active token.
struct Pass {
    user: Arc<User>,
    until: Moment,
    fields: Box<[(HeaderName, HeaderValue)]>,
}

/// What is known of a token.
#[derive(Clone)]
enum Verdict {
    Active(Arc<Pass>),
    Inactive(AuthError),
    /// The issuer gave no verdict.
    Failed,
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    Ok(Arc::new(introspection(node, build)?))
}

fn introspection(node: &Node, build: &mut Build<'_>) -> Result<Introspection, ConfigError> {
    let config: Config = node.read()?;
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope).to_owned();
    if let Some(none) = config.audiences.as_ref().filter(|a| a.value.is_empty()) {
        return Err(ConfigError::at(none.span, "no audience is accepted").help("name at least one, or remove the key"));
    }
    let bounded = |time: &Option<Spot<Time>>, default: Duration, low: Duration, high: Duration| match time {
        Some(t) if !(low..=high).contains(&t.value.0) => {
            let help = format!("from {} to {}", Time(low), Time(high));
            Err(ConfigError::at(t.span, format!("{} is out of range", t.value)).help(help))
        }
        Some(t) => Ok(t.value.0),
        None => Ok(default),
    };
    let life = bounded(&config.cache, config::CACHE, Duration::ZERO, config::MAX_CACHE)?;
    let negative_life = bounded(&config.negative_cache, config::NEGATIVE, Duration::ZERO, config::MAX_CACHE)?;
    let timeout = bounded(&config.timeout, config::TIMEOUT, Duration::from_millis(10), config::MAX_TIMEOUT)?;
    let places = bearer::places(config.from.as_ref())?;
    let wanted =
        Wanted { headers: config.claims_to_headers, scopes: config.scope_claims, consumer: config.consumer_claim };
    let effects = Effects::new(wanted, &places, build)?;
    let ca = config.ca.as_ref().map(|ca| build.path(&ca.value));
    let remote = Remote::new(&config.url.value, ca.as_deref(), config.allow_plaintext).map_err(|e| {
        ConfigError::at(config.url.span, e)
            .help("`https://...`; `http` for loopback hosts, or with `allowPlaintext: true`")
    })?;
    let secret =
        config.client_secret.value.reveal(&build.dir).map_err(|e| {
            ConfigError::at(config.client_secret.span, e).help("make the secret readable for this process")
        })?;
    // Anything that changes what a good token is, or what is made of it, starts with nothing remembered.
    let shape = format!("{:?}", digest(&SHA256, format!("{}\n{secret}", node.to_json()).as_bytes()));
    let issuer = build.keep("issuer", &shape, || Issuer {
        remote,
        client: (config.client_id.value, secret, config.client_auth),
        rules: Rules { issuer: config.issuer, audiences: config.audiences.map(|a| a.value) },
        bounds: Bounds { timeout, body: MAX_ANSWER, repeatable: true },
        life,
        negative_life,
        active: Cache::new(ACTIVE),
        inactive: Cache::new(INACTIVE),
        flights: Arc::default(),
    });
    let count = |result| {
        let labels = [("identity", name.as_str()), ("result", result)];
        build.metrics.counter("onehop_introspections_total", "Tokens that were judged, by result", &labels)
    };
    let counters = Counters {
        cached: count("cached"),
        active: count("active"),
        inactive: count("inactive"),
        failed: count("failed"),
    };
    Ok(Introspection {
        name: name.into(),
        places,
        forward: config.forward_token,
        effects: Arc::new(effects),
        issuer,
        counters,
    })
}

impl Issuer {
    /// What is remembered of a token.
    fn remembered(&self, key: &[u8; 32]) -> Option<Verdict> {
        let now = now();
        if let Some(pass) = self.active.get(key) {
            if now < pass.until {
                return Some(Verdict::Active(pass));
            }
            self.active.remove(key);
        }
        let (error, until) = self.inactive.get(key)?;
        if now < until {
            return Some(Verdict::Inactive(error));
        }
        self.inactive.remove(key);
        None
    }

    /// Asks, and remembers the answer.
    async fn ask(&self, key: [u8; 32], token: &str, name: &Arc<str>, effects: &Effects) -> Verdict {
        let said = match self.question(token).await {
            Ok(said) => said,
            Err(e) => {
                tracing::warn!(identity = &**name, "the issuer gave no verdict about a token: {e}");
                return Verdict::Failed;
            }
        };
        match said {
            Said::Inactive(description) => {
                let error = AuthError { code: "invalid_token", description };
                self.inactive.insert(key, (error.clone(), now() + self.negative_life));
                Verdict::Inactive(error)
            }
            Said::Active(claims, left) => {
                let left = left.map(|left| Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX));
                let now = now();
                let user = User {
                    identity: name.clone(),
                    subject: claims.get("sub").and_then(Json::as_str).unwrap_or_default().into(),
                    scopes: effects.scopes(&claims),
                    expires: left.map_or(Moment::MAX, |left| now + left),
                    claims,
                };
                let until = now + left.map_or(self.life, |left| left.min(self.life));
                let fields = effects.values(&user.claims);
                let pass = Arc::new(Pass { user: Arc::new(user), until, fields });
                self.active.insert(key, pass.clone());
                Verdict::Active(pass)
            }
        }
    }

    async fn question(&self, token: &str) -> Result<Said, String> {
        let path = self.remote.uri().path_and_query().map_or("/", |p| p.as_str());
        let (id, secret, auth) = &self.client;
        let question = core::question(path, id, secret, *auth, token).ok_or("the question cannot be written")?;
        let response = self.remote.call(question, self.bounds).await?;
        match response.status() {
            StatusCode::OK => {
                let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                core::answer(response.body(), &self.rules, unix.as_secs_f64())
            }
            StatusCode::UNAUTHORIZED => {
                Err("status 401: it does not take our `clientId` and `clientSecret`".to_owned())
            }
            other => Err(format!("status {}", other.as_u16())),
        }
    }
}

impl Introspection {
    fn settle(&self, rq: &mut RequestCx, verdict: Verdict, place: usize) -> AuthVerdict {
        match verdict {
            Verdict::Failed => {
                self.counters.failed.inc();
                AuthVerdict::Unavailable("the issuer could not be asked about the token")
            }
            Verdict::Inactive(error) => {
                self.counters.inactive.inc();
                AuthVerdict::Refused(error)
            }
            Verdict::Active(pass) => {
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

    async fn ask(&self, rq: &mut RequestCx, key: [u8; 32], token: String, place: usize) -> AuthVerdict {
        let start = || {
            let (issuer, name, effects) = (self.issuer.clone(), self.name.clone(), self.effects.clone());
            async move { issuer.ask(key, &token, &name, &effects).await }
        };
        let verdict = self.issuer.flights.join(key, start).await.unwrap_or(Verdict::Failed);
        if matches!(verdict, Verdict::Active(_)) {
            self.counters.active.inc();
        }
        self.settle(rq, verdict, place)
    }
}

impl Authenticator for Introspection {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        let (token, place) = match bearer::find(&self.places, rq) {
            Ok(None) => return AuthStep::Done(AuthVerdict::Absent),
            Ok(Some(found)) => found,
            Err(error) => return AuthStep::Done(self.settle(rq, Verdict::Inactive(error), 0)),
        };
        if !core::is_token(&token) {
            let error = AuthError { code: "invalid_token", description: "the token is malformed" };
            return AuthStep::Done(self.settle(rq, Verdict::Inactive(error), place));
        }
        let key: [u8; 32] = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(verdict) = self.issuer.remembered(&key) {
            if matches!(verdict, Verdict::Active(_)) {
                self.counters.cached.inc();
            }
            return AuthStep::Done(self.settle(rq, verdict, place));
        }
        let token = token.into_owned();
        AuthStep::Wait(Box::pin(self.ask(rq, key, token, place)))
    }

    fn claims_headers(&self) -> &[HeaderName] {
        &self.effects.fields
    }

    fn challenge(&self, error: Option<&AuthError>) -> String {
        bearer::challenge(&self.name, error)
    }
}

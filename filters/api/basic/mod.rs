//! Identity kind `basic`: names and passwords (RFC 7617), hashed by bcrypt or argon2.

mod config;
mod pool;
mod store;
#[cfg(test)]
mod tests;
mod users;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;

use self::pool::{POOL, Pool};
use self::store::{Credential, Store, Verdict, follow};
use self::users::Hash;
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::{Consumer, User};
use crate::contract::units::Secret;
use crate::contract::{Build, ConfigError, Entry, Held, Moment, Node, RequestCx, Role, Spot};
use config::Config;

/// Longest `Authorization` value, in bytes.
const MAX_CREDENTIAL: usize = 1024;
/// What makes a good hash, for those who have a bad one.
const CURE: &str = "make one with `htpasswd -nB NAME` (bcrypt) or an argon2 tool";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "basic",
    summary: "Names and passwords, from an htpasswd file or of consumers",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Identity(build),
};

/// `consumers.NAME.passwords`.
pub const PASSWORDS: Entry = Entry {
    name: "passwords",
    summary: "Names and hashed passwords of a consumer",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<Secret>>(),
    role: Role::Credential(|held, dir| passwords(held, dir).1),
};

struct Basic {
    name: Arc<str>,
    realm: Box<str>,
    store: Arc<Store>,
    /// `None`: names are users of a file, not consumers.
    owners: Option<BTreeMap<Box<str>, Arc<Consumer>>>,
    cache: Duration,
    pool: Arc<Pool>,
    counters: Counters,
}

struct Counters {
    cached: Counter,
    accepted: Counter,
    refused: Counter,
    overloaded: Counter,
}

/// Names with the hash of their password and the consumer they belong to.
type Owned = BTreeMap<Box<str>, (Hash, String)>;

/// The passwords of all consumers, with their owners. Every mistake is found.
fn passwords(held: &[Held], dir: &Path) -> (Owned, Vec<ConfigError>) {
    let mut all = Owned::new();
    let mut errors = Vec::new();
    for Held { owner, section } in held {
        let lines: Vec<Spot<Secret>> = section.read().unwrap_or_else(|e| {
            errors.push(e);
            Vec::new()
        });
        for line in lines {
            let text = line.value.reveal(dir).map_err(|e| (e, "make the secret readable for this process"));
            let read = text.and_then(|text| users::line(&text).map_err(|e| (e, CURE)));
            match read {
                Err((e, help)) => errors.push(ConfigError::at(line.span, e).help(help)),
                Ok((name, hash)) => {
                    if all.insert(name.clone(), (hash, owner.clone())).is_some() {
                        let message = format!("the user name `{name}` stands twice");
                        errors.push(ConfigError::at(line.span, message).help("a name has one owner: choose another"));
                    }
                }
            }
        }
    }
    (all, errors)
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    Ok(Arc::new(basic(node, build)?))
}

fn basic(node: &Node, build: &mut Build<'_>) -> Result<Basic, ConfigError> {
    let config: Config = node.read()?;
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope).to_owned();
    let cache = config.cache.as_ref().map_or(config::CACHE, |c| c.value.0);
    if let Some(c) = config.cache.as_ref().filter(|_| cache > config::MAX_CACHE) {
        return Err(ConfigError::at(c.span, format!("a cache of {} is too long", c.value)).help("at most 1h"));
    }
    let realm = config.realm.as_ref().map_or(name.as_str(), |r| r.value.as_str());
    if let Some(r) =
        config.realm.as_ref().filter(|r| r.value.chars().any(|c| !(' '..='~').contains(&c) || c == '"' || c == '\\'))
    {
        return Err(ConfigError::at(r.span, "the realm has characters that cannot stand in a challenge")
            .help("write printable ASCII without quotes"));
    }
    let (store, owners) = match &config.htpasswd {
        Some(path) => (from_file(path, &name, build)?, None),
        None => {
            let (held, mut errors) = passwords(build.directory.held(PASSWORDS.name), &build.dir);
            if let Some(e) = errors.drain(..).next() {
                return Err(e);
            }
            let owner = |(name, (_, owner)): (&Box<str>, &(Hash, String))| {
                Some((name.clone(), build.directory.consumers.get(owner)?.clone()))
            };
            let owners = held.iter().filter_map(owner).collect();
            let table: BTreeMap<Box<str>, Hash> = held.into_iter().map(|(name, (hash, _))| (name, hash)).collect();
            // Verdicts live on while nobody's password changes.
            let shape = format!("{table:?}");
            (build.keep("passwords", &shape, || Store::new(table)), Some(owners))
        }
    };
    let count = |result| {
        let labels = [("identity", name.as_str()), ("result", result)];
        build.metrics.counter("onehop_basic_total", "Names and passwords that were judged, by result", &labels)
    };
    let counters = Counters {
        cached: count("cached"),
        accepted: count("accepted"),
        refused: count("refused"),
        overloaded: count("overloaded"),
    };
    Ok(Basic { realm: realm.into(), store, owners, cache, pool: POOL.clone(), counters, name: name.into() })
}

/// Finds or makes the home of a file's users. Only a new one gets a background task.
fn from_file(path: &Spot<std::path::PathBuf>, name: &str, build: &mut Build<'_>) -> Result<Arc<Store>, ConfigError> {
    let full = build.path(&path.value);
    let mut first = None;
    let kept = build.keep("users", &full.display().to_string(), || {
        let store = Store::new(BTreeMap::new());
        first = Some(store::read(&full).and_then(|text| store.install(&text).map(|()| store::digest_of(&text))));
        store
    });
    if let Some(result) = first {
        let seen = result.map_err(|e| ConfigError::at(path.span, format!("{}: {e}", full.display())).help(CURE))?;
        build.background(follow(Arc::downgrade(&kept), full, name.to_owned(), Some(seen)));
    }
    Ok(kept)
}

/// What a request carries.
enum Sent {
    Nothing,
    Bad(AuthError),
    One(Credential),
}

/// RFC 7617 section 2: `Basic`, base64 of `name:password`, which is UTF-8 here (section 2.1 tells the client so).
fn sent(rq: &RequestCx) -> Sent {
    let bad = |description| Sent::Bad(AuthError { code: "invalid_request", description });
    let mut values = rq.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Sent::Nothing };
    let Some((scheme, encoded)) = value.to_str().ok().and_then(|v| v.trim().split_once(' ')) else {
        return Sent::Nothing;
    };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Sent::Nothing;
    }
    if values.next().is_some() {
        return bad("more than one credential was sent");
    }
    if encoded.len() > MAX_CREDENTIAL {
        return bad("the credential is too long");
    }
    let decoded = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((name, password)) if !name.chars().chain(password.chars()).any(char::is_control) => {
            Sent::One(Credential { name: name.into(), password: password.into() })
        }
        _ => bad("the credential is malformed"),
    }
}

impl Basic {
    fn settle(&self, rq: &mut RequestCx, verdict: &Verdict) -> AuthVerdict {
        let Verdict::Good(name) = verdict else {
            self.counters.refused.inc();
            // One sentence for both: which of the two is wrong is nobody's business.
            let description = "the name or the password is wrong";
            return AuthVerdict::Refused(AuthError { code: "invalid_token", description });
        };
        match &self.owners {
            Some(owners) => rq.consumer = owners.get(name).cloned(),
            None => {
                let sub = serde_json::Value::String(name.to_string());
                rq.user = Some(Arc::new(User {
                    identity: self.name.clone(),
                    subject: (**name).into(),
                    claims: [("sub".to_owned(), sub)].into_iter().collect(),
                    scopes: Vec::new(),
                    expires: Moment::MAX,
                }));
            }
        }
        rq.headers.remove(AUTHORIZATION);
        AuthVerdict::Accepted
    }

    async fn verify(&self, rq: &mut RequestCx, credential: Credential) -> AuthVerdict {
        let Some(turn) = self.pool.turn(rq.client_ip).await else {
            self.counters.overloaded.inc();
            return AuthVerdict::Unavailable("too many passwords are being checked");
        };
        // Requests that came together wait for one turn and share what it found.
        let key = self.store.key(&credential);
        let verdict = match self.store.remembered(&key, self.cache) {
            Some(verdict) => verdict,
            None => {
                let store = self.store.clone();
                match turn.run(move || store.judge(&credential)).await {
                    Some((verdict, generation)) => self.store.remember(key, verdict, generation),
                    None => return AuthVerdict::Unavailable("the password could not be checked"),
                }
            }
        };
        if matches!(*verdict, Verdict::Good(_)) {
            self.counters.accepted.inc();
        }
        self.settle(rq, &verdict)
    }
}

impl Authenticator for Basic {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        let credential = match sent(rq) {
            Sent::Nothing => return AuthStep::Done(AuthVerdict::Absent),
            Sent::Bad(error) => {
                self.counters.refused.inc();
                return AuthStep::Done(AuthVerdict::Refused(error));
            }
            Sent::One(credential) => credential,
        };
        if let Some(verdict) = self.store.remembered(&self.store.key(&credential), self.cache) {
            self.counters.cached.inc();
            return AuthStep::Done(self.settle(rq, &verdict));
        }
        AuthStep::Wait(Box::pin(self.verify(rq, credential)))
    }

    fn challenge(&self, _: Option<&AuthError>) -> String {
        format!("Basic realm=\"{}\", charset=\"UTF-8\"", self.realm)
    }
}

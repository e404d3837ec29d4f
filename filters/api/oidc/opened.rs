//! Sessions that were opened lately: each worker remembers its own, so that a cookie is not decrypted at every request.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use quick_cache::unsync::Cache;
use serde_json::Value as Json;

use super::revoked::{Revoked, Which};
use super::session::Session;
use super::{Core, seconds};
use crate::api::jose::fields::field_value;
use crate::api::jose::token::scopes;
use crate::contract::principal::User;
use crate::contract::{now, worker};

/// Sessions remembered by one worker.
const CACHED: usize = 1_000;
/// The revocation check that has not happened.
const NEVER: u64 = u64::MAX;

/// A session and what requests need of it.
pub struct Opened {
    pub session: Session,
    pub user: Arc<User>,
    pub fields: Box<[(HeaderName, HeaderValue)]>,
    /// The access token as it goes upstream.
    pub bearer: Option<HeaderValue>,
    /// The cookie it was read from.
    text: Box<str>,
    /// Number of the [`Core`] that opened it.
    by: u64,
    which: Vec<Which>,
    /// Generation of [`Revoked`] under which it was found good.
    checked: AtomicU64,
}

impl Opened {
    /// `None`: no claims.
    pub fn new(core: &Core, session: Session, text: &str) -> Option<Self> {
        let claims = session.claims()?;
        let subject = claims.get("sub").and_then(Json::as_str)?;
        let fields = core.claims.iter();
        let fields =
            fields.filter_map(|(claim, field)| Some((field.clone(), field_value(claims.get(claim)?)?))).collect();
        let mut which = vec![Which::Session(session.id.clone()), Which::Subject(subject.to_owned())];
        which.extend(claims.get("sid").and_then(Json::as_str).map(|sid| Which::Sid(sid.to_owned())));
        let bearer = session.access.as_ref().filter(|_| core.forward);
        let bearer = bearer.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let granted = session.scope.as_ref().map(|s| s.split_ascii_whitespace().map(Arc::from).collect());
        let user = User {
            identity: core.name.clone(),
            subject: subject.into(),
            scopes: granted.unwrap_or_else(|| scopes(&claims)),
            claims,
            expires: now() + Duration::from_secs((session.since + core.limits.max_age).saturating_sub(seconds())),
        };
        Some(Self {
            user: Arc::new(user),
            fields,
            bearer: bearer.map(|mut value| {
                value.set_sensitive(true);
                value
            }),
            text: text.into(),
            by: core.number,
            which,
            checked: AtomicU64::new(NEVER),
            session,
        })
    }

    /// The same session, opened by this very configuration.
    pub fn seen_by(opened: Arc<Self>, core: &Core) -> Option<Arc<Self>> {
        if opened.by == core.number {
            return Some(opened);
        }
        Self::new(core, opened.session.clone(), "").map(Arc::new)
    }

    /// Whether it is what the browser has, not a newer form of it.
    pub fn is_from_cookie(&self) -> bool {
        !self.text.is_empty()
    }

    /// Whether it ended before its time. Looked up once per logout anywhere, not once per request.
    pub fn is_revoked(&self, revoked: &Revoked) -> bool {
        let generation = revoked.generation();
        if self.checked.load(Relaxed) == generation {
            return false;
        }
        let over = revoked.has(self.session.since, &self.which);
        if !over {
            self.checked.store(generation, Relaxed);
        }
        over
    }
}

/// See the module.
pub struct Lately {
    /// Per worker. Contended by nobody.
    shards: Box<[Mutex<Cache<u64, Arc<Opened>>>]>,
    /// Random, so that nobody can aim at a place of the cache.
    seed: foldhash::quality::RandomState,
}

impl Default for Lately {
    fn default() -> Self {
        let shards = (0..worker::shards()).map(|_| Mutex::new(Cache::new(CACHED))).collect();
        Self { shards, seed: foldhash::quality::RandomState::default() }
    }
}

impl Lately {
    /// The session in a cookie's text: opened lately, or now.
    pub fn find(&self, core: &Core, text: &str) -> Option<Arc<Opened>> {
        let hash = self.seed.hash_one(text);
        let shard = &self.shards[worker::shard()];
        if let Some(found) = shard.lock().get(&hash).filter(|found| *found.text == *text) {
            return Some(found.clone());
        }
        let plain = core.keys.open(&core.session_purpose, text)?;
        let session: Session = serde_json::from_slice(&plain).ok()?;
        let opened = Arc::new(Opened::new(core, session, text)?);
        shard.lock().insert(hash, opened.clone());
        Some(opened)
    }
}

//! New tokens for old: once per session, however many requests ask at the same time on whichever workers, since a
//! refresh token that rotates is good once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::sync::watch;

use super::id_token::Expected;
use super::once::Once;
use super::opened::Opened;
use super::revoked::Revoked;
use super::tokens::Failure;
use super::{Core, seconds};
use crate::contract::{Moment, now};

/// Renewed sessions remembered, for requests that still carry the cookie of before.
const LATEST: usize = 10_000;
/// After a failure the issuer is left alone this long; sessions whose tokens still live go on with them.
const PAUSE: Duration = Duration::from_secs(2);

/// What a process knows about sessions beside what browsers carry; outlives configs.
pub struct Memory {
    /// Refreshes under way, by session. Locked for a look-up, by requests whose tokens expire.
    flights: Mutex<HashMap<String, watch::Receiver<Option<Outcome>>>>,
    /// The newest form of sessions that were renewed.
    latest: Cache<String, Arc<Opened>>,
    /// Whether anything was ever renewed: before, nobody needs to look.
    any: AtomicU64,
    /// Sessions that ended before their time.
    pub revoked: Revoked,
    /// States of logins that came back.
    pub states: Mutex<Once>,
    /// Ids of logout tokens.
    pub logouts: Mutex<Once>,
    /// When the issuer is worth another try, as a [`Moment`].
    resting: AtomicU64,
}

/// How a refresh ended.
#[derive(Clone)]
pub enum Outcome {
    Renewed(Arc<Opened>),
    /// The issuer says that it is over.
    Over,
    /// No answer.
    Down,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            flights: Mutex::default(),
            latest: Cache::new(LATEST),
            any: AtomicU64::new(0),
            revoked: Revoked::default(),
            states: Mutex::default(),
            logouts: Mutex::default(),
            resting: AtomicU64::new(0),
        }
    }
}

impl Memory {
    /// A newer form of the session than this one, as the configuration of `core` sees it.
    pub fn newer(&self, core: &Core, opened: &Opened) -> Option<Arc<Opened>> {
        if self.any.load(Relaxed) == 0 {
            return None;
        }
        let latest = self.latest.get(&opened.session.id)?;
        if latest.session.renewed > opened.session.renewed { Opened::seen_by(latest, core) } else { None }
    }

    /// Whether the issuer failed a moment ago.
    pub fn is_resting(&self) -> bool {
        now() < Moment(self.resting.load(Relaxed))
    }
}

impl Core {
    /// Renews a session's tokens, or waits for who does.
    pub(super) async fn refresh(self: &Arc<Self>, opened: &Arc<Opened>) -> Outcome {
        let mut flight = match self.join(opened) {
            Ok(outcome) => return outcome,
            Err(flight) => flight,
        };
        match flight.wait_for(Option::is_some).await {
            Ok(outcome) => match outcome.clone().unwrap_or(Outcome::Down) {
                Outcome::Renewed(renewed) => Opened::seen_by(renewed, self).map_or(Outcome::Over, Outcome::Renewed),
                other => other,
            },
            // The worker that flew is gone.
            Err(_) => Outcome::Down,
        }
    }

    fn join(self: &Arc<Self>, opened: &Arc<Opened>) -> Result<Outcome, watch::Receiver<Option<Outcome>>> {
        let mut flights = self.memory.flights.lock();
        // Under the lock: one that has just landed left its result before it left the list.
        if let Some(newer) = self.memory.newer(self, opened) {
            return Ok(Outcome::Renewed(newer));
        }
        if let Some(flight) = flights.get(&opened.session.id) {
            return Err(flight.clone());
        }
        let (told, flight) = watch::channel(None);
        flights.insert(opened.session.id.clone(), flight.clone());
        drop(flights);
        let (core, opened) = (self.clone(), opened.clone());
        // A task of its own: a request that is given up must not lose the new token with the old one spent.
        tokio::spawn(async move {
            let outcome = core.renew(&opened).await;
            let mut flights = core.memory.flights.lock();
            if let Outcome::Renewed(renewed) = &outcome {
                core.memory.latest.insert(renewed.session.id.clone(), renewed.clone());
                core.memory.any.store(1, Relaxed);
            }
            flights.remove(&opened.session.id);
            drop(flights);
            let _ = told.send(Some(outcome));
        });
        Err(flight)
    }

    async fn renew(&self, opened: &Opened) -> Outcome {
        let (outcome, counter) = match self.ask_anew(opened).await {
            Ok(renewed) => (Outcome::Renewed(Arc::new(renewed)), &self.counters.renewed),
            Err(Failure::Denied(why)) => {
                tracing::info!(identity = &*self.name, why, "a session could not be renewed and is over");
                (Outcome::Over, &self.counters.not_renewed)
            }
            Err(Failure::Unreachable(error)) => {
                tracing::warn!(identity = &*self.name, error, "a session could not be renewed for now");
                self.memory.resting.store((now() + PAUSE).0, Relaxed);
                (Outcome::Down, &self.counters.renewal_failed)
            }
        };
        counter.inc();
        outcome
    }

    async fn ask_anew(&self, opened: &Opened) -> Result<Opened, Failure> {
        let unknown = || Failure::Unreachable("the issuer has not been reached yet".to_owned());
        let endpoints = self.provider.endpoints().ok_or_else(unknown)?;
        let mut session = opened.session.clone();
        let old = session.refresh.take().ok_or(Failure::Denied("there is no refresh token"))?;
        let grant = [("grant_type", "refresh_token"), ("refresh_token", &old)];
        let tokens = self.client.ask(&endpoints, &grant).await?;
        if let Some(text) = &tokens.id_token {
            let claims = &opened.user.claims;
            let nonce = claims.get("nonce").and_then(serde_json::Value::as_str);
            // When the password was typed was asked at login.
            let expected =
                Expected { nonce, subject: Some(&opened.user.subject), max_auth_age: None, ..self.expected(&tokens) };
            self.verify(&endpoints, text, &expected).await?;
            session.id_token.clone_from(text);
        }
        let now = seconds();
        session.renewed += 1;
        session.seen = now;
        session.life = tokens.expires_in.as_ref().and_then(|s| s.whole()).map(|life| (now, now + life));
        session.access = self.forward.then_some(tokens.access_token);
        // RFC 6749 section 6: without a new one the old one stays.
        session.refresh = Some(tokens.refresh_token.unwrap_or(old));
        session.scope = tokens.scope.or(session.scope);
        Opened::new(self, session, "").ok_or(Failure::Denied("the renewed session has no claims"))
    }
}

//! `sessionPersistence`: a caller's requests go to the endpoint that answered its first one, by what that answer gave it.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use http::header::SET_COOKIE;

use self::config::{Section, Settings};
use self::core::Session;
use crate::contract::mesh::{Affinity, Endpoint, stable_hash};
use crate::contract::metrics::Counter;
use crate::contract::place::{Found, Place};
use crate::contract::seal::{Keys, LEAST_SECRET, random};
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::Secret;
use crate::contract::{Build, Entry, RequestCx, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "sessionPersistence",
    summary: "Keeps a caller at one endpoint, by a sealed cookie or field",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Affinity(build),
};

/// Longest text that is taken for a session of ours.
const LONGEST: usize = 128;

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Affinity>, ConfigError> {
    let section: Section = node.read()?;
    let settings = section.settings(node)?;
    let made = section.secret.is_none().then(|| build.keep("sessionSecret", "", random::<LEAST_SECRET>));
    let secrets = secrets(&section, made.as_deref(), &build.dir)?;
    let service = crate::mesh::service_of(&build.scope).to_owned();
    let count = |result: &'static str| {
        let labels = [("service", service.as_str()), ("result", result)];
        build.metrics.counter("onehop_session_total", "Answers to requests by what became of their session.", &labels)
    };
    let counts = Counts { kept: count("kept"), begun: count("new"), moved: count("moved") };
    Ok(Arc::new(Persistence {
        settings,
        keys: Keys::new(secrets.iter().map(Vec::as_slice)),
        // Whoever shares a secret between services does not share sessions.
        purpose: format!("sessionPersistence {service}"),
        _made: made,
        mark: stable_hash(&[service.as_bytes()]),
        counts,
    }))
}

/// What sessions are sealed with: as configured, or made once in the life of the process.
fn secrets(section: &Section, made: Option<&[u8; LEAST_SECRET]>, dir: &Path) -> Result<Vec<Vec<u8>>, ConfigError> {
    let read = |secret: &Spot<Secret>| {
        let text = secret.value.reveal(dir).map_err(|e| ConfigError::at(secret.span, e))?;
        if text.len() < LEAST_SECRET {
            return Err(ConfigError::at(secret.span, format!("the secret is shorter than {LEAST_SECRET} bytes"))
                .help("make one with `openssl rand -base64 48`"));
        }
        Ok(text.into_bytes())
    };
    let mut secrets: Vec<Vec<u8>> = made.iter().map(|made| made.to_vec()).collect();
    if let Some(secret) = &section.secret {
        secrets.push(read(secret)?);
    }
    for secret in &section.previous_secrets {
        secrets.push(read(secret)?);
    }
    Ok(secrets)
}

struct Persistence {
    settings: Settings,
    keys: Keys,
    purpose: String,
    /// The secret that was made at start: it lives as long as a config uses it.
    _made: Option<Arc<[u8; LEAST_SECRET]>>,
    /// Tells this service's note on a request from that of another (a fallback).
    mark: u64,
    counts: Counts,
}

struct Counts {
    kept: Counter,
    begun: Counter,
    moved: Counter,
}

/// The session that a request brought.
struct Brought {
    mark: u64,
    session: Session,
}

impl Affinity for Persistence {
    fn wanted(&self, rq: &mut RequestCx) -> Option<u64> {
        let text = match self.settings.place.find(rq) {
            Found::Absent => return None,
            Found::One(text) => Some(text),
            Found::Ambiguous => None,
        };
        // Ours, not the endpoint's: it could be replayed by whoever reads the endpoint's log.
        self.settings.place.strip(rq);
        let sealed = text.filter(|text| text.len() <= LONGEST)?;
        let session = self.keys.open(&self.purpose, &sealed).and_then(|plain| Session::read(&plain))?;
        if !session.lives(&self.settings, wall()) {
            return None;
        }
        rq.scratch.put(Brought { mark: self.mark, session });
        Some(session.endpoint)
    }

    fn answered(&self, rq: &mut RequestCx, endpoint: &Endpoint) {
        let brought = rq.scratch.find::<Brought>().filter(|b| b.mark == self.mark).map(|b| b.session);
        let now = wall();
        let session = match brought {
            Some(session) if session.endpoint == endpoint.id => {
                self.counts.kept.inc();
                if !session.is_stale(&self.settings, now) {
                    return;
                }
                Session { used: now, ..session }
            }
            other => {
                if other.is_some() { &self.counts.moved } else { &self.counts.begun }.inc();
                Session::begin(endpoint.id, now)
            }
        };
        self.hand_out(rq, session, now);
    }
}

impl Persistence {
    fn hand_out(&self, rq: &mut RequestCx, session: Session, now: u64) {
        let sealed = self.keys.seal(&self.purpose, &session.write());
        let (name, value) = match &self.settings.place {
            Place::Header(name) => (name.clone(), sealed),
            Place::Cookie(_) | Place::Query(_) => {
                let (before, after) = &self.settings.around;
                let age = match self.settings.absolute.filter(|_| self.settings.permanent) {
                    Some(limit) => {
                        let left = limit.as_secs().saturating_sub(now.saturating_sub(session.created));
                        format!("; Max-Age={left}")
                    }
                    None => String::new(),
                };
                let secure = if rq.https { "; Secure" } else { "" };
                (SET_COOKIE, format!("{before}{sealed}{after}{age}{secure}"))
            }
        };
        if let Ok(value) = HeaderValue::try_from(value) {
            rq.reply_headers.push((name, value));
        }
    }
}

/// Seconds since 1970.
fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

//! Identity kind `oidc`: people log in at an issuer (OpenID Connect Core 1.0), the browser keeps a sealed cookie, and
//! tokens stay here.

mod assertion;
mod browser;
mod build;
mod config;
mod cookies;
mod id_token;
mod login;
mod logout;
mod once;
mod opened;
mod provider;
mod refresh;
mod revoked;
mod session;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, SET_COOKIE};
use http::{HeaderName, Response};
use serde_json::Value as Json;

use crate::api::jose::keys::Algorithm;
use crate::api::jose::token::Rules;
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::Consumer;
use crate::contract::seal::Keys;
use crate::contract::trail::Outcome as Decided;
use crate::contract::{Body, Entry, Fault, RequestCx, Role};
use cookies::Jar;
use opened::{Lately, Opened};
use provider::Provider;
use refresh::{Memory, Outcome};
use session::{Limits, Session};
use tokens::Client;

const NAME: &str = "oidc";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Browser login at an OpenID Connect issuer, kept in a sealed cookie",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Config>(),
    role: Role::Identity(build::build),
};

/// The identity as the engine holds it.
struct Oidc(Arc<Core>);

/// The identity as its own tasks hold it.
struct Core {
    /// Unique in the process: what one configuration made of a session is not what another would.
    number: u64,
    name: Arc<str>,
    client: Client,
    /// Issuer and audience of every token.
    rules: Rules,
    algorithms: Vec<Algorithm>,
    /// Space-delimited.
    scope: String,
    parameters: Vec<(String, String)>,
    /// Seconds.
    max_auth_age: Option<u64>,
    userinfo: bool,
    redirect_path: String,
    logout_path: String,
    /// Both, and where logout tokens are posted.
    paths: Vec<Box<str>>,
    after_logout: String,
    local_logout: bool,
    forward: bool,
    claims: Vec<(String, HeaderName)>,
    fields: Vec<HeaderName>,
    consumer_claim: Option<String>,
    consumers: BTreeMap<String, Arc<Consumer>>,
    jar: Jar,
    /// `sameSite: strict`.
    strict: bool,
    limits: Limits,
    keys: Keys,
    /// What a sealed text is good for: another identity's cookie is not this one's.
    session_purpose: String,
    login_purpose: String,
    provider: Arc<Provider>,
    lately: Arc<Lately>,
    memory: Arc<Memory>,
    counters: Counters,
}

struct Counters {
    begun: Counter,
    completed: Counter,
    failed: Counter,
    invalid: Counter,
    over: Counter,
    revoked: Counter,
    renewed: Counter,
    not_renewed: Counter,
    renewal_failed: Counter,
    logged_out: Counter,
    logged_out_by_issuer: Counter,
}

/// Unix time in whole seconds.
fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

const fn invalid(description: &'static str) -> AuthVerdict {
    AuthVerdict::Refused(AuthError { code: "invalid_request", description })
}

/// What a look at a request's cookie gave.
enum Seen {
    /// No session that is good.
    Nothing,
    Good(Arc<Opened>),
    /// Its tokens are to be renewed first.
    Expiring(Arc<Opened>),
}

impl Core {
    fn is_own(&self, path: &str) -> bool {
        self.paths.iter().any(|own| **own == *path)
    }

    fn look(&self, rq: &mut RequestCx) -> Seen {
        let Some(text) = self.jar.find(&rq.headers) else { return Seen::Nothing };
        let Some(opened) = self.lately.find(self, &text) else {
            self.counters.invalid.inc();
            self.forget(rq);
            return Seen::Nothing;
        };
        let now = seconds();
        // Its newest form: other requests may have renewed it since the browser sent this one.
        let newest = self.memory.newer(self, &opened).unwrap_or(opened);
        if newest.session.left(self.limits, now) == 0 {
            self.counters.over.inc();
            self.forget(rq);
            return Seen::Nothing;
        }
        if newest.is_revoked(&self.memory.revoked) {
            self.counters.revoked.inc();
            self.forget(rq);
            return Seen::Nothing;
        }
        if newest.session.wants_refresh(now) && !rq.dry_run {
            return Seen::Expiring(newest);
        }
        Seen::Good(newest)
    }

    async fn renew_first(self: &Arc<Self>, rq: &mut RequestCx, opened: Arc<Opened>) -> AuthVerdict {
        let expired = opened.session.has_expired(seconds());
        let outcome = if self.memory.is_resting() { Outcome::Down } else { self.refresh(&opened).await };
        match outcome {
            Outcome::Renewed(renewed) => {
                rq.trail.note(NAME, Decided::Pass, "renewed", u64::from(renewed.session.renewed), Duration::ZERO);
                self.accept(rq, &renewed)
            }
            Outcome::Down if !expired => self.accept(rq, &opened),
            Outcome::Down => AuthVerdict::Unavailable("the issuer does not answer, and the session is to be renewed"),
            Outcome::Over => {
                self.counters.over.inc();
                self.forget(rq);
                AuthVerdict::Absent
            }
        }
    }

    fn accept(&self, rq: &mut RequestCx, opened: &Opened) -> AuthVerdict {
        let now = seconds();
        // A renewed session is not the one in the browser's cookie; a used one says so from time to time.
        let changed = !opened.is_from_cookie() && self.jar.find(&rq.headers).is_some();
        if (changed || opened.session.is_stale(self.limits, now)) && !rq.dry_run {
            let session = Session { seen: now, ..opened.session.clone() };
            if !self.write(rq, &session) {
                tracing::warn!(identity = &*self.name, "a renewed session does not fit into cookies");
            }
        }
        for field in &self.fields {
            rq.headers.remove(field);
        }
        for (field, value) in &opened.fields {
            rq.headers.insert(field.clone(), value.clone());
        }
        if let Some(bearer) = &opened.bearer {
            rq.headers.insert(AUTHORIZATION, bearer.clone());
        }
        if let Some(claim) = &self.consumer_claim {
            let named = opened.user.claims.get(claim).and_then(Json::as_str);
            rq.consumer = named.and_then(|name| self.consumers.get(name)).cloned();
        }
        rq.user = Some(opened.user.clone());
        AuthVerdict::Accepted
    }

    /// Gives the browser a session to keep; false: it is too long.
    fn write(&self, rq: &mut RequestCx, session: &Session) -> bool {
        let plain = serde_json::to_vec(session).expect("text is JSON");
        let sealed = self.keys.seal(&self.session_purpose, &plain);
        let left = session.left(self.limits, session.seen);
        let Some(lines) = self.jar.keep(&rq.headers, &sealed, left) else { return false };
        rq.reply_headers.extend(lines.into_iter().map(|line| (SET_COOKIE, line)));
        true
    }

    fn forget(&self, rq: &mut RequestCx) {
        let lines = self.jar.forget(&rq.headers);
        rq.reply_headers.extend(lines.into_iter().map(|line| (SET_COOKIE, line)));
    }
}

impl Authenticator for Oidc {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        let core = &self.0;
        let path = rq.path();
        if core.is_own(path) && !rq.dry_run {
            return if path == core.redirect_path {
                AuthStep::Wait(Box::pin(core.finish(rq)))
            } else if path == core.logout_path {
                AuthStep::Done(core.logout(rq))
            } else {
                AuthStep::Wait(Box::pin(core.backchannel(rq)))
            };
        }
        match core.look(rq) {
            Seen::Good(opened) => AuthStep::Done(core.accept(rq, &opened)),
            Seen::Expiring(opened) => AuthStep::Wait(Box::pin(core.renew_first(rq, opened))),
            // A page that is opened right after a start waits a moment for the issuer, rather than to be turned away.
            Seen::Nothing if core.provider.is_starting() && !rq.dry_run && browser::is_navigation(rq) => {
                AuthStep::Wait(Box::pin(async move {
                    core.provider.settled().await;
                    AuthVerdict::Absent
                }))
            }
            Seen::Nothing => AuthStep::Done(AuthVerdict::Absent),
        }
    }

    fn claims_headers(&self) -> &[HeaderName] {
        &self.0.fields
    }

    fn cookie(&self) -> Option<&str> {
        Some(&self.0.jar.name)
    }

    fn paths(&self) -> &[Box<str>] {
        &self.0.paths
    }

    fn invite(&self, rq: &mut RequestCx) -> Option<Result<Response<Body>, Fault>> {
        self.0.begin(rq)
    }

    /// There is no registered scheme for cookies; a 401 must have a challenge all the same (RFC 9110 section 15.5.2).
    fn challenge(&self, _: Option<&AuthError>) -> String {
        format!("Cookie realm=\"{}\"", self.0.name)
    }
}

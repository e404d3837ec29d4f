//! `auth`: who may use a route. Any of several identities, then workload, scopes and rules; deny wins.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{COOKIE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response};

use crate::contract::filter::{Asks, AuthError, AuthStep, AuthVerdict, Authenticator, Filter, Step, Verdict};
use crate::contract::metrics::Counter;
use crate::contract::place::strip_cookie_family;
use crate::contract::{
    Body, Build, ConfigError, Directory, Entry, Expr, Fault, Judged, Node, Phase, Reason, RequestCx, Role, RouteView,
    Spot,
};
use config::{Config, Many};

const NAME: &str = "auth";
/// What a caller is told to wait where keys are not there yet.
const RETRY_AFTER_KEYS: HeaderValue = HeaderValue::from_static("5");

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Who may use the route: identities, workloads, scopes, CEL rules",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Auth, implied, build },
};

/// On routes without `auth` nobody may send the fields that claims become either, and no session goes upstream.
fn implied(_: &RouteView<'_>, directory: &Directory) -> bool {
    directory.identities.values().any(|i| !i.claims_headers().is_empty() || i.cookie().is_some())
}

struct Auth {
    identities: Vec<Arc<dyn Authenticator>>,
    optional: bool,
    /// `None`: no `allow`. Empty: nobody.
    allow: Option<Vec<Expr>>,
    deny: Vec<Expr>,
    workloads: Option<Vec<Pattern>>,
    scopes: Vec<Box<str>>,
    /// Fields of all identities, removed before anything else happens.
    scrub: Vec<HeaderName>,
    /// Cookies of all identities, removed before the request goes on.
    cookies: Vec<Box<str>>,
    /// `None` where the filter only scrubs.
    counters: Option<Counters>,
}

struct Counters {
    allowed: Counter,
    unauthenticated: Counter,
    forbidden: Counter,
    unavailable: Counter,
}

enum Pattern {
    Exact(Box<str>),
    /// Up to and with the last slash.
    Below(Box<str>),
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let mut scrub: Vec<HeaderName> =
        build.directory.identities.values().flat_map(|i| i.claims_headers().iter().cloned()).collect();
    scrub.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    scrub.dedup();
    let cookies: Vec<Box<str>> =
        build.directory.identities.values().filter_map(|i| i.cookie()).map(Into::into).collect();
    let Some(node) = node else {
        return Ok(Arc::new(Auth {
            identities: Vec::new(),
            optional: true,
            allow: None,
            deny: Vec::new(),
            workloads: None,
            scopes: Vec::new(),
            scrub,
            cookies,
            counters: None,
        }));
    };
    let config: Config = node.read()?;
    let checks = config.require.is_some()
        || config.allow.is_some()
        || config.deny.is_some()
        || config.workloads.is_some()
        || !config.scopes.is_empty();
    if !checks {
        return Err(ConfigError::at(node.span, "`auth` checks nothing")
            .help("name an identity in `require`, or write `allow`, `deny`, `workloads` or `scopes`"));
    }
    if config.optional && config.require.is_none() {
        return Err(ConfigError::at(node.span, "`optional` without `require`").help("name the identities in `require`"));
    }
    let names = config.require.map_or_else(Vec::new, |Many(names)| names);
    if names.is_empty() && node.get("require").is_some() {
        return Err(ConfigError::at(node.span, "`require` names no identity"));
    }
    let identities = names
        .iter()
        .map(|Spot { span, value }| {
            let all = &build.directory.identities;
            all.get(value)
                .cloned()
                .ok_or_else(|| ConfigError::unknown(*span, "identity", value, all.keys().map(String::as_str)))
        })
        .collect::<Result<_, _>>()?;
    let rules = |many: Option<Many>| many.map(|Many(list)| conditions(&list)).transpose();
    let count = |result| {
        let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
        build.metrics.counter(
            "onehop_auth_requests_total",
            "Requests that the auth filter judged, by result",
            &[("route", route), ("result", result)],
        )
    };
    Ok(Arc::new(Auth {
        identities,
        optional: config.optional,
        allow: rules(config.allow)?,
        deny: rules(config.deny)?.unwrap_or_default(),
        workloads: config.workloads.map(|l| l.iter().map(pattern).collect::<Result<_, _>>()).transpose()?,
        scopes: config.scopes.into_iter().map(|s| s.value.into()).collect(),
        scrub,
        cookies,
        counters: Some(Counters {
            allowed: count("allowed"),
            unauthenticated: count("unauthenticated"),
            forbidden: count("forbidden"),
            unavailable: count("unavailable"),
        }),
    }))
}

fn conditions(list: &[Spot<String>]) -> Result<Vec<Expr>, ConfigError> {
    list.iter().map(|Spot { span, value }| Expr::condition(value, *span)).collect()
}

fn pattern(text: &Spot<String>) -> Result<Pattern, ConfigError> {
    let value = text.value.as_str();
    let below = value.strip_suffix('*').filter(|p| p.ends_with('/'));
    if value.is_empty() || below.unwrap_or(value).contains('*') {
        return Err(ConfigError::at(text.span, format!("`{value}` is not a workload pattern"))
            .help("write an exact id, or one that ends in `/*`, such as `spiffe://corp/ns/web/*`"));
    }
    Ok(below.map_or_else(|| Pattern::Exact(value.into()), |p| Pattern::Below(p.into())))
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Below(prefix) => name.strip_prefix(&**prefix).is_some_and(|rest| !rest.is_empty()),
        }
    }
}

impl Filter for Auth {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let judged = rq.scratch.take::<Judged>();
        if judged.as_ref().is_some_and(|judged| self.has_accepted(judged)) {
            // The fields were scrubbed before the identity wrote its own.
            let tried = Tried { accepted: true, ..Tried::default() };
            return Step::Done(self.conclude(rq, tried));
        }
        for name in &self.scrub {
            rq.headers.remove(name);
        }
        if self.counters.is_none() {
            self.keep_cookies(rq);
            return Step::NEXT;
        }
        let mut tried = Tried::default();
        if let Some(judged) = judged {
            return self.resume(rq, tried, judged);
        }
        for (at, identity) in self.identities.iter().enumerate() {
            let verdict = match identity.authenticate(rq) {
                AuthStep::Done(verdict) => Some(verdict),
                AuthStep::Wait(_) => None,
            };
            // Asked again inside the future, which may hold the request for longer than this loop.
            let Some(verdict) = verdict else {
                return Step::Wait(Box::pin(self.wait(rq, at, tried, Judged::default())));
            };
            if tried.note(at, verdict) {
                break;
            }
        }
        Step::Done(self.conclude(rq, tried))
    }

    fn asks(&self) -> Asks<'_> {
        Asks { identities: &self.identities, optional: self.optional }
    }
}

/// What became of the identities so far.
#[derive(Default)]
struct Tried {
    accepted: bool,
    refused: Vec<(usize, AuthError)>,
    unavailable: Option<&'static str>,
    reply: Option<Box<Response<Body>>>,
}

impl Tried {
    /// Whether that settles it.
    fn note(&mut self, at: usize, verdict: AuthVerdict) -> bool {
        match verdict {
            AuthVerdict::Accepted => self.accepted = true,
            AuthVerdict::Absent => {}
            AuthVerdict::Refused(error) => self.refused.push((at, error)),
            AuthVerdict::Unavailable(why) => self.unavailable = Some(why),
            AuthVerdict::Reply(reply) => self.reply = Some(reply),
        }
        self.accepted || self.reply.is_some()
    }
}

impl Auth {
    /// Whether the request was accepted when its route was chosen: by whom it was then is who it is now, also where an
    /// identity that stands before that one was not asked.
    fn has_accepted(&self, judged: &Judged) -> bool {
        self.identities.iter().any(|i| matches!(judged.verdict(i), Some(AuthVerdict::Accepted)))
    }

    /// Goes on where the choice of the route left off.
    fn resume<'a>(&'a self, rq: &'a mut RequestCx, mut tried: Tried, mut judged: Judged) -> Step<'a> {
        if self.identities.iter().any(|i| judged.verdict(i).is_none()) {
            return Step::Wait(Box::pin(self.wait(rq, 0, tried, judged)));
        }
        for (at, identity) in self.identities.iter().enumerate() {
            if judged.take(identity).is_some_and(|verdict| tried.note(at, verdict)) {
                break;
            }
        }
        Step::Done(self.conclude(rq, tried))
    }

    async fn wait(&self, rq: &mut RequestCx, from: usize, mut tried: Tried, mut judged: Judged) -> Verdict {
        for (at, identity) in self.identities.iter().enumerate().skip(from) {
            let verdict = match judged.take(identity) {
                Some(verdict) => verdict,
                None => match identity.authenticate(rq) {
                    AuthStep::Done(verdict) => verdict,
                    AuthStep::Wait(later) => later.await,
                },
            };
            if tried.note(at, verdict) {
                break;
            }
        }
        self.conclude(rq, tried)
    }

    fn conclude(&self, rq: &mut RequestCx, mut tried: Tried) -> Verdict {
        if let Some(reply) = tried.reply.take() {
            return Verdict::Reply(reply);
        }
        let counters = self.counters.as_ref().expect("a filter that only scrubs never concludes");
        let fault = match self.judge(rq, &tried) {
            Ok(()) => {
                counters.allowed.inc();
                self.keep_cookies(rq);
                return Verdict::Next;
            }
            Err(fault) => fault,
        };
        if fault.reason == Reason::Unauthenticated
            && let Some(invitation) = self.identities.iter().find_map(|identity| identity.invite(rq))
        {
            counters.unauthenticated.inc();
            return match invitation {
                Ok(reply) => Verdict::Reply(Box::new(reply)),
                Err(fault) => Verdict::Fail(Box::new(fault.by(NAME))),
            };
        }
        match fault.reason {
            Reason::Unauthenticated => counters.unauthenticated.inc(),
            Reason::IdentityUnavailable => counters.unavailable.inc(),
            _ => counters.forbidden.inc(),
        }
        Verdict::Fail(Box::new(fault.by(NAME)))
    }

    /// Sessions stay here: what stands behind us could use them as the browser does.
    fn keep_cookies(&self, rq: &mut RequestCx) {
        if rq.headers.contains_key(COOKIE) {
            self.cookies.iter().for_each(|name| strip_cookie_family(rq, name));
        }
    }

    fn judge(&self, rq: &RequestCx, tried: &Tried) -> Result<(), Fault> {
        if !self.identities.is_empty() && !tried.accepted {
            // A credential that cannot be judged is never a pass, even where credentials are optional.
            if let Some(why) = tried.unavailable {
                return Err(Fault::new(Reason::IdentityUnavailable).detail(why).header(RETRY_AFTER, RETRY_AFTER_KEYS));
            }
            if !(self.optional && tried.refused.is_empty()) {
                return Err(self.unauthenticated(tried));
            }
        }
        if let Some(patterns) = &self.workloads {
            let known = rq.workload.as_ref().is_some_and(|w| patterns.iter().any(|p| p.fits(&w.id)));
            if !known {
                return Err(Fault::new(Reason::Forbidden).detail("the calling workload is not on the list"));
            }
        }
        if !self.scopes.iter().all(|s| has_scope(rq, s)) {
            return Err(self.insufficient_scope(rq));
        }
        if self.deny.iter().any(|rule| rule.truth(rq) != Some(false)) {
            return Err(Fault::new(Reason::Forbidden).detail("a deny rule holds"));
        }
        match &self.allow {
            Some(rules) if !rules.iter().any(|rule| rule.bool(rq)) => {
                Err(Fault::new(Reason::Forbidden).detail("no allow rule holds"))
            }
            _ => Ok(()),
        }
    }

    /// 401 with a challenge for every identity tried (RFC 9110 section 11.6.1).
    fn unauthenticated(&self, tried: &Tried) -> Fault {
        let detail = match tried.refused.first() {
            Some((_, error)) => error.description,
            None => "no credential was sent",
        };
        let mut fault = Fault::new(Reason::Unauthenticated).detail(detail);
        for (at, identity) in self.identities.iter().enumerate() {
            let error = tried.refused.iter().find(|(i, _)| *i == at).map(|(_, e)| e);
            if let Ok(challenge) = HeaderValue::try_from(identity.challenge(error)) {
                fault = fault.header(WWW_AUTHENTICATE, challenge);
            }
        }
        fault
    }

    /// RFC 6750 section 3.1: a good token without the scope.
    fn insufficient_scope(&self, rq: &RequestCx) -> Fault {
        let fault = Fault::new(Reason::Forbidden).detail("a scope is missing");
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", self.scopes.join(" "));
        match HeaderValue::try_from(challenge) {
            Ok(challenge) if rq.user.is_some() => fault.header(WWW_AUTHENTICATE, challenge),
            _ => fault,
        }
    }
}

fn has_scope(rq: &RequestCx, scope: &str) -> bool {
    let user = rq.user.iter().flat_map(|u| u.scopes.iter());
    let consumer = rq.consumer.iter().flat_map(|c| c.scopes.iter());
    user.chain(consumer).any(|s| **s == *scope)
}

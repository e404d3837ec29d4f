//! `auth`: who may use a route. Identities first, then workload, consumer, plan, scopes and rules; deny wins.

mod config;
#[cfg(test)]
mod tests;
mod tried;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::header::{COOKIE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue};

use crate::contract::filter::{Asks, AuthStep, AuthVerdict, Authenticator, Filter, Step, Verdict};
use crate::contract::metrics::Counter;
use crate::contract::place::strip_cookie_family;
use crate::contract::{
    Attempted, Build, ConfigError, Directory, Entry, Expr, Fault, Judged, Moment, Node, Phase, Reason, RequestCx, Role,
    RouteView, Spot, now,
};
use config::{Config, Many, Ways};
use tried::{State, Tried};

const NAME: &str = "auth";
/// Least time between two log lines of a route about what a dry run let pass; the metric counts all.
const AUDIT_GAP: Duration = Duration::from_secs(1);
/// What a caller is told to wait where keys are not there yet.
const RETRY_AFTER_KEYS: HeaderValue = HeaderValue::from_static("5");

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Who may use the route: identities, workloads, consumers, plans, scopes, CEL rules",
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
    /// Names of `identities`.
    names: Vec<Box<str>>,
    ways: Vec<Vec<usize>>,
    optional: bool,
    /// `None`: no `allow`. Empty: nobody.
    allow: Option<Vec<Expr>>,
    deny: Vec<Expr>,
    workloads: Option<Vec<Pattern>>,
    consumers: Option<Vec<Box<str>>>,
    plans: Option<Vec<Box<str>>>,
    scopes: Vec<Box<str>>,
    /// Rules are looked at and not enforced.
    audit: bool,
    /// When a dry run last wrote a line; 0 = never.
    audited: AtomicU64,
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
    audited: Counter,
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
            names: Vec::new(),
            ways: Vec::new(),
            optional: true,
            allow: None,
            deny: Vec::new(),
            workloads: None,
            consumers: None,
            plans: None,
            scopes: Vec::new(),
            audit: false,
            audited: AtomicU64::new(0),
            scrub,
            cookies,
            counters: None,
        }));
    };
    let config: Config = node.read()?;
    let rules = config.allow.is_some()
        || config.deny.is_some()
        || config.workloads.is_some()
        || config.consumers.is_some()
        || config.plans.is_some()
        || !config.scopes.is_empty();
    if config.require.is_none() && !rules {
        return Err(ConfigError::at(node.span, "`auth` checks nothing")
            .help("name an identity in `require`, or write `allow`, `deny`, `workloads`, `consumers` or `scopes`"));
    }
    if config.audit && !rules {
        return Err(ConfigError::at(node.span, "`audit` without a rule")
            .help("write `allow`, `deny`, `workloads`, `consumers`, `plans` or `scopes`; `require` always acts"));
    }
    if config.optional && config.require.is_none() {
        return Err(ConfigError::at(node.span, "`optional` without `require`").help("name the identities in `require`"));
    }
    let required = config.require.map_or_else(Vec::new, |Ways(ways)| ways);
    if let Some(require) = node.get("require").filter(|_| required.is_empty() || required.iter().any(Vec::is_empty)) {
        return Err(ConfigError::at(require.span, "`require` names no identity").help("name one under `identities`"));
    }
    let (mut identities, mut names): (Vec<Arc<dyn Authenticator>>, Vec<Box<str>>) = (Vec::new(), Vec::new());
    let mut ways = Vec::with_capacity(required.len());
    for way in &required {
        let mut positions = Vec::with_capacity(way.len());
        for Spot { span, value } in way {
            let all = &build.directory.identities;
            let identity = all.get(value);
            let identity = identity
                .ok_or_else(|| ConfigError::unknown(*span, "identity", value, all.keys().map(String::as_str)))?;
            positions.push(names.iter().position(|name| **name == **value).unwrap_or(names.len()));
            if positions.last() == Some(&names.len()) {
                names.push(value.as_str().into());
                identities.push(identity.clone());
            }
        }
        ways.push(positions);
    }
    let consumers = listed(config.consumers, "consumer", &build.directory.consumers)?;
    let plans = listed(config.plans, "plan", &build.directory.plans)?;
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
        names,
        ways,
        optional: config.optional,
        allow: rules(config.allow)?,
        deny: rules(config.deny)?.unwrap_or_default(),
        workloads: config.workloads.map(|l| l.iter().map(pattern).collect::<Result<_, _>>()).transpose()?,
        consumers,
        plans,
        scopes: config.scopes.into_iter().map(|s| s.value.into()).collect(),
        audit: config.audit,
        audited: AtomicU64::new(0),
        scrub,
        cookies,
        counters: Some(Counters {
            allowed: count("allowed"),
            unauthenticated: count("unauthenticated"),
            forbidden: count("forbidden"),
            unavailable: count("unavailable"),
            audited: count("audited"),
        }),
    }))
}

/// Names that exist in a part of the directory.
fn listed<T>(
    many: Option<Many>,
    kind: &str,
    known: &BTreeMap<String, T>,
) -> Result<Option<Vec<Box<str>>>, ConfigError> {
    let Some(Many(names)) = many else { return Ok(None) };
    let one = |name: Spot<String>| match known.contains_key(&name.value) {
        true => Ok(name.value.into()),
        false => Err(ConfigError::unknown(name.span, kind, &name.value, known.keys().map(String::as_str))),
    };
    names.into_iter().map(one).collect::<Result<_, _>>().map(Some)
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
        // Where a route was chosen by claims, fields were scrubbed before the identity that was accepted wrote its own.
        if !judged.as_ref().is_some_and(|judged| self.has_accepted(judged)) {
            for name in &self.scrub {
                rq.headers.remove(name);
            }
        }
        if self.counters.is_none() {
            self.keep_cookies(rq);
            return Step::NEXT;
        }
        let mut tried = Tried::new(self.identities.len());
        // What was found out when the route was chosen; whoever accepted the request then is who it is now.
        if let Some(mut judged) = judged {
            for (at, identity) in self.identities.iter().enumerate() {
                if let Some(verdict) = judged.take(identity) {
                    tried.note(at, verdict);
                }
            }
        }
        while let Some(at) = tried.next(&self.ways) {
            let verdict = match self.identities[at].authenticate(rq) {
                AuthStep::Done(verdict) => Some(verdict),
                AuthStep::Wait(_) => None,
            };
            // Asked again inside the future, which may hold the request for longer than this loop.
            let Some(verdict) = verdict else { return Step::Wait(Box::pin(self.wait(rq, tried))) };
            tried.note(at, verdict);
        }
        Step::Done(self.conclude(rq, tried))
    }

    fn asks(&self) -> Asks<'_> {
        Asks { identities: &self.identities, optional: self.optional }
    }
}

impl Auth {
    fn has_accepted(&self, judged: &Judged) -> bool {
        self.identities.iter().any(|i| matches!(judged.verdict(i), Some(AuthVerdict::Accepted)))
    }

    async fn wait(&self, rq: &mut RequestCx, mut tried: Tried) -> Verdict {
        while let Some(at) = tried.next(&self.ways) {
            let verdict = match self.identities[at].authenticate(rq) {
                AuthStep::Done(verdict) => verdict,
                AuthStep::Wait(later) => later.await,
            };
            tried.note(at, verdict);
        }
        self.conclude(rq, tried)
    }

    fn conclude(&self, rq: &mut RequestCx, mut tried: Tried) -> Verdict {
        if let Some(reply) = tried.reply.take() {
            return Verdict::Reply(reply);
        }
        let counters = self.counters.as_ref().expect("a filter that only scrubs never concludes");
        let fault = match self.known(&tried).and_then(|()| self.judge(rq)) {
            Ok(()) => {
                counters.allowed.inc();
                self.keep_cookies(rq);
                return Verdict::Next;
            }
            Err(fault) => fault,
        };
        if fault.reason == Reason::Forbidden && self.audit {
            counters.audited.inc();
            self.log_audited(rq, &fault);
            self.keep_cookies(rq);
            return Verdict::Next;
        }
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

    /// One line a second at most, from whichever worker is first.
    fn log_audited(&self, rq: &RequestCx, fault: &Fault) {
        let (now, last) = (now(), self.audited.load(Relaxed));
        let due = last == 0 || now.since(Moment(last)) >= AUDIT_GAP;
        if due && self.audited.compare_exchange(last, now.0.max(1), Relaxed, Relaxed).is_ok() {
            let (route, id) = (&*rq.route.name, rq.request_id.to_str().unwrap_or_default());
            let consumer = rq.consumer.as_ref().map_or("", |c| &*c.name);
            tracing::info!(route, request_id = id, consumer, "the rules would refuse this request: {}", fault.detail);
        }
    }

    /// Who it is: a way in is open, or none is needed.
    fn known(&self, tried: &Tried) -> Result<(), Fault> {
        if self.ways.is_empty() || tried.accepted(&self.ways) {
            return Ok(());
        }
        // A credential that cannot be judged is never a pass, even where credentials are optional.
        if let Some(why) = tried.unavailable() {
            let fault = Fault::new(Reason::IdentityUnavailable).detail(why).tried(self.attempted(tried));
            return Err(fault.header(RETRY_AFTER, RETRY_AFTER_KEYS));
        }
        if self.optional && tried.untouched() { Ok(()) } else { Err(self.unauthenticated(tried)) }
    }

    /// Whether it may: the rules.
    fn judge(&self, rq: &RequestCx) -> Result<(), Fault> {
        if let Some(patterns) = &self.workloads {
            let known = rq.workload.as_ref().is_some_and(|w| patterns.iter().any(|p| p.fits(&w.id)));
            if !known {
                return Err(Fault::new(Reason::Forbidden).detail("the calling workload is not on the list"));
            }
        }
        let one_of = |names: &[Box<str>], name: Option<&str>| name.is_some_and(|n| names.iter().any(|m| **m == *n));
        let consumer = rq.consumer.as_ref();
        if self.consumers.as_ref().is_some_and(|names| !one_of(names, consumer.map(|c| &*c.name))) {
            return Err(Fault::new(Reason::Forbidden).detail("the calling consumer is not on the list"));
        }
        let plan = consumer.and_then(|c| c.plan.as_ref());
        if self.plans.as_ref().is_some_and(|names| !one_of(names, plan.map(|p| &*p.name))) {
            return Err(Fault::new(Reason::Forbidden).detail("the consumer's plan is not on the list"));
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

    /// 401 with a challenge for every identity (RFC 9110 section 11.6.1).
    fn unauthenticated(&self, tried: &Tried) -> Fault {
        let detail = tried.refused().map_or("no credential was sent", |error| error.description);
        let mut fault = Fault::new(Reason::Unauthenticated).detail(detail).tried(self.attempted(tried));
        for (at, identity) in self.identities.iter().enumerate() {
            let error = if let State::Refused(error) = tried.state(at) { Some(error) } else { None };
            if let Ok(challenge) = HeaderValue::try_from(identity.challenge(error)) {
                fault = fault.header(WWW_AUTHENTICATE, challenge);
            }
        }
        fault
    }

    fn attempted(&self, tried: &Tried) -> Vec<Attempted> {
        let one = |(at, name): (usize, &Box<str>)| {
            let (outcome, why) = match tried.state(at) {
                State::Unasked => ("unasked", ""),
                State::Accepted => ("accepted", ""),
                State::Absent => ("absent", ""),
                State::Refused(error) => ("refused", error.description),
                State::Unavailable(why) => ("unavailable", *why),
            };
            Attempted { identity: name.clone(), outcome, why }
        };
        self.names.iter().enumerate().map(one).collect()
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

//! `cache`: answers from memory what the service said may be kept (RFC 9111), one fetch at a time for what is missing.

mod config;
mod freshness;
mod revalidate;
mod store;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{AGE, CONTENT_LOCATION, IF_MODIFIED_SINCE, IF_NONE_MATCH, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;
use tokio::sync::watch;

use self::config::Config;
use self::freshness::{Asked, Freshness, Rules, Worth};
use self::store::{Entry as Answer, Flight, Join, Store};
use crate::contract::filter::{Filter, Needs, Step, Verdict};
use crate::contract::keep::Kept;
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::{
    Body, Build, ConfigError, Entry, Expr, Fault, Node, Origin, Phase, Reason, RequestCx, ResponseCx, Role,
};

const NAME: &str = "cache";
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const UPGRADING: HeaderName = HeaderName::from_static("sec-websocket-key");
/// Longest key: host, target and what identities add.
const MAX_KEY: usize = 16 << 10;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Answers from memory what may be kept (RFC 9111)",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Cache, implied: |_, _| false, build },
};

struct Cache {
    store: Arc<Store>,
    by: Vec<Expr>,
    rules: Rules,
    collapse: Duration,
    largest: usize,
    purge: Option<Expr>,
    counters: Counters,
}

#[derive(Clone)]
struct Counters {
    hit: Counter,
    stale: Counter,
    revalidated: Counter,
    miss: Counter,
    bypass: Counter,
    bytes: Gauge,
}

/// What a request left for its answer.
enum Pending {
    /// Keep the answer if it may be.
    Fetch(Box<Fetch>),
    /// The method changes things: forget what is kept of the target if it succeeds.
    Forget(String),
    /// Say why nothing was looked up.
    Bypass(&'static str),
}

struct Fetch {
    key: String,
    asked: Asked,
    /// The stale answer that is being checked.
    old: Option<(Arc<Answer>, bool)>,
    /// The caller's own conditions, which the service was not told.
    conditions: Conditions,
    /// Dropped when others may look again.
    flight: Option<Flight>,
    why: &'static str,
}

/// `If-None-Match` and `If-Modified-Since` of the caller.
#[derive(Default)]
struct Conditions {
    none_match: Vec<HeaderValue>,
    modified_since: Option<HeaderValue>,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("never implied");
    let config: Config = node.read()?;
    let by = config.by.iter().map(|by| Expr::compile(&by.value, by.span)).collect::<Result<Vec<_>, _>>()?;
    if let Some(private) = config.private.as_ref().filter(|private| private.value && by.is_empty()) {
        return Err(ConfigError::at(
            private.span,
            "`private: true` without `by` would give one caller's answers to all",
        )
        .help("say whose answers are kept apart, such as `by: [user.sub]`"));
    }
    let memory = config.memory.as_ref().map_or(config::MEMORY.0, |memory| memory.value.0);
    if memory < config.max_entry.0 {
        return Err(ConfigError::at(config.memory.map_or(node.span, |m| m.span), "`memory` is smaller than one entry")
            .help("raise `memory` or lower `maxEntry`"));
    }
    if let Some(ttl) = config.default_ttl.as_ref().filter(|ttl| ttl.value.0.subsec_nanos() != 0) {
        return Err(ConfigError::at(
            ttl.span,
            format!("`defaultTtl` is {}: freshness counts in whole seconds", ttl.value),
        )
        .help("write `1s` or more, or `0s` to keep no answer that says nothing"));
    }
    let purge = config.purge.as_ref().map(|rule| Expr::condition(&rule.value, rule.span)).transpose()?;
    let largest = config.max_entry.0;
    let parts: Vec<&str> = config.by.iter().map(|by| by.value.as_str()).collect();
    let shape = format!("{memory} {largest} {parts:?} {:?}", config.private);
    let store = build.keep(NAME, &shape, || Store::new(memory, largest));
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let count = |result| {
        let labels = [("route", route), ("result", result)];
        build.metrics.counter("onehop_cache_requests_total", "Requests to cached routes, by result", &labels)
    };
    Ok(Arc::new(Cache {
        store,
        by,
        rules: Rules {
            private: config.private.is_some_and(|private| private.value),
            default_ttl: config.default_ttl.map_or(Duration::ZERO, |ttl| ttl.value.0),
            stale_if_error: config.stale_if_error.0,
            stale_while_revalidate: config.stale_while_revalidate.0,
            ignore_request: config.ignore_request_directives,
        },
        collapse: config.collapse.0,
        largest: usize::try_from(largest).unwrap_or(usize::MAX),
        purge,
        counters: Counters {
            hit: count("hit"),
            stale: count("stale"),
            revalidated: count("revalidated"),
            miss: count("miss"),
            bypass: count("bypass"),
            bytes: build.metrics.gauge("onehop_cache_bytes", "Bytes kept", &[("route", route)]),
        },
    }))
}

impl Filter for Cache {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if rq.dry_run {
            return Step::NEXT;
        }
        if rq.method.as_str() == "PURGE"
            && let Some(rule) = &self.purge
        {
            return if rule.bool(rq) {
                Step::reply(self.purge(rq))
            } else {
                Step::fail(Fault::new(Reason::Forbidden).by(NAME).detail("the caller may not purge"))
            };
        }
        if rq.method != Method::GET && rq.method != Method::HEAD {
            let pending = if rq.method.is_safe() { Pending::Bypass("method") } else { Pending::Forget(resource(rq)) };
            rq.scratch.put(pending);
            return Step::NEXT;
        }
        let unusual = rq.headers.contains_key(RANGE) || rq.headers.contains_key(UPGRADING) || !rq.body.is_end_stream();
        let Some(key) = self.key(rq).filter(|_| !unusual) else {
            self.counters.bypass.inc();
            rq.scratch.put(Pending::Bypass("bypass"));
            return Step::NEXT;
        };
        let asked = Asked::new(&rq.headers, self.by.is_empty() && identified(rq), &self.rules);
        match self.look(rq, key, asked, None) {
            Looked::Settled(verdict) => Step::Done(verdict),
            Looked::InFlight(key, asked, landing) => Step::Wait(Box::pin(async move {
                let _ = tokio::time::timeout(self.collapse, landed(landing)).await;
                match self.look(rq, key, asked, Some("collapsed")) {
                    Looked::Settled(verdict) => verdict,
                    Looked::InFlight(..) => Verdict::Next,
                }
            })),
        }
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        match rq.scratch.take::<Pending>() {
            Some(Pending::Fetch(fetch)) => self.fetched(rq, rs, *fetch),
            Some(Pending::Forget(resource)) if rs.origin == Origin::Upstream && !failed(rs.status) => {
                // What the answer names has changed with it (RFC 9111 section 4.4).
                let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| rs.headers.get(name));
                let named: Vec<String> = named.filter_map(|place| same_origin(rq, place)).collect();
                self.store.purge(|key| of(key) == resource || named.iter().any(|other| of(key) == other));
                self.counters.bytes.set(self.store.weight().cast_signed());
            }
            Some(Pending::Bypass(why)) => {
                say(&mut rs.headers, format_args!("onehop; fwd={why}"));
            }
            Some(Pending::Forget(_)) | None => {}
        }
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

enum Looked {
    /// Answered, refused, or on to the service.
    Settled(Verdict),
    /// Somebody fetches it.
    InFlight(String, Asked, watch::Receiver<()>),
}

impl Cache {
    /// `waited`: this look-up follows a wait for somebody else's fetch.
    fn look(&self, rq: &mut RequestCx, key: String, asked: Asked, waited: Option<&str>) -> Looked {
        let now = SystemTime::now();
        let mut old = None;
        let mut known = false;
        for entry in self.store.variants(&key).iter().rev() {
            known = true;
            match entry.freshness.worth(&asked, now) {
                Worth::Nothing => {}
                Worth::Fresh(left) => {
                    self.counters.hit.inc();
                    let collapsed = if waited.is_some() { "; collapsed" } else { "" };
                    let status = format!("onehop; hit; ttl={}{collapsed}", left.as_secs());
                    return Looked::Settled(give(rq, entry, &status, now));
                }
                Worth::WhileRevalidating => {
                    self.counters.stale.inc();
                    self.refresh(rq, &key, asked, entry);
                    return Looked::Settled(give(rq, entry, "onehop; hit; detail=stale-while-revalidate", now));
                }
                Worth::Stale { if_error } => {
                    old = Some((entry.clone(), if_error));
                    break;
                }
            }
        }
        if asked.only_if_cached() {
            let fault =
                Fault::new(Reason::Deadline).by(NAME).detail("nothing fresh is kept, and only that was asked for");
            return Looked::Settled(Verdict::Fail(Box::new(fault)));
        }
        let leads = rq.method == Method::GET && !self.collapse.is_zero();
        let flight = match leads && waited.is_none() && !self.store.passes(&key) {
            true => match self.store.join(&key) {
                Join::Lead(flight) => Some(flight),
                Join::Wait(landing) => return Looked::InFlight(key, asked, landing),
            },
            false => None,
        };
        self.counters.miss.inc();
        let conditions = Conditions::take(&mut rq.headers);
        let why = match &old {
            Some((entry, _)) => {
                revalidate::conditions(&mut rq.headers, &entry.headers);
                "stale"
            }
            None if known => "vary-miss",
            None => "uri-miss",
        };
        rq.scratch.put(Pending::Fetch(Box::new(Fetch { key, asked, old, conditions, flight, why })));
        Looked::Settled(Verdict::Next)
    }

    /// What is kept of a request is found under its host, its target, and what tells callers apart; `None`: it lacks
    /// that, or the key would be too long.
    fn key(&self, rq: &RequestCx) -> Option<String> {
        let mut key = resource(rq);
        for by in &self.by {
            let part = by.text(rq)?;
            let _ = write!(key, "\n{}:{part}", part.len());
        }
        (key.len() <= MAX_KEY).then_some(key)
    }

    fn fetched(&self, rq: &mut RequestCx, rs: &mut ResponseCx, fetch: Fetch) {
        let now = SystemTime::now();
        let Fetch { key, asked, old, conditions, flight, why } = fetch;
        let upstream = rs.origin == Origin::Upstream;
        if let Some((entry, if_error)) = &old {
            if upstream && rs.status == StatusCode::NOT_MODIFIED {
                self.counters.revalidated.inc();
                let renewed = revalidate::renewed(entry, &rs.headers, &asked, &self.rules, now);
                let entry = match renewed {
                    Some(renewed) => {
                        let renewed = Arc::new(renewed);
                        self.store.put(&key, renewed.clone(), Some(entry));
                        renewed
                    }
                    None => {
                        self.store.remove(&key);
                        entry.clone()
                    }
                };
                *rs = answer(&entry, "onehop; fwd=stale; fwd-status=304", now);
                return conditions.apply(rs);
            }
            // RFC 5861 section 4: an error is 500, 502, 503 or 504, or no answer at all.
            let broke = matches!(rs.status.as_u16(), 500 | 502..=504) && rs.origin != Origin::Filter;
            if *if_error && broke {
                self.counters.stale.inc();
                let status = match upstream {
                    true => format!("onehop; fwd=stale; fwd-status={}; detail=stale-if-error", rs.status.as_u16()),
                    false => "onehop; fwd=stale; detail=stale-if-error".to_owned(),
                };
                *rs = answer(entry, &status, now);
                return conditions.apply(rs);
            }
        }
        let freshness = (upstream && rq.method == Method::GET)
            .then(|| Freshness::of(&asked, rs.status, &rs.headers, &self.rules, now))
            .flatten();
        let small = rs.body.size_hint().lower() <= self.largest as u64;
        let Some(freshness) = freshness.filter(|_| small) else {
            if upstream && !failed(rs.status) && rq.method == Method::GET {
                self.store.pass(&key);
            }
            say(&mut rs.headers, format_args!("onehop; fwd={why}; fwd-status={}", rs.status.as_u16()));
            return;
        };
        let (store, bytes) = (self.store.clone(), self.counters.bytes.clone());
        let (status, headers) = (rs.status, rs.headers.clone());
        let instead = old.map(|(entry, _)| entry);
        let keep = Box::new(move |body| {
            let entry = Arc::new(Answer { status, headers, body, freshness });
            store.put(&key, entry, instead.as_ref());
            bytes.set(store.weight().cast_signed());
            drop(flight);
        });
        rs.body = Kept::wrap(std::mem::take(&mut rs.body), self.largest, keep);
        say(&mut rs.headers, format_args!("onehop; fwd={why}; fwd-status={}; stored", rs.status.as_u16()));
        // A body still to come must flow, or it is never kept: only one that is there gives way to 304.
        if !matches!(rs.body, Body::Stream(_)) {
            conditions.apply(rs);
        }
    }

    /// Removes what is kept of a path, for everybody.
    fn purge(&self, rq: &RequestCx) -> Response<Body> {
        let resource = resource(rq);
        let gone = match resource.strip_suffix('*') {
            Some(prefix) => self.store.purge(|key| key.starts_with(prefix)),
            None => self.store.purge(|key| of(key) == resource),
        };
        self.counters.bytes.set(self.store.weight().cast_signed());
        let mut response = Response::new(Body::full(format!("{{\"purged\":{gone}}}\n")));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        response
    }
}

/// Somebody is identified, or says so: the answer may be theirs alone (RFC 9111 section 3.5).
fn identified(rq: &RequestCx) -> bool {
    rq.user.is_some() || rq.consumer.is_some() || rq.headers.contains_key(http::header::AUTHORIZATION)
}

/// What a request asks for, whoever asks.
fn resource(rq: &RequestCx) -> String {
    let scheme = if rq.https { "https" } else { "http" };
    format!("{scheme}://{}{}", rq.authority, rq.target)
}

/// The resource that an answer names, if its origin is that of the request: no other may be touched.
fn same_origin(rq: &RequestCx, place: &HeaderValue) -> Option<String> {
    let place = place.to_str().ok()?;
    let place = place.split('#').next().unwrap_or_default();
    let scheme = if rq.https { "https" } else { "http" };
    let target = match place.split_once("://") {
        Some((named, rest)) => {
            let (authority, _) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            let upstream = rq.upstream_host.as_ref().and_then(|host| host.to_str().ok());
            let ours = authority.eq_ignore_ascii_case(rq.authority.as_str()) || Some(authority) == upstream;
            let ours = ours && named.eq_ignore_ascii_case(scheme);
            ours.then(|| &rest[authority.len()..])?.to_owned()
        }
        None if place.starts_with("//") => return None,
        None if place.starts_with('/') => place.to_owned(),
        // Relative to the folder of the request's own path; what climbs out of it is found by its full path only.
        None => format!("{}{place}", rq.path().rsplit_once('/').map_or("/", |(folder, _)| &rq.path()[..=folder.len()])),
    };
    let target = if target.starts_with('/') { target } else { format!("/{target}") };
    Some(format!("{scheme}://{}{target}", rq.authority))
}

/// The resource of a key.
fn of(key: &str) -> &str {
    key.split_once('\n').map_or(key, |(resource, _)| resource)
}

fn failed(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

async fn landed(mut landing: watch::Receiver<()>) {
    let _ = landing.changed().await;
}

/// A kept answer as the filter's own reply.
fn give(rq: &mut RequestCx, entry: &Answer, status: &str, now: SystemTime) -> Verdict {
    let mut rs = answer(entry, status, now);
    Conditions::take(&mut rq.headers).apply(&mut rs);
    let mut response = Response::new(rs.body);
    *response.status_mut() = rs.status;
    *response.headers_mut() = rs.headers;
    Verdict::Reply(Box::new(response))
}

fn answer(entry: &Answer, status: &str, now: SystemTime) -> ResponseCx {
    let mut headers = entry.headers.clone();
    headers.insert(AGE, HeaderValue::from(entry.freshness.age(now).as_secs()));
    say(&mut headers, format_args!("{status}"));
    ResponseCx { status: entry.status, headers, body: Body::full(entry.body.clone()), origin: Origin::Filter }
}

/// Appends our member to `Cache-Status` (RFC 9211 section 2: the cache nearest the caller comes last).
fn say(headers: &mut HeaderMap, status: std::fmt::Arguments<'_>) {
    if let Ok(value) = HeaderValue::try_from(status.to_string()) {
        headers.append(CACHE_STATUS, value);
    }
}

impl Conditions {
    fn take(headers: &mut HeaderMap) -> Self {
        let none_match = headers.get_all(IF_NONE_MATCH).iter().cloned().collect();
        headers.remove(IF_NONE_MATCH);
        Self { none_match, modified_since: headers.remove(IF_MODIFIED_SINCE) }
    }

    /// Answers 304 if the caller has the answer already (RFC 9110 section 13.2.2).
    fn apply(&self, rs: &mut ResponseCx) {
        if rs.status == StatusCode::OK
            && revalidate::unchanged(&self.none_match, self.modified_since.as_ref(), &rs.headers)
        {
            rs.status = StatusCode::NOT_MODIFIED;
            rs.body = Body::Empty;
            rs.headers.remove(http::header::CONTENT_LENGTH);
        }
    }
}

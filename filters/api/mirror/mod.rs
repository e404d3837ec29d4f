//! `mirror`: a copy of requests for another service, whose answers nobody sees. Once per request, never per try.

mod config;
mod tee;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, HOST};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use self::tee::{Kept, Tee};
use crate::contract::filter::{Filter, Step};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::section::Value;
use crate::contract::{
    Body, Build, Call, ConfigError, Entry, Node, Phase, RequestCx, Role, ServiceId, Services, Trace, chance, now,
};
use config::{Config, Mirror};

const NAME: &str = "mirror";
/// Marks a copy with the route it was made on: whoever gets it must not act twice, and copies are never copied again.
const MARK: HeaderName = HeaderName::from_static("x-onehop-mirrored");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
/// How much of an answer is read so that its connection can be used again.
const ANSWER: usize = 64 << 10;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Sends a copy of requests to another service and ignores its answers",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    // After everything that rewrites or answers: the copy is what the service gets.
    role: Role::Api { phase: Phase::Fault, implied: |_, _| false, build },
};

struct Mirrors(Vec<Arc<Way>>);

/// One way for copies.
struct Way {
    service: ServiceId,
    share: f64,
    body_limit: usize,
    timeout: Duration,
    limit: u32,
    suffix: Box<str>,
    under_way: Arc<UnderWay>,
    counts: Counts,
}

struct Counts {
    sent: Counter,
    failed: Counter,
    busy: Counter,
    too_long: Counter,
    unfinished: Counter,
}

/// Copies under way; outlives configs, as copies do.
struct UnderWay {
    now: AtomicU32,
    shown: Gauge,
}

/// One place among them.
struct Place(Arc<UnderWay>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
        self.0.shown.add(-1);
    }
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("mirror is never implied");
    let ways = match &node.value {
        Value::Seq(items) if items.is_empty() => {
            return Err(ConfigError::at(node.span, "there is no mirror").help("write `mirror: { to: SERVICE }`"));
        }
        Value::Seq(items) => items.iter().map(|item| way(item, build)).collect::<Result<_, _>>()?,
        _ => vec![way(node, build)?],
    };
    Ok(Arc::new(Mirrors(ways)))
}

fn way(node: &Node, build: &mut Build<'_>) -> Result<Arc<Way>, ConfigError> {
    let config: Mirror = node.read()?;
    let body_limit = config.body_limit.as_ref().map_or(config::BODY_LIMIT, |l| l.value.0);
    if let Some(l) = config.body_limit.as_ref().filter(|_| body_limit > config::MAX_BODY) {
        return Err(ConfigError::at(l.span, "a body of this size is not kept for a copy").help("at most 16MiB"));
    }
    let timeout = config.timeout.as_ref().map_or(config::TIMEOUT, |t| t.value.0);
    if let Some(t) = config.timeout.as_ref().filter(|_| timeout.is_zero()) {
        return Err(ConfigError::at(t.span, "a copy would have no time").help("such as `5s`"));
    }
    let limit = config.max_concurrent.as_ref().map_or(config::MAX_CONCURRENT, |m| m.value);
    if let Some(m) = config.max_concurrent.as_ref().filter(|_| limit == 0) {
        return Err(ConfigError::at(m.span, "nothing would be mirrored").help("at least 1"));
    }
    let suffix = config.host_suffix.as_ref().map_or("", |s| s.value.as_str());
    if let Some(s) = config.host_suffix.as_ref()
        && !suffix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        return Err(ConfigError::at(s.span, format!("`{suffix}` cannot end a host name")).help("such as `-shadow`"));
    }
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let labels = [("route", route), ("service", config.to.value.as_str())];
    let count = |result| {
        let labels = [labels[0], labels[1], ("result", result)];
        build.metrics.counter("onehop_mirrored_total", "Copies by what became of them", &labels)
    };
    let counts = Counts {
        sent: count("sent"),
        failed: count("failed"),
        busy: count("busy"),
        too_long: count("too-long"),
        unfinished: count("unfinished"),
    };
    let shown = build.metrics.gauge("onehop_mirror_under_way", "Copies under way", &labels);
    let service = build.service(&config.to)?;
    let under_way =
        build.keep(&format!("{NAME}/{}", config.to.value), "", || UnderWay { now: AtomicU32::new(0), shown });
    Ok(Arc::new(Way {
        service,
        share: config.percent.0,
        body_limit: usize::try_from(body_limit).expect("at most 16 MiB"),
        timeout,
        limit,
        suffix: suffix.into(),
        under_way,
        counts,
    }))
}

impl Filter for Mirrors {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if rq.dry_run
            || rq.headers.contains_key(MARK)
            || rq.method == Method::CONNECT
            || rq.headers.contains_key(SEC_WEBSOCKET_KEY)
        {
            return Step::NEXT;
        }
        for way in self.0.iter().filter(|way| way.share >= 1.0 || chance::fraction(chance::draw()) < way.share) {
            way.copy(rq);
        }
        Step::NEXT
    }
}

impl Way {
    /// Sends a copy, at once or when the body has gone by.
    fn copy(self: &Arc<Self>, rq: &mut RequestCx) {
        if rq.body.size_hint().lower() > self.body_limit as u64 {
            return self.counts.too_long.inc();
        }
        let Some(place) = self.enter() else { return self.counts.busy.inc() };
        let Some(head) = self.head(rq) else { return self.counts.failed.inc() };
        let send = Send { way: self.clone(), head, services: rq.services.clone(), trace: rq.trace, place };
        match &rq.body {
            Body::Empty => send.now(Bytes::new()),
            Body::Full(bytes) => send.now(bytes.clone().unwrap_or_default()),
            Body::Stream(_) => {
                let body = std::mem::take(&mut rq.body);
                rq.body = Body::stream(Tee::new(body, self.body_limit, move |kept| match kept {
                    Kept::Whole(bytes) => send.now(bytes),
                    Kept::TooLong => send.way.counts.too_long.inc(),
                    Kept::Unfinished => send.way.counts.unfinished.inc(),
                }));
            }
        }
    }

    fn enter(&self) -> Option<Place> {
        let room = |now| if now < self.limit { Some(now + 1) } else { None };
        self.under_way.now.fetch_update(Relaxed, Relaxed, room).ok()?;
        self.under_way.shown.add(1);
        Some(Place(self.under_way.clone()))
    }

    fn head(&self, rq: &RequestCx) -> Option<Head> {
        let mut headers = rq.headers.clone();
        headers.remove(EXPECT);
        headers.remove(HOST);
        headers.insert(MARK, HeaderValue::try_from(&*rq.route.name).ok()?);
        headers.insert(REQUEST_ID, rq.request_id.clone());
        let host = rq.upstream_host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or(rq.authority.as_str());
        let authority = match &*self.suffix {
            "" => host.parse().ok()?,
            suffix => suffixed(host, suffix)?,
        };
        Some(Head { method: rq.method.clone(), authority, target: rq.target.clone(), headers })
    }
}

/// The host with a suffix, before its port.
fn suffixed(host: &str, suffix: &str) -> Option<Authority> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    // An address has no other name.
    let suffix = if name.starts_with('[') || name.parse::<std::net::Ipv4Addr>().is_ok() { "" } else { suffix };
    let text = port.map_or_else(|| format!("{name}{suffix}"), |port| format!("{name}{suffix}:{port}"));
    text.parse().ok()
}

struct Head {
    method: Method,
    authority: Authority,
    target: PathAndQuery,
    headers: HeaderMap,
}

/// A copy that waits for its body.
struct Send {
    way: Arc<Way>,
    head: Head,
    services: Arc<dyn Services>,
    trace: Trace,
    place: Place,
}

impl Send {
    /// In a task of its own: the request it was made from never waits for it.
    fn now(self, body: Bytes) {
        let Self { way, head, services, trace, place } = self;
        let uri = Uri::builder().scheme("http").authority(head.authority).path_and_query(head.target).build();
        let Ok(uri) = uri else { return way.counts.failed.inc() };
        let mut request = Request::new(Body::full(body));
        *request.method_mut() = head.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = head.headers;
        tokio::spawn(async move {
            let deadline = now() + way.timeout;
            let call = services.call(way.service, Call { request, deadline, trace });
            let answer = async {
                let Ok(answer) = call.await else { return false };
                // A short answer is read, so that its connection lives on.
                let mut body = answer.into_body();
                let mut left = ANSWER;
                while let Some(Ok(frame)) = body.frame().await {
                    let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { break };
                    left = rest;
                }
                true
            };
            let answered = tokio::time::timeout(way.timeout, answer).await.unwrap_or(false);
            if answered { &way.counts.sent } else { &way.counts.failed }.inc();
            drop(place);
        });
    }
}

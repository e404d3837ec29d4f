//! `extAuth`: asks a service whether the request may go on, as Envoy's `ext_authz` does. Once per request, never per try.

mod config;
mod core;
mod grpc;
mod http;
mod proto;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use quick_cache::sync::Cache;

use self::core::{Names, Ruling};
use self::grpc::Part;
use self::http::Asks;
use crate::contract::filter::{Filter, Step, Verdict};
use crate::contract::grpc::{Failure, Unary, unary};
use crate::contract::metrics::{Counter, Histogram};
use crate::contract::trail::Outcome;
use crate::contract::{
    Buffered, Build, Call, ConfigError, Entry, Expr, Fault, Moment, Node, Phase, Reason, RequestCx, Role, ServiceId,
    Spot, Template, now,
};
use config::Config;

const NAME: &str = "extAuth";
/// Longest text an answer is remembered under.
const MAX_KEY: usize = 4 << 10;
/// Longest body of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Says whether the body in the question is only its beginning.
const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Asks a service whether the request may go on (Envoy ext_authz, forwardAuth)",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Authorize, implied: |_, _| false, build },
};

struct ExtAuth {
    ask: Ask,
    timeout: Duration,
    fail_open: bool,
    status_on_error: StatusCode,
    body: Option<BodyRule>,
    /// Fields of the request that whoever is asked sees.
    seen: Names,
    upstream: Names,
    client: Names,
    memory: Option<Memory>,
    counts: Counts,
}

enum Ask {
    Grpc { method: Unary, context: Vec<(String, Template)> },
    Http { service: ServiceId, asks: Asks, context: Vec<(HeaderName, Template)> },
}

struct BodyRule {
    limit: usize,
    partial: bool,
    raw: bool,
}

struct Memory {
    by: Expr,
    ttl: Duration,
    /// Shards are locked for a look-up only; readers do not exclude each other.
    answers: Arc<Cache<Box<str>, (Moment, Ruling)>>,
}

struct Counts {
    allowed: Counter,
    denied: Counter,
    remembered: Counter,
    failed: Counter,
    let_pass: Counter,
    time: Histogram,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("extAuth is never implied");
    let config: Config = node.read()?;
    let ask = ask(node, &config, build)?;
    let timeout = config.timeout.as_ref().map_or(config::TIMEOUT, |t| t.value.0);
    if let Some(t) = config.timeout.as_ref().filter(|_| timeout.is_zero()) {
        return Err(ConfigError::at(t.span, "no answer comes in no time").help("such as `200ms`"));
    }
    let status_on_error = match config.status_on_error.as_ref().map(|s| (s.value, s.span)) {
        None | Some((503, _)) => StatusCode::SERVICE_UNAVAILABLE,
        Some((403, _)) => StatusCode::FORBIDDEN,
        Some((other, span)) => {
            return Err(
                ConfigError::at(span, format!("{other} does not say that nobody could decide")).help("403 or 503")
            );
        }
    };
    let body = match &config.body {
        Some(body) => {
            let limit = body.limit.value.0;
            if limit == 0 || limit > config::MAX_BODY {
                return Err(ConfigError::at(body.limit.span, "so much of a body is not sent along")
                    .help("1B to 1MiB; the request waits for it"));
            }
            let limit = usize::try_from(limit).expect("at most 1 MiB");
            Some(BodyRule { limit, partial: body.allow_partial, raw: body.raw })
        }
        None => None,
    };
    let seen = match (&config.headers.to_auth, &ask) {
        (Some(list), _) => Names::compile(list, true)?,
        (None, Ask::Grpc { .. }) => Names::compile(&[Spot { span: node.span, value: "*".to_owned() }], true)?,
        (None, Ask::Http { .. }) => Names::fixed(&[AUTHORIZATION, COOKIE]),
    };
    let memory = config.cache.as_ref().map(|cache| memory(node, cache, build)).transpose()?;
    Ok(Arc::new(ExtAuth {
        ask,
        timeout,
        fail_open: config.fail_open,
        status_on_error,
        body,
        seen,
        upstream: Names::compile(&config.headers.to_upstream, false)?,
        client: Names::compile(&config.headers.to_client, true)?,
        memory,
        counts: Counts::new(build),
    }))
}

fn ask(node: &Node, config: &Config, build: &Build<'_>) -> Result<Ask, ConfigError> {
    let template = |text: &Spot<String>| Template::compile(&text.value, text.span);
    match (&config.grpc, &config.http) {
        (Some(grpc), None) => {
            let path = PathAndQuery::from_static("/envoy.service.auth.v3.Authorization/Check");
            let context = config.context.iter().map(|(name, text)| Ok((name.clone(), template(text)?)));
            let method = Unary { service: build.service(&grpc.value.service)?, path };
            Ok(Ask::Grpc { method, context: context.collect::<Result<_, ConfigError>>()? })
        }
        (None, Some(http)) => {
            let asks = match (&http.value.path, &http.value.prefix) {
                (Some(path), None) => Asks::Path(absolute(path)?),
                (None, Some(prefix)) => {
                    let path = absolute(prefix)?;
                    Asks::Prefix(path.path().trim_end_matches('/').into())
                }
                _ => {
                    return Err(ConfigError::at(http.span, "exactly one of `path` and `prefix` says what is asked")
                        .help("write `{ service: authz, path: /check }`"));
                }
            };
            let field = |name: &str, text: &Spot<String>| {
                let field = HeaderName::try_from(name).ok().filter(|name| !core::is_ours(name));
                let field = field.ok_or_else(|| {
                    ConfigError::at(text.span, format!("`{name}` is not the name of a header field"))
                        .help("by HTTP, each key of `context` is one")
                })?;
                Ok((field, template(text)?))
            };
            let context = config.context.iter().map(|(name, text)| field(name, text));
            let context = context.collect::<Result<_, ConfigError>>()?;
            Ok(Ask::Http { service: build.service(&http.value.service)?, asks, context })
        }
        _ => Err(ConfigError::at(node.span, "exactly one of `grpc` and `http` says who is asked")
            .help("write `grpc: { service: authz }` or `http: { service: authz, path: /check }`")),
    }
}

fn absolute(path: &Spot<String>) -> Result<PathAndQuery, ConfigError> {
    let parsed = PathAndQuery::try_from(path.value.as_str()).ok().filter(|_| path.value.starts_with('/'));
    parsed.ok_or_else(|| {
        ConfigError::at(path.span, format!("`{}` is not a path", path.value)).help("begin it with `/`: `/check`")
    })
}

fn memory(node: &Node, cache: &Spot<config::Cache>, build: &mut Build<'_>) -> Result<Memory, ConfigError> {
    let most = cache.value.max_entries.as_ref().map_or(config::MAX_ENTRIES, |m| m.value);
    if let Some(m) = cache.value.max_entries.as_ref().filter(|_| !(1..=1_000_000).contains(&most)) {
        return Err(ConfigError::at(m.span, "so many answers are not remembered").help("1 to 1000000"));
    }
    let by = Expr::compile(&cache.value.by.value, cache.value.by.span)?;
    // Anything that changes what is asked, or what an answer does, starts with an empty memory.
    let answers = build.keep("answers", &node.to_json().to_string(), || Cache::new(most));
    Ok(Memory { by, ttl: cache.value.ttl.0, answers })
}

impl Counts {
    fn new(build: &Build<'_>) -> Self {
        let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
        let count = |result| {
            let labels = [("route", route), ("result", result)];
            build.metrics.counter("onehop_ext_auth_total", "Requests that were ruled on, by result", &labels)
        };
        let help = "Time until whoever was asked had answered";
        Self {
            allowed: count("allowed"),
            denied: count("denied"),
            remembered: count("remembered"),
            failed: count("failed"),
            let_pass: count("let-pass"),
            time: build.metrics.histogram("onehop_ext_auth_seconds", help, &[("route", route)]),
        }
    }
}

impl Filter for ExtAuth {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        // Whatever is ruled: the caller does not get to say what only an answer may.
        self.upstream.scrub(&mut rq.headers);
        if rq.dry_run {
            rq.trail.note(NAME, Outcome::Pass, "not-asked", 0, Duration::ZERO);
            return Step::NEXT;
        }
        let key = self.memory.as_ref().and_then(|m| Some(m.by.text(rq)?.into_owned())).filter(|k| k.len() <= MAX_KEY);
        if let (Some(memory), Some(key)) = (&self.memory, key.as_deref())
            && let Some((until, ruling)) = memory.answers.get(key)
            && now() < until
        {
            self.counts.remembered.inc();
            rq.trail.note(NAME, Outcome::Pass, "remembered", 0, Duration::ZERO);
            return Step::Done(self.carry_out(rq, &ruling));
        }
        Step::Wait(Box::pin(self.decide(rq, key)))
    }
}

impl ExtAuth {
    async fn decide(&self, rq: &mut RequestCx, key: Option<String>) -> Verdict {
        let part = match &self.body {
            Some(rule) => match read_ahead(rq, rule).await {
                Ok(part) => Some(part),
                Err(fault) => return Verdict::Fail(fault),
            },
            None => None,
        };
        let begun = now();
        let ruling = self.ask(rq, part.as_ref(), (begun + self.timeout).min(rq.deadline)).await;
        self.counts.time.observe(now().since(begun));
        match ruling {
            Ok(ruling) => {
                if let (Some(memory), Some(key)) = (&self.memory, key) {
                    memory.answers.insert(key.into(), (now() + memory.ttl, ruling.clone()));
                }
                self.carry_out(rq, &ruling)
            }
            Err(why) => self.undecided(rq, &why),
        }
    }

    // Not a shared reference: a request is Send and not Sync.
    async fn ask(&self, rq: &mut RequestCx, part: Option<&Part>, until: Moment) -> Result<Ruling, Failure> {
        match &self.ask {
            Ask::Grpc { method, context } => {
                let question = {
                    let told = |(name, text): &(String, Template)| Some((name.clone(), text.text(rq)?.into_owned()));
                    grpc::question(rq, &self.seen, part, context.iter().filter_map(told).collect())
                };
                let (services, trace) = (rq.services.clone(), rq.trace);
                let answer = unary(services, method, &question, until, trace).await?;
                grpc::ruling(answer, &self.upstream, &self.client).map_err(Failure::Malformed)
            }
            Ask::Http { service, asks, context } => {
                let request = {
                    let told = |(name, text): &(HeaderName, Template)| Some((name.clone(), text.render(rq)?));
                    let context: Vec<(HeaderName, HeaderValue)> = context.iter().filter_map(told).collect();
                    http::question(rq, asks, &self.seen, part, &context)
                };
                let request = request.ok_or(Failure::Malformed("the request's path does not fit behind the prefix"))?;
                let (services, trace) = (rq.services.clone(), rq.trace);
                let asking = async {
                    let call = Call { request, deadline: until, trace };
                    let (head, mut body) =
                        services.call(*service, call).await.map_err(Failure::Unreachable)?.into_parts();
                    let body = match body.buffer(MAX_ANSWER).await.map_err(Failure::Unreachable)? {
                        Buffered::Whole(body) => body,
                        Buffered::Partial(_) => return Err(Failure::Malformed("its answer is too long")),
                    };
                    http::ruling(head.status, &head.headers, body, &self.upstream, &self.client)
                        .map_err(Failure::Malformed)
                };
                tokio::time::timeout(until.since(now()), asking).await.unwrap_or(Err(Failure::Late))
            }
        }
    }

    fn carry_out(&self, rq: &mut RequestCx, ruling: &Ruling) -> Verdict {
        match ruling {
            Ruling::Allow(changes) => {
                self.counts.allowed.inc();
                changes.apply(rq);
                Verdict::Next
            }
            Ruling::Deny(denial) => {
                self.counts.denied.inc();
                denial.verdict(is_grpc(rq))
            }
        }
    }

    fn undecided(&self, rq: &mut RequestCx, why: &Failure) -> Verdict {
        tracing::debug!(route = &*rq.route.name, %why, "external authorization failed");
        if self.fail_open {
            self.counts.let_pass.inc();
            rq.trail.note(NAME, Outcome::Fail, "let-pass", 0, Duration::ZERO);
            return Verdict::Next;
        }
        self.counts.failed.inc();
        let detail: std::borrow::Cow<'static, str> = match why {
            Failure::Unreachable(fault) => fault.reason.code().into(),
            Failure::Late => "no answer in time".into(),
            Failure::Status { code, .. } => format!("grpc-status {code}").into(),
            Failure::Malformed(why) => (*why).into(),
        };
        let fault = Fault::new(Reason::AuthorizationUnavailable).detail(detail);
        Verdict::Fail(Box::new(fault.answer(self.status_on_error)))
    }
}

/// The body as far as it is sent along; it stays there for the upstream.
async fn read_ahead(rq: &mut RequestCx, rule: &BodyRule) -> Result<Part, Box<Fault>> {
    let left = rq.deadline.since(now());
    let read = tokio::time::timeout(left, rq.body.buffer(rule.limit)).await;
    let (mut bytes, partial): (Bytes, bool) = match read.map_err(|_| Box::new(Fault::new(Reason::Deadline)))?? {
        Buffered::Whole(bytes) => (bytes, false),
        Buffered::Partial(bytes) => (bytes, true),
    };
    if partial && !rule.partial {
        return Err(Box::new(Fault::new(Reason::BodyTooLarge).detail("it is to be judged as a whole")));
    }
    bytes.truncate(rule.limit);
    Ok(Part { bytes, partial, raw: rule.raw })
}

fn is_grpc(rq: &RequestCx) -> bool {
    rq.headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

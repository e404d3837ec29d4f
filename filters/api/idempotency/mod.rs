//! `idempotency`: a request with a key runs once, however often it is sent
//! (draft-ietf-httpapi-idempotency-key-header).

mod config;
mod records;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};

use self::config::{Config, OnUnknown};
use self::records::{Claim, Digest, Known, Outcome, Record, Records};
use crate::contract::filter::{Filter, Needs, Step, Verdict};
use crate::contract::keep::Kept;
use crate::contract::metrics::Counter;
use crate::contract::scratch::Failure;
use crate::contract::{
    Body, Buffered, Build, ConfigError, Entry, Expr, Fault, Node, Origin, Phase, Reason, RequestCx, ResponseCx, Role,
};

const NAME: &str = "idempotency";
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY: usize = 255;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Requests with an Idempotency-Key run once, however often they are sent",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Idempotency, implied: |_, _| false, build },
};

struct Idempotency {
    records: Arc<Records>,
    header: HeaderName,
    required: bool,
    methods: Vec<Method>,
    by: Vec<Expr>,
    ttl: Duration,
    on_unknown: OnUnknown,
    limit: usize,
    counters: Counters,
}

struct Counters {
    first: Counter,
    replayed: Counter,
    conflict: Counter,
    mismatch: Counter,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("never implied");
    let config: Config = node.read()?;
    let header = match &config.header {
        None => KEY,
        Some(name) => HeaderName::try_from(&name.value).map_err(|_| {
            ConfigError::at(name.span, format!("`{}` is not a header name", name.value))
                .help("letters, digits and dashes, such as `Idempotency-Key`")
        })?,
    };
    let methods = match &config.methods {
        None => vec![Method::POST, Method::PATCH],
        Some(list) => list
            .iter()
            .map(|m| {
                Method::from_bytes(m.value.as_bytes())
                    .map_err(|_| ConfigError::at(m.span, format!("`{}` is not a method", m.value)))
            })
            .collect::<Result<_, _>>()?,
    };
    if config.ttl.0.is_zero() {
        return Err(ConfigError::at(node.span, "`ttl: 0s` would forget every answer at once").help("leave `ttl` out"));
    }
    if config.memory.0 < config.body_limit.0 {
        return Err(ConfigError::at(node.span, "`memory` is smaller than one answer")
            .help("raise `memory` or lower `bodyLimit`"));
    }
    let by = config.by.iter().map(|by| Expr::compile(&by.value, by.span)).collect::<Result<Vec<_>, _>>()?;
    let parts: Vec<&str> = config.by.iter().map(|by| by.value.as_str()).collect();
    let shape = format!("{} {} {parts:?}", config.memory, config.body_limit);
    let records = build.keep(NAME, &shape, || Records::new(config.memory.0, config.body_limit.0));
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let count = |result| {
        let labels = [("route", route), ("result", result)];
        build.metrics.counter(
            "onehop_idempotency_requests_total",
            "Requests with an idempotency key, by result",
            &labels,
        )
    };
    Ok(Arc::new(Idempotency {
        records,
        header,
        required: config.required,
        methods,
        by,
        ttl: config.ttl.0,
        on_unknown: config.on_unknown,
        limit: usize::try_from(config.body_limit.0).unwrap_or(usize::MAX),
        counters: Counters {
            first: count("first"),
            replayed: count("replayed"),
            conflict: count("conflict"),
            mismatch: count("mismatch"),
        },
    }))
}

impl Filter for Idempotency {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if rq.dry_run || !self.methods.contains(&rq.method) {
            return Step::NEXT;
        }
        let key = match key(&rq.headers, &self.header) {
            Ok(Some(key)) => key,
            Ok(None) if self.required => {
                return Step::fail(Fault::new(Reason::KeyMissing).by(NAME).detail(format!("send `{}`", self.header)));
            }
            Ok(None) => return Step::NEXT,
            Err(detail) => return Step::fail(Fault::new(Reason::BadHeader).by(NAME).detail(detail)),
        };
        let Some(key) = self.owned(rq, &key) else {
            return Step::fail(Fault::new(Reason::FilterFailed).by(NAME).detail("the caller cannot be told apart"));
        };
        Step::Wait(Box::pin(self.enter(rq, key)))
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        if let Some(Running(mut claim)) = rq.scratch.take() {
            let failure = rq.scratch.find::<Failure>();
            // Nothing ran, or what answered says so: the key is free for another go.
            let again = match failure {
                Some(failure) => !failure.may_have_run,
                None => rs.origin == Origin::Upstream && (rs.status.is_server_error() || rs.status.as_u16() == 429),
            };
            if again {
                claim.release();
            } else if failure.is_none() {
                claim.ran();
                let (status, headers) = (rs.status, rs.headers.clone());
                let keep = Box::new(move |body| claim.answered(status, headers, body));
                rs.body = Kept::wrap(std::mem::take(&mut rs.body), self.limit, keep);
            }
        }
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

/// The claim of a request under way.
struct Running(Claim);

impl Idempotency {
    async fn enter(&self, rq: &mut RequestCx, key: Digest) -> Verdict {
        let body = match rq.body.buffer(self.limit).await {
            Ok(Buffered::Whole(body)) => body,
            Ok(Buffered::Partial(_)) => {
                let detail = format!("a request with a key has at most {} bytes", self.limit);
                return Verdict::Fail(Box::new(Fault::new(Reason::BodyTooLarge).by(NAME).detail(detail)));
            }
            Err(fault) => return Verdict::Fail(fault),
        };
        let target = rq.target.as_str().as_bytes();
        let print = digest(&[rq.method.as_str().as_bytes(), rq.authority.as_str().as_bytes(), target, &body]);
        let unresolved = (self.on_unknown == OnUnknown::Refuse).then_some(Outcome::Unknown);
        match self.records.claim(key, print, self.ttl, unresolved) {
            Known::New(claim) => {
                self.counters.first.inc();
                rq.scratch.put(Running(*claim));
                Verdict::Next
            }
            Known::Running => self.conflict("the first request with this key is still running"),
            Known::Done(record) => self.again(&record),
            Known::Mismatch => {
                self.counters.mismatch.inc();
                Verdict::Fail(Box::new(Fault::new(Reason::KeyMismatch).by(NAME)))
            }
        }
    }

    fn again(&self, record: &Record) -> Verdict {
        match &record.outcome {
            Outcome::Answered { status, headers, body } => {
                self.counters.replayed.inc();
                let mut response = Response::new(Body::full(body.clone()));
                *response.status_mut() = *status;
                *response.headers_mut() = headers.clone();
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                Verdict::Reply(Box::new(response))
            }
            Outcome::Unknown => self.conflict("nobody knows whether the first request with this key ran"),
            Outcome::NotKept => self.conflict("the first request with this key ran; its answer was not kept"),
        }
    }

    fn conflict(&self, detail: &'static str) -> Verdict {
        self.counters.conflict.inc();
        Verdict::Fail(Box::new(Fault::new(Reason::KeyInUse).by(NAME).detail(detail)))
    }

    /// A key together with whose it is.
    fn owned(&self, rq: &RequestCx, key: &str) -> Option<Digest> {
        if self.by.is_empty() {
            let (kind, owner) = match (&rq.user, &rq.consumer, &rq.workload) {
                (Some(user), ..) => ("user", format!("{}\n{}", user.identity, user.subject)),
                (_, Some(consumer), _) => ("consumer", consumer.name.to_string()),
                (_, _, Some(workload)) => ("workload", workload.id.to_string()),
                _ => ("ip", rq.client_ip.to_string()),
            };
            return Some(digest(&[kind.as_bytes(), owner.as_bytes(), key.as_bytes()]));
        }
        let parts = self.by.iter().map(|by| by.text(rq)).collect::<Option<Vec<_>>>()?;
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).chain([key.as_bytes()]).collect();
        Some(digest(&parts))
    }
}

/// The key of a request: a string of RFC 9651, or bare as most clients send it.
fn key(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, &'static str> {
    let mut lines = headers.get_all(name).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err("more than one idempotency key");
    }
    let text = value.to_str().map_err(|_| "the idempotency key is not ASCII")?.trim();
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => {
            let inner = rest.strip_suffix('"').ok_or("the idempotency key is not closed")?;
            inner.replace("\\\"", "\"").replace("\\\\", "\\")
        }
    };
    if key.is_empty() || key.len() > MAX_KEY {
        return Err("an idempotency key has 1 to 255 characters");
    }
    Ok(Some(key))
}

/// Of parts that cannot run into each other.
fn digest(parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

//! The endpoints themselves. JSON everywhere but `/metrics`; every refusal is an RFC 9457 problem.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use onehop_filters::contract::mesh::Switch;
use onehop_filters::contract::{Body, Fault, Reason, units};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Facts;
use super::guard::{self, Peer};
use crate::fault::{self, Asked};
use crate::observe::exposition::{Format, expose};
use crate::observe::log::{Level, Log};

/// Size of a request body.
const BODY: usize = 64 * 1024;
/// For a request body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

struct Page {
    path: &'static str,
    /// `allow`.
    methods: &'static str,
    /// Other hosts may read it.
    public: bool,
    about: &'static str,
}

const fn page(path: &'static str, methods: &'static str, public: bool, about: &'static str) -> Page {
    Page { path, methods, public, about }
}

/// Begins the path of one breaker; the service's name follows.
const BREAKER: &str = "/breakers/";

const READ: &str = "GET, HEAD";
const PAGES: [Page; 13] = [
    page("/", READ, false, "this list"),
    page("/livez", READ, true, "200 while the process runs"),
    page("/readyz", READ, true, "200 while new requests are welcome, else 503"),
    page("/healthz", READ, true, "readiness in detail"),
    page("/metrics", READ, true, "Prometheus text, or OpenMetrics if asked for"),
    page("/config", READ, false, "the configuration in force, without secrets"),
    page("/endpoints", READ, false, "services, their endpoints, and what was learned about them"),
    page("/breakers", READ, false, "circuit breakers by service"),
    page(BREAKER, "GET, HEAD, PUT", false, "one of them: PUT auto, open or closed"),
    page("/certs", READ, false, "certificates in use"),
    page("/reload", "POST", false, "read and apply the configuration anew"),
    page("/drain", "POST", false, "stop accepting, finish what runs, exit"),
    page("/logging", "GET, HEAD, PUT", false, "the filter of the process's own log"),
];

pub(super) async fn answer<B>(request: Request<B>, peer: Peer, facts: &dyn Facts) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let head = request.method() == Method::HEAD;
    let mut response = match dispatch(request, peer, facts).await {
        Ok(response) => response,
        Err(fault) => fault::response(&fault, &Asked { request_id: b"", head, grpc: None }),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn dispatch<B>(request: Request<B>, peer: Peer, facts: &dyn Facts) -> Result<Response<Body>, Fault>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let page = PAGES.iter().find(|p| p.path == path || p.path == BREAKER && path.starts_with(BREAKER));
    guard::check(&parts, peer, page.is_some_and(|p| p.public))?;
    let Some(page) = page else {
        return Err(Fault::new(Reason::NoRoute).detail("GET / lists what there is").by("admin"));
    };
    if !page.methods.split(", ").any(|m| m == parts.method.as_str()) {
        let refused = Fault::new(Reason::MethodRefused).by("admin");
        return Err(refused.header(ALLOW, HeaderValue::from_static(page.methods)));
    }
    Ok(match page.path {
        "/" => list(),
        "/livez" => show(StatusCode::OK, &json!({ "live": true })),
        "/readyz" => ready(facts, json!({})),
        "/healthz" => ready(facts, facts.health()),
        "/metrics" => metrics(facts, parts.headers.get(ACCEPT)),
        "/config" => show(StatusCode::OK, &facts.config()),
        "/endpoints" => show(StatusCode::OK, &facts.endpoints()),
        "/breakers" => show(StatusCode::OK, &facts.breakers()),
        BREAKER => {
            let service = parts.uri.path().strip_prefix(BREAKER).unwrap_or_default();
            let word = if parts.method == Method::PUT { Some(read(body).await?) } else { None };
            breaker(facts, service, word.as_deref())?
        }
        "/certs" => show(StatusCode::OK, &facts.certs()),
        "/reload" => match facts.reload().await {
            Ok(applied) => show(StatusCode::OK, &applied),
            Err(wrong) => show(StatusCode::UNPROCESSABLE_ENTITY, &wrong),
        },
        "/drain" => {
            facts.drain();
            show(StatusCode::ACCEPTED, &json!({ "draining": true }))
        }
        _ => {
            if parts.method == Method::PUT {
                set_level(&facts.log(), &read(body).await?)?;
            }
            show(StatusCode::OK, &level(&facts.log().level()))
        }
    })
}

fn show(status: StatusCode, value: &Value) -> Response<Body> {
    let mut text = serde_json::to_vec_pretty(value).expect("a JSON value can be written");
    text.push(b'\n');
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn list() -> Response<Body> {
    let pages = PAGES.iter().map(|p| json!({ "path": p.path, "methods": p.methods, "about": p.about }));
    show(StatusCode::OK, &json!({ "pages": pages.collect::<Value>() }))
}

/// Adds readiness to `detail`, an object.
fn ready(facts: &dyn Facts, mut detail: Value) -> Response<Body> {
    let ready = facts.ready();
    let status = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if let Some(detail) = detail.as_object_mut() {
        detail.insert("ready".into(), ready.is_ok().into());
        if let Err(why) = ready {
            detail.insert("reason".into(), why.into());
        }
    }
    show(status, &detail)
}

/// Body of `PUT /breakers/NAME`; a body that is not an object is the word itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    switch: String,
}

fn breaker(facts: &dyn Facts, service: &str, said: Option<&[u8]>) -> Result<Response<Body>, Fault> {
    let unknown = || Fault::new(Reason::NoRoute).detail("there is no such service").by("breakers");
    let Some(said) = said else {
        return facts.breakers().get(service).map(|view| show(StatusCode::OK, view)).ok_or_else(unknown);
    };
    let wrong = |why: String| Fault::new(Reason::BadRequest).detail(why).by("breakers");
    let text = std::str::from_utf8(said).map_err(|e| wrong(e.to_string()))?.trim();
    let word = if text.starts_with('{') {
        serde_json::from_str::<Said>(text).map_err(|e| wrong(e.to_string()))?.switch
    } else {
        text.to_owned()
    };
    let to = Switch::WORDS.iter().find(|(known, _)| *known == word);
    let (_, to) = to.ok_or_else(|| wrong("say auto, open or closed".to_owned()))?;
    facts.switch(service, *to).map(|view| show(StatusCode::OK, &view)).ok_or_else(unknown)
}

fn metrics(facts: &dyn Facts, accept: Option<&HeaderValue>) -> Response<Body> {
    let format = Format::of(accept.and_then(|a| a.to_str().ok()).unwrap_or_default());
    let mut response = Response::new(Body::full(expose(&facts.registry(), format)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

fn level(level: &Level) -> Value {
    let until = level.until.and_then(|t| jiff::Timestamp::try_from(t).ok()).map(|t| format!("{t:.0}"));
    json!({
        "filter": level.filter,
        "configured": level.configured,
        "until": until,
        // What the build left in: release builds have nothing below info.
        "finest": tracing::level_filters::STATIC_MAX_LEVEL.to_string().to_lowercase(),
    })
}

/// Body of `PUT /logging`; a body that is not an object is the filter itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// `null`: what the configuration says.
    filter: Option<String>,
    /// After this time the configured filter comes back.
    #[serde(rename = "for")]
    period: Option<String>,
}

fn set_level(log: &Log, body: &[u8]) -> Result<(), Fault> {
    let wrong = |why: String| Fault::new(Reason::BadRequest).detail(why).by("logging");
    let text = std::str::from_utf8(body).map_err(|e| wrong(e.to_string()))?.trim();
    let wish = if text.starts_with('{') {
        serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?
    } else {
        Wish { filter: Some(text.to_owned()), period: None }
    };
    let Some(filter) = wish.filter else {
        log.reset();
        return Ok(());
    };
    let period = wish.period.map(|p| p.parse::<units::Duration>().map_err(wrong)).transpose()?;
    log.set(&filter, period.map(|p| p.0)).map_err(|e| wrong(e.to_string()))
}

async fn read<B>(body: B) -> Result<Bytes, Fault>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Fault::new(Reason::BodyTooLarge)),
        Ok(Err(_)) => Err(Fault::new(Reason::BadFraming)),
        Err(_) => Err(Fault::new(Reason::BodyTimeout)),
    }
}

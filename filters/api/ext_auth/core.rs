//! What an answer means, and what it does to a request: pure.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, HOST, PROXY_AUTHENTICATE, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::contract::filter::Verdict;
use crate::contract::{Body, ConfigError, Fault, Reason, RequestCx, Spot};

/// What was ruled.
#[derive(Clone, Debug)]
pub enum Ruling {
    /// The request goes on, changed.
    Allow(Arc<Changes>),
    /// The client gets this answer.
    Deny(Arc<Denial>),
}

/// An answer in place of the upstream's.
#[derive(Debug, Default)]
pub struct Denial {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What an answer that lets a request go on does to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub fields: Vec<(HeaderName, HeaderValue, How)>,
    pub remove: Vec<HeaderName>,
    pub query: Vec<(String, String)>,
    pub remove_query: Vec<String>,
    /// For the client's answer, whoever makes it.
    pub reply: Vec<(HeaderName, HeaderValue)>,
}

/// How a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Set,
    Append,
    AddIfAbsent,
    OverwriteIfThere,
}

/// Names of fields from the config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    exact: Vec<HeaderName>,
    prefixes: Vec<Box<str>>,
}

impl Names {
    /// Compiles a list; `*` alone only where `all` is allowed.
    pub fn compile(list: &[Spot<String>], all: bool) -> Result<Self, ConfigError> {
        let mut names = Self::default();
        for name in list {
            let lower = name.value.to_ascii_lowercase();
            match lower.strip_suffix('*') {
                Some("") if !all => {
                    return Err(ConfigError::at(name.span, "`*` would take every field away from the caller")
                        .help("name the fields, such as `x-user` or `x-acme-*`"));
                }
                Some(prefix) => names.prefixes.push(prefix.into()),
                None => names.exact.push(HeaderName::try_from(lower.as_str()).map_err(|_| {
                    ConfigError::at(name.span, format!("`{}` is not the name of a header field", name.value))
                        .help("write a name such as `x-user`, or `x-acme-*` for all that begin so")
                })?),
            }
        }
        Ok(names)
    }

    pub fn fixed(names: &[HeaderName]) -> Self {
        Self { exact: names.to_vec(), prefixes: Vec::new() }
    }

    pub const fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    pub fn has(&self, name: &HeaderName) -> bool {
        self.exact.contains(name) || self.prefixes.iter().any(|p| name.as_str().starts_with(&**p))
    }

    /// Takes all of them out.
    pub fn scrub(&self, headers: &mut HeaderMap) {
        for name in &self.exact {
            headers.remove(name);
        }
        if !self.prefixes.is_empty() {
            let found: Vec<HeaderName> = headers.keys().filter(|name| self.has(name)).cloned().collect();
            for name in found {
                headers.remove(name);
            }
        }
    }
}

/// Fields that belong to a connection, to framing or to the engine: no answer of a third party changes those.
pub fn is_ours(name: &HeaderName) -> bool {
    const OURS: [HeaderName; 8] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, TE, TRAILER, UPGRADE, HOST, EXPECT];
    OURS.contains(name)
        || *name == PROXY_AUTHENTICATE
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
        || name.as_str().starts_with("x-onehop-")
}

/// Fields of an answer that a client gets to see.
pub fn passable(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    headers.iter().filter(|(name, _)| !is_ours(name) && **name != DATE)
}

impl Changes {
    /// Does them. The target keeps its path.
    pub fn apply(&self, rq: &mut RequestCx) {
        for name in &self.remove {
            rq.headers.remove(name);
        }
        for (name, value, how) in &self.fields {
            let there = rq.headers.contains_key(name);
            match how {
                How::Append => drop(rq.headers.append(name.clone(), value.clone())),
                How::AddIfAbsent if there => {}
                How::OverwriteIfThere if !there => {}
                _ => drop(rq.headers.insert(name.clone(), value.clone())),
            }
        }
        if !self.query.is_empty() || !self.remove_query.is_empty() {
            let query = self.query_of(rq.target.query());
            let target = if query.is_empty() { rq.path().to_owned() } else { format!("{}?{query}", rq.path()) };
            // Everything that was added is percent-encoded.
            if let Ok(target) = PathAndQuery::try_from(target) {
                rq.target = target;
            }
        }
        rq.reply_headers.extend(self.reply.iter().cloned());
    }

    fn query_of(&self, query: Option<&str>) -> String {
        const SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        let stays = |pair: &&str| {
            let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
            let name = percent_decode_str(name).decode_utf8_lossy();
            !pair.is_empty()
                && !self.remove_query.iter().any(|n| *n == name)
                && !self.query.iter().any(|(n, _)| *n == name)
        };
        let mut out: Vec<String> = query.unwrap_or_default().split('&').filter(stays).map(ToOwned::to_owned).collect();
        for (name, value) in &self.query {
            out.push(format!("{}={}", utf8_percent_encode(name, SET), utf8_percent_encode(value, SET)));
        }
        out.join("&")
    }
}

impl Denial {
    /// As the verdict on a request. A gRPC caller, and one whose answer would be empty, gets a problem with the status and
    /// the fields of the answer; a redirect and an answer with a body go out as they are.
    pub fn verdict(&self, grpc: bool) -> Verdict {
        let fails = self.status.is_client_error() || self.status.is_server_error();
        if fails && (grpc || self.body.is_empty()) {
            let reason =
                if self.status == StatusCode::UNAUTHORIZED { Reason::Unauthenticated } else { Reason::Forbidden };
            let mut fault = Fault::new(reason).answer(self.status);
            for (name, value) in &self.headers {
                fault = fault.header(name.clone(), value.clone());
            }
            return Verdict::Fail(Box::new(fault));
        }
        let mut response = Response::new(Body::full(self.body.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.body.is_empty() {
            response.headers_mut().remove(CONTENT_TYPE);
        }
        Verdict::Reply(Box::new(response))
    }
}

/// Fields for the client's answer: two of a name are written where two may stand (`finish` of the engine).
pub fn for_client(headers: &HeaderMap, names: &Names) -> Vec<(HeaderName, HeaderValue)> {
    let mut found: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (name, value) in passable(headers).filter(|(name, _)| names.has(name)) {
        let several = *name == SET_COOKIE || *name == VARY;
        match found.iter_mut().find(|(n, _)| n == name && !several) {
            Some((_, old)) => *old = value.clone(),
            None => found.push((name.clone(), value.clone())),
        }
    }
    found
}

//! API filters: request scope, once per request, never again on a retry.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::fault::Fault;
use super::request::{RequestCx, ResponseCx};

/// A filter at work. Sync first: a verdict at once costs no allocation; real I/O returns a boxed future.
pub trait Filter: Send + Sync + 'static {
    /// On the way in.
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a>;
    /// On the way out, in reverse order, for filters whose `on_request` ran. A fault here becomes the answer.
    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let _ = (rq, rs);
        Step::NEXT
    }
    /// What it needs of the engine; read once, when compiled.
    fn needs(&self) -> Needs {
        Needs::default()
    }
    /// The identities it asks; read once, when compiled. The paths that are an identity's own get a route wherever the
    /// filter's route is, and a route that matches on claims is chosen by what these identities say.
    fn asks(&self) -> Asks<'_> {
        Asks::default()
    }
}

/// Identities that a filter asks.
#[derive(Clone, Copy, Default)]
pub struct Asks<'a> {
    /// In the order they are asked.
    pub identities: &'a [Arc<dyn Authenticator>],
    /// Whether a request passes that none of them knows.
    pub optional: bool,
}

/// What a filter asks of the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// `on_response` does something. Filters that leave it false are not called on the way out.
    pub response: bool,
}

/// A verdict, now or later.
#[must_use]
pub enum Step<'a> {
    /// Decided.
    Done(Verdict),
    /// Waits for real I/O. One allocation: the rare arm.
    Wait(Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>),
}

impl Step<'_> {
    /// Go on.
    pub const NEXT: Self = Step::Done(Verdict::Next);
    /// Refuse.
    pub fn fail(fault: Fault) -> Self {
        Step::Done(Verdict::Fail(Box::new(fault)))
    }
    /// Answer.
    pub fn reply(reply: http::Response<super::Body>) -> Self {
        Step::Done(Verdict::Reply(Box::new(reply)))
    }
}

/// What a filter decided.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// Go on.
    Next,
    /// The filter answers by itself; nothing further in runs.
    Reply(Box<http::Response<super::Body>>),
    /// Refused; the engine renders the fault.
    Fail(Box<Fault>),
}

/// Checks one kind of credential. Combined by the `auth` filter, named under `identities` in the config.
pub trait Authenticator: Send + Sync + 'static {
    /// Looks for its credential and judges it. On success it sets `rq.user` or `rq.consumer` and removes the credential
    /// from what goes upstream.
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a>;
    /// Fields that only this authenticator may set (claims as headers): scrubbed from every request that a stranger sent.
    fn claims_headers(&self) -> &[http::HeaderName] {
        &[]
    }
    /// Name of a cookie that is this authenticator's alone, with those that begin with it and a dot: they never go
    /// upstream, on no route.
    fn cookie(&self) -> Option<&str> {
        None
    }
    /// Paths that it answers by itself, exactly as written: the end of a login, a logout. They get a route on every
    /// listener and host where a route asks this identity.
    fn paths(&self) -> &[Box<str>] {
        &[]
    }
    /// An answer in place of 401 for a caller that nobody knows: the way to a login page, or why there is none now.
    /// Asked once no identity of the route has accepted the request.
    fn invite(&self, rq: &mut RequestCx) -> Option<Result<http::Response<super::Body>, Fault>> {
        let _ = rq;
        None
    }
    /// `WWW-Authenticate` challenge, RFC 9110 section 11.6.1; `error` is the RFC 6750 error code if a credential was refused.
    fn challenge(&self, error: Option<&AuthError>) -> String;
}

/// A verdict on credentials, now or later.
#[must_use]
pub enum AuthStep<'a> {
    /// Decided.
    Done(AuthVerdict),
    /// Waits for keys or a blocking hash. May be dropped before it is polled and asked for again.
    Wait(Pin<Box<dyn Future<Output = AuthVerdict> + Send + 'a>>),
}

/// What became of a credential.
#[derive(Debug)]
#[must_use]
pub enum AuthVerdict {
    /// Good; the principal is set on the request.
    Accepted,
    /// The request carries no credential of this kind.
    Absent,
    /// A credential is there and bad.
    Refused(AuthError),
    /// Cannot be judged now (keys not available): 503, never a pass.
    Unavailable(&'static str),
    /// The authenticator answers by itself, at once: the end of a login, a logout.
    Reply(Box<http::Response<super::Body>>),
}

/// Why a credential is bad.
#[derive(Debug, Clone)]
pub struct AuthError {
    /// RFC 6750 section 3.1 code: `invalid_request`, `invalid_token`, `insufficient_scope`.
    pub code: &'static str,
    /// A short sentence without secrets.
    pub description: &'static str,
}

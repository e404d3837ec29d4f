//! What filters see of a request and of its response: typed fields, no any-map.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use smallvec::SmallVec;

use super::body::Body;
use super::call::{ServiceId, Services};
use super::clock::Moment;
use super::principal::{Consumer, User, Workload};
use super::scratch::Scratch;
use super::trail::Trail;

/// What is known of a connection; made once per connection.
#[derive(Debug)]
pub struct Conn {
    /// Process-wide number.
    pub id: u64,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// The socket's peer; unspecified for unix sockets.
    pub peer: SocketAddr,
    /// The address the peer connected to.
    pub local: SocketAddr,
    /// The client as PROXY protocol told it, else `peer`.
    pub client: SocketAddr,
    /// Whether the peer is in `trustedProxies`: only then are forwarded fields believed.
    pub trusted: bool,
    /// `exposure: mesh` (false: edge, the stricter one).
    pub mesh: bool,
    /// TLS, if any.
    pub tls: Option<Tls>,
}

/// The TLS side of a connection.
#[derive(Debug)]
pub struct Tls {
    /// Server name the client asked for.
    pub sni: Option<Arc<str>>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Who the client certificate says it is (verified), if one was given.
    pub workload: Option<Arc<Workload>>,
}

/// What filters may know of the route that was matched.
#[derive(Debug)]
pub struct RouteInfo {
    /// Name in the config.
    pub name: Arc<str>,
    /// Whether the route may speak these upgrades, lower-case.
    pub upgrades: Vec<Arc<str>>,
    /// The services it calls and their weights; empty where it answers by itself.
    pub to: Vec<(ServiceId, u32)>,
}

/// W3C trace context of this request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    /// 16 bytes; zero = none.
    pub trace_id: u128,
    /// The caller's span; zero = we are the root.
    pub parent: u64,
    /// Our server span.
    pub span: u64,
    /// Whether spans are recorded.
    pub sampled: bool,
}

/// Fields for the response, whoever makes it: set by filters on the way in, written once on the way out.
pub type ReplyHeaders = SmallVec<[(HeaderName, HeaderValue); 4]>;

/// A request on its way through the chain. Filters may rewrite it, never re-route it.
#[derive(Debug)]
pub struct RequestCx {
    /// Its connection.
    pub conn: Arc<Conn>,
    /// When its head was complete.
    pub started: Moment,
    /// Method.
    pub method: Method,
    /// Version the client spoke.
    pub version: Version,
    /// Whether the client's scheme is https (from TLS, or a trusted proxy's word).
    pub https: bool,
    /// Host and optional port, lower-case, validated: what routing, rules, logs and upstream all use.
    pub authority: Authority,
    /// Normalised path and query. A transform replaces it.
    pub target: PathAndQuery,
    /// Fields without hop-by-hop ones, without `host`.
    pub headers: HeaderMap,
    /// Body.
    pub body: Body,
    /// The client, after trusted proxies (IPv4-mapped addresses as IPv4).
    pub client_ip: IpAddr,
    /// `x-request-id`.
    pub request_id: HeaderValue,
    /// The matched route.
    pub route: Arc<RouteInfo>,
    /// How many bytes of the path the route's match covers: what `replacePrefix` replaces.
    pub covered: usize,
    /// Who the user is, once authenticated.
    pub user: Option<Arc<User>>,
    /// Which application calls, once authenticated.
    pub consumer: Option<Arc<Consumer>>,
    /// Which program calls: copied from the connection.
    pub workload: Option<Arc<Workload>>,
    /// When everything must be over.
    pub deadline: Moment,
    /// Trace context.
    pub trace: Trace,
    /// `Host` for the upstream if not the caller's.
    pub upstream_host: Option<HeaderValue>,
    /// Fields for the response.
    pub reply_headers: ReplyHeaders,
    /// Private notes of filters, from their way in to their way out.
    pub scratch: Scratch,
    /// The services of the configuration this request runs under, for filters that ask one.
    pub services: Arc<dyn Services>,
    /// What was decided so far.
    pub trail: Trail,
    /// A hypothetical request (`explain`): decide, but charge and change nothing.
    pub dry_run: bool,
}

impl RequestCx {
    /// Host without port.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host()
    }
    /// Path without query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.path()
    }
}

/// What the caller speaks, noted in [`RequestCx::scratch`] by a filter that changes the request's own `content-type`:
/// answers to failures are written for the caller, not for the service.
#[derive(Debug)]
pub struct Dialect {
    /// The caller's `content-type`, if that is one of gRPC or gRPC-Web.
    pub grpc: Option<HeaderValue>,
}

/// A response on its way back through the filters that saw its request.
#[derive(Debug)]
pub struct ResponseCx {
    /// Status.
    pub status: StatusCode,
    /// Fields without hop-by-hop ones.
    pub headers: HeaderMap,
    /// Body.
    pub body: Body,
    /// Who made it.
    pub origin: Origin,
}

/// Who made a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An endpoint.
    Upstream,
    /// A filter, a fallback, or a direct response: as configured.
    Filter,
    /// A [`super::Fault`], rendered.
    Fault,
}

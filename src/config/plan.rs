//! A checked configuration. A value of type [`Plan`] is correct: names resolve, ranges hold, units are applied.
//! What filters own stays a [`Node`] until `snapshot/compile` hands it to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use ipnet::IpNet;
use onehop_filters::contract::networks::Networks;
use onehop_filters::contract::principal::Priority;
use onehop_filters::contract::{ConfigError, FieldEdits, Node, Optional, Span, Spot};

use super::report::Files;

/// The whole configuration.
pub struct Plan {
    /// Folder that relative paths start in.
    pub dir: PathBuf,
    /// Stable hash of the text, for logs and `/config`.
    pub hash: u64,
    /// `admin`.
    pub admin: Admin,
    /// `listeners`, by name.
    pub listeners: BTreeMap<String, Arc<Listener>>,
    /// `identities.NAME`: kind and its section.
    pub identities: BTreeMap<String, (String, Node)>,
    /// `plans`.
    pub plans: BTreeMap<String, PlanPlan>,
    /// `consumers`.
    pub consumers: BTreeMap<String, ConsumerPlan>,
    /// `routes`, in file order.
    pub routes: Vec<Route>,
    /// `services`, by name.
    pub services: BTreeMap<String, Service>,
    /// `workload`: this process's own mesh identity.
    pub workload: Option<TlsIdentity>,
    /// `telemetry`.
    pub telemetry: Telemetry,
    /// `lifecycle`.
    pub lifecycle: Lifecycle,
    /// `runtime.workers`; `None` = one per core of the cgroup.
    pub workers: Option<usize>,
    /// `runtime.maxRequests`: requests in flight at most.
    pub max_requests: Option<u32>,
    /// `runtime.maxMemory`: resident bytes at most.
    pub max_memory: Option<u64>,
    /// `runtime.brownout`: what is left out first.
    pub brownout: Vec<Optional>,
    /// `runtime.zone`: where this process runs; empty = not known. `None`: not written.
    pub zone: Option<Arc<str>>,
    /// `state`.
    pub state: Arc<onehop_filters::contract::state::Settings>,
    /// Where it begins, for errors that no line can be blamed for.
    pub span: Span,
    /// Where `admin.bind` stands.
    pub admin_span: Span,
    /// The files it was read from, to show errors that are found later in their place, and the whole as it was written.
    pub files: Files,
    /// What is allowed and probably not meant: unused services, shadowed routes, ...
    pub warnings: Vec<ConfigError>,
}

/// `admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `bind`, default 127.0.0.1:9901; `None` = `bind: none`.
    pub bind: Option<Bind>,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    /// TCP.
    Tcp(SocketAddr),
    /// `unix:///path`.
    Unix(PathBuf),
}

/// `listeners.NAME`.
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub span: Span,
    pub bind: Bind,
    /// `protocols`: h1, h2 (default both).
    pub h1: bool,
    pub h2: bool,
    pub tls: Option<ListenerTls>,
    /// `protocols: [tcp]`: connections, not requests. `None`: HTTP.
    pub tcp: Option<Tcp>,
    /// `trustedProxies`.
    pub trusted: Arc<[IpNet]>,
    pub proxy_protocol: ProxyProtocol,
    /// `exposure`.
    pub mesh: bool,
    /// `capture: inbound | outbound` (a label for logs and defaults; explicit ports, no packet capture).
    pub capture: Option<Capture>,
    /// `unknownHosts: passthrough`; default deny.
    pub passthrough: bool,
    /// `ipRules`: who may connect; `None` = everybody.
    pub clients: Option<Arc<Clients>>,
    pub limits: Limits,
    pub paths: Paths,
    /// `via: true` adds a Via field both ways (RFC 9110 section 7.6.3).
    pub via: bool,
    /// `acceptBalance: true`: one acceptor hands connections to workers in turn, for few long h2 connections.
    pub accept_balance: bool,
}

/// `listeners.NAME.ipRules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// `None`: everybody. Empty: nobody.
    pub allow: Option<Networks>,
    pub deny: Networks,
}

impl Clients {
    /// Whether an address may connect.
    #[must_use]
    pub fn admit(&self, ip: IpAddr) -> bool {
        !self.deny.contains(ip) && self.allow.as_ref().is_none_or(|allow| allow.contains(ip))
    }
}

/// What is known of a connection of a TCP listener before it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// Bytes, as they come or as TLS gives them.
    Bytes,
    /// `tls.mode: passthrough`: the server name of a ClientHello that is not answered here.
    Passthrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    Inbound,
    Outbound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    None,
    Optional,
    Required,
}

/// `listeners.NAME.tls`.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// `mode: mesh`: mutual TLS with the workload's identity; then `certificates` is empty.
    pub mesh: bool,
    /// Certificate chain and key files (absolute). The first is the default for clients without SNI.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// `minVersion: "1.3"`.
    pub only_13: bool,
    /// `clientCa`: file; clients are asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// `crl`: files with revocation lists, absolute; none = revocation is not checked.
    pub crl: Vec<PathBuf>,
    /// `clientAuth: required | optional`, default required with `clientCa`.
    pub client_required: bool,
}

/// Own certificate, key, and whom to trust.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    pub name: Arc<str>,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

/// `listeners.NAME.limits`. Zero durations are "no limit".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub head: usize,
    pub uri: usize,
    pub fields: usize,
    /// `None` = no limit (the default in a mesh).
    pub body: Option<u64>,
    pub streams: u32,
    pub connections: usize,
    /// `connectionsPerClient`; `None` = no limit.
    pub per_client: Option<usize>,
    pub head_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub idle_timeout: Duration,
    pub tls_timeout: Duration,
    /// `requests`: requests a connection, then it is closed in an orderly way. `None` = no limit.
    pub requests: Option<u64>,
}

/// `listeners.NAME.paths`; true = reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paths {
    pub reject_escaped_slashes: bool,
    pub reject_underscores: bool,
}

/// `plans.NAME`.
#[derive(Debug)]
pub struct PlanPlan {
    pub priority: Priority,
    /// Sections of filters (`quota`).
    pub sections: BTreeMap<String, Node>,
}

/// `consumers.NAME`.
#[derive(Debug)]
pub struct ConsumerPlan {
    pub span: Span,
    pub plan: Option<String>,
    /// Sections of identity kinds (`apiKeys`), by key.
    pub credentials: BTreeMap<String, Node>,
    pub scopes: Vec<String>,
}

/// `routes[n]`.
#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    pub span: Span,
    /// Names of listeners; `None` = every listener.
    pub listeners: Option<Vec<String>>,
    /// Lower-case; `*.a.com` = any depth below a.com; empty = any host.
    pub hosts: Vec<String>,
    /// Empty = matches every path.
    pub matches: Vec<Match>,
    /// Keys that belong to API filters, in file order.
    pub filters: Vec<(String, Node)>,
    /// `timeouts.request`: `None` = no limit (0s). Default 15 s.
    pub request_timeout: Option<Duration>,
    /// `timeouts.idle`: default 5 min; `None` = no limit.
    pub idle_timeout: Option<Duration>,
    /// `upgrades`, lower-case.
    pub upgrades: Vec<Arc<str>>,
    /// `bodyLimit`: overrides the listener's.
    pub body_limit: Option<u64>,
    pub action: Action,
    /// `sticky`: binds callers to one of several services.
    pub sticky: Option<Sticky>,
    /// `carry.deadline: inherit`: the caller's deadline counts, whoever it is.
    pub inherit_deadline: bool,
    /// It is on TCP listeners: `hosts` are server names, and nothing is known of requests.
    pub tcp: bool,
    /// `carry.identity`: a call is made for the user of the incoming call that it is tied to.
    pub carry_identity: bool,
}

/// `routes[n].sticky`.
#[derive(Clone, Debug)]
pub struct Sticky {
    /// `by`: what tells callers apart; empty with `cookie`.
    pub by: Spot<String>,
    /// `cookie` and `maxAge`: a cookie that whoever has none is given.
    pub cookie: Option<(String, Option<Duration>)>,
}

/// One of `routes[n].matches`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    pub path: Option<PathMatch>,
    /// Empty = every method.
    pub methods: Vec<Method>,
    pub headers: Vec<(http::HeaderName, ValueMatch)>,
    pub query: Vec<(String, ValueMatch)>,
    /// Names as written; a dot may lead into a claim.
    pub claims: Vec<(String, ValueMatch)>,
    pub cookies: Vec<(String, ValueMatch)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// By segment, without a trailing slash (except `/` itself).
    Prefix(String),
    Regex(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    Regex(String),
    /// `{present: true}`.
    Present,
}

/// One of the services in `routes[n].to`.
#[derive(Clone, Debug)]
pub struct Callee {
    pub service: String,
    /// One of its subsets; `None`: all of its endpoints.
    pub subset: Option<String>,
    /// Share of the requests; 0 = none.
    pub weight: u32,
    /// Header edits of this service alone; `None` = none.
    pub edits: Option<Arc<CalleeEdits>>,
}

/// `request` and `response` of one of the services in `to`.
#[derive(Debug)]
pub struct CalleeEdits {
    pub request: FieldEdits,
    pub response: FieldEdits,
}

/// What a route does in the end.
#[derive(Debug)]
pub enum Action {
    /// `to`. Never empty.
    Forward(Vec<Callee>),
    /// `redirect`.
    Redirect(Redirect),
    /// `respond`.
    Respond(Arc<Canned>),
    /// The last of its filters answers: a key of [`onehop_filters::contract::Role::Answer`].
    Filter,
}

/// `redirect`.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    /// Written only when asked for.
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    pub status: StatusCode,
}

/// `replacePrefix` or `replaceFull`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    ReplacePrefix(String),
    ReplaceFull(String),
}

/// `respond`.
#[derive(Clone, Debug)]
pub struct Canned {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: bytes::Bytes,
}

/// `services.NAME`.
#[derive(Debug)]
pub struct Service {
    pub name: Arc<str>,
    pub span: Span,
    /// Kind (`static`, `dns`, ...) and its section.
    pub discover: (String, Node),
    pub protocol: Protocol,
    /// `loadBalancer`: policy and the whole section.
    pub balance: (String, Option<Node>),
    /// Keys that belong to mesh roles: retry, circuitBreaker, outlierDetection, healthCheck, ...
    pub roles: BTreeMap<String, Node>,
    pub tls: Option<UpstreamTls>,
    pub connect_timeout: Duration,
    pub fallback: Option<Fallback>,
    /// `idleTimeout` of pooled connections, default 55 s.
    pub pool_idle: Duration,
    /// `subsets`, by name: labels that each endpoint of one carries.
    pub subsets: BTreeMap<String, BTreeMap<String, String>>,
    /// `proxyProtocol`: what each connection begins with.
    pub proxy_protocol: Option<SendProxy>,
    /// `connections`.
    pub connections: Connections,
}

/// `services.NAME.connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// `maxRequests`; `u64::MAX` = no limit.
    pub max_requests: u64,
    /// `maxAge`.
    pub max_age: Option<Duration>,
    /// `h2.maxPerEndpoint`, per worker.
    pub h2_max: usize,
    /// `h2.maxStreams`.
    pub h2_streams: usize,
    /// `h2.pingInterval`; `None` = never.
    pub ping: Option<Duration>,
    /// `h2.pingTimeout`.
    pub pong: Duration,
    /// `h2.pingIdle`.
    pub ping_idle: bool,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max_requests: u64::MAX,
            max_age: None,
            h2_max: 8,
            h2_streams: 100,
            ping: Some(Duration::from_secs(30)),
            pong: Duration::from_secs(20),
            ping_idle: false,
        }
    }
}

/// `services.NAME.proxyProtocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendProxy {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// `services.NAME.protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// ALPN decides over TLS; HTTP/1.1 in the clear; gRPC requests use HTTP/2.
    Auto,
    H1,
    /// Also `grpc`.
    H2,
}

/// `services.NAME.tls`. Verification cannot be turned off but by `insecureSkipVerify: true`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// `mode: mesh`: the workload's certificate and CA.
    pub mesh: bool,
    /// `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// `None`: the endpoint's host name as written in discovery.
    pub sni: Option<String>,
    pub cert: Option<(PathBuf, PathBuf)>,
    /// `allow`: exact SAN (URI or DNS) the peer must carry one of; empty = the SNI name is verified.
    pub allow: Vec<String>,
    pub insecure: bool,
}

/// `services.NAME.fallback`.
#[derive(Clone, Debug)]
pub enum Fallback {
    Respond(Arc<Canned>),
    Service(String),
}

/// `telemetry`.
#[derive(Clone, Debug)]
pub struct Telemetry {
    pub access_log: Option<AccessLog>,
    pub tracing: Option<Tracing>,
    /// `debugHeader`: name of the field that, on a request from a trusted peer, asks for the trail as `Server-Timing`.
    pub debug_header: http::HeaderName,
    /// `log`: filter of the process's own log, such as `info` or `onehop=debug`.
    pub log: String,
}

/// `telemetry.accessLog`.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// `/dev/stdout`, `/dev/stderr` or a file.
    pub path: PathBuf,
    /// `format: text`; default json.
    pub text: bool,
    /// `sample` of successes; errors are always kept. 1.0 = all.
    pub sample: f64,
}

/// `telemetry.tracing`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// `http` or `https`.
    pub otlp: String,
    /// `ca`: whom to trust over https; `None` = the system's roots.
    pub ca: Option<PathBuf>,
    /// Fraction of new traces.
    pub sample: f64,
    pub service_name: String,
    /// `restart: true`: never continue an untrusted caller's trace.
    pub restart: bool,
}

/// `lifecycle`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// `drain`, default 25 s.
    pub drain: Duration,
    /// `unready`: how long to answer 503 on /readyz before listeners close, default 0s.
    pub unready: Duration,
    /// `outboundUntilAppExits`: outbound listeners stay open through the drain.
    pub outbound_until_app_exits: bool,
}

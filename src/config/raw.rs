//! The shape of the engine's own keys, as serde and as schema. Keys that belong to filters are not here: the schema and
//! the reader add those from the list of entries. A field that is `Spot` is looked at again in `lower`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use onehop_filters::contract::units::{Duration, Percent, Size};
use onehop_filters::contract::{Edits, Node, Spot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const fn seconds(n: u64) -> Duration {
    Duration(std::time::Duration::from_secs(n))
}

/// A section: strict on keys, camelCase, optional keys absent when unset.
macro_rules! section {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Deserialize, Serialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
    )*};
}

/// A closed set of words.
macro_rules! words {
    ($($(#[$meta:meta])* $name:ident { $($(#[$word_meta:meta])* $word:ident = $text:literal,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
        pub enum $name { $($(#[$word_meta])* #[serde(rename = $text)] $word,)* }
    )*};
}

words! {
    /// What a listener speaks: versions of HTTP, or `tcp` alone for bytes as they come.
    Http { #[default] H1 = "h1", H2 = "h2", Tcp = "tcp", }
    /// PROXY protocol, version 1 or 2, in front of the connection.
    ProxyProtocol { #[default] None = "none", Optional = "optional", Required = "required", }
    /// Work that no caller waits for.
    Optional { #[default] Mirror = "mirror", Tracing = "tracing", Validation = "validation", }
    /// How strict the defaults are.
    Exposure { #[default] Edge = "edge", Mesh = "mesh", }
    /// Which side of the application a sidecar's listener serves.
    Capture { #[default] Inbound = "inbound", Outbound = "outbound", }
    /// What becomes of a host that no route names.
    UnknownHosts { #[default] Deny = "deny", Passthrough = "passthrough", }
    /// What becomes of an ambiguous request.
    Rule { #[default] Reject = "reject", Keep = "keep", }
    /// The only mode that has a name.
    TlsMode { #[default] Mesh = "mesh", }
    /// `mesh`: mutual TLS with the workload's identity. `passthrough`: not decrypted; the server name that the client
    /// asks for chooses the route.
    ListenerTlsMode { #[default] Mesh = "mesh", Passthrough = "passthrough", }
    /// PROXY protocol towards endpoints.
    SendProxy { V1 = "v1", #[default] V2 = "v2", }
    /// Lowest TLS version.
    TlsVersion { #[default] Tls12 = "1.2", Tls13 = "1.3", }
    /// Whether a client must show a certificate.
    ClientAuth { #[default] Required = "required", Optional = "optional", }
    /// Who is shed last under overload.
    Priority { Low = "low", #[default] Normal = "normal", High = "high", }
    /// Where the deadline of a request that a mesh listener takes comes from.
    Deadline { #[default] Inherit = "inherit", }
    /// HTTP version spoken to a service.
    Protocol { #[default] Auto = "auto", H1 = "h1", H2 = "h2", Grpc = "grpc", }
    /// Shape of an access log line.
    LogFormat { #[default] Json = "json", Text = "text", }
}

section! {
    /// The admin endpoint.
    Admin {
        /// `ip:port`, `unix:///path` or `none`.
        #[serde(default = "Admin::default_bind")]
        bind: Spot<String>,
    }

    /// A listening socket.
    Listener {
        /// `ip:port` or `unix:///path`; port 0 = any free port.
        bind: Spot<String>,
        /// Versions of HTTP (in the clear, h2 is by prior knowledge), or `[tcp]`: connections are passed on byte by byte,
        /// by routes that name this listener. Default `[h1, h2]`; `[tcp]` with `tls.mode: passthrough`.
        #[serde(default = "Listener::default_protocols")]
        protocols: Vec<Http>,
        /// TLS; absent = in the clear.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<Spot<ListenerTls>>,
        /// Networks whose forwarding fields and PROXY headers are believed.
        #[serde(default)]
        trusted_proxies: Vec<Spot<String>>,
        #[serde(default)]
        proxy_protocol: ProxyProtocol,
        /// Default: mesh with `capture`, `unknownHosts` or `tls.mode: mesh`, else edge.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exposure: Option<Exposure>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        capture: Option<Capture>,
        /// Default deny.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unknown_hosts: Option<UnknownHosts>,
        /// Who may connect at all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ip_rules: Option<Spot<Clients>>,
        #[serde(default)]
        limits: Limits,
        #[serde(default)]
        paths: Paths,
        /// Adds a Via field both ways.
        #[serde(default)]
        via: bool,
        /// One acceptor hands connections to workers in turn.
        #[serde(default)]
        accept_balance: bool,
    }

    /// Which addresses may connect: those of the socket, or of the PROXY header, before TLS and before any route. Never what
    /// forwarding fields say; for those there is `ipRules` of a route. Connections that stand are not judged again.
    Clients {
        /// Addresses and networks; the client must be in one of them. An empty list allows nobody. Default everybody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow: Option<Vec<Spot<String>>>,
        /// Addresses and networks; the client may be in none of them. Wins over `allow`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        deny: Vec<Spot<String>>,
    }

    /// TLS of a listener: `mode`, or certificates.
    ListenerTls {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<ListenerTlsMode>,
        /// Chosen by SNI; the first is for clients without it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        certificates: Vec<Certificate>,
        #[serde(default)]
        min_version: TlsVersion,
        /// CA bundle; clients are asked for a certificate.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_ca: Option<PathBuf>,
        /// Revocation lists (RFC 5280), PEM or DER, read again when they change. Every CA of a client's chain needs one,
        /// and a list that is past its `nextUpdate` lets nobody in. With `clientCa` or `mode: mesh`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        crl: Vec<Spot<PathBuf>>,
        /// Default required, with `clientCa`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_auth: Option<Spot<ClientAuth>>,
    }

    /// Chain and key, PEM.
    Certificate { cert: PathBuf, key: PathBuf, }

    /// Limits of a listener. `0s` and, for `body`, `0B` mean no limit.
    Limits {
        /// Request head: 431 above.
        #[serde(default = "Limits::default_head")]
        head: Spot<Size>,
        /// Request target: 414 above.
        #[serde(default = "Limits::default_uri")]
        uri: Spot<Size>,
        /// Header fields: 431 above.
        #[serde(default = "Limits::default_fields")]
        fields: Spot<u64>,
        /// Request body: 413 above. Default 10MiB at the edge, none in the mesh.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<Size>,
        /// Concurrent h2 streams of a connection.
        #[serde(default = "Limits::default_streams")]
        streams: Spot<u64>,
        /// Open connections.
        #[serde(default = "Limits::default_connections")]
        connections: Spot<u64>,
        /// Open connections of one client: of an IPv4 address, or of the 64 bits that name an IPv6 network. Default no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connections_per_client: Option<Spot<u64>>,
        #[serde(default = "Limits::default_handshake")]
        head_timeout: Duration,
        #[serde(default = "Limits::default_body_idle")]
        body_idle_timeout: Duration,
        #[serde(default = "Limits::default_idle")]
        idle_timeout: Duration,
        #[serde(default = "Limits::default_handshake")]
        tls_timeout: Duration,
        /// Requests of a connection before it is closed in an orderly way. Default none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requests: Option<Spot<u64>>,
    }

    /// Default: reject at the edge, keep in the mesh.
    Paths {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        escaped_slashes: Option<Rule>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        underscores: Option<Rule>,
    }

    /// An application that calls. What it proves itself with stands beside, in keys of the identity kinds.
    Consumer {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<Spot<String>>,
        #[serde(default)]
        scopes: Vec<String>,
    }

    /// Which requests, and what becomes of them. The most specific match wins, not the first.
    Route {
        /// Unique; logs, metrics and traces say it.
        name: Spot<String>,
        /// Default: every listener.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listeners: Option<Vec<Spot<String>>>,
        /// `a.com` or `*.a.com`; default: every host.
        #[serde(default)]
        hosts: Vec<Spot<String>>,
        /// Any of these; default: every path.
        #[serde(default)]
        matches: Vec<Match>,
        #[serde(default)]
        timeouts: Timeouts,
        /// Protocols a request may upgrade to.
        #[serde(default)]
        upgrades: Vec<Spot<String>>,
        /// Overrides the listener's limit; `0B` = none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body_limit: Option<Size>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        carry: Option<Carry>,
        /// A service, or several with weights.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<To>")]
        to: Option<Node>,
        /// Binds callers to one of several services.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sticky: Option<Spot<Sticky>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        redirect: Option<Redirect>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        respond: Option<Respond>,
    }

    /// All conditions must hold.
    Match {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathMatch>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        methods: Vec<Spot<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<BTreeMap<String, TextMatch>>")]
        headers: Option<Node>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<BTreeMap<String, TextMatch>>")]
        query: Option<Node>,
        /// Claims of the user, `a.b` for one inside another; the route's `auth.require` says who vouches for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<BTreeMap<String, TextMatch>>")]
        claims: Option<Node>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<BTreeMap<String, TextMatch>>")]
        cookies: Option<Node>,
    }

    /// `0s` = no limit.
    Timeouts {
        /// All tries together; not for streams.
        #[serde(default = "Timeouts::default_request")]
        request: Spot<Duration>,
        /// Between two bytes of a stream. Default 5m; on TCP listeners 1h.
        #[serde(default = "Timeouts::default_idle")]
        idle: Duration,
    }

    /// What a request takes over from its caller.
    Carry {
        /// `inherit`, on a mesh listener: the deadline of the incoming call under way in the same trace (`traceparent` or
        /// B3, which the application passes on) bounds this one too, if it is sooner than the route's. No such call, no
        /// such bound. On any listener: the deadline that the caller states (`x-onehop-timeout-ms`) counts, which mesh
        /// listeners and trusted proxies are believed without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Deadline>,
        /// On a mesh listener: this call is made for whoever made the incoming call that it is tied to, by the handle that
        /// the application was given (`x-onehop-call`) or else by its trace. Rules, quotas and templates see that user and
        /// consumer, and the token goes along if its identity forwards tokens and the application sets no `authorization`.
        /// No such call, or several of different users in the trace: no identity.
        #[serde(default)]
        identity: bool,
    }

    /// One of several services.
    Target {
        service: Spot<String>,
        /// One of the service's `subsets`: only its endpoints.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subset: Option<Spot<String>>,
        /// Share of the requests; 0 = none.
        #[serde(default = "Target::default_weight")]
        weight: Spot<u64>,
        /// Header fields of requests that go there, after every filter of the route.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<Edits>,
        /// Header fields of its answers, before every filter of the route.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        response: Option<Edits>,
    }

    /// The same caller, the same service. Exactly one of `by` and `cookie`.
    Sticky {
        /// `ip`, `consumer`, `user.sub`, `workload.id`, `header:NAME`, `cookie:NAME`, or CEL that gives text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Spot<String>>,
        /// Name of a cookie that whoever has none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cookie: Option<Spot<String>>,
        /// How long browsers keep the cookie. Default until they end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_age: Option<Spot<Duration>>,
    }

    /// Sends the caller elsewhere. What is not named stays as it was asked for.
    Redirect {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scheme: Option<Spot<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<Spot<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<Spot<u64>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<Rewrite>,
        /// 301, 302, 303, 307 or 308.
        #[serde(default = "Redirect::default_status")]
        status: Spot<u64>,
    }

    /// An answer from the config.
    Respond {
        /// 200 to 599.
        #[serde(default = "Respond::default_status")]
        status: Spot<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<BTreeMap<String, String>>")]
        headers: Option<Node>,
        #[serde(default = "Respond::default_body")]
        body: Spot<String>,
    }

    /// How to call a service.
    Service {
        #[serde(default)]
        protocol: Protocol,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<Spot<ServiceTls>>,
        #[serde(default = "Service::default_connect")]
        connect_timeout: Spot<Duration>,
        /// Of pooled connections.
        #[serde(default = "Service::default_idle")]
        idle_timeout: Duration,
        /// A PROXY header in front of each connection tells the endpoint who calls. Connections are then kept per
        /// connection of a caller, never shared between callers. Default none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proxy_protocol: Option<SendProxy>,
        /// How long pooled connections serve, and how many there are.
        #[serde(default)]
        connections: Connections,
        /// What answers when no endpoint can.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fallback: Option<Fallback>,
        /// Parts of the endpoints, each by labels that all of its endpoints carry: `v2: { version: v2 }`. Routes name
        /// them in `to`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        subsets: BTreeMap<String, BTreeMap<String, String>>,
    }

    /// Pooled connections of a service. Whoever is replaced ends after what it carries.
    Connections {
        /// Requests of a connection, then it is replaced. Default no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_requests: Option<Spot<u64>>,
        /// Age of a connection (of HTTP/2, give or take a tenth); then it is replaced. Default no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_age: Option<Spot<Duration>>,
        #[serde(default)]
        h2: Connections2,
    }

    /// HTTP/2 connections of a service.
    Connections2 {
        /// Per endpoint and worker; one more is opened when the streams of those before are taken. Beyond that, streams wait.
        #[serde(default = "Connections2::default_max_per_endpoint")]
        max_per_endpoint: Spot<u64>,
        /// Streams of one connection at once; fewer if the endpoint takes fewer.
        #[serde(default = "Connections2::default_max_streams")]
        max_streams: Spot<u64>,
        /// A connection in use is pinged this often; `0s` = never.
        #[serde(default = "Connections2::default_ping_interval")]
        ping_interval: Duration,
        /// Without an answer to a ping for this long the connection is dead.
        #[serde(default = "Connections2::default_ping_timeout")]
        ping_timeout: Spot<Duration>,
        /// Also pings connections that carry nothing.
        #[serde(default)]
        ping_idle: bool,
    }

    /// TLS to a service: always verified, unless `insecureSkipVerify` is typed.
    ServiceTls {
        /// The workload's certificate and CA.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<TlsMode>,
        /// Default: the system's roots.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<PathBuf>,
        /// Default: the host name in `discover`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sni: Option<Spot<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cert: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<PathBuf>,
        /// Names (URI or DNS) of which the peer's certificate must carry one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow: Option<Vec<Spot<String>>>,
        #[serde(default)]
        insecure_skip_verify: bool,
    }

    /// This process's own mesh identity.
    Workload {
        name: Spot<String>,
        cert: PathBuf,
        key: PathBuf,
        ca: PathBuf,
    }

    /// Logs and traces.
    Telemetry {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access_log: Option<AccessLog>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tracing: Option<Tracing>,
        /// On a request from a trusted peer, this field asks for the decision trail.
        #[serde(default = "Telemetry::default_debug")]
        debug_header: Spot<String>,
        /// Filter of the process's own log, such as `info` or `onehop=debug`.
        #[serde(default = "Telemetry::default_log")]
        log: Spot<String>,
    }

    /// A line per request.
    AccessLog {
        #[serde(default = "AccessLog::default_path")]
        path: PathBuf,
        #[serde(default)]
        format: LogFormat,
        /// Of successes; errors are always kept.
        #[serde(default = "AccessLog::default_sample")]
        sample: Percent,
    }

    /// Spans by OTLP over gRPC.
    Tracing {
        /// `http://host:port` or `https://host:port` of the collector (OTLP over gRPC).
        otlp: Spot<String>,
        /// PEM file with the certificates to trust over https, instead of the system's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<Spot<PathBuf>>,
        /// Of new traces.
        #[serde(default = "Tracing::default_sample")]
        sample: Percent,
        #[serde(default = "Tracing::default_service")]
        service_name: String,
        /// Never continues an untrusted caller's trace.
        #[serde(default)]
        restart: bool,
    }

    /// Start and end of the process.
    Lifecycle {
        /// Time in-flight work has to finish.
        #[serde(default = "Lifecycle::default_drain")]
        drain: Duration,
        /// How long `/readyz` says 503 before listeners close.
        #[serde(default)]
        unready: Duration,
        /// Outbound listeners stay open through the drain.
        #[serde(default)]
        outbound_until_app_exits: bool,
    }

    /// The process.
    Runtime {
        /// `auto` = one per core, or a number.
        #[serde(default = "Runtime::default_workers")]
        #[schemars(with = "Workers")]
        workers: Node,
        /// Requests in flight; near it, callers with a low priority are refused first. Default no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_requests: Option<Spot<u64>>,
        /// Resident memory; near it, callers with a low priority are refused first. Default no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_memory: Option<Spot<Size>>,
        /// What is left out while the process has much to do, the first first, before any caller is refused.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        brownout: Vec<Spot<Optional>>,
        /// Zone this process runs in, such as `${env.ZONE}`: services prefer endpoints in the same one. Empty = not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
    }
}

/// `SERVICE`, or a list.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shape for the schema; `lower` reads the node")]
pub enum To {
    Service(String),
    Split(Vec<Target>),
}

/// `auto` or a number.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shape for the schema; `lower` reads the node")]
pub enum Workers {
    Auto(String),
    Number(u16),
}

/// A text = exactly that, or one of the conditions.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shape for the schema; `lower` reads the node")]
pub enum TextMatch {
    Exact(String),
    Condition(TextCondition),
}

/// One of.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TextCondition {
    Exact(Spot<String>),
    Regex(Spot<String>),
    Present(Spot<bool>),
}

/// One of.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    Exact(Spot<String>),
    /// By segment: `/foo` does not match `/foobar`.
    Prefix(Spot<String>),
    /// Anchored, linear time.
    Regex(Spot<String>),
}

/// One of.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Rewrite {
    ReplacePrefix(Spot<String>),
    ReplaceFull(Spot<String>),
}

/// One of.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Fallback {
    Respond(Respond),
    Service(Spot<String>),
}

/// A default has no place of its own.
fn unplaced<T>(value: T) -> Spot<T> {
    Spot { span: onehop_filters::contract::Span::default(), value }
}

/// A section whose every key has a default is the default of an empty map.
macro_rules! all_defaults {
    ($($name:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        $(impl Default for $name { fn default() -> Self { Self { $($field: $value),* } } })*
    };
}

all_defaults! {
    Admin { bind: Self::default_bind() }
    Limits {
        head: Self::default_head(), uri: Self::default_uri(), fields: Self::default_fields(), body: None,
        streams: Self::default_streams(), connections: Self::default_connections(), connections_per_client: None,
        head_timeout: Self::default_handshake(), body_idle_timeout: Self::default_body_idle(),
        idle_timeout: Self::default_idle(), tls_timeout: Self::default_handshake(), requests: None,
    }
    Paths { escaped_slashes: None, underscores: None }
    Connections { max_requests: None, max_age: None, h2: Connections2::default() }
    Connections2 {
        max_per_endpoint: Self::default_max_per_endpoint(), max_streams: Self::default_max_streams(),
        ping_interval: Self::default_ping_interval(), ping_timeout: Self::default_ping_timeout(), ping_idle: false,
    }
    Timeouts { request: Self::default_request(), idle: Self::default_idle() }
    Telemetry {
        access_log: None, tracing: None, debug_header: Self::default_debug(), log: Self::default_log(),
    }
    Lifecycle {
        drain: Self::default_drain(), unready: Duration::default(), outbound_until_app_exits: false,
    }
    Runtime {
        workers: Self::default_workers(), max_requests: None, max_memory: None, brownout: Vec::new(), zone: None,
    }
}

impl Admin {
    fn default_bind() -> Spot<String> {
        unplaced("127.0.0.1:9901".to_owned())
    }
}

impl Listener {
    fn default_protocols() -> Vec<Http> {
        vec![Http::H1, Http::H2]
    }
    /// Fills in what depends on `exposure`, which depends on the rest.
    pub fn settle(&mut self) {
        let meshy = self.capture.is_some()
            || self.unknown_hosts.is_some()
            || self.tls.as_ref().is_some_and(|t| t.mode == Some(ListenerTlsMode::Mesh));
        let exposure = *self.exposure.get_or_insert(if meshy { Exposure::Mesh } else { Exposure::Edge });
        let (rule, body) = match exposure {
            Exposure::Edge => (Rule::Reject, Size(10 << 20)),
            Exposure::Mesh => (Rule::Keep, Size(0)),
        };
        self.paths.escaped_slashes.get_or_insert(rule);
        self.paths.underscores.get_or_insert(rule);
        self.limits.body.get_or_insert(body);
        if let Some(tls) = &mut self.tls
            && tls.value.client_ca.is_some()
        {
            tls.value.client_auth.get_or_insert(unplaced(ClientAuth::Required));
        }
    }
}

impl Limits {
    fn default_head() -> Spot<Size> {
        unplaced(Size(32 << 10))
    }
    fn default_uri() -> Spot<Size> {
        unplaced(Size(8 << 10))
    }
    fn default_fields() -> Spot<u64> {
        unplaced(100)
    }
    fn default_streams() -> Spot<u64> {
        unplaced(100)
    }
    fn default_connections() -> Spot<u64> {
        unplaced(10_000)
    }
    const fn default_handshake() -> Duration {
        seconds(10)
    }
    const fn default_body_idle() -> Duration {
        seconds(30)
    }
    const fn default_idle() -> Duration {
        seconds(60)
    }
}

impl Timeouts {
    fn default_request() -> Spot<Duration> {
        unplaced(seconds(15))
    }
    const fn default_idle() -> Duration {
        seconds(300)
    }
    /// Of a route on TCP listeners: pools of database clients are quiet for long.
    pub const TCP_IDLE: Duration = seconds(3600);
}

impl Target {
    fn default_weight() -> Spot<u64> {
        unplaced(1)
    }
}

impl Redirect {
    fn default_status() -> Spot<u64> {
        unplaced(302)
    }
}

impl Respond {
    fn default_status() -> Spot<u64> {
        unplaced(200)
    }
    fn default_body() -> Spot<String> {
        unplaced(String::new())
    }
}

impl Service {
    fn default_connect() -> Spot<Duration> {
        unplaced(seconds(1))
    }
    /// Below the 60 s after which many servers close an idle connection, so that we close first.
    const fn default_idle() -> Duration {
        seconds(55)
    }
}

impl Connections2 {
    fn default_max_per_endpoint() -> Spot<u64> {
        unplaced(8)
    }
    fn default_max_streams() -> Spot<u64> {
        unplaced(100)
    }
    const fn default_ping_interval() -> Duration {
        seconds(30)
    }
    fn default_ping_timeout() -> Spot<Duration> {
        unplaced(seconds(20))
    }
}

impl Telemetry {
    fn default_debug() -> Spot<String> {
        unplaced("x-onehop-debug".to_owned())
    }
    fn default_log() -> Spot<String> {
        unplaced("info".to_owned())
    }
}

impl AccessLog {
    fn default_path() -> PathBuf {
        PathBuf::from("/dev/stdout")
    }
    const fn default_sample() -> Percent {
        Percent(1.0)
    }
}

impl Tracing {
    const fn default_sample() -> Percent {
        Percent(0.01)
    }
    fn default_service() -> String {
        "onehop".to_owned()
    }
}

impl Lifecycle {
    const fn default_drain() -> Duration {
        seconds(25)
    }
}

impl Runtime {
    fn default_workers() -> Node {
        let value = onehop_filters::contract::section::Value::Str("auto".to_owned());
        Node { span: onehop_filters::contract::Span::default(), value }
    }
}

//! Everything that can go wrong with a request, in one table.
//!
//! A [`Reason`] names a failure once. From it follow the status we answer, the RFC 9457 problem, the RFC 9209
//! `Proxy-Status` error token, whose side failed, and which retry class it belongs to.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// Whose side failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller sent something we refuse.
    Client,
    /// We cannot serve, whatever the caller sent.
    Proxy,
    /// The endpoint, or the way to it, failed.
    Upstream,
}

/// What a failed try proves about the request, which decides if another try is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// The request provably never ran: connect failure, refused stream, GOAWAY below our stream, nothing written.
    NeverRan,
    /// Bytes left this host; the endpoint may have run it.
    MayHaveRun,
}

macro_rules! reasons {
    ($($name:ident $code:literal $status:ident $side:ident $token:literal $title:literal;)*) => {
        /// Why a request did not go through as asked. The string form is stable: logs, metrics and problems carry it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $title] $name,)* }

        impl Reason {
            /// Every reason, in table order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// Stable kebab-case name.
            #[must_use]
            pub const fn code(self) -> &'static str { match self { $(Self::$name => $code,)* } }
            /// Status of the answer we make.
            #[must_use]
            pub const fn status(self) -> StatusCode { match self { $(Self::$name => StatusCode::$status,)* } }
            /// Whose side failed.
            #[must_use]
            pub const fn side(self) -> Side { match self { $(Self::$name => Side::$side,)* } }
            /// RFC 9209 section 2.3 proxy error type.
            #[must_use]
            pub const fn proxy_error(self) -> &'static str { match self { $(Self::$name => $token,)* } }
            /// One short English sentence.
            #[must_use]
            pub const fn title(self) -> &'static str { match self { $(Self::$name => $title,)* } }
        }
    };
}

reasons! {
    BadRequest          "bad-request"          BAD_REQUEST Client "http_request_error" "The request is malformed.";
    BadFraming          "bad-framing"          BAD_REQUEST Client "http_request_error" "The length of the message is ambiguous.";
    BadHost             "bad-host"             BAD_REQUEST Client "http_request_error" "Host or :authority is missing, repeated or malformed.";
    BadPath             "bad-path"             BAD_REQUEST Client "http_request_error" "The path is not in an unambiguous form.";
    BadHeader           "bad-header"           BAD_REQUEST Client "http_request_error" "A header field is not acceptable here.";
    UriTooLong          "uri-too-long"         URI_TOO_LONG Client "http_request_error" "The request target is too long.";
    HeadTooLarge        "head-too-large"       REQUEST_HEADER_FIELDS_TOO_LARGE Client "http_request_error" "The request head is too large.";
    BodyTooLarge        "body-too-large"       PAYLOAD_TOO_LARGE Client "http_request_error" "The request body is too large.";
    HeadTimeout         "head-timeout"         REQUEST_TIMEOUT Client "http_request_error" "The request head did not arrive in time.";
    BodyTimeout         "body-timeout"         REQUEST_TIMEOUT Client "http_request_error" "The request body stopped arriving.";
    ExpectationFailed   "expectation-failed"   EXPECTATION_FAILED Client "http_request_error" "Only 100-continue can be expected.";
    BadBody             "bad-body"             BAD_REQUEST Client "http_request_error" "The request body cannot be read.";
    UnsupportedMedia    "unsupported-media"    UNSUPPORTED_MEDIA_TYPE Client "http_request_error" "The body's type or coding is not taken here.";
    InvalidRequest      "invalid-request"      BAD_REQUEST Client "http_request_error" "The request does not match its description.";
    NotDescribed        "not-described"        NOT_FOUND Client "destination_not_found" "The description has no such path.";
    MethodRefused       "method-refused"       METHOD_NOT_ALLOWED Client "http_request_denied" "This method is not served here.";
    KeyMissing          "key-missing"          BAD_REQUEST Client "http_request_error" "An Idempotency-Key is required.";
    KeyInUse            "key-in-use"           CONFLICT Client "http_request_denied" "A request with this Idempotency-Key was made before.";
    KeyMismatch         "key-mismatch"         UNPROCESSABLE_ENTITY Client "http_request_denied" "The Idempotency-Key belongs to another request.";
    UpgradeRefused      "upgrade-refused"      FORBIDDEN Client "http_upgrade_failed" "The route does not allow this upgrade.";
    Misdirected         "misdirected"          MISDIRECTED_REQUEST Client "http_request_denied" "This host is not served on this connection.";
    NoRoute             "no-route"             NOT_FOUND Client "destination_not_found" "No route matches the request.";
    Unauthenticated     "unauthenticated"      UNAUTHORIZED Client "http_request_denied" "Valid credentials are required.";
    LoginFailed         "login-failed"         BAD_REQUEST Client "http_request_denied" "The login could not be completed.";
    Forbidden           "forbidden"            FORBIDDEN Client "http_request_denied" "The caller may not do this.";
    CrossSite           "cross-site"           FORBIDDEN Client "http_request_denied" "The request comes from a page of another site.";
    OverQuota           "over-quota"           TOO_MANY_REQUESTS Client "http_request_denied" "The quota is used up.";
    UnknownHost         "unknown-host"         BAD_GATEWAY Proxy "destination_not_found" "The mesh knows no service of this name.";
    LoopDetected        "loop-detected"        LOOP_DETECTED Proxy "proxy_loop_detected" "The request came back to this proxy.";
    Overloaded          "overloaded"           SERVICE_UNAVAILABLE Proxy "connection_limit_reached" "The proxy is at its limit.";
    Shed                "shed"                 SERVICE_UNAVAILABLE Proxy "connection_limit_reached" "The proxy is short of room and serves more important requests first.";
    Maintenance         "maintenance"          SERVICE_UNAVAILABLE Proxy "proxy_internal_response" "The route is being worked on.";
    Injected            "injected"             SERVICE_UNAVAILABLE Proxy "proxy_internal_response" "This failure was injected on purpose.";
    Draining            "draining"             SERVICE_UNAVAILABLE Proxy "proxy_internal_response" "The proxy is shutting down.";
    NoEndpoint          "no-endpoint"          SERVICE_UNAVAILABLE Proxy "destination_unavailable" "The service has no endpoint.";
    NoHealthyEndpoint   "no-healthy-endpoint"  SERVICE_UNAVAILABLE Proxy "destination_unavailable" "The service has no healthy endpoint.";
    EmptySubset         "empty-subset"         SERVICE_UNAVAILABLE Proxy "destination_unavailable" "No endpoint of the service carries the labels of the subset.";
    BreakerOpen         "breaker-open"         SERVICE_UNAVAILABLE Proxy "connection_limit_reached" "The circuit breaker refused the request.";
    PendingOverflow     "pending-overflow"     SERVICE_UNAVAILABLE Proxy "connection_limit_reached" "Too many requests wait for the service.";
    PendingTimeout      "pending-timeout"      SERVICE_UNAVAILABLE Proxy "connection_limit_reached" "The request waited too long for the service.";
    IdentityUnavailable "identity-unavailable" SERVICE_UNAVAILABLE Proxy "proxy_internal_error" "The keys to check credentials are not available.";
    AuthorizationUnavailable "authorization-unavailable" SERVICE_UNAVAILABLE Proxy "proxy_internal_error" "Who decides about the request could not be asked.";
    QuotaUnavailable    "quota-unavailable"    SERVICE_UNAVAILABLE Proxy "proxy_internal_error" "What is left of the quota is not known.";
    NoWeight            "no-weight"            INTERNAL_SERVER_ERROR Proxy "proxy_configuration_error" "Every service of the route has weight 0.";
    FilterFailed        "filter-failed"        INTERNAL_SERVER_ERROR Proxy "proxy_internal_error" "A filter could not decide.";
    Internal            "internal"             INTERNAL_SERVER_ERROR Proxy "proxy_internal_error" "The proxy failed.";
    Deadline            "deadline"             GATEWAY_TIMEOUT Upstream "http_response_timeout" "The deadline of the request passed.";
    TryTimeout          "try-timeout"          GATEWAY_TIMEOUT Upstream "http_response_timeout" "The endpoint did not answer in time.";
    ConnectTimeout      "connect-timeout"      GATEWAY_TIMEOUT Upstream "connection_timeout" "The endpoint did not accept a connection in time.";
    ConnectFailed       "connect-failed"       BAD_GATEWAY Upstream "connection_refused" "The endpoint refused the connection.";
    TlsFailed           "tls-failed"           BAD_GATEWAY Upstream "tls_certificate_error" "The endpoint could not be trusted.";
    RefusedStream       "refused-stream"       BAD_GATEWAY Upstream "connection_terminated" "The endpoint refused the stream unprocessed.";
    Reset               "reset"                BAD_GATEWAY Upstream "connection_terminated" "The endpoint closed before it answered.";
    Truncated           "truncated"            BAD_GATEWAY Upstream "http_response_incomplete" "The endpoint closed in mid-body.";
    BadResponse         "bad-response"         BAD_GATEWAY Upstream "http_protocol_error" "The endpoint broke the protocol.";
    ResponseTooLarge    "response-too-large"   BAD_GATEWAY Upstream "http_response_header_section_size" "The response head is too large.";
    BodyUnusable        "body-unusable"        BAD_GATEWAY Upstream "http_response_content_coding" "The endpoint's body cannot be worked on.";
    ResponseBodyTooLarge "response-body-too-large" BAD_GATEWAY Upstream "http_response_body_size" "The endpoint's body is larger than what may be worked on.";
    InvalidResponse     "invalid-response"     BAD_GATEWAY Upstream "http_protocol_error" "The endpoint's answer does not match its description.";
    IdleTimeout         "idle-timeout"         GATEWAY_TIMEOUT Upstream "http_response_timeout" "The exchange stood still for too long.";
    ClientGone          "client-gone"          BAD_REQUEST Client "connection_terminated" "The caller left before the answer was complete.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A failure on its way to becoming an answer (or another try).
#[derive(Clone, Debug)]
pub struct Fault {
    /// What went wrong.
    pub reason: Reason,
    /// What it proves about the request.
    pub proof: Proof,
    /// For people: no secrets, no bytes of strangers. Goes into the problem's `detail` and the log.
    pub detail: Cow<'static, str>,
    /// Response fields that belong to the failure (`www-authenticate`, `retry-after`, `ratelimit`, ...). `None` costs nothing.
    pub headers: Option<Box<http::HeaderMap>>,
    /// The filter or room that decided, for `Proxy-Status` and the log.
    pub by: &'static str,
    /// Status of the answer, where a filter's config says another than the reason's own.
    pub status: Option<StatusCode>,
    /// `grpc-status` of the answer to a gRPC call, where it is another than the reason's own.
    pub grpc: Option<u16>,
    /// What some problems list besides. `None` costs nothing.
    pub lists: Option<Box<Lists>>,
}

/// Lists that a problem carries (RFC 9457 section 3.2, extension members).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Which identities were asked and why none opened a way: `tried`.
    pub tried: Vec<Attempted>,
    /// What is wrong with which part of the message: `errors`.
    pub errors: Vec<Mistake>,
}

/// What became of one identity, as the problem's `tried` lists it (RFC 9457 section 3.2, extension members).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// Its name in the configuration.
    pub identity: Box<str>,
    /// `accepted`, `absent`, `refused`, `unavailable` or `unasked`.
    pub outcome: &'static str,
    /// Why, in a sentence without secrets, or empty.
    pub why: &'static str,
}

/// One mistake in a message, as the problem's `errors` lists it (RFC 9457 section 3, extension member).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where: a JSON pointer into the body (RFC 6901), or `query.NAME`, `headers.NAME`, `path.NAME`, `cookies.NAME`.
    pub pointer: String,
    /// What is wrong. Never what stood there.
    pub detail: String,
}

impl Fault {
    const fn made(reason: Reason, proof: Proof) -> Self {
        Self { reason, proof, detail: Cow::Borrowed(""), headers: None, by: "", lists: None, status: None, grpc: None }
    }
    /// A failure whose request may have run (irrelevant for faults found before any try).
    #[must_use]
    pub const fn new(reason: Reason) -> Self {
        Self::made(reason, Proof::MayHaveRun)
    }
    /// A failed try that provably did not run the request.
    #[must_use]
    pub const fn never_ran(reason: Reason) -> Self {
        Self::made(reason, Proof::NeverRan)
    }
    /// Says more, for people.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = detail.into();
        self
    }
    /// Names who decided.
    #[must_use]
    pub const fn by(mut self, by: &'static str) -> Self {
        self.by = by;
        self
    }
    /// Lists the identities that were asked.
    #[must_use]
    pub fn tried(mut self, tried: Vec<Attempted>) -> Self {
        self.lists.get_or_insert_default().tried = tried;
        self
    }
    /// Answers with another status than the reason's own.
    #[must_use]
    pub const fn answer(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }
    /// Answers gRPC calls with another status than the reason's own.
    #[must_use]
    pub const fn grpc_status(mut self, status: u16) -> Self {
        self.grpc = Some(status);
        self
    }
    /// Status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.reason.status())
    }
    /// Lists what is wrong with which part of the message.
    #[must_use]
    pub fn errors(mut self, errors: Vec<Mistake>) -> Self {
        self.lists.get_or_insert_default().errors = errors;
        self
    }
    /// Adds a response field.
    #[must_use]
    pub fn header(mut self, name: http::HeaderName, value: http::HeaderValue) -> Self {
        self.headers.get_or_insert_default().append(name, value);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.code())?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

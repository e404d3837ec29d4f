//! Envoy's rate limit service as the one that counts: one unary gRPC call for each request, through a service of this
//! configuration with its discovery, balancing and breaker.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;

use super::config::{FailureMode, RateLimitService};
use super::core::Charge;
use crate::api::caller::Key;
use crate::contract::grpc::{Unary, unary};
use crate::contract::metrics::Counter;
use crate::contract::request::Trace;
use crate::contract::section::Value;
use crate::contract::{Build, ConfigError, Moment, RequestCx, Services, Template, now};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const TIMEOUT: Duration = Duration::from_millis(20);

/// See the module.
pub struct Service {
    method: Arc<Unary>,
    domain: String,
    entries: Vec<(String, Template)>,
    timeout: Duration,
    mode: FailureMode,
    failed: Counter,
}

/// A question that owns all it needs.
pub struct Question {
    /// Whom the request is counted as, on this side.
    pub key: Key,
    /// Units.
    pub cost: u64,
    method: Arc<Unary>,
    services: Arc<dyn Services>,
    request: RateLimitRequest,
    timeout: Duration,
    deadline: Moment,
    trace: Trace,
    mode: FailureMode,
    failed: Counter,
}

impl Service {
    pub fn build(section: &RateLimitService, build: &Build<'_>) -> Result<Self, ConfigError> {
        let service = build.service(&section.service)?;
        if section.domain.value.is_empty() {
            return Err(ConfigError::at(section.domain.span, "`domain` is empty").help("name a domain of the service"));
        }
        let entries = section.descriptors.entries().iter().map(|(key, node)| match &node.value {
            Value::Str(text) => Ok((key.name.clone(), Template::compile(text, node.span)?)),
            _ => Err(ConfigError::at(node.span, "the value of a descriptor is text").help("put it in quotes")),
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err(ConfigError::at(section.descriptors.span, "`descriptors` names nothing")
                .help("write `descriptors: { user: \"${user.sub}\" }`"));
        }
        let timeout = section.timeout.as_ref().map_or(TIMEOUT, |t| t.value.0);
        if let Some(at) = section.timeout.as_ref().filter(|_| timeout.is_zero() || timeout > Duration::from_secs(10)) {
            return Err(ConfigError::at(at.span, "`timeout` is above 0s, at most 10s"));
        }
        let labels = [("service", section.service.value.as_str())];
        let help = "Requests that a rate limit service did not answer";
        Ok(Self {
            method: Arc::new(Unary { service, path: PathAndQuery::from_static(METHOD) }),
            domain: section.domain.value.clone(),
            entries,
            timeout,
            mode: section.failure_mode,
            failed: build.metrics.counter("onehop_quota_service_errors_total", help, &labels),
        })
    }

    /// What to ask; `None` where the request lacks what a descriptor names.
    pub fn question(&self, rq: &RequestCx, key: Key, cost: u64) -> Option<Question> {
        let entries = self
            .entries
            .iter()
            .map(|(name, value)| Some(Entry { key: name.clone(), value: value.text(rq)?.into_owned() }));
        let entries = entries.collect::<Option<Vec<_>>>()?;
        Some(Question {
            key,
            cost,
            method: self.method.clone(),
            services: rq.services.clone(),
            request: RateLimitRequest {
                domain: self.domain.clone(),
                descriptors: vec![Descriptor { entries }],
                hits_addend: u32::try_from(cost).unwrap_or(u32::MAX),
            },
            timeout: self.timeout,
            deadline: rq.deadline,
            trace: rq.trace,
            mode: self.mode,
            failed: self.failed.clone(),
        })
    }
}

impl Question {
    /// Asks. `None`: there is no answer, and the request may not pass without one. With the answer come fields for the
    /// caller.
    pub async fn ask(self) -> Option<(Charge, Option<Box<HeaderMap>>)> {
        // In this protocol a hit count of zero means one.
        if self.cost == 0 {
            return Some((Charge::FREE, None));
        }
        let deadline = self.deadline.min(now() + self.timeout);
        let answer = unary(self.services, &self.method, &self.request, deadline, self.trace).await;
        let answer: RateLimitResponse = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                self.failed.inc();
                tracing::debug!(%failure, "a rate limit service");
                return (self.mode == FailureMode::Allow).then_some((Charge::FREE, None));
            }
        };
        let status = answer.statuses.iter().min_by_key(|s| (s.code != OVER_LIMIT, s.limit_remaining));
        let reset = status.and_then(|s| s.duration_until_reset.as_ref()).map_or(Duration::from_secs(1), |d| {
            Duration::new(u64::try_from(d.seconds).unwrap_or(0), u32::try_from(d.nanos).unwrap_or(0).min(999_999_999))
        });
        let known = status.filter(|s| s.current_limit.is_some());
        let remaining = known.map_or(u64::MAX, |s| s.limit_remaining.into());
        Some((Charge { allowed: answer.overall_code != OVER_LIMIT, remaining, reset }, fields(&answer)))
    }
}

/// Fields that the service wants the caller to see; what is none is left out.
fn fields(answer: &RateLimitResponse) -> Option<Box<HeaderMap>> {
    let fields = answer.response_headers_to_add.iter().filter_map(|field| {
        let value = if field.raw_value.is_empty() { field.value.as_bytes() } else { &field.raw_value };
        let name = HeaderName::try_from(field.key.as_str()).ok().filter(|name| !is_framing(name))?;
        Some((name, HeaderValue::from_bytes(value).ok()?))
    });
    let fields: HeaderMap = fields.collect();
    (!fields.is_empty()).then(|| Box::new(fields))
}

/// Fields that say where a message ends are not for a service to set.
fn is_framing(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
    [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
}

/// `RateLimitResponse.Code.OVER_LIMIT`.
const OVER_LIMIT: i32 = 2;

// The part of envoy/service/ratelimit/v3/rls.proto that is used here; unknown fields are skipped.

/// `envoy.service.ratelimit.v3.RateLimitRequest`
#[derive(Clone, PartialEq, Message)]
pub struct RateLimitRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(message, repeated, tag = "2")]
    pub descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    pub hits_addend: u32,
}

/// `envoy.extensions.common.ratelimit.v3.RateLimitDescriptor`
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
}

/// `RateLimitDescriptor.Entry`
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `envoy.service.ratelimit.v3.RateLimitResponse`
#[derive(Clone, PartialEq, Message)]
pub struct RateLimitResponse {
    #[prost(int32, tag = "1")]
    pub overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    pub statuses: Vec<DescriptorStatus>,
    #[prost(message, repeated, tag = "3")]
    pub response_headers_to_add: Vec<Field>,
}

/// `RateLimitResponse.DescriptorStatus`
#[derive(Clone, PartialEq, Message)]
pub struct DescriptorStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(message, optional, tag = "2")]
    pub current_limit: Option<CurrentLimit>,
    #[prost(uint32, tag = "3")]
    pub limit_remaining: u32,
    #[prost(message, optional, tag = "4")]
    pub duration_until_reset: Option<Span>,
}

/// `RateLimitResponse.RateLimit`
#[derive(Clone, PartialEq, Message)]
pub struct CurrentLimit {
    #[prost(uint32, tag = "1")]
    pub requests_per_unit: u32,
}

/// `google.protobuf.Duration`
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `envoy.config.core.v3.HeaderValue`
#[derive(Clone, PartialEq, Message)]
pub struct Field {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
    #[prost(bytes = "vec", tag = "3")]
    pub raw_value: Vec<u8>,
}

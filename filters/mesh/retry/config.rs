//! Keys of `retry`.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::budget::Limits;
use crate::contract::mesh;
use crate::contract::section::{ConfigError, Spot, suggest};
use crate::contract::units::{self, Percent, Size};

/// The section.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// Retries after the first try, as in Gateway API. Default 1.
    #[schemars(extend("default" = 1))]
    pub attempts: Option<u32>,
    /// What is worth another try. Default `[never-ran]`: no connection, a refused stream, nothing sent.
    #[schemars(extend("default" = ["never-ran"]))]
    pub retry_on: Option<Vec<Class>>,
    /// Response fields whose presence, with `retriable-headers` in `retryOn`, asks for another try.
    pub retriable_headers: Vec<Spot<String>>,
    /// Shortest pause before the first retry; it doubles with each and is drawn between itself and twice itself. Default
    /// `25ms`.
    #[schemars(extend("default" = "25ms"))]
    pub backoff: Option<units::Duration>,
    /// Longest pause. Default 10 times `backoff`.
    pub max_backoff: Option<Spot<units::Duration>>,
    /// Longest pause an endpoint may ask for (`Retry-After`, `grpc-retry-pushback-ms`); beyond it there is no retry.
    /// Default `10s`.
    #[schemars(extend("default" = "10s"))]
    pub max_retry_after: Option<units::Duration>,
    /// Limit of one try; the request's own timeout bounds them all.
    pub per_try_timeout: Option<Spot<units::Duration>>,
    /// How much retries may add to the service's load.
    pub budget: Budget,
    /// Bytes of request body kept for another try; beyond it the request streams on and is not retried. Default `64KiB`.
    #[schemars(extend("default" = "64KiB"))]
    pub body_limit: Option<Size>,
    /// Also retry methods that are not idempotent (POST, PATCH) after a try that may have run. Default false.
    pub retry_non_idempotent: bool,
    /// Prefer an endpoint of another zone than that of the try that failed, while one is available. Default false.
    pub other_zone: bool,
    /// Another try beside one that is slow. Default: none.
    pub hedge: Option<Hedge>,
}

/// `retry.hedge`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hedge {
    /// How long a try may go without an answer before another one is sent beside it.
    pub after: Spot<units::Duration>,
    /// How many may be sent beside the first. Default 1.
    #[schemars(range(min = 1, max = 5), extend("default" = 1))]
    pub max: Option<Spot<u32>>,
}

/// `retry.budget`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Budget {
    /// Retries per first tries.
    pub percent: Percent,
    /// Retries a second that are always granted.
    pub min_per_second: u32,
    /// Over how long both are counted. Default `10s`.
    #[schemars(extend("default" = "10s"))]
    pub interval: Option<Spot<units::Duration>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { percent: Percent(0.2), min_per_second: 10, interval: None }
    }
}

/// One word of `retryOn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The try provably never ran: no connection, a refused stream, a stream above GOAWAY's last, nothing sent.
    NeverRan,
    ConnectFailure,
    RefusedStream,
    Reset,
    GatewayError,
    ServerError,
    RetriableHeaders,
    Retriable4xx,
    Status(StatusCode),
    Grpc(u32),
}

/// Words and what they stand for.
const WORDS: [(&str, Class); 13] = [
    ("never-ran", Class::NeverRan),
    ("connect-failure", Class::ConnectFailure),
    ("refused-stream", Class::RefusedStream),
    ("reset", Class::Reset),
    ("gateway-error", Class::GatewayError),
    ("5xx", Class::ServerError),
    ("retriable-headers", Class::RetriableHeaders),
    ("retriable-4xx", Class::Retriable4xx),
    ("cancelled", Class::Grpc(1)),
    ("deadline-exceeded", Class::Grpc(4)),
    ("resource-exhausted", Class::Grpc(8)),
    ("internal", Class::Grpc(13)),
    ("unavailable", Class::Grpc(14)),
];

impl Class {
    fn parse(word: &str) -> Result<Self, String> {
        if let Some((_, class)) = WORDS.iter().find(|(w, _)| *w == word) {
            return Ok(*class);
        }
        match word.parse() {
            Ok(code @ 400..=599) => Ok(Self::Status(StatusCode::from_u16(code).map_err(|e| e.to_string())?)),
            Ok(code) => Err(format!("{code} is not worth a retry: write a status from 400 to 599")),
            Err(_) => Err(format!("`{word}` is no retry condition ({})", suggest(word, &WORDS.map(|(w, _)| w)))),
        }
    }
}

impl<'de> Deserialize<'de> for Class {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Word;
        impl de::Visitor<'_> for Word {
            type Value = Class;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a retry condition such as `connect-failure`, or a status such as 503")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Class, E> {
                Class::parse(s).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Class, E> {
                Class::parse(&n.to_string()).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Class, E> {
                Class::parse(&n.to_string()).map_err(E::custom)
            }
        }
        d.deserialize_any(Word)
    }
}

impl JsonSchema for Class {
    fn schema_name() -> Cow<'static, str> {
        "RetryCondition".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "a retry condition, or a status",
            "anyOf": [{ "enum": WORDS.map(|(w, _)| w) }, { "type": "integer", "minimum": 400, "maximum": 599 },
                      { "type": "string", "pattern": "^[45][0-9][0-9]$" }]
        })
    }
}

/// What the section means.
#[derive(Clone, Debug)]
pub struct Settings {
    pub attempts: u32,
    /// `None`: what provably never ran.
    pub retry_on: Option<Vec<Class>>,
    pub retriable_headers: Vec<HeaderName>,
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub max_retry_after: Duration,
    pub per_try_timeout: Option<Duration>,
    pub budget: Limits,
    pub body_limit: usize,
    pub retry_non_idempotent: bool,
    pub other_zone: bool,
    pub hedge: Option<mesh::Hedge>,
}

impl Section {
    /// With defaults in place.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let backoff = self.backoff.map_or(Duration::from_millis(25), |d| d.0);
        let max_backoff = match &self.max_backoff {
            Some(max) if max.value.0 < backoff => {
                return Err(ConfigError::at(max.span, "`maxBackoff` is shorter than `backoff`"));
            }
            max => max.as_ref().map_or(backoff.saturating_mul(10), |m| m.value.0),
        };
        if let Some(limit) = self.per_try_timeout.as_ref().filter(|d| d.value.0.is_zero()) {
            return Err(ConfigError::at(limit.span, "no try ends in no time")
                .help("leave `perTryTimeout` out for no limit of its own"));
        }
        let retriable_headers = self
            .retriable_headers
            .iter()
            .map(|h| {
                HeaderName::try_from(&h.value)
                    .map_err(|_| ConfigError::at(h.span, format!("`{}` is not a field name", h.value)))
            })
            .collect::<Result<_, _>>()?;
        let attempts = self.attempts.unwrap_or(1);
        let hedge = self.hedge.as_ref().map(|h| h.meaning(attempts)).transpose()?;
        let window = match &self.budget.interval {
            Some(d) if d.value.0.is_zero() => {
                return Err(ConfigError::at(d.span, "a budget is counted over some time").help("write such as `10s`"));
            }
            d => d.as_ref().map_or(Duration::from_secs(10), |d| d.value.0),
        };
        Ok(Settings {
            attempts,
            retry_on: self.retry_on,
            retriable_headers,
            backoff,
            max_backoff,
            max_retry_after: self.max_retry_after.map_or(Duration::from_secs(10), |d| d.0),
            per_try_timeout: self.per_try_timeout.map(|d| d.value.0),
            budget: Limits { percent: self.budget.percent.0, min_per_second: self.budget.min_per_second, window },
            body_limit: self.body_limit.map_or(64 << 10, |s| usize::try_from(s.0).unwrap_or(usize::MAX)),
            retry_non_idempotent: self.retry_non_idempotent,
            other_zone: self.other_zone,
            hedge,
        })
    }
}

impl Hedge {
    fn meaning(&self, attempts: u32) -> Result<mesh::Hedge, ConfigError> {
        if attempts == 0 {
            return Err(ConfigError::at(self.after.span, "`attempts: 0` allows no second try, and a hedge is one")
                .help("remove `attempts: 0`, or `hedge`"));
        }
        if self.after.value.0.is_zero() {
            return Err(ConfigError::at(self.after.span, "a hedge after 0s would double every request")
                .help("write about the 95th percentile of the service's latency"));
        }
        let max = match &self.max {
            Some(max) if !(1..=5).contains(&max.value) => {
                return Err(ConfigError::at(max.span, "`max` lies between 1 and 5").help("leave `hedge` out for none"));
            }
            max => max.as_ref().map_or(1, |max| max.value),
        };
        Ok(mesh::Hedge { after: self.after.value.0, max })
    }
}

//! Keys of `healthCheck`.

use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Span, Spot};
use crate::contract::units;

/// The section. Exactly one of `http`, `grpc` and `tcp`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// A GET request.
    pub http: Option<Http>,
    /// A call of `grpc.health.v1.Health/Check` over HTTP/2.
    pub grpc: Option<Grpc>,
    /// A connection is enough (with TLS: a handshake).
    pub tcp: Option<Tcp>,
    /// From one probe to the next, give or take a fifth. Default `5s`.
    #[schemars(extend("default" = "5s"))]
    pub interval: Option<Spot<units::Duration>>,
    /// Limit of one probe, connecting included. Default `1s`.
    #[schemars(extend("default" = "1s"))]
    pub timeout: Option<Spot<units::Duration>>,
    /// Passes in a row that make an unhealthy endpoint healthy. Default 2. The first pass of an unknown one is enough.
    #[schemars(extend("default" = 2))]
    pub healthy: Option<std::num::NonZeroU32>,
    /// Failures in a row that make an endpoint unhealthy. Default 3.
    #[schemars(extend("default" = 3))]
    pub unhealthy: Option<std::num::NonZeroU32>,
    /// What an endpoint is until its first probe: `healthy`, the default, or `unhealthy`: it gets no request before it
    /// has passed one.
    #[schemars(extend("default" = "healthy"))]
    pub initially: Option<Initially>,
    /// Port of the probe. Default: the endpoint's own.
    pub port: Option<Spot<u16>>,
}

/// See [`Section::initially`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Initially {
    /// Gets requests at once.
    Healthy,
    /// Has to pass first.
    Unhealthy,
}

/// `healthCheck.grpc`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grpc {
    /// Service to ask about. Default: the whole server.
    #[serde(default)]
    pub service: String,
    /// `:authority` of the call. Default: the endpoint's address.
    pub host: Option<Spot<String>>,
}

/// `healthCheck.http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    /// Path and query.
    pub path: Spot<String>,
    /// `Host` field. Default: the endpoint's address.
    pub host: Option<Spot<String>>,
    /// Statuses that pass: 200, "200-299". Default: every 2xx.
    #[schemars(extend("default" = ["200-299"]))]
    pub expected_statuses: Option<Vec<Spot<Statuses>>>,
}

/// `healthCheck.tcp`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tcp {}

/// A status or a range of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a status such as 200, or a range such as \"200-299\"")]
pub enum Statuses {
    /// One.
    One(u16),
    /// Both ends included.
    Range(String),
}

/// What the section means.
#[derive(Clone, Debug)]
pub struct Settings {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    pub healthy: u32,
    pub unhealthy: u32,
    /// Whether endpoints have to pass before they get requests.
    pub wary: bool,
    pub port: Option<u16>,
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Probe {
    Http { path: PathAndQuery, host: Option<HeaderValue>, expected: Vec<(u16, u16)> },
    Grpc { service: String, host: Option<Authority> },
    Tcp,
}

impl Section {
    /// Reads the section.
    pub fn settings(node: &Node) -> Result<Settings, ConfigError> {
        let s: Self = node.read()?;
        let probe = match (s.http, s.grpc, s.tcp) {
            (Some(http), None, None) => http.probe()?,
            (None, Some(grpc), None) => grpc.probe()?,
            (None, None, Some(_)) => Probe::Tcp,
            _ => {
                return Err(ConfigError::at(node.span, "a health check is one of `http`, `grpc` and `tcp`")
                    .help("write `http: { path: /healthz }`, `grpc: {}` or `tcp: {}`"));
            }
        };
        if let Some(port) = s.port.as_ref().filter(|port| port.value == 0) {
            return Err(ConfigError::at(port.span, "nobody listens on port 0").help("from 1 to 65535"));
        }
        let time = |key: Option<Spot<units::Duration>>, default: u64| match key {
            Some(d) if d.value.0.is_zero() => Err(ConfigError::at(d.span, "must be longer than 0s")),
            Some(d) => Ok(d.value.0),
            None => Ok(Duration::from_secs(default)),
        };
        Ok(Settings {
            probe,
            interval: time(s.interval, 5)?,
            timeout: time(s.timeout, 1)?,
            healthy: s.healthy.map_or(2, std::num::NonZeroU32::get),
            unhealthy: s.unhealthy.map_or(3, std::num::NonZeroU32::get),
            wary: s.initially == Some(Initially::Unhealthy),
            port: s.port.map(|port| port.value),
        })
    }
}

impl Http {
    fn probe(self) -> Result<Probe, ConfigError> {
        let path = match PathAndQuery::try_from(&self.path.value) {
            Ok(path) if self.path.value.starts_with('/') => path,
            _ => return Err(ConfigError::at(self.path.span, "a path starts with `/`")),
        };
        let host = self
            .host
            .map(|h| HeaderValue::try_from(&h.value).map_err(|_| ConfigError::at(h.span, "not a host name")))
            .transpose()?;
        let expected = match self.expected_statuses {
            None => vec![(200, 299)],
            Some(list) => list.into_iter().map(|s| s.value.range(s.span)).collect::<Result<_, _>>()?,
        };
        Ok(Probe::Http { path, host, expected })
    }
}

impl Grpc {
    fn probe(self) -> Result<Probe, ConfigError> {
        let host = self.host.map(|h| {
            Authority::try_from(h.as_str()).map_err(|_| {
                ConfigError::at(h.span, "not a host name").help("write `orders.internal` or `orders.internal:8443`")
            })
        });
        Ok(Probe::Grpc { service: self.service, host: host.transpose()? })
    }
}

impl Statuses {
    fn range(&self, span: Span) -> Result<(u16, u16), ConfigError> {
        let ends = match self {
            Self::One(code) => Some((*code, *code)),
            Self::Range(text) => match text.split_once('-') {
                Some((from, to)) => from.trim().parse().ok().zip(to.trim().parse().ok()),
                None => text.parse().ok().map(|code| (code, code)),
            },
        };
        ends.filter(|(from, to)| (100..=599).contains(from) && from <= to && *to <= 599)
            .ok_or_else(|| ConfigError::at(span, "a status from 100 to 599, or a range such as \"200-299\""))
    }
}

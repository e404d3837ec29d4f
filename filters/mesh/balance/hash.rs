//! What consistent-hash policies share: which part of a request is the key, and bounded load.

use http::HeaderName;
use http::header::COOKIE;
use schemars::JsonSchema;
use serde::Deserialize;

use super::config::Keys;
use super::pool::{Rules, Tier};
use crate::contract::mesh::Endpoint;
use crate::contract::section::{ConfigError, Node, Span, Spot};
use crate::contract::units::Percent;
use crate::contract::{Build, Moment, RequestCx};
use crate::mesh::chance::stable_hash;

/// Key of a request. Exactly one of them, or the word `ip`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "write `ip`, or one of `{header: NAME}`, `{cookie: NAME}`, `{query: NAME}`, `{ip: true}`"
)]
pub enum HashOn {
    /// A word.
    Word(Word),
    /// A name.
    Named(Named),
}

/// A key without a name.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Word {
    /// The client's address.
    Ip,
}

/// A key with a name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Named {
    /// Value of a request field.
    Header(String),
    /// Value of a cookie.
    Cookie(String),
    /// Value of a query parameter, as written (not decoded).
    Query(String),
    /// The client's address.
    Ip(bool),
}

/// `loadBalancer` of `ring-hash`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name of the policy.
    pub policy: Option<String>,
    /// The part of a request that decides.
    pub hash: Spot<HashOn>,
    /// No endpoint gets more than this times the mean of tries in flight; `0` turns it off. Default 1.25.
    #[schemars(extend("default" = 1.25))]
    pub load_factor: Option<Spot<f64>>,
    /// Below this share of available endpoints all are used, ejected ones included; `0%` turns it off. Default `50%`.
    #[schemars(extend("default" = "50%"))]
    pub panic_threshold: Option<Percent>,
    /// A priority keeps all of its load until fewer than one in this many of its endpoints are available. Default 1.4.
    #[schemars(extend("default" = 1.4))]
    pub overprovisioning: Option<Spot<f64>>,
}

/// A section that was read.
pub struct Hashing {
    /// Where the key is.
    pub key: Key,
    /// See [`Section::load_factor`].
    pub load_factor: f64,
    /// What every policy needs.
    pub rules: Rules,
}

/// Default of `loadFactor`.
const LOAD_FACTOR: f64 = 1.25;

/// Tries in flight an endpoint may always have: at rest a key stays where it is, however few requests there are.
const FREE: u32 = 8;

/// Reads the section of a hashing policy.
pub fn read(section: Option<&Node>, build: &Build<'_>) -> Result<Hashing, ConfigError> {
    let missing = |span: Span| {
        ConfigError::at(span, "a hashing policy needs to know what to hash")
            .help("add `hash: { header: x-user }`, or a cookie, a query parameter or `ip`")
    };
    let node = section.ok_or_else(|| missing(build.span))?;
    if node.get("hash").is_none() {
        return Err(missing(node.span));
    }
    let s: Section = node.read()?;
    let load_factor = match &s.load_factor {
        Some(f) if f.value != 0.0 && !(1.0..=100.0).contains(&f.value) => {
            return Err(ConfigError::at(f.span, "`loadFactor` is at least 1, or 0 to turn it off"));
        }
        f => f.as_ref().map_or(LOAD_FACTOR, |f| f.value),
    };
    // Zones would give a key another home in each of them.
    let keys = Keys { panic: s.panic_threshold, overprovisioning: s.overprovisioning.as_ref(), ..Keys::default() };
    let rules = super::config::rules(&keys, build)?;
    Ok(Hashing { key: Key::of(s.hash)?, load_factor, rules })
}

/// Where the key of a request is.
#[derive(Debug)]
pub enum Key {
    Header(HeaderName),
    Cookie(String),
    Query(String),
    Ip,
}

impl Key {
    fn of(on: Spot<HashOn>) -> Result<Self, ConfigError> {
        Ok(match on.value {
            HashOn::Word(Word::Ip) | HashOn::Named(Named::Ip(true)) => Self::Ip,
            HashOn::Named(Named::Ip(false)) => {
                return Err(ConfigError::at(on.span, "`ip: false` leaves nothing to hash"));
            }
            HashOn::Named(Named::Header(name)) => Self::Header(
                HeaderName::try_from(&name)
                    .map_err(|_| ConfigError::at(on.span, format!("`{name}` is not a field name")))?,
            ),
            HashOn::Named(Named::Cookie(name)) => Self::Cookie(name),
            HashOn::Named(Named::Query(name)) => Self::Query(name),
        })
    }
    /// The request's hash; `None` if it has no such key, and then the choice is random.
    pub fn hash(&self, rq: &RequestCx) -> Option<u64> {
        match self {
            Self::Header(name) => rq.headers.get(name).map(|v| stable_hash(&[v.as_bytes()])),
            // RFC 6265 section 4.2.1; h2 may split the field (RFC 9113 section 8.2.3).
            Self::Cookie(name) => rq
                .headers
                .get_all(COOKIE)
                .iter()
                .flat_map(|v| v.as_bytes().split(|b| *b == b';'))
                .find_map(|pair| value_of(pair.trim_ascii(), name))
                .map(|v| stable_hash(&[v])),
            Self::Query(name) => rq
                .target
                .query()?
                .as_bytes()
                .split(|b| *b == b'&')
                .find_map(|pair| value_of(pair, name))
                .map(|v| stable_hash(&[v])),
            Self::Ip => Some(match rq.client_ip {
                std::net::IpAddr::V4(ip) => stable_hash(&[&ip.octets()]),
                std::net::IpAddr::V6(ip) => stable_hash(&[&ip.octets()]),
            }),
        }
    }
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2017): a key whose endpoint has more than its
/// share in flight goes on to the next, so that one hot key cannot drown one endpoint.
pub struct Bound {
    limit: f64,
}

impl Bound {
    /// For a pick now.
    pub fn of(tier: &Tier, factor: f64, now: Moment) -> Self {
        if factor == 0.0 {
            return Self { limit: f64::INFINITY };
        }
        Self { limit: (factor * tier.mean_inflight(now)).max(f64::from(FREE)) }
    }
    /// Whether the endpoint may take one more.
    pub fn admits(&self, e: &Endpoint) -> bool {
        f64::from(e.state.inflight.load(std::sync::atomic::Ordering::Relaxed)) < self.limit
    }
}

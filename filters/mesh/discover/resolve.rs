//! Asking for names: one answer is addresses with a lifetime, "there is none", or a failure that proves nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::race::{self, Known, Races};
use crate::contract::section::{ConfigError, Spot};
use crate::contract::{now, units};
use crate::mesh::chance::Dice;

/// Default of `minTtl`.
pub const MIN_TTL: Duration = Duration::from_secs(5);
/// Default of `maxTtl`.
pub const MAX_TTL: Duration = Duration::from_secs(300);
/// Share by which a lifetime is shortened at random, so that instances do not ask in step.
const JITTER: f64 = 0.1;

/// Which addresses of a name to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    /// One family of what has both. A name: the one that connects first, IPv6 with a head start.
    #[default]
    Auto,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    All,
}

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A server instead of the system's.
    pub resolver: Option<SocketAddr>,
    /// See [`Family`].
    pub family: Family,
    /// Shortest time between questions.
    pub min_ttl: Duration,
    /// Longest time between questions.
    pub max_ttl: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { resolver: None, family: Family::Auto, min_ttl: MIN_TTL, max_ttl: MAX_TTL }
    }
}

impl Settings {
    /// The defaults but for `minTtl` and `maxTtl`, which are checked.
    pub fn lifetimes(
        min: Option<&Spot<units::Duration>>,
        max: Option<&Spot<units::Duration>>,
    ) -> Result<Self, ConfigError> {
        let min_ttl = min.map_or(MIN_TTL, |d| d.value.0);
        if let Some(min) = min.filter(|d| d.value.0 < Duration::from_secs(1)) {
            return Err(ConfigError::at(min.span, "`minTtl` is at least 1s"));
        }
        if let Some(max) = max.filter(|d| d.value.0 < min_ttl) {
            return Err(ConfigError::at(max.span, "`maxTtl` is shorter than `minTtl`"));
        }
        let max_ttl = max.map_or(MAX_TTL.max(min_ttl), |d| d.value.0);
        Ok(Self { min_ttl, max_ttl, ..Self::default() })
    }

    /// How long an answer of this lifetime is good.
    pub fn pause(&self, ttl: Duration, dice: &mut Dice) -> Duration {
        let ttl = ttl.clamp(self.min_ttl, self.max_ttl.max(self.min_ttl));
        // Never below the floor, which is what protects the server.
        ttl.mul_f64(1.0 - JITTER * dice.fraction()).max(self.min_ttl) + self.min_ttl.mul_f64(JITTER * dice.fraction())
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// What was found; empty if the name does not exist or has none of these.
    pub list: Vec<T>,
    /// How long it is good.
    pub ttl: Duration,
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Srv {
    /// Lower is used first.
    pub priority: u16,
    /// Share.
    pub weight: u16,
    /// Port.
    pub port: u16,
    /// Name.
    pub target: String,
}

/// A client for names.
pub struct Resolver {
    client: TokioResolver,
    settings: Settings,
    /// Contended by nobody: a source asks one question after the other.
    races: Mutex<Races>,
}

impl Resolver {
    /// Reads the system's settings unless a server is given. Inside a runtime.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let mut builder = match settings.resolver {
            None => TokioResolver::builder_tokio().map_err(|e| format!("system resolver: {e}"))?,
            Some(server) => {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for c in &mut connections {
                    c.port = server.port();
                }
                let server = NameServerConfig::new(server.ip(), true, connections);
                TokioResolver::builder_with_config(
                    ResolverConfig::from_parts(None, Vec::new(), vec![server]),
                    TokioRuntimeProvider::default(),
                )
            }
        };
        let options = builder.options_mut();
        // Lifetimes are ours to keep: a cache below would serve what we ask to have refreshed.
        options.cache_size = 0;
        if settings.resolver.is_some() {
            options.use_hosts_file = ResolveHosts::Never;
            options.timeout = Duration::from_secs(2);
            options.attempts = 1;
        }
        let client = builder.build().map_err(|e| format!("resolver: {e}"))?;
        Ok(Self { client, settings, races: Mutex::default() })
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Answer<RData>, NetError> {
        match self.client.lookup(name, kind).await {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|r| r.ttl).min().unwrap_or(0);
                let list =
                    lookup.answers().iter().filter(|r| r.record_type() == kind).map(|r| r.data.clone()).collect();
                Ok(Answer { list, ttl: Duration::from_secs(ttl.into()) })
            }
            // NXDOMAIN, or the name has none of this kind: an answer, whereas SERVFAIL and silence are none.
            Err(e) if is_empty_answer(&e) => Ok(Answer { list: Vec::new(), ttl: self.settings.min_ttl }),
            Err(e) => Err(e),
        }
    }

    /// Addresses of a name at which something is to answer on this port.
    pub async fn addresses(&self, name: &str, port: u16) -> Result<Answer<IpAddr>, String> {
        let family = self.settings.family;
        let ask = async |kind, wanted| if wanted { Some(self.ask(name, kind).await) } else { None };
        let (v4, v6) = futures_util::future::join(
            ask(RecordType::A, family != Family::V6),
            ask(RecordType::AAAA, family != Family::V4),
        )
        .await;
        let mut answer = Answer { list: Vec::new(), ttl: Duration::MAX };
        let (mut failure, mut lacking) = (None, self.settings.min_ttl);
        for part in [v4, v6].into_iter().flatten() {
            match part {
                // A family that the name lacks says nothing of how long the other is good.
                Ok(part) if part.list.is_empty() => lacking = part.ttl,
                Ok(part) => {
                    answer.ttl = answer.ttl.min(part.ttl);
                    answer.list.extend(part.list.iter().filter_map(RData::ip_addr));
                }
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        if answer.list.is_empty() {
            answer.ttl = lacking;
        }
        let both = answer.list.iter().any(IpAddr::is_ipv4) && answer.list.iter().any(IpAddr::is_ipv6);
        if family == Family::Auto && both {
            let v6 = self.prefers_v6(name, port, &answer.list).await;
            answer.list.retain(|ip| ip.is_ipv6() == v6);
        }
        // One family found is good even if the other failed; nothing found is only true if nobody failed.
        match failure {
            Some(e) if answer.list.is_empty() => Err(format!("{name}: {e}")),
            _ => Ok(answer),
        }
    }

    /// Whether IPv6 is the family to use of a name that has both.
    async fn prefers_v6(&self, name: &str, port: u16, list: &[IpAddr]) -> bool {
        let mut set = list.to_vec();
        set.sort_unstable();
        let known = self.races.lock().known(name, port, &set, now());
        match known {
            Known::Winner(v6) => v6,
            Known::Nothing(last) => match race::run(list, port).await {
                Some(v6) => {
                    self.races.lock().won(name, port, set, v6, now());
                    v6
                }
                // Nobody answers now, which is news for health checks, not a reason to move.
                None => last.unwrap_or(false),
            },
        }
    }

    /// SRV records of a name.
    pub async fn services(&self, name: &str) -> Result<Answer<Srv>, String> {
        let answer = self.ask(name, RecordType::SRV).await.map_err(|e| format!("{name}: {e}"))?;
        let list = answer
            .list
            .iter()
            .filter_map(|data| match data {
                RData::SRV(srv) => Some(Srv {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: srv.target.to_string(),
                }),
                _ => None,
            })
            // RFC 2782: a target of "." says that the service is decidedly not available here.
            .filter(|srv| srv.target != "." && srv.port != 0)
            .collect();
        Ok(Answer { list, ttl: answer.ttl })
    }
}

fn is_empty_answer(e: &NetError) -> bool {
    use hickory_resolver::net::{DnsError, NetError as E};
    use hickory_resolver::proto::op::ResponseCode;
    matches!(e, E::Dns(DnsError::NoRecordsFound(none))
        if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError))
}

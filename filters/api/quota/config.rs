use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::calendar::Unit;
use crate::contract::section::Value;
use crate::contract::units::Duration;
use crate::contract::{ConfigError, Node, Spot};

/// One limit. A list of them holds together: a request passes all or is charged to none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Whose requests are counted together: `ip`, `consumer`, `user.sub`, `workload.id`, `route.name`, `header:NAME`, or
    /// any CEL expression that gives text. In a plan: always the consumer.
    pub by: Option<Spot<String>>,
    /// Requests, or units of `cost`.
    pub limit: Option<Spot<u64>>,
    /// In this time; from 1ms to 366d, rolling. Or in each `minute`, `hour`, `day`, `week` or `month` of the calendar.
    pub per: Option<Spot<Per>>,
    /// Time zone of the calendar: `{ timeZone: Europe/Berlin }`; `true` is UTC.
    #[schemars(with = "Option<CalendarForm>")]
    pub calendar: Option<Node>,
    /// How many may come at once in a rolling window. Default: `limit`.
    pub burst: Option<Spot<u64>>,
    /// What a request costs: a number, a CEL expression over the request, or
    /// `{ estimate: 100, response: "response.json.usage.total_tokens" }`. Default: 1.
    #[schemars(with = "Option<CostForm>")]
    pub cost: Option<Node>,
    /// Who shares the count: the workers of this process (`local`), or every process at the same `state.redis`
    /// (`shared`). Default: `local`.
    #[serde(default)]
    pub scope: Option<Spot<Scope>>,
    /// Most units that a process takes from a shared count ahead. Default: a hundredth of `limit`, 1 to 1000.
    pub lease: Option<Spot<u64>>,
    /// Counts and tells, never refuses.
    #[serde(default)]
    pub shadow: bool,
    /// What becomes of a request without the thing it is counted by: refused with 403 (`deny`), or counted by its
    /// address (`ip`). Default: `deny`.
    #[serde(default)]
    pub missing: Missing,
    /// Name in headers and metrics. Default: `by`-`per`, such as `user.sub-1m`.
    pub name: Option<Spot<String>>,
    /// Keys remembered at a time. Default 100000.
    #[schemars(extend("default" = 100000))]
    pub max_keys: Option<Spot<u64>>,
    /// Asks a service that speaks Envoy's rate limit protocol instead of counting.
    pub rate_limit_service: Option<Spot<RateLimitService>>,
}

/// Who shares a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// The workers of this process, exactly.
    Local,
    /// Every process.
    Shared,
}

/// See [`Limit::missing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Missing {
    /// 403.
    #[default]
    Deny,
    /// Counted by address, apart from everything that has a key.
    Ip,
}

/// A rate limit service: gRPC, `envoy.service.ratelimit.v3.RateLimitService`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitService {
    /// A service of this configuration.
    pub service: Spot<String>,
    /// Domain that the service keeps its rules under.
    pub domain: Spot<String>,
    /// Entries of the descriptor, in order: key to value. A value may hold `${expr}`; a request that lacks what an
    /// expression asks for is without a key, see `missing`.
    pub descriptors: Node,
    /// How long a request waits for the answer. Default 20ms.
    pub timeout: Option<Spot<Duration>>,
    /// What happens without an answer: the request passes (`allow`), or 503 (`deny`). Default: `allow`.
    #[serde(default)]
    pub failure_mode: FailureMode,
}

/// See [`RateLimitService::failure_mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailureMode {
    /// The request passes.
    #[default]
    Allow,
    /// 503.
    Deny,
}

/// Length of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Any time, rolling.
    Time(Duration),
    /// A unit of the calendar.
    Unit(Unit),
}

impl<'de> Deserialize<'de> for Per {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Per;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration with a unit, such as `30s`, `1h`, or `minute`, `hour`, `day`, `week`, `month`")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Per, E> {
                Unit::of(s).map_or_else(|| s.parse().map(Per::Time).map_err(E::custom), |unit| Ok(Per::Unit(unit)))
            }
        }
        d.deserialize_str(Text)
    }
}

impl JsonSchema for Per {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Per".into()
    }
    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [g.subschema_for::<Duration>(), g.subschema_for::<Unit>()] })
    }
}

impl std::fmt::Display for Per {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(d) => d.fmt(f),
            Self::Unit(unit) => f.write_str(unit.name()),
        }
    }
}

/// `calendar` as a map.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Calendar {
    /// IANA name, such as `Europe/Berlin`. Default: UTC.
    pub time_zone: Option<Spot<String>>,
}

/// `cost` as a map.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settled {
    /// Charged when the request arrives: a number or a CEL expression over the request. Default: 1.
    #[schemars(with = "Option<NumberOrText>")]
    pub estimate: Option<Node>,
    /// CEL over `response` (`bytes`, `status`, `headers`, `json`), charged instead when the answer has ended. Where it
    /// gives no number, the estimate stays.
    pub response: Spot<String>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum CalendarForm {
    Utc(bool),
    Zone(Calendar),
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum NumberOrText {
    Number(u64),
    Expression(String),
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum CostForm {
    Number(u64),
    Expression(String),
    Settled(Settled),
}

impl Limit {
    /// The unit of the calendar and its time zone, if this limit follows one.
    pub fn calendar(&self, per: &Spot<Per>) -> Result<Option<(Unit, Option<Spot<String>>)>, ConfigError> {
        let zone = match self.calendar.as_ref().map(|node| (node, &node.value)) {
            None => None,
            Some((_, Value::Bool(true))) => Some(None),
            Some((_, Value::Bool(false))) => {
                return match per.value {
                    Per::Time(_) => Ok(None),
                    Per::Unit(unit) => {
                        Err(ConfigError::at(per.span, format!("`{}` is a unit of the calendar", unit.name()))
                            .help("write a rolling window as a time, such as `1h` or `30d`"))
                    }
                };
            }
            Some((node, _)) => Some(node.read::<Calendar>()?.time_zone),
        };
        match (per.value, zone) {
            (Per::Unit(unit), zone) => Ok(Some((unit, zone.flatten()))),
            (Per::Time(_), None) => Ok(None),
            (Per::Time(time), Some(zone)) => {
                let all = [Unit::Minute, Unit::Hour, Unit::Day, Unit::Week];
                let same = all.into_iter().find(|u| u.seconds().map(std::time::Duration::from_secs) == Some(time.0));
                same.map(|unit| Some((unit, zone))).ok_or_else(|| {
                    ConfigError::at(per.span, format!("the calendar has no unit of {time}"))
                        .help("write `minute`, `hour`, `day`, `week` or `month`")
                })
            }
        }
    }
}

/// Default of `maxKeys`.
pub const MAX_KEYS: u64 = 100_000;

//! One limit at work: whom it counts, what a request costs, and where the count is.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::calendar::{Calendar, Period};
use super::cells::{Cells, Tracks};
use super::config::{self, Limit, Missing, Per, Scope};
use super::core::{Charge, MAX_LIMIT, Meter, Rate, Tally};
use super::cost::Cost;
use super::service::{self, Service};
use super::shared::{self, Shared, Take};
use super::store::Store;
use crate::api::caller::{self, By, Id, Key};
use crate::api::left::Limit as Told;
use crate::contract::metrics::Counter;
use crate::contract::{Build, ConfigError, Moment, RequestCx, Spot, now};

/// See the module.
pub struct Window {
    /// Whose requests are counted together.
    pub by: By,
    /// Where and how.
    pub kind: Kind,
    /// What a request costs.
    pub cost: Cost,
    /// Counts, never refuses.
    pub shadow: bool,
    /// What becomes of a request without a key.
    pub missing: Missing,
    /// Units; 0 where a service decides.
    pub limit: u64,
    /// As in the config.
    pub per: Option<Per>,
    /// Its name.
    pub name: Box<str>,
    /// Its name as a structured field string.
    pub quoted: Box<str>,
    /// Route, or `plans.NAME`.
    pub owner: Box<str>,
    /// Handles.
    pub counts: Counts,
}

/// Handles of a window.
pub struct Counts {
    /// Requests within the limit.
    pub allowed: Counter,
    /// Requests refused.
    pub rejected: Counter,
    /// Requests that shadow mode let pass.
    pub shadowed: Counter,
    /// Requests that were not charged in the end, because we could not serve them.
    pub refunded: Counter,
}

/// Where a count is.
pub enum Kind {
    /// In this process, a bucket that fills.
    Rolling(Rate, Arc<Cells>),
    /// In this process, so many in each period.
    Calendar(Arc<Calendar>, Arc<Cells>),
    /// Leased from what all processes share.
    Shared(Arc<Shared>),
    /// With a service.
    Service(Box<Service>),
}

/// What a window says to a request.
pub enum Asked {
    /// So it is.
    Decided(Taken),
    /// The request has nothing to be counted by.
    Nameless,
    /// Only somebody else knows.
    Wait(Pending),
}

/// A charge, with what it takes to take it back.
#[derive(Clone, Copy)]
pub struct Taken {
    /// Whom.
    pub key: Key,
    /// How much.
    pub cost: u64,
    /// What came of it.
    pub charge: Charge,
    /// In which period, if in one.
    pub period: Option<Period>,
    /// The count is not known: the service that keeps it did not answer.
    pub unknown: bool,
}

/// A question on its way. Owns all it needs.
pub enum Pending {
    /// To Redis.
    Shared(Arc<Shared>, Key, Id, u64),
    /// To a rate limit service.
    Service(service::Question),
}

impl Window {
    /// Charges a request, or looks what a charge would give if nothing may be changed.
    pub fn ask(&self, rq: &RequestCx, now: Moment) -> Asked {
        let anonymous = || (self.missing == Missing::Ip).then(|| caller::anonymous(rq));
        let Some(key) = self.by.key(rq).or_else(anonymous) else { return Asked::Nameless };
        let cost = self.cost.of(rq);
        let id = || self.by.id(rq).unwrap_or_else(|| caller::anonymous_id(rq));
        let (meter, cells) = match &self.kind {
            Kind::Rolling(rate, cells) => (Meter::Rolling(*rate, now), cells),
            Kind::Calendar(calendar, cells) => (Meter::Calendar(tally(calendar, self.limit)), cells),
            Kind::Shared(shared) => {
                if rq.dry_run {
                    return Asked::Decided(Taken::local(key, cost, shared.peek(key, cost, now)));
                }
                return match shared.take(key, id, cost, now) {
                    Take::Decided(charge) => Asked::Decided(Taken::local(key, cost, charge)),
                    Take::Unknown => Asked::Decided(Taken::unknown(key, cost)),
                    Take::Ask => Asked::Wait(Pending::Shared(shared.clone(), key, id(), cost)),
                };
            }
            Kind::Service(service) => {
                if rq.dry_run {
                    return Asked::Decided(Taken::local(key, cost, Charge::FREE));
                }
                return service.question(rq, key, cost).map_or(Asked::Nameless, |q| Asked::Wait(Pending::Service(q)));
            }
        };
        let charge = if rq.dry_run {
            cells.look(key, id, |cell| meter.try_peek(cell, cost))
        } else {
            cells.with(key, meter, id, |cell| meter.try_charge(cell, cost))
        };
        let period = if let Meter::Calendar(tally) = meter { Some(tally.period) } else { None };
        Asked::Decided(Taken { key, cost, charge, period, unknown: false })
    }

    /// What a caller has left.
    pub fn peek(&self, rq: &RequestCx, now: Moment) -> Option<Charge> {
        let key = self.by.key(rq)?;
        let id = || self.by.id(rq).unwrap_or_default();
        Some(match &self.kind {
            Kind::Rolling(rate, cells) => cells.look(key, id, |cell| Meter::Rolling(*rate, now).try_peek(cell, 0)),
            Kind::Calendar(calendar, cells) => {
                cells.look(key, id, |cell| Meter::Calendar(tally(calendar, self.limit)).try_peek(cell, 0))
            }
            Kind::Shared(shared) => shared.peek(key, 0, now),
            Kind::Service(_) => return None,
        })
    }

    /// Takes a charge back.
    pub fn refund(&self, taken: &Taken) {
        if !taken.charge.allowed || taken.cost == 0 {
            return;
        }
        match &self.kind {
            Kind::Shared(shared) => shared.give_back(taken.key, taken.cost),
            // What a service counted stays counted: its protocol has no way back.
            Kind::Service(_) => {}
            Kind::Rolling(_, cells) | Kind::Calendar(_, cells) => {
                if let Some(meter) = self.meter(taken) {
                    cells.amend(taken.key, |cell| meter.refund(cell, taken.cost));
                }
            }
        }
    }

    /// Replaces what was charged by what the answer cost.
    pub fn settle(&self, taken: &Taken, cost: u64) {
        let charged = if taken.charge.allowed { taken.cost } else { 0 };
        if cost <= charged {
            return self.refund(&Taken { cost: charged - cost, ..*taken });
        }
        match &self.kind {
            Kind::Shared(shared) => shared.spend(taken.key, cost - charged),
            Kind::Service(_) => {}
            Kind::Rolling(_, cells) | Kind::Calendar(_, cells) => {
                if let Some(meter) = self.meter(taken) {
                    cells.amend(taken.key, |cell| meter.force(cell, cost - charged));
                }
            }
        }
    }

    /// The limit as it was when that charge was made, the time apart.
    fn meter(&self, taken: &Taken) -> Option<Meter> {
        match (&self.kind, taken.period) {
            (Kind::Rolling(rate, _), _) => Some(Meter::Rolling(*rate, now())),
            (Kind::Calendar(..), Some(period)) => {
                Some(Meter::Calendar(Tally { limit: self.limit, period, left: Duration::ZERO }))
            }
            _ => None,
        }
    }
}

impl Told for Window {
    fn owner(&self) -> &str {
        &self.owner
    }

    // What a caller only claims to be, it could claim of others.
    fn is_told(&self) -> bool {
        !self.shadow && self.by.is_identity()
    }

    fn identity(&self) -> *const () {
        match &self.kind {
            Kind::Rolling(_, cells) | Kind::Calendar(_, cells) => Arc::as_ptr(cells).cast(),
            Kind::Shared(shared) => Arc::as_ptr(shared).cast(),
            Kind::Service(service) => std::ptr::from_ref(&**service).cast(),
        }
    }

    fn left(&self, rq: &RequestCx) -> Option<Map<String, Value>> {
        let charge = self.peek(rq, now())?;
        let mut left = Map::new();
        let (kind, owner) = self.owner.strip_prefix("plans.").map_or(("route", &*self.owner), |plan| ("plan", plan));
        left.insert("name".to_owned(), (*self.name).into());
        left.insert(kind.to_owned(), owner.into());
        left.insert("limit".to_owned(), self.limit.into());
        left.insert("per".to_owned(), self.per.map(|per| per.to_string()).into());
        left.insert("remaining".to_owned(), charge.remaining.into());
        left.insert("reset".to_owned(), super::seconds(charge.reset).into());
        Some(left)
    }
}

impl Taken {
    const fn local(key: Key, cost: u64, charge: Charge) -> Self {
        Self { key, cost, charge, period: None, unknown: false }
    }

    const fn unknown(key: Key, cost: u64) -> Self {
        let charge = Charge { allowed: false, remaining: 0, reset: Duration::from_secs(1) };
        Self { key, cost, charge, period: None, unknown: true }
    }
}

impl Pending {
    /// Waits for the answer, and what came with it for the caller.
    pub async fn resolve(self) -> (Taken, Option<Box<http::HeaderMap>>) {
        match self {
            Self::Shared(shared, key, id, cost) => {
                let charge = shared.wait(key, id, cost).await;
                (charge.map_or(Taken::unknown(key, cost), |charge| Taken::local(key, cost, charge)), None)
            }
            Self::Service(question) => {
                let (key, cost) = (question.key, question.cost);
                match question.ask().await {
                    Some((charge, headers)) => (Taken::local(key, cost, charge), headers),
                    None => (Taken::unknown(key, cost), None),
                }
            }
        }
    }
}

fn tally(calendar: &Calendar, limit: u64) -> Tally {
    let now = jiff::Timestamp::now();
    let period = calendar.period(now.as_second());
    let left = u64::try_from(period.end.saturating_sub(now.as_second())).unwrap_or(0);
    Tally { limit, period, left: Duration::from_secs(left) }
}

/// Builds a window. `plan`: whose it is, and for which route.
///
/// # Errors
/// The first mistake.
pub fn build(limit: Spot<Limit>, plan: Option<(&str, &str)>, build: &mut Build<'_>) -> Result<Window, ConfigError> {
    let Spot { span, value: limit } = limit;
    let (by, label) = by(span, &limit, plan)?;
    let name = match (&limit.name, &limit.per, &limit.rate_limit_service) {
        (Some(name), ..) => name.value.clone(),
        (None, Some(per), None) => format!("{label}-{}", per.value),
        (None, None, Some(service)) => format!("{label}-{}", service.value.domain.value),
        (None, Some(per), Some(_)) => {
            return Err(ConfigError::at(per.span, "`per` and `rateLimitService` exclude each other")
                .help("the service knows its limits by itself"));
        }
        (None, None, None) => return Err(missing(span, "per", "per: 1m")),
    };
    let quoted = quoted(&name).ok_or_else(|| {
        ConfigError::at(limit.name.as_ref().map_or(span, |n| n.span), format!("`{name}` cannot stand in a header"))
            .help("give the limit a `name` of plain ASCII")
    })?;
    let cost = Cost::read(limit.cost.as_ref())?;
    let route = plan.map_or(build.scope.as_str(), |(_, route)| route);
    let route = route.strip_prefix("routes.").unwrap_or(route).to_owned();
    let counts = counts(build, &route, &name);
    let (units, kind) = match &limit.rate_limit_service {
        Some(section) => {
            let useless = [
                limit.limit.as_ref().map(|l| (l.span, "limit")),
                limit.burst.as_ref().map(|b| (b.span, "burst")),
                limit.calendar.as_ref().map(|c| (c.span, "calendar")),
                limit.scope.as_ref().map(|s| (s.span, "scope")),
                limit.lease.as_ref().map(|l| (l.span, "lease")),
            ];
            if let Some((at, key)) = useless.into_iter().flatten().next() {
                return Err(ConfigError::at(at, format!("`{key}` and `rateLimitService` exclude each other"))
                    .help("the service knows its limits by itself"));
            }
            (0, Kind::Service(Box::new(Service::build(&section.value, build)?)))
        }
        None => counted(span, &limit, &label, &name, &route, build)?,
    };
    Ok(Window {
        by,
        kind,
        cost,
        shadow: limit.shadow,
        missing: limit.missing,
        limit: units,
        per: limit.per.map(|p| p.value),
        quoted: quoted.into(),
        owner: plan.map_or(route, |(plan, _)| format!("plans.{plan}")).into(),
        counts,
        name: name.into(),
    })
}

fn missing(span: crate::contract::Span, key: &str, example: &str) -> ConfigError {
    ConfigError::at(span, format!("`{key}` is missing")).help(format!("add `{key}`, such as `{example}`"))
}

fn by(span: crate::contract::Span, limit: &Limit, plan: Option<(&str, &str)>) -> Result<(By, String), ConfigError> {
    Ok(match (plan, &limit.by) {
        (Some(_), Some(by)) if by.value != "consumer" => {
            return Err(ConfigError::at(by.span, "a plan's quota is always counted by consumer").help("leave `by` out"));
        }
        (Some((plan, _)), _) => (By::Consumer, plan.to_owned()),
        (None, Some(by)) => (By::read(by)?, by.value.clone()),
        (None, None) => {
            return Err(
                ConfigError::at(span, "`by` is missing").help("say whose requests are counted, such as `by: ip`")
            );
        }
    })
}

fn counts(build: &Build<'_>, route: &str, name: &str) -> Counts {
    let labels = [("route", route), ("policy", name)];
    let metrics = &build.metrics;
    Counts {
        allowed: metrics.counter("onehop_quota_allowed_total", "Requests within a quota", &labels),
        rejected: metrics.counter("onehop_quota_rejected_total", "Requests over a quota", &labels),
        shadowed: metrics.counter("onehop_quota_shadowed_total", "Requests over a quota in shadow mode", &labels),
        refunded: metrics.counter("onehop_quota_refunded_total", "Charges taken back: answered 503 by us", &labels),
    }
}

/// A window that counts by itself or with Redis.
fn counted(
    span: crate::contract::Span,
    limit: &Limit,
    label: &str,
    name: &str,
    route: &str,
    build: &mut Build<'_>,
) -> Result<(u64, Kind), ConfigError> {
    let units = limit.limit.as_ref().ok_or_else(|| missing(span, "limit", "limit: 100"))?;
    let per = limit.per.as_ref().ok_or_else(|| missing(span, "per", "per: 1m"))?;
    if units.value == 0 || units.value > MAX_LIMIT {
        return Err(ConfigError::at(units.span, format!("a limit is 1 to {MAX_LIMIT}"))
            .help("to refuse everybody, use `auth: { allow: [] }`"));
    }
    let calendar = limit.calendar(per)?;
    let time = match per.value {
        Per::Time(time) => time.0,
        Per::Unit(_) => Duration::from_secs(60),
    };
    if time < Duration::from_millis(1) || time > Duration::from_secs(366 * 86_400) {
        return Err(ConfigError::at(per.span, format!("{} is no window", per.value)).help("1ms to 366d"));
    }
    let burst = limit.burst.as_ref().map_or(units.value, |b| b.value);
    if let Some(at) = limit.burst.as_ref() {
        if calendar.is_some() {
            return Err(ConfigError::at(at.span, "a calendar has no `burst`").help("leave `burst` out"));
        }
        if burst == 0 || burst > MAX_LIMIT {
            return Err(ConfigError::at(at.span, format!("a burst is 1 to {MAX_LIMIT}")));
        }
    }
    let max_keys = limit.max_keys.as_ref().map_or(config::MAX_KEYS, |m| m.value);
    if let Some(m) = limit.max_keys.as_ref().filter(|_| max_keys == 0 || max_keys > 10_000_000) {
        return Err(ConfigError::at(m.span, "`maxKeys` is 1 to 10000000"));
    }
    let max_keys = usize::try_from(max_keys).expect("checked to be small");
    let zone = calendar.as_ref().map(|(unit, zone)| {
        let made = Calendar::new(*unit, zone.as_ref().map(|z| z.value.as_str()));
        made.map(Arc::new).map_err(|e| {
            let at = zone.as_ref().map_or(per.span, |z| z.span);
            ConfigError::at(at, e).help("write an IANA name, such as `Europe/Berlin`")
        })
    });
    let zone = zone.transpose()?;
    let tracks = Tracks {
        keys: build.metrics.gauge("onehop_quota_keys", "Callers that quotas remember", &[]),
        evicted: build.metrics.counter(
            "onehop_quota_evicted_total",
            "Callers forgotten for others although they had used something",
            &[],
        ),
    };
    // Not the numbers: a changed limit finds its counters again.
    let what = match &calendar {
        Some((unit, zone)) => format!(" {} {}", unit.name(), zone.as_ref().map_or("UTC", |z| z.value.as_str())),
        None => String::new(),
    };
    if limit.scope.as_ref().is_some_and(|s| s.value == Scope::Shared) {
        let terms = shared::Terms { limit: units.value, per: time, burst, calendar: zone };
        let shape = format!("{label} {max_keys}{what}");
        let shared = shared::build(limit, terms, (name, route, &shape), max_keys, tracks, build)?;
        return Ok((units.value, Kind::Shared(shared)));
    }
    if let Some(lease) = &limit.lease {
        return Err(ConfigError::at(lease.span, "`lease` is for `scope: shared`").help("leave `lease` out"));
    }
    let rate = Rate::new(units.value, time, burst);
    let rolling = calendar.is_none().then_some(rate);
    let store = Store::of(build);
    let saved = format!("{}/{name}{what}", build.scope);
    let earlier = store.as_ref().map(|store| store.earlier(&saved)).unwrap_or_default();
    let cells = build.keep(&format!("quota/{name}"), &format!("{label} {max_keys}{what}"), || {
        Cells::new(rolling, max_keys, earlier, tracks)
    });
    let kept = cells.clone();
    build.at_publish(move || {
        if let Some(rate) = rolling {
            kept.retune(rate, now());
        }
    });
    if let Some(store) = store {
        let (adopted, saving) = (cells.clone(), store.clone());
        build.at_publish(move || store.adopt(saved, &adopted));
        build.background(saving.keep_saving());
    }
    Ok((units.value, zone.map_or(Kind::Rolling(rate, cells.clone()), |zone| Kind::Calendar(zone, cells))))
}

/// RFC 9651 section 4.1.6: printable ASCII, quotes and backslashes escaped.
fn quoted(name: &str) -> Option<String> {
    if name.is_empty() || !name.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return None;
    }
    Some(format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")))
}

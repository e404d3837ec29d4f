//! `quota`: how many requests a caller has left. Several limits hold together, those of its plan included.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use self::core::{Cells, Charge, Key, Rate};
use crate::contract::clock::recent;
use crate::contract::filter::{Filter, Step};
use crate::contract::metrics::Counter;
use crate::contract::{
    Build, ConfigError, Directory, Entry, Expr, Fault, Moment, Node, Phase, Reason, RequestCx, Role, RouteView, Spot,
    now,
};
use config::{Limit, Scope};

const NAME: &str = "quota";
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Request quotas by caller (GCRA), of routes and of plans",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<Limit>>(),
    role: Role::Api { phase: Phase::Quota, implied, build },
};

/// A plan's quota acts wherever consumers are told apart.
fn implied(route: &RouteView<'_>, directory: &Directory) -> bool {
    route.keys.contains(&"auth") && directory.plans.values().any(|p| p.sections.contains_key(NAME))
}

struct Quota {
    /// Of the route; holds for callers without a plan.
    own: Limits,
    /// Of plans, by plan name.
    plans: BTreeMap<Arc<str>, Limits>,
}

struct Limits {
    windows: Vec<Window>,
    /// `RateLimit-Policy` of the route's windows and these; `None` where there are none.
    policy: Option<HeaderValue>,
}

/// One limit at work.
struct Window {
    by: By,
    rate: Rate,
    cells: Arc<Cells>,
    /// Its item of `RateLimit-Policy`.
    policy: Box<str>,
    /// Its name as a structured field string.
    quoted: Box<str>,
    name: Box<str>,
    allowed: Counter,
    rejected: Counter,
}

enum By {
    Ip,
    Consumer,
    UserSub,
    Header(HeaderName),
    WorkloadId,
    RouteName,
    Text(Box<Expr>),
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let own = node.map(|n| windows(n, None, build)).transpose()?.unwrap_or_default();
    let route = std::mem::take(&mut build.scope);
    let mut plans = BTreeMap::new();
    for plan in build.directory.plans.values() {
        let Some(section) = plan.sections.get(NAME) else { continue };
        // One count per consumer, whatever route it calls.
        build.scope = format!("plans.{}", plan.name);
        let windows = windows(section, Some((&plan.name, &route)), build);
        let windows = windows?;
        plans.insert(plan.name.clone(), Limits { policy: policy(own.iter().chain(&windows)), windows });
    }
    build.scope = route;
    Ok(Arc::new(Quota { own: Limits { policy: policy(own.iter()), windows: own }, plans }))
}

fn policy<'a>(windows: impl Iterator<Item = &'a Window>) -> Option<HeaderValue> {
    let items: Vec<&str> = windows.map(|w| &*w.policy).collect();
    if items.is_empty() { None } else { HeaderValue::try_from(items.join(", ")).ok() }
}

fn windows(node: &Node, plan: Option<(&str, &str)>, build: &mut Build<'_>) -> Result<Vec<Window>, ConfigError> {
    let limits: Vec<Spot<Limit>> = node.read()?;
    if limits.is_empty() {
        return Err(
            ConfigError::at(node.span, "`quota` has no limit").help("write `[{ by: ip, limit: 100, per: 1m }]`")
        );
    }
    let mut windows: Vec<Window> = Vec::with_capacity(limits.len());
    for limit in limits {
        let span = limit.value.name.as_ref().map_or(limit.span, |n| n.span);
        let window = window(limit, plan, build)?;
        if windows.iter().any(|w| w.name == window.name) {
            return Err(ConfigError::at(span, format!("two limits are called `{}`", window.name))
                .help("give them different names with `name`"));
        }
        windows.push(window);
    }
    Ok(windows)
}

fn window(limit: Spot<Limit>, plan: Option<(&str, &str)>, build: &mut Build<'_>) -> Result<Window, ConfigError> {
    let Spot { span, value: limit } = limit;
    let per = limit.per.value.0;
    if limit.limit.value == 0 || limit.limit.value > 1_000_000_000 {
        return Err(ConfigError::at(limit.limit.span, "a limit is 1 to 1000000000 requests")
            .help("to refuse everybody, use `auth: { allow: [] }`"));
    }
    if per < Duration::from_millis(1) || per > Duration::from_secs(366 * 86_400) {
        return Err(ConfigError::at(limit.per.span, format!("{} is no window", limit.per.value)).help("1ms to 366d"));
    }
    let burst = limit.burst.as_ref().map_or(limit.limit.value, |b| b.value);
    if burst == 0 || burst > 1_000_000_000 {
        let at = limit.burst.as_ref().map_or(span, |b| b.span);
        return Err(ConfigError::at(at, "a burst is 1 to 1000000000 requests"));
    }
    if let Some(scope) = limit.scope.as_ref().filter(|s| s.value == Scope::Shared) {
        return Err(ConfigError::at(scope.span, "`scope: shared` is not available yet").help("use `scope: local`"));
    }
    let max_keys = limit.max_keys.as_ref().map_or(config::MAX_KEYS, |m| m.value);
    if let Some(m) = limit.max_keys.as_ref().filter(|_| max_keys == 0 || max_keys > 10_000_000) {
        return Err(ConfigError::at(m.span, "`maxKeys` is 1 to 10000000"));
    }
    let (by, label) = match (plan, &limit.by) {
        (Some(_), Some(by)) if by.value != "consumer" => {
            return Err(ConfigError::at(by.span, "a plan's quota is always counted by consumer").help("leave `by` out"));
        }
        (Some((plan, _)), _) => (By::Consumer, plan.to_owned()),
        (None, Some(by)) => (by_of(by)?, by.value.clone()),
        (None, None) => {
            return Err(
                ConfigError::at(span, "`by` is missing").help("say whose requests are counted, such as `by: ip`")
            );
        }
    };
    let name = match &limit.name {
        Some(name) => name.value.clone(),
        None => format!("{label}-{}", limit.per.value),
    };
    let quoted = quoted(&name).ok_or_else(|| {
        ConfigError::at(limit.name.as_ref().map_or(span, |n| n.span), format!("`{name}` cannot stand in a header"))
            .help("give the limit a `name` of plain ASCII")
    })?;
    let rate = Rate::new(limit.limit.value, per, burst);
    let max_keys = usize::try_from(max_keys).expect("checked to be small");
    // Not the numbers: a changed limit finds its counters again.
    let cells = build.keep(&format!("quota/{name}"), &format!("{label} {max_keys}"), || Cells::new(rate, max_keys));
    let kept = cells.clone();
    build.at_publish(move || kept.retune(rate, now()));
    let route = plan.map_or(build.scope.as_str(), |(_, route)| route);
    let route = route.strip_prefix("routes.").unwrap_or(route);
    let labels = [("route", route), ("policy", name.as_str())];
    let metrics = &build.metrics;
    Ok(Window {
        by,
        rate,
        cells,
        // draft-ietf-httpapi-ratelimit-headers-10 section 3: q and w are whole numbers, w in seconds.
        policy: format!("{quoted};q={};w={}", limit.limit.value, per.as_secs().max(1)).into(),
        quoted: quoted.into(),
        allowed: metrics.counter("onehop_quota_allowed_total", "Requests within a quota", &labels),
        rejected: metrics.counter("onehop_quota_rejected_total", "Requests over a quota", &labels),
        name: name.into(),
    })
}

fn by_of(by: &Spot<String>) -> Result<By, ConfigError> {
    Ok(match by.value.as_str() {
        "ip" | "client.ip" => By::Ip,
        "consumer" | "consumer.name" => By::Consumer,
        "user.sub" => By::UserSub,
        "workload.id" => By::WorkloadId,
        "route.name" => By::RouteName,
        text => match text.strip_prefix("header:") {
            Some(name) => By::Header(
                HeaderName::try_from(name.trim())
                    .map_err(|_| ConfigError::at(by.span, format!("`{name}` is not a header name")))?,
            ),
            None => By::Text(Box::new(Expr::compile(text, by.span)?)),
        },
    })
}

/// RFC 9651 section 4.1.6: printable ASCII, quotes and backslashes escaped.
fn quoted(name: &str) -> Option<String> {
    if name.is_empty() || !name.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return None;
    }
    Some(format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")))
}

impl By {
    /// The key of a request. One without it shares the bucket of all such requests from its address: an absent key must
    /// not be a way around the limit, nor let one stranger use up everybody's.
    fn key(&self, rq: &RequestCx) -> Key {
        let key = match self {
            Self::Ip => return Key::of(network(rq.client_ip)),
            Self::RouteName => return Key::ALL,
            Self::Consumer => rq.consumer.as_ref().map(|c| Key::of(&*c.name)),
            Self::UserSub => {
                // Subjects are unique within their issuer only.
                let user = rq.user.as_ref().filter(|u| !u.subject.is_empty());
                user.map(|u| Key::of((&*u.identity, &*u.subject)))
            }
            Self::WorkloadId => rq.workload.as_ref().map(|w| Key::of(&*w.id)),
            Self::Header(name) => rq.headers.get(name).map(|v| Key::of(v.as_bytes())),
            Self::Text(expr) => expr.text(rq).map(|t| Key::of(&*t)),
        };
        key.unwrap_or_else(|| Key::of(("anonymous", network(rq.client_ip))))
    }
}

/// An IPv6 customer has at least a /64 to call from.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
    }
}

type Charges<'a> = SmallVec<[(&'a Window, Key, Charge); 4]>;

impl Quota {
    /// What holds beside the route's own limits.
    fn plan(&self, rq: &RequestCx) -> Option<&Limits> {
        self.plans.get(&rq.consumer.as_ref()?.plan.as_ref()?.name)
    }

    /// Charges every window or none. A refusal takes the charges before it back; until then, for an instant, another
    /// request may see them, which can refuse one too early but never admit one too many.
    fn charge<'a>(&'a self, plan: Option<&'a Limits>, rq: &RequestCx, now: Moment) -> Charges<'a> {
        let mut charges = Charges::new();
        for window in self.own.windows.iter().chain(plan.map_or(&[][..], |p| &p.windows)) {
            let key = window.by.key(rq);
            let charge = if rq.dry_run {
                window.cells.look(key, |cell| window.rate.peek(cell, now))
            } else {
                window.cells.with(key, now, |cell| window.rate.charge(cell, now))
            };
            charges.push((window, key, charge));
            if !charge.allowed {
                for (window, key, _) in charges.iter().filter(|(_, _, c)| c.allowed && !rq.dry_run) {
                    window.cells.look(*key, |cell| window.rate.refund(cell));
                }
                break;
            }
        }
        charges
    }
}

impl Filter for Quota {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let plan = self.plan(rq);
        let charges = self.charge(plan, rq, recent());
        let Some((last, _, verdict)) = charges.last() else { return Step::NEXT };
        if verdict.allowed {
            if !rq.dry_run {
                charges.iter().for_each(|(w, ..)| w.allowed.inc());
            }
            let mut state = String::with_capacity(64);
            for (window, _, charge) in &charges {
                item(&mut state, window, *charge);
            }
            let policy = plan.map_or(&self.own, |p| p).policy.clone();
            // Made of checked names and digits.
            let state = HeaderValue::try_from(state).ok();
            for (name, value) in [(POLICY, policy), (STATE, state)] {
                if let Some(value) = value {
                    rq.reply_headers.push((name, value));
                }
            }
            return Step::NEXT;
        }
        if !rq.dry_run {
            last.rejected.inc();
        }
        Step::fail(refusal(last, *verdict))
    }
}

/// 429 with the limit that refused. `Retry-After` and `t` are the same number (draft section 4).
fn refusal(window: &Window, charge: Charge) -> Fault {
    let mut state = String::new();
    item(&mut state, window, charge);
    let fault = Fault::new(Reason::OverQuota).by(NAME).detail(format!("the limit `{}` is used up", window.name));
    let fields =
        [(POLICY, window.policy.to_string()), (STATE, state), (RETRY_AFTER, seconds(charge.reset).max(1).to_string())];
    fields.into_iter().fold(fault, |fault, (name, value)| match HeaderValue::try_from(value) {
        Ok(value) => fault.header(name, value),
        Err(_) => fault,
    })
}

/// Appends a window's item of `RateLimit`.
fn item(state: &mut String, window: &Window, charge: Charge) {
    let t = seconds(charge.reset).max(u64::from(!charge.allowed));
    let (mut r_digits, mut t_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
    let comma = if state.is_empty() { "" } else { ", " };
    for part in [comma, &window.quoted, ";r=", r_digits.format(charge.remaining), ";t=", t_digits.format(t)] {
        state.push_str(part);
    }
}

/// Whole seconds, rounded up: never too early.
fn seconds(d: Duration) -> u64 {
    d.as_secs() + u64::from(d.subsec_nanos() > 0)
}

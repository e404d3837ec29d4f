//! `guard`: how many requests an address may send, whoever it says it is. Ahead of credentials, whose check costs more
//! than this one.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::RETRY_AFTER;
use schemars::JsonSchema;
use serde::Deserialize;

use super::cells::{Cells, Tracks};
use super::config::MAX_KEYS;
use super::core::{MAX_LIMIT, Meter, Rate};
use super::saved::Table;
use super::seconds;
use crate::api::caller::By;
use crate::contract::filter::{Filter, Step};
use crate::contract::metrics::Counter;
use crate::contract::trail::Outcome;
use crate::contract::units;
use crate::contract::{
    Build, ConfigError, Directory, Entry, Fault, Node, Phase, Reason, RequestCx, Role, RouteView, Spot, now,
};

const NAME: &str = "guard";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Requests that an address may send, ahead of any credential check",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Api { phase: Phase::Guard, implied: never, build },
};

fn never(_: &RouteView<'_>, _: &Directory) -> bool {
    false
}

/// Requests that an address may send. An IPv6 caller is its /64.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Section {
    /// Requests.
    limit: Spot<u64>,
    /// In this time; from 1ms to 1d, rolling.
    per: Spot<units::Duration>,
    /// How many may come at once. Default: `limit`.
    burst: Option<Spot<u64>>,
    /// Counts and tells, never refuses.
    #[serde(default)]
    shadow: bool,
    /// Addresses remembered at a time. Default 100000.
    max_keys: Option<Spot<u64>>,
}

struct Guard {
    rate: Rate,
    cells: Arc<Cells>,
    shadow: bool,
    rejected: Counter,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.ok_or_else(|| ConfigError::at(build.span, "`guard` is missing"))?;
    let section: Section = node.read()?;
    let units = |n: &Spot<u64>, what: &str| match n.value {
        1..=MAX_LIMIT => Ok(n.value),
        _ => Err(ConfigError::at(n.span, format!("{what} is 1 to {MAX_LIMIT} requests"))),
    };
    let limit = units(&section.limit, "a limit")?;
    let burst = section.burst.as_ref().map_or(Ok(limit), |b| units(b, "a burst"))?;
    let per = section.per.value.0;
    if per < Duration::from_millis(1) || per > Duration::from_secs(86_400) {
        return Err(ConfigError::at(section.per.span, format!("{} is no window", section.per.value)).help("1ms to 1d"));
    }
    let max_keys = section.max_keys.as_ref().map_or(MAX_KEYS, |m| m.value);
    if let Some(m) = section.max_keys.as_ref().filter(|_| max_keys == 0 || max_keys > 10_000_000) {
        return Err(ConfigError::at(m.span, "`maxKeys` is 1 to 10000000"));
    }
    let max_keys = usize::try_from(max_keys).expect("checked to be small");
    let rate = Rate::new(limit, per, burst);
    let tracks = Tracks {
        keys: build.metrics.gauge("onehop_guard_keys", "Addresses that guards remember", &[]),
        evicted: build.metrics.counter("onehop_guard_evicted_total", "Addresses forgotten for others", &[]),
    };
    let make = || Cells::new(Some(rate), max_keys, Table::default(), tracks);
    let cells = build.keep(NAME, &max_keys.to_string(), make);
    let kept = cells.clone();
    build.at_publish(move || kept.retune(rate, now()));
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let help = "Requests that a guard refused, or would have in shadow mode";
    let rejected = build.metrics.counter("onehop_guard_rejected_total", help, &[("route", route)]);
    Ok(Arc::new(Guard { rate, cells, shadow: section.shadow, rejected }))
}

impl Filter for Guard {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let Some(key) = By::Ip.key(rq) else { return Step::NEXT };
        let id = || By::Ip.id(rq).unwrap_or_default();
        let meter = Meter::Rolling(self.rate, now());
        let charge = if rq.dry_run {
            self.cells.look(key, id, |cell| meter.try_peek(cell, 1))
        } else {
            self.cells.with(key, meter, id, |cell| meter.try_charge(cell, 1))
        };
        if charge.allowed {
            return Step::NEXT;
        }
        if !rq.dry_run {
            self.rejected.inc();
        }
        if self.shadow {
            rq.trail.note(NAME, Outcome::Pass, "shadow", 0, Duration::ZERO);
            return Step::NEXT;
        }
        let fault = Fault::new(Reason::OverQuota).by(NAME).detail("too many requests from this address");
        Step::fail(fault.header(RETRY_AFTER, HeaderValue::from(seconds(charge.reset).max(1))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fixture::{Estate, decided, request, section};
    use crate::contract::filter::Verdict;

    fn guard(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
        let (mut estate, directory) = (Estate::default(), Directory::default());
        let made = build(Some(&section(json)), &mut estate.build("routes.a", &directory));
        estate.publish();
        made
    }

    #[test]
    fn an_address_is_stopped_and_another_is_not() {
        let guard = guard(json!({"limit": 60, "per": "1m", "burst": 2})).expect("good");
        let mut rq = request("GET", "/");
        rq.client_ip = "2001:db8::1".parse().expect("an address");
        for _ in 0..2 {
            assert!(matches!(decided(guard.on_request(&mut rq)), Verdict::Next));
        }
        // The same /64.
        rq.client_ip = "2001:db8::ffff:2".parse().expect("an address");
        rq.dry_run = true;
        assert!(matches!(decided(guard.on_request(&mut rq)), Verdict::Fail(_)));
        rq.dry_run = false;
        let Verdict::Fail(fault) = decided(guard.on_request(&mut rq)) else { panic!("refused") };
        assert_eq!((fault.reason, fault.by), (Reason::OverQuota, NAME));
        assert_eq!(fault.headers.as_ref().and_then(|h| h.get("retry-after")).map(|v| v.as_bytes()), Some(&b"1"[..]));
        rq.client_ip = "2001:db8:0:1::1".parse().expect("an address");
        assert!(matches!(decided(guard.on_request(&mut rq)), Verdict::Next));
    }

    #[test]
    fn shadow_stops_nobody() {
        let guard = guard(json!({"limit": 1, "per": "1m", "shadow": true})).expect("good");
        let mut rq = request("GET", "/");
        for _ in 0..3 {
            assert!(matches!(decided(guard.on_request(&mut rq)), Verdict::Next));
        }
        assert_eq!(rq.trail.decisions().len(), 2, "two are marked");
    }

    #[test]
    fn mistakes_have_a_place() {
        for bad in [
            json!({"limit": 0, "per": "1s"}),
            json!({"limit": 1, "per": "2d"}),
            json!({"limit": 1, "per": "1s", "burst": 0}),
            json!({"limit": 1, "per": "1s", "maxKeys": 0}),
            json!({"limit": 1, "per": "1s", "by": "ip"}),
        ] {
            assert!(guard(bad.clone()).err().is_some_and(|e| e.span.is_some()), "{bad}");
        }
    }
}

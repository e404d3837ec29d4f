//! `ipRules`: which client addresses may use a route, before any credential is looked at.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::contract::filter::{Filter, Step};
use crate::contract::metrics::Counter;
use crate::contract::networks::Networks;
use crate::contract::trail::Outcome;
use crate::contract::{Build, ConfigError, Entry, Fault, Node, Phase, Reason, RequestCx, Role};
use config::Config;

const NAME: &str = "ipRules";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Which client addresses may use the route",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Guard, implied: |_, _| false, build },
};

struct IpRules {
    /// `None`: everybody. Empty: nobody.
    allow: Option<Networks>,
    deny: Networks,
    audit: bool,
    allowed: Counter,
    denied: Counter,
    audited: Counter,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("the filter is never implied");
    let config: Config = node.read()?;
    if config.allow.is_none() && config.deny.is_empty() {
        return Err(ConfigError::at(node.span, "`ipRules` checks nothing").help("name networks in `allow` or `deny`"));
    }
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let count = |result| {
        build.metrics.counter(
            "onehop_ip_rules_total",
            "Requests that were judged by the client's address, by result",
            &[("route", route), ("result", result)],
        )
    };
    Ok(Arc::new(IpRules {
        allow: config.allow.as_deref().map(Networks::read).transpose()?,
        deny: Networks::read(&config.deny)?,
        audit: config.audit,
        allowed: count("allowed"),
        denied: count("denied"),
        audited: count("audited"),
    }))
}

impl Filter for IpRules {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let ip = rq.client_ip;
        let allowed = !self.deny.contains(ip) && self.allow.as_ref().is_none_or(|allow| allow.contains(ip));
        if allowed {
            self.allowed.inc();
            return Step::NEXT;
        }
        if self.audit {
            self.audited.inc();
            rq.trail.note(NAME, Outcome::Pass, "audited", 0, std::time::Duration::ZERO);
            return Step::NEXT;
        }
        self.denied.inc();
        Step::fail(Fault::new(Reason::Forbidden).detail("the client's address is not allowed here").by(NAME))
    }
}

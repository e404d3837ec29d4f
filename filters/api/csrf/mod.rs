//! `csrf`: refuses what a page of another site made a browser send. No token, no state: browsers say where a request
//! comes from.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::core::{Asked, Refused, judge};
use crate::contract::filter::{Filter, Step};
use crate::contract::metrics::Counter;
use crate::contract::origin::PageOrigin;
use crate::contract::{Build, ConfigError, Entry, Expr, Fault, Node, Phase, Reason, RequestCx, Role};
use config::Config;

const NAME: &str = "csrf";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Refuses requests that pages of other sites made a browser send",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Guard, implied: |_, _| false, build },
};

struct Csrf {
    origins: Vec<PageOrigin>,
    unless: Option<Expr>,
    refused: Counter,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("csrf is never implied").read()?;
    if let Some(any) = config.allow_origins.iter().find(|o| o.value == "*" || o.value == "null") {
        return Err(ConfigError::at(any.span, format!("`{}` would let every site act as the user", any.value))
            .help("name the origins, or remove `csrf`"));
    }
    let origins = config.allow_origins.iter().map(PageOrigin::read).collect::<Result<_, _>>()?;
    let unless = config.unless.as_ref().map(|e| Expr::condition(&e.value, e.span)).transpose()?;
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let help = "Requests refused because another site asked for them";
    let refused = build.metrics.counter("onehop_csrf_refused_total", help, &[("route", route)]);
    Ok(Arc::new(Csrf { origins, unless, refused }))
}

impl Filter for Csrf {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let asked =
            Asked { method: &rq.method, headers: &rq.headers, authority: rq.authority.as_str(), https: rq.https };
        let Err(why) = judge(&asked, |origin| self.origins.iter().any(|o| o.fits(origin))) else { return Step::NEXT };
        if self.unless.as_ref().is_some_and(|unless| unless.bool(rq)) {
            return Step::NEXT;
        }
        if !rq.dry_run {
            self.refused.inc();
        }
        let fault = match why {
            Refused::CrossSite => Fault::new(Reason::CrossSite),
            Refused::OtherOrigin => Fault::new(Reason::CrossSite).detail("Origin or Referer is not this host"),
        };
        Step::fail(fault)
    }
}

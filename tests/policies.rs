//! Who may, what happens on purpose, and what happens under stress: filters that ask services, break requests, copy them
//! or turn them away, through the binary and real endpoints.

#[path = "policies/catalogue.rs"]
mod catalogue;
mod common;
#[path = "policies/degradation.rs"]
mod degradation;
#[path = "policies/ext_auth.rs"]
mod ext_auth;
#[path = "policies/faults.rs"]
mod faults;
#[path = "policies/mirror.rs"]
mod mirror;
#[path = "policies/split.rs"]
mod split;

use std::net::SocketAddr;

use common::Onehop;

/// A process with one listener, `web`, that trusts its callers.
fn start(routes: &str, services: &[(&str, SocketAddr, &str)], more: &str) -> Onehop {
    Onehop::start(&config(routes, services, more))
}

/// Its configuration.
fn config(routes: &str, services: &[(&str, SocketAddr, &str)], more: &str) -> String {
    let service = |(name, address, more): &(&str, SocketAddr, &str)| {
        format!("  {name}: {{ discover: {{ static: [\"{address}\"] }}{more} }}\n")
    };
    let services: String = services.iter().map(service).collect();
    format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\n\
         listeners:\n  web: {{ bind: \"127.0.0.1:0\", trustedProxies: [127.0.0.0/8] }}\n\
         routes:\n{routes}\nservices:\n{services}telemetry: {{ accessLog: {{ path: /dev/stderr }} }}\n{more}"
    )
}

/// Sum over the series of a metric whose line contains all of these.
fn metric(hop: &Onehop, name: &str, labels: &[&str]) -> f64 {
    let text = hop.admin_get("/metrics").body();
    let series = |l: &&str| {
        l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| l.contains(label))
    };
    text.lines().filter(series).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Lines of the access log.
fn lines(hop: &Onehop) -> Vec<serde_json::Value> {
    hop.log().lines().filter(|l| l.starts_with("{\"ts\"")).filter_map(|l| serde_json::from_str(l).ok()).collect()
}

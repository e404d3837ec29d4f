//! What goes wrong around the process, or with it, costs as little as it can.
#![allow(clippy::disallowed_types, reason = "tests wait by the wall's clock")]

#[path = "resilience/breaker.rs"]
mod breaker;
mod common;
#[path = "resilience/deadlines.rs"]
mod deadlines;
#[path = "resilience/drain.rs"]
mod drain;
#[path = "resilience/failure.rs"]
mod failure;
#[path = "resilience/hedge.rs"]
mod hedge;
#[path = "resilience/overload.rs"]
mod overload;
#[path = "resilience/rolling.rs"]
mod rolling;
#[path = "resilience/start.rs"]
mod start;

use std::time::Duration;

use tokio::time::Instant;

/// Asks until the answer is right.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < limit, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything up to the routes.
fn head(listener: &str) -> String {
    format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nruntime: {{ workers: 2 }}\n\
         lifecycle: {{ drain: 3s, unready: 200ms }}\nlisteners: {{ web: {{ bind: \"127.0.0.1:0\"{listener} }} }}\n"
    )
}

/// A route for everything to a service of these endpoints, with more keys for the service.
fn forward(backends: &[&common::backend::Backend], more: &str) -> String {
    let all: Vec<String> = backends.iter().map(|b| format!("\"{}\"", b.address)).collect();
    head("")
        + &format!(
            "routes: [{{ name: all, upgrades: [websocket], to: app }}]\n\
             services: {{ app: {{ discover: {{ static: [{}] }}{more} }} }}\n",
            all.join(", ")
        )
}

/// A number of `/endpoints`, summed over the endpoints of the service.
fn sum(hop: &common::Onehop, field: &str) -> u64 {
    let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
    let endpoints = view["services"]["app"]["endpoints"].as_array().expect("a list").clone();
    endpoints.iter().map(|e| e[field].as_u64().unwrap_or(0)).sum()
}

/// One series of `/metrics`.
fn metric(hop: &common::Onehop, series: &str) -> f64 {
    let text = hop.admin_get("/metrics").body();
    let line = text.lines().find_map(|l| l.strip_prefix(series)?.trim().parse().ok());
    line.unwrap_or(0.0)
}

//! Which endpoint a request goes to, seen from outside.
#![allow(clippy::disallowed_types, reason = "tests wait by the wall's clock")]

mod common;

use std::collections::HashMap;

use common::{Answer, Endpoint, Onehop, get_with};

/// An endpoint that answers with its name and these fields.
fn named(name: &'static str, fields: &'static str) -> Endpoint {
    Endpoint::start(move |_, _| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{fields}\r\n{name}", name.len()).into_bytes()
    })
}

/// A config with these services, all requests going `to`.
fn config(runtime: &str, to: &str, services: &str) -> String {
    format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nruntime: {{ workers: 1{runtime} }}\n\
         listeners: {{ web: {{ bind: \"127.0.0.1:0\", trustedProxies: [127.0.0.1/32] }} }}\n\
         routes: [{{ name: all, to: {to} }}]\nservices:\n{services}"
    )
}

fn ask(hop: &Onehop, fields: &str) -> Answer {
    get_with(hop.at("web"), "a", "/", fields)
}

/// Who answered how many of these requests.
fn spread(hop: &Onehop, requests: u32, fields: &str) -> HashMap<String, u32> {
    let mut seen = HashMap::new();
    for _ in 0..requests {
        *seen.entry(ask(hop, fields).body()).or_default() += 1;
    }
    seen
}

#[test]
fn the_own_zone_comes_first_without_any_health_key() {
    let (near, far) = (named("near", ""), named("far", ""));
    let service = |far: &str| {
        format!(
            "  app:\n    discover: {{ static: [{{ address: \"{}\", zone: a }}, {{ address: \"{far}\", zone: b }}] }}\n    \
             loadBalancer: {{ policy: round-robin, zones: {{ mode: local }} }}\n    \
             retry: {{ attempts: 1, retryOn: [connect-failure] }}\n    outlierDetection: {{ enabled: false }}\n",
            near.address
        )
    };
    let hop = Onehop::start_with(
        &config(", zone: \"${env.ZONE}\"", "app", &service(&far.address.to_string())),
        &[("ZONE", "a")],
    );
    assert_eq!(spread(&hop, 20, ""), HashMap::from([("near".to_owned(), 20)]));
    let elsewhere = Onehop::start_with(
        &config(", zone: \"${env.ZONE}\"", "app", &service(&far.address.to_string())),
        &[("ZONE", "b")],
    );
    assert_eq!(spread(&elsewhere, 20, ""), HashMap::from([("far".to_owned(), 20)]));
}

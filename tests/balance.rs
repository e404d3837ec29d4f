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

fn labelled(all: &[(&Endpoint, &str)]) -> String {
    let one = |(e, version): &(&Endpoint, &str)| {
        format!("{{ address: \"{}\", labels: {{ version: {version} }} }}", e.address)
    };
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn routes_split_over_subsets_and_an_empty_one_is_said() {
    let (one, two) = (named("one", ""), named("two", ""));
    let services = format!(
        "  app:\n    discover: {{ static: [{}] }}\n    subsets: {{ v1: {{ version: v1 }}, v2: {{ version: v2 }}, v3: {{ version: v3 }} }}\n",
        labelled(&[(&one, "v1"), (&two, "v2")])
    );
    let split = "[{ service: app, subset: v1, weight: 75 }, { service: app, subset: v2, weight: 25 }]";
    let hop = Onehop::start(&config("", split, &services));
    let seen = spread(&hop, 200, "");
    assert!((120..180).contains(&seen["one"]) && seen["one"] + seen["two"] == 200, "{seen:?}");
    let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
    assert_eq!(view["services"]["app"]["subsets"], serde_json::json!({ "v1": 1, "v2": 1, "v3": 0 }));

    let (status, _) = hop.reload(&config("", "[{ service: app, subset: v3 }]", &services));
    assert_eq!(status, 200);
    let refused = ask(&hop, "accept: application/json\r\n");
    assert_eq!(refused.status(), 503);
    assert!(refused.body().contains("empty-subset"), "{}", refused.text());
    // The other endpoints are still there for those who may have any.
    let whole = services.replace("subsets:", "loadBalancer: { policy: round-robin }\n    subsets:");
    let (status, _) = hop.reload(&config("", "app", &whole));
    assert_eq!(status, 200);
    assert_eq!(spread(&hop, 40, "").len(), 2);
}

/// The cookie of this name that an answer sets, as a field to send.
fn cookie(answer: &Answer) -> Option<String> {
    let set = answer.header("set-cookie")?;
    Some(format!("cookie: {}\r\n", set.split(';').next().expect("a first part")))
}

#[test]
fn a_session_stays_with_its_endpoint_as_long_as_that_lives() {
    let backends: Vec<_> = ["a", "b", "c"].map(|name| named(name, "")).into();
    let services = |from: usize| {
        let all: Vec<String> = backends[from..].iter().map(|b| format!("\"{}\"", b.address)).collect();
        format!(
            "  app:\n    discover: {{ static: [{}] }}\n    loadBalancer: {{ policy: round-robin }}\n    \
             sessionPersistence: {{ cookie: node, absoluteTimeout: 1h }}\n",
            all.join(", ")
        )
    };
    let hop = Onehop::start(&config("", "app", &services(0)));
    assert_eq!(spread(&hop, 30, "").len(), 3, "without a session any will do");
    let first = loop {
        let answer = ask(&hop, "");
        if answer.body() == "a" {
            break answer;
        }
    };
    let session = cookie(&first).expect("a session");
    assert_eq!(spread(&hop, 30, &session).len(), 1);
    let kept = ask(&hop, &session);
    assert!(kept.body() == "a" && kept.header("set-cookie").is_none(), "{}", kept.text());
    assert!(!backends[0].last().contains("cookie"), "endpoints do not see it: {}", backends[0].last());

    // The endpoint is taken away: another one, and a session there, which a reload does not end.
    let (status, _) = hop.reload(&config("", "app", &services(1)));
    assert_eq!(status, 200);
    let moved = ask(&hop, &session);
    let next = cookie(&moved).expect("another session");
    let names = spread(&hop, 20, &next);
    assert_eq!(names, HashMap::from([(moved.body(), 20)]));
    let metrics = hop.admin_get("/metrics").body();
    let moved = "onehop_session_total{service=\"app\",result=\"moved\"} ";
    assert_eq!(metrics.lines().find_map(|line| line.strip_prefix(moved)), Some("1"));
}

#[test]
fn trusted_callers_name_an_endpoint() {
    let (one, two) = (named("one", ""), named("two", ""));
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("bound")
    };
    let services = format!(
        "  app:\n    discover: {{ static: [\"{}\", \"{}\"] }}\n    endpointOverride: {{ header: x-endpoint }}\n",
        one.address, two.address
    );
    let hop = Onehop::start(&config("", "app", &services));
    let wanted = format!("x-endpoint: {}\r\n", two.address);
    assert_eq!(spread(&hop, 20, &wanted), HashMap::from([("two".to_owned(), 20)]));
    assert!(!two.last().contains("x-endpoint"));
    let elsewhere = format!("x-endpoint: {dead}\r\n");
    assert!(spread(&hop, 20, &elsewhere).values().sum::<u32>() == 20, "no way to addresses that are no endpoints");

    let untrusted = config("", "app", &services).replace(", trustedProxies: [127.0.0.1/32]", "");
    let hop = Onehop::start(
        &untrusted.replace("endpointOverride", "loadBalancer: { policy: round-robin }\n    endpointOverride"),
    );
    assert_eq!(spread(&hop, 20, &wanted).len(), 2, "strangers choose nothing");
}

#[test]
fn reports_of_load_steer_and_stay_inside() {
    let busy = named("busy", "endpoint-load-metrics: TEXT cpu_utilization=0.9,rps_fractional=90\r\n");
    let idle = named("idle", "endpoint-load-metrics: JSON {\"cpu_utilization\":0.1,\"rps_fractional\":90}\r\n");
    let services = format!(
        "  app:\n    discover: {{ static: [\"{}\", \"{}\"] }}\n    \
         loadBalancer: {{ policy: utilization, blackoutPeriod: 0s, weightUpdatePeriod: 100ms }}\n",
        busy.address, idle.address
    );
    let hop = Onehop::start(&config("", "app", &services));
    let answer = ask(&hop, "");
    assert_eq!(answer.header("endpoint-load-metrics"), None, "{}", answer.text());
    common::eventually("both have reported", || {
        ask(&hop, "");
        let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
        let endpoints = view["services"]["app"]["endpoints"].as_array().expect("a list");
        endpoints.iter().all(|e| e["capacity"].as_f64().is_some())
    });
    // One could carry 100 requests a second, the other 900.
    common::eventually("the shares follow", || {
        let seen = spread(&hop, 50, "");
        seen.get("idle").copied().unwrap_or(0) >= 42 && seen.get("busy").copied().unwrap_or(0) >= 2
    });
}

#[test]
fn an_endpoint_that_must_pass_first_gets_nothing_before() {
    let ready = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let says = ready.clone();
    let app = Endpoint::start(move |head, _| {
        let well = !head.starts_with("GET /healthz") || says.load(std::sync::atomic::Ordering::SeqCst);
        let status = if well { "200 OK" } else { "503 Not Yet" };
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    });
    let services = format!(
        "  app:\n    discover: {{ static: [\"{}\"] }}\n    loadBalancer: {{ panicThreshold: 0% }}\n    \
         healthCheck: {{ http: {{ path: /healthz }}, interval: 20ms, initially: unhealthy }}\n",
        app.address
    );
    let hop = Onehop::start(&config("", "app", &services));
    for _ in 0..10 {
        assert_eq!(ask(&hop, "").status(), 503);
    }
    assert!(app.heads.lock().expect("no panic").iter().all(|head| head.starts_with("GET /healthz")));
    ready.store(true, std::sync::atomic::Ordering::SeqCst);
    common::eventually("it has passed", || ask(&hop, "").status() == 200);
}

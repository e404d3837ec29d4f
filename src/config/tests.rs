//! Whole configurations: what they mean, and that the effective view means the same.

use std::time::Duration;

use onehop_filters::BUILTIN;
use onehop_filters::contract::Entry;
use serde_json::json;

use super::plan::{Action, Bind, Fallback, PathMatch, Plan, Protocol, SendProxy, Tcp, ValueMatch};
use super::{Report, Source, effective, effective_json, load_with, schema};

#[path = "../../tests/config_errors/entries.rs"]
mod entries;

use entries::ENTRIES;

const TCP: &str = include_str!("../../examples/tcp.yaml");

const EDGE: &str = r#"version: 1
admin: { bind: 127.0.0.1:9901 }
listeners:
  public:
    bind: 0.0.0.0:8443
    protocols: [h1, h2]
    tls: { certificates: [{ cert: tls/shop.crt, key: tls/shop.key }], minVersion: "1.2" }
    trustedProxies: [10.0.0.0/8]
    proxyProtocol: none
    exposure: edge
    limits: { head: 32KiB, uri: 8KiB, fields: 100, body: 10MiB, streams: 100, connections: 10000, headTimeout: 10s, bodyIdleTimeout: 30s, idleTimeout: 60s, tlsTimeout: 10s }
    paths: { escapedSlashes: reject, underscores: reject }
identities:
  corp:
    jwt:
      issuer: https://id.example.com/
      audiences: [shop-api]
      jwks: { url: https://id.example.com/jwks.json, refresh: 5m }
      algorithms: [RS256, ES256]
      leeway: 60s
  partners: { apiKey: { header: x-api-key } }
plans:
  free: { quota: [{ limit: 60, per: 1m }, { limit: 1000, per: 1d }] }
  gold: { quota: [{ limit: 6000, per: 1m }], priority: high }
consumers:
  acme: { plan: gold, scopes: [orders] }
routes:
- name: orders
  listeners: [public]
  hosts: [API.example.com]
  matches: [{ path: { prefix: /v1/orders/ }, methods: [GET, POST], headers: { x-beta: "1" }, query: { v: "2" } }]
  cors: { allowOrigins: [https://shop.example.com], maxAge: 10m }
  auth: { require: corp, allow: "'orders' in user.scopes" }
  quota: [{ by: user.sub, limit: 100, per: 1m, burst: 20 }]
  transform:
    path: { replacePrefix: /orders }
    request: { set: { x-user: "${user.sub}" }, add: {}, remove: [cookie] }
  timeouts: { request: 3s, idle: 5m }
  upgrades: [websocket]
  to: orders
- name: old
  matches: [{ path: { prefix: /old } }]
  redirect: { scheme: https, host: api.example.com, path: { replacePrefix: /v1 }, status: 301 }
- name: ping
  matches: [{ path: { exact: /ping } }]
  respond: { status: 200, headers: { content-type: text/plain }, body: "pong" }
services:
  orders:
    discover: { dns: "orders.shop.svc:8080" }
    protocol: auto
    loadBalancer: { policy: peak-ewma, slowStart: 30s }
    healthCheck: { http: { path: /healthz }, interval: 5s, timeout: 1s, healthy: 2, unhealthy: 3 }
    retry: { attempts: 2, backoff: 25ms, budget: { percent: 20% } }
    circuitBreaker: { maxConnections: 200, maxPending: 100, maxRequests: 400 }
    outlierDetection: { consecutive5xx: 5, interval: 10s }
    tls: { ca: tls/internal-ca.crt, sni: orders.internal, cert: tls/me.crt, key: tls/me.key, allow: ["spiffe://corp/ns/shop/sa/orders"] }
    connectTimeout: 1s
    fallback: { respond: { status: 503, body: "orders are resting" } }
telemetry:
  accessLog: { path: /dev/stdout, format: json }
  tracing: { otlp: "http://127.0.0.1:4317", sample: 1% }
lifecycle: { drain: 25s }
runtime: { workers: auto }
"#;

const SIDECAR: &str = r#"version: 1
workload: { name: orders, cert: tls/orders.crt, key: tls/orders.key, ca: tls/mesh-ca.crt }
listeners:
  inbound:  { bind: 0.0.0.0:15006, capture: inbound, tls: { mode: mesh } }
  outbound: { bind: 127.0.0.1:15001, capture: outbound, unknownHosts: deny }
routes:
- name: into-app
  listeners: [inbound]
  auth: { workloads: ["spiffe://corp/ns/web/*"] }
  quota: [{ by: workload.id, limit: 500, per: 1s }]
  to: app
- name: to-stock
  listeners: [outbound]
  hosts: [stock.shop.svc]
  timeouts: { request: 2s }
  to: stock
services:
  app:   { discover: { static: [127.0.0.1:8080] }, circuitBreaker: { maxRequests: 200 } }
  stock:
    discover: { srv: _grpc._tcp.stock.shop.svc }
    protocol: grpc
    tls: { mode: mesh, allow: ["spiffe://corp/ns/shop/sa/stock"] }
    retry: { attempts: 1, budget: { percent: 20% } }
lifecycle: { drain: 20s, outboundUntilAppExits: true }
"#;

const BFF: &str = r#"version: 1
workload: { name: bff, cert: tls/bff.crt, key: tls/bff.key, ca: tls/mesh-ca.crt }
listeners:
  web:  { bind: 0.0.0.0:8443, tls: { certificates: [{ cert: tls/app.crt, key: tls/app.key }] } }
  mesh: { bind: 127.0.0.1:15001, unknownHosts: deny }
identities:
  login: { jwt: { issuer: https://id.example.com/, audiences: [shop-web], jwks: { file: jwks.json } } }
routes:
- name: browser
  listeners: [web]
  hosts: [shop.example.com]
  auth: { require: login }
  quota: [{ by: user.sub, limit: 300, per: 1m }]
  timeouts: { request: 4s }
  to: bff
- name: bff-calls-orders
  listeners: [mesh]
  hosts: [orders]
  carry: { deadline: inherit }
  to: [{ service: orders, weight: 90 }, { service: bff, weight: 0 }]
services:
  bff:    { discover: { static: ["unix:///run/bff.sock"] } }
  orders:
    discover: { dns: "orders.shop.svc:8080" }
    tls: { mode: mesh }
    loadBalancer: { policy: peak-ewma }
    retry: { attempts: 2, budget: { percent: 20% } }
"#;

fn read(text: &str, entries: &[Entry]) -> Result<Plan, Report> {
    let source = Source::Text { name: "t.yaml".into(), text: text.into(), dir: "/etc/onehop".into() };
    load_with(&[source], entries, &|name| (name == "SINCE_BOOT").then(|| "7s".to_owned()))
}

fn good(text: &str) -> Plan {
    read(text, ENTRIES).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Everything a plan means, as text without places.
fn meaning(plan: &Plan) -> String {
    let text = format!(
        "{:#?}",
        (
            (&plan.dir, &plan.admin, &plan.listeners, &plan.identities, &plan.plans, &plan.consumers),
            (&plan.routes, &plan.services, &plan.workload, &plan.telemetry, &plan.lifecycle, plan.workers),
        )
    );
    let places = regex::Regex::new(r"(?s)Span \{.*?\}").expect("a regex");
    places.replace_all(&text, "@").into_owned()
}

#[test]
fn the_edge_means_what_it_says() {
    let plan = good(EDGE);
    assert_eq!(plan.warnings, []);
    let public = &plan.listeners["public"];
    assert!(public.h1 && public.h2 && !public.mesh && public.paths.reject_underscores);
    assert_eq!(public.limits.body, Some(10 << 20));
    let tls = public.tls.as_ref().expect("tls");
    assert_eq!(tls.certificates, [("/etc/onehop/tls/shop.crt".into(), "/etc/onehop/tls/shop.key".into())]);
    assert_eq!(plan.identities["corp"].0, "jwt");
    let orders = &plan.routes[0];
    assert_eq!(orders.hosts, ["api.example.com"]);
    let m = &orders.matches[0];
    assert_eq!(m.path, Some(PathMatch::Prefix("/v1/orders".into())));
    assert_eq!(m.headers, [(http::HeaderName::from_static("x-beta"), ValueMatch::Exact("1".into()))]);
    let filters: Vec<&str> = orders.filters.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(filters, ["cors", "auth", "quota", "transform"]);
    assert!(matches!(&orders.action, Action::Forward(to) if to[0].service == "orders" && to[0].weight == 1));
    assert!(matches!(&plan.routes[1].action, Action::Redirect(r) if r.status == 301));
    let service = &plan.services["orders"];
    assert_eq!(service.balance.0, "peak-ewma");
    assert!(matches!(&service.fallback, Some(Fallback::Respond(c)) if c.status == 503));
    assert_eq!(service.roles.len(), 4);
}

#[test]
fn the_sidecar_means_what_it_says() {
    let plan = good(SIDECAR);
    let inbound = &plan.listeners["inbound"];
    assert!(inbound.mesh && inbound.tls.as_ref().is_some_and(|t| t.mesh) && !inbound.paths.reject_underscores);
    assert_eq!(inbound.limits.body, None);
    assert_eq!(plan.services["stock"].protocol, Protocol::H2);
    assert!(plan.lifecycle.outbound_until_app_exits);
    assert_eq!(plan.routes[1].request_timeout, Some(Duration::from_secs(2)));
}

#[test]
fn what_is_not_written_has_the_documented_default() {
    let plan = good(
        "version: 1\nlisteners: { web: { bind: 127.0.0.1:0 } }\nroutes: [{ name: a, to: s }]\n\
         services: { s: { discover: { static: [127.0.0.1:1] } } }\n",
    );
    assert_eq!(plan.admin.bind, Some(Bind::Tcp(([127, 0, 0, 1], 9901).into())));
    assert_eq!(plan.lifecycle.drain, Duration::from_secs(25));
    let limits = &plan.listeners["web"].limits;
    assert_eq!((limits.head, limits.uri, limits.fields), (32 << 10, 8 << 10, 100));
    assert_eq!(limits.head_timeout, Duration::from_secs(10));
    let route = &plan.routes[0];
    assert_eq!(route.request_timeout, Some(Duration::from_secs(15)));
    assert_eq!(route.idle_timeout, Some(Duration::from_secs(300)));
    let service = &plan.services["s"];
    assert_eq!((service.connect_timeout, service.balance.0.as_str()), (Duration::from_secs(1), "peak-ewma"));
    assert_eq!(service.pool_idle, Duration::from_secs(55));
    assert_eq!(plan.workers, None);
}

#[test]
fn zero_is_no_limit_where_the_key_says_so() {
    let plan = good(
        "version: 1\nlisteners: { web: { bind: 127.0.0.1:0, limits: { body: 0B } } }\n\
         routes: [{ name: a, respond: {}, timeouts: { request: 0s, idle: 0s } }]\n",
    );
    assert_eq!((plan.routes[0].request_timeout, plan.routes[0].idle_timeout), (None, None));
    assert_eq!(plan.listeners["web"].limits.body, None);
}

#[test]
fn the_effective_view_loads_to_the_same_plan() {
    // Without schema defaults a filter's section stays as written, so that plans can be compared whole.
    let plain: Vec<Entry> = ENTRIES
        .iter()
        .map(|e| Entry { schema: |_| schemars::json_schema!({ "type": ["object", "array", "string"] }), ..*e })
        .collect();
    for text in
        [EDGE, SIDECAR, BFF, "version: 1\n", "version: 1\nadmin: { bind: none }\nroutes:\nruntime: { workers: 2 }\n"]
    {
        let plan = read(text, &plain).unwrap_or_else(|e| panic!("{e}"));
        let shown = effective(&plan, &plain);
        let again = read(&shown, &plain).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        let (before, after) = (meaning(&plan), meaning(&again));
        let difference: Vec<_> = before.lines().zip(after.lines()).filter(|(a, b)| a != b).take(5).collect();
        assert!(before == after, "{difference:?}\n{shown}");
        // Nothing is left to fill in.
        assert_eq!(effective_json(&plan, &plain), effective_json(&again, &plain));
        assert!(!effective(&again, &plain).contains("# default"), "{shown}");
    }
}

#[test]
fn defaults_are_marked_and_what_is_written_is_not() {
    let plan = good(
        "version: 1\nlifecycle: { drain: \"${env.SINCE_BOOT}\" }\nservices:\n  s:\n    discover: { static: [127.0.0.1:1] }\n",
    );
    assert_eq!(plan.lifecycle.drain, Duration::from_secs(7));
    let shown = effective(&plan, ENTRIES);
    for line in [
        "version: 1\n",
        "  bind: \"127.0.0.1:9901\" # default\n",
        // As written: the value of a variable may be a secret.
        "  drain: \"${env.SINCE_BOOT}\"\n",
        "  unready: 0s # default\n",
        "      static: [\"127.0.0.1:1\"]\n",
        "    connectTimeout: 1s # default\n",
        "      policy: peak-ewma # default\n",
        // A gate's schema gives the defaults of a section that is not written.
        "    retry: # default\n      attempts: 1 # default\n      backoff: 25ms # default\n      budget: # default\n        percent: 20% # default\n",
        "  workers: auto # default\n",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
}

/// The documented table of defaults: each stands in the effective view of a configuration that says nothing about it, is
/// marked, and has the value that acts.
#[test]
fn every_documented_default_is_shown_and_marked() {
    let text = r#"version: 1
listeners: { web: { bind: "127.0.0.1:0" } }
identities: { corp: { jwt: { issuer: "https://id", audiences: [a], jwks: { inline: { keys: [] } } } } }
routes: [{ name: all, auth: { require: corp }, quota: [{ limit: 1, per: 1s }], to: s }]
services:
  s: { discover: { static: ["127.0.0.1:1"] }, healthCheck: { http: { path: / } } }
  h: { discover: { static: ["127.0.0.1:1"] }, loadBalancer: { policy: maglev, hash: ip } }
"#;
    let plan = read(text, BUILTIN).unwrap_or_else(|e| panic!("{e}"));
    let shown = effective(&plan, BUILTIN);
    let all = effective_json(&plan, BUILTIN);
    for (pointer, value) in [
        ("/services/s/retry/attempts", json!(1)),
        ("/services/s/retry/retryOn", json!(["never-ran"])),
        ("/services/s/retry/budget/percent", json!("20%")),
        ("/services/s/retry/budget/minPerSecond", json!(10)),
        ("/services/s/retry/backoff", json!("25ms")),
        ("/services/s/retry/maxRetryAfter", json!("10s")),
        ("/services/s/retry/bodyLimit", json!("64KiB")),
        ("/routes/0/timeouts/request", json!("15s")),
        ("/routes/0/timeouts/idle", json!("5m")),
        ("/services/s/connectTimeout", json!("1s")),
        ("/services/s/circuitBreaker/maxPending", json!(1024)),
        ("/services/s/circuitBreaker/pendingTimeout", json!("1s")),
        ("/services/s/outlierDetection/enabled", json!(true)),
        ("/services/s/outlierDetection/consecutive5xx", json!(5)),
        ("/services/s/outlierDetection/interval", json!("10s")),
        ("/services/s/outlierDetection/baseEjectionTime", json!("30s")),
        ("/services/s/outlierDetection/maxEjectionTime", json!("5m")),
        ("/services/s/outlierDetection/maxEjectionPercent", json!("50%")),
        ("/services/s/loadBalancer/policy", json!("peak-ewma")),
        ("/services/s/loadBalancer/decay", json!("10s")),
        ("/services/s/loadBalancer/defaultRtt", json!("30ms")),
        ("/services/s/loadBalancer/penalty", json!("5s")),
        ("/services/s/loadBalancer/panicThreshold", json!("50%")),
        ("/services/h/loadBalancer/loadFactor", json!(1.25)),
        ("/services/s/healthCheck/interval", json!("5s")),
        ("/services/s/healthCheck/timeout", json!("1s")),
        ("/services/s/healthCheck/healthy", json!(2)),
        ("/services/s/healthCheck/unhealthy", json!(3)),
        ("/routes/0/auth/optional", json!(false)),
        ("/routes/0/quota/0/maxKeys", json!(100_000)),
        ("/identities/corp/jwt/leeway", json!("60s")),
        ("/identities/corp/jwt/forwardToken", json!(false)),
        ("/listeners/web/limits/head", json!("32KiB")),
        ("/listeners/web/limits/uri", json!("8KiB")),
        ("/listeners/web/limits/fields", json!(100)),
        ("/listeners/web/limits/headTimeout", json!("10s")),
        ("/admin/bind", json!("127.0.0.1:9901")),
        ("/lifecycle/drain", json!("25s")),
    ] {
        assert_eq!(all.pointer(pointer), Some(&value), "{pointer}\n{shown}");
        let key = pointer.rsplit('/').next().expect("not empty");
        let marked = |line: &str| line.trim_start().starts_with(&format!("{key}:")) && line.ends_with("# default");
        assert!(shown.lines().any(marked), "{pointer} is not marked\n{shown}");
    }
    // Written out, the defaults mean the same: the filters build, and nothing is left to fill in.
    let again = read(&shown.replace("[redacted]", "{ keys: [] }"), BUILTIN).unwrap_or_else(|e| panic!("{e}\n{shown}"));
    assert_eq!(again.warnings.len(), plan.warnings.len());
}

#[test]
fn no_secret_shows_in_the_effective_view() {
    let text = r#"version: 1
identities:
  a: { oidc: { issuer: "https://bob:hunter2@id/", hush: hunter2 } }
  b: { oidc: { issuer: x, hush: { env: HUSH_NAME } } }
  c: { oidc: { issuer: x, clientSecret: hunter2, hush: "${env.SINCE_BOOT}" } }
  d: { jwt: { jwks: { inline: { keys: [{ kty: oct, k: hunter2 }] } } } }
consumers:
  acme: { apiKeys: [hunter2, { env: PATH }] }
"#;
    let plan = good(text);
    let shown = effective(&plan, ENTRIES);
    assert!(!shown.contains("hunter2"), "{shown}");
    for words in ["hush: \"[redacted]\"", "env: HUSH_NAME", "${env.SINCE_BOOT}", "https://[redacted]@id/", "env: PATH"]
    {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
    assert!(!effective_json(&plan, ENTRIES).to_string().contains("hunter2"));
    // A dump does not become a config by accident.
    let report = read(&shown, ENTRIES).err().expect("secrets are missing");
    assert!(report.errors.iter().any(|e| e.message.contains("redacted")));
}

#[test]
fn an_api_key_is_kept_as_its_digest() {
    let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let plan = good("version: 1\nconsumers:\n  a: { apiKeys: [hello] }\n");
    let same = good(&format!("version: 1\nconsumers:\n  a: {{ apiKeys: [\"{digest}\"] }}\n"));
    let keys = |plan: &Plan| onehop_filters::api::api_key::digests(&super::lower::held(&plan.consumers, "apiKeys"));
    assert_eq!(keys(&plan), keys(&same));
}

#[test]
fn the_schema_knows_every_key_of_every_entry() {
    let schema = schema(ENTRIES);
    let at = |pointer: &str| schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"));
    for key in ["cors", "auth", "quota", "transform"] {
        at(&format!("/properties/routes/items/properties/{key}"));
        at(&format!("/properties/plans/additionalProperties/properties/{key}"));
    }
    for key in ["retry", "circuitBreaker", "outlierDetection", "healthCheck", "discover", "loadBalancer"] {
        at(&format!("/properties/services/additionalProperties/properties/{key}"));
    }
    for kind in ["jwt", "apiKey", "oidc"] {
        at(&format!("/properties/identities/additionalProperties/properties/{kind}"));
    }
    let policies = at("/properties/services/additionalProperties/properties/loadBalancer/properties/policy/enum");
    assert_eq!(policies.as_array().map(Vec::len), Some(6));
    // Every reference leads somewhere.
    let text = schema.to_string();
    let references = regex::Regex::new(r##""\$ref":"#/\$defs/([^"]+)""##).expect("a regex");
    for found in references.captures_iter(&text) {
        at(&format!("/$defs/{}", &found[1]));
    }
}

#[test]
fn with_the_real_filters_examples_are_good_and_survive_the_effective_view() {
    use onehop_filters::BUILTIN;
    let whole = [("edge", EDGE), ("sidecar", SIDECAR), ("bff", BFF), ("tcp", TCP)];
    let examples = BUILTIN.iter().map(|e| (e.name, e.example)).filter(|(_, text)| !text.is_empty());
    let mut wrong = String::new();
    for (name, text) in examples.chain(whole.into_iter().filter(|_| !BUILTIN.is_empty())) {
        let plan = match read(text, BUILTIN) {
            Ok(plan) => plan,
            Err(report) => {
                wrong += &format!("--- {name}\n{report}");
                continue;
            }
        };
        let shown = effective(&plan, BUILTIN);
        if shown.contains("[redacted]") {
            continue;
        }
        match read(&shown, BUILTIN) {
            Ok(again) if effective_json(&plan, BUILTIN) == effective_json(&again, BUILTIN) => {}
            Ok(_) => wrong += &format!("--- {name}: the effective view means something else\n{shown}"),
            Err(report) => wrong += &format!("--- {name}: its effective view is refused\n{report}"),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn tcp_listeners_have_routes_of_their_own() {
    let plan = read(TCP, BUILTIN).unwrap_or_else(|e| panic!("{e}"));
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let (db, tls) = (&plan.listeners["db"], &plan.listeners["tls"]);
    assert_eq!((db.tcp, db.h1, db.h2, db.limits.connections), (Some(Tcp::Bytes), false, false, 2000));
    assert_eq!((tls.tcp, tls.tls.is_none()), (Some(Tcp::Passthrough), true));
    let idle: Vec<_> = plan.routes.iter().map(|r| (r.tcp, r.idle_timeout.map(|d| d.as_secs()))).collect();
    assert_eq!(idle, [(true, Some(8 * 3600)), (true, Some(3600)), (true, Some(3600))]);
    assert_eq!(plan.services["mysql"].proxy_protocol, Some(SendProxy::V2));
}

#[test]
fn a_tcp_listener_without_a_route_is_remarked() {
    let plan = good("version: 1\nlisteners: { db: { bind: \"127.0.0.1:0\", protocols: [tcp] } }\nroutes: []\n");
    assert!(plan.warnings.iter().any(|w| w.message.contains("closes every connection")), "{:?}", plan.warnings);
}

#[test]
fn the_hash_is_of_the_text() {
    let (a, b) = (good("version: 1\n"), good("version: 1 # changed\n"));
    assert_eq!(a.hash, good("version: 1\n").hash);
    assert_ne!(a.hash, b.hash);
}

#[test]
fn folders_are_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in [
        ("b.yml", "routes: [{ name: b, respond: {} }]"),
        ("a.yaml", "version: 1\nroutes: [{ name: a, respond: {} }]"),
        ("c.json", "{\"routes\": [{\"name\": \"c\", \"respond\": {}}]}"),
        (".hidden.yaml", "oops: 1"),
        ("notes.txt", "oops: 1"),
    ] {
        std::fs::write(dir.path().join(name), text).expect("write");
    }
    let plan = load_with(&[Source::Path(dir.path().into())], ENTRIES, &|_| None).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<&str> = plan.routes.iter().map(|r| &*r.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(plan.dir, dir.path());
}

#[test]
fn ten_thousand_routes_are_read_in_one_line_of_json_too() {
    let routes: Vec<serde_json::Value> = (0..10_000)
        .map(|i| {
            serde_json::json!({ "name": format!("r{i}"), "hosts": [format!("h{i}.example.com")], "to": "s",
            "matches": [{ "path": { "prefix": format!("/p{i}") } }], "cors": { "note": "\u{1f600}".repeat(600) } })
        })
        .collect();
    let services = serde_json::json!({ "s": { "discover": { "static": ["127.0.0.1:1"] } } });
    let text = serde_json::json!({ "version": 1, "routes": routes, "services": services,
        "listeners": { "web": { "bind": "127.0.0.1:0" } } });
    let plan = good(&text.to_string());
    assert_eq!((plan.routes.len(), plan.warnings.len()), (10_000, 0));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// A good config with one part cut out or replaced is good or refused with places, never a panic; what is good
        /// survives the effective view.
        #[test]
        fn a_mangled_config_never_panics(
            which in 0usize..4, from in 0usize..2000, len in 0usize..40, with in "[a-z0-9:{}\\[\\], \n\"${}*&!-]{0,12}",
        ) {
            let text = [EDGE, SIDECAR, BFF, TCP][which];
            let start = text.floor_char_boundary(from.min(text.len()));
            let end = text.floor_char_boundary((start + len).min(text.len()));
            let mangled = format!("{}{with}{}", &text[..start], &text[end..]);
            match read(&mangled, ENTRIES) {
                Ok(plan) => {
                    let shown = effective(&plan, ENTRIES);
                    let again = read(&shown, ENTRIES);
                    prop_assert!(again.is_ok(), "{}\n{}", shown, again.err().map(|e| e.to_string()).unwrap_or_default());
                }
                Err(report) => {
                    prop_assert!(!report.errors.is_empty());
                    prop_assert!(report.errors.iter().all(|e| e.span.is_some() && e.help.is_some()), "{report:?}");
                    let _ = (report.to_string(), report.to_json());
                }
            }
        }
    }
}

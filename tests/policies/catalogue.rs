//! What developers are told of routes: each caller its own.

use serde_json::{Value, json};

use super::common::{Endpoint, Onehop, get, get_with};

const KEYS: [(&str, &str); 2] = [("acme", "acme-key"), ("other", "other-key")];

fn digest(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn config(up: &Endpoint) -> String {
    let consumers: String = KEYS
        .iter()
        .map(|(name, key)| {
            let scopes = if *name == "acme" { "[orders]" } else { "[]" };
            format!("  {name}: {{ plan: free, scopes: {scopes}, apiKeys: [\"sha256:{}\"] }}\n", digest(key))
        })
        .collect();
    format!(
        r#"
version: 1
admin: {{ bind: "127.0.0.1:0" }}
listeners:
  web: {{ bind: "127.0.0.1:0" }}
  inside: {{ bind: "127.0.0.1:0" }}
identities: {{ partners: {{ apiKey: {{}} }} }}
plans: {{ free: {{ quota: [{{ limit: 60, per: 1h }}] }} }}
consumers:
{consumers}routes:
- {{ name: portal, matches: [{{ path: {{ prefix: /portal }} }}], auth: {{ require: partners }}, catalogue: {{}} }}
- name: orders
  hosts: [api.example.com]
  matches: [{{ path: {{ prefix: /v1/orders }}, methods: [GET] }}]
  auth: {{ require: partners }}
  quota: [{{ by: ip, limit: 7, per: 1h }}]
  describe: {{ owner: team-orders, openapi: orders.yaml, allow: "'orders' in consumer.scopes" }}
  transform: {{ path: {{ replacePrefix: /orders }} }}
  to: up
- {{ name: health, matches: [{{ path: {{ exact: /health }} }}], describe: {{ title: Health }}, respond: {{}} }}
- {{ name: silent, matches: [{{ path: {{ prefix: /silent }} }}], respond: {{}} }}
- {{ name: within, listeners: [inside], matches: [{{ path: {{ prefix: /within }} }}], describe: {{}}, respond: {{}} }}
services:
  up: {{ discover: {{ static: ["{}"] }} }}
"#,
        up.address
    )
}

const DOCUMENT: &str = "openapi: 3.1.0\ninfo: { title: Orders, version: '1.0' }\nservers: [{ url: http://10.0.0.7/orders }]\n\
    paths: { /: { get: { responses: { default: { description: all } } } } }\n";

/// The document lies beside the configuration, in the folder that is given too.
fn start(up: &Endpoint) -> (Onehop, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("orders.yaml"), DOCUMENT).expect("written");
    let file = dir.path().join("onehop.yaml");
    std::fs::write(&file, config(up)).expect("written");
    (Onehop::run_file(&file, &[]), dir)
}

#[test]
fn each_caller_sees_its_own() {
    let up = Endpoint::ok();
    let (hop, _dir) = start(&up);
    let ask =
        |path: &str, key: &str| get_with(hop.at("web"), "api.example.com", path, &format!("x-api-key: {key}\r\n"));
    assert_eq!(get(hop.at("web"), "api.example.com", "/portal").status(), 401, "the route's own auth decides");
    assert_eq!(ask("/v1/orders/1", "acme-key").status(), 200);

    let list: Value = serde_json::from_str(&ask("/portal", "acme-key").body()).expect("JSON");
    let names = |list: &Value| -> Vec<String> {
        let routes = list["routes"].as_array().expect("routes").iter();
        routes.map(|route| route["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&list), ["orders", "health"], "{list}");
    assert_eq!((&list["caller"]["consumer"], &list["caller"]["plan"]), (&json!("acme"), &json!("free")));
    let left: Vec<(&str, u64)> = list["caller"]["limits"]
        .as_array()
        .expect("limits")
        .iter()
        .map(|limit| (limit["name"].as_str().expect("a name"), limit["remaining"].as_u64().expect("a number")))
        .collect();
    assert!(left.contains(&("free-1h", 59)) && left.contains(&("ip-1h", 6)), "asking is free: {left:?}");
    let orders = &list["routes"][0];
    assert_eq!((&orders["title"], &orders["owner"]), (&json!("Orders"), &json!("team-orders")));

    let document = ask(orders["openapi"]["json"].as_str().expect("a link"), "acme-key");
    let document: Value = serde_json::from_str(&document.body()).expect("JSON");
    assert_eq!(document["servers"], json!([{ "url": "http://api.example.com/v1/orders" }]));
    let yaml = ask("/portal/orders/openapi.yaml", "acme-key");
    assert_eq!((yaml.status(), yaml.header("content-type")), (200, Some("application/yaml".to_owned())));
    assert!(!yaml.body().contains("10.0.0.7"));

    // The other one has no such scope: nothing tells it that the route is there.
    let text = ask("/portal", "other-key").body();
    let list: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(names(&list), ["health"]);
    assert!(!text.contains("orders") && !text.contains("ip-1h"), "{text}");
    assert_eq!(ask("/portal/orders/openapi.json", "other-key").status(), 404);

    let page = get_with(hop.at("web"), "api.example.com", "/portal", "x-api-key: acme-key\r\naccept: text/html\r\n");
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    assert!(page.body().contains("<h2>Orders") && page.body().contains("free-1h"), "{}", page.body());
    assert_eq!(up.seen(), 1, "the catalogue asks nobody");
}

#[test]
fn a_document_that_changes_is_in_force() {
    let up = Endpoint::ok();
    let (hop, dir) = start(&up);
    let title = || {
        let list = get_with(hop.at("web"), "a", "/portal", "x-api-key: acme-key\r\n").body();
        serde_json::from_str::<Value>(&list).expect("JSON")["routes"][0]["title"].clone()
    };
    assert_eq!(title(), "Orders");
    let file = dir.path().join("orders.yaml");
    std::fs::write(&file, "openapi: [").expect("written");
    super::common::eventually("the bad one is counted", || {
        let metrics = hop.admin_get("/metrics").body();
        metrics.lines().any(|line| {
            line.starts_with("onehop_document_reloads_total") && line.contains("failed") && line.ends_with(" 1")
        })
    });
    assert_eq!(title(), "Orders", "the last good one stays");
    std::fs::write(&file, DOCUMENT.replace("Orders", "Orders anew")).expect("written");
    super::common::eventually("the new title", || title() == "Orders anew");
}

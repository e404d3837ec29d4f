//! Every example config is good, and the three in the README do what the README says.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Endpoint, Onehop, get, get_with};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// Says which path it was asked for.
fn echo() -> Endpoint {
    Endpoint::start(|head, _| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        format!("HTTP/1.1 200 OK\r\nserver: shop\r\ncontent-length: {}\r\n\r\n{path}", path.len()).into_bytes()
    })
}

#[test]
fn every_example_config_is_good() {
    let mut seen = 0;
    for folder in ["", "deploy", "deploy/config"] {
        let Ok(entries) = std::fs::read_dir(example(folder)) else { continue };
        for path in entries.map(|e| e.expect("a folder entry").path()) {
            let config = path.extension().is_some_and(|e| e == "yaml")
                && std::fs::read_to_string(&path).is_ok_and(|text| text.contains("\nversion: 1\n"));
            if config {
                let out = Command::new(common::binary()).args(["check", "-c"]).arg(&path).output().expect("it runs");
                assert!(out.status.success(), "{}:\n{}", path.display(), String::from_utf8_lossy(&out.stderr));
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "{seen} configs were found");
}

#[test]
fn the_edge_wants_a_key_counts_and_rewrites() {
    let orders = echo();
    let env = [("ADMIN", "127.0.0.1:0"), ("BIND", "127.0.0.1:0"), ("ORDERS", &orders.address.to_string())];
    let edge = Onehop::run_file(&example("edge.yaml"), &env);
    let to = edge.at("public");
    let good = get_with(to, "localhost", "/v1/orders/7", "x-api-key: acme-demo-key\r\n");
    assert_eq!((good.status(), good.body().as_str()), (200, "/orders/7"));
    assert_eq!(good.header("x-served-by").as_deref(), Some("onehop"));
    assert_eq!(good.header("server"), None);
    assert!(good.header("ratelimit-policy").is_some_and(|p| p.contains("q=6000;w=60")), "the consumer's plan counts");
    assert!(!orders.last().contains("acme-demo-key"), "the key stays here");
    let bad = get(to, "localhost", "/v1/orders/7");
    assert_eq!((bad.status(), orders.seen()), (401, 1));
    assert_eq!(get(to, "localhost", "/ping").body(), "pong\n");
    let moved = get(to, "localhost", "/old/a").header("location");
    assert!(moved.as_ref().is_some_and(|l| l.ends_with("/v1/a")), "{moved:?}");
}

#[test]
fn the_sidecar_guards_and_calls() {
    let (app, stock) = (echo(), echo());
    let (at_app, at_stock) = (app.address.to_string(), stock.address.to_string());
    let any = "127.0.0.1:0";
    let env = [("ADMIN", any), ("INBOUND", any), ("OUTBOUND", any), ("APP", &at_app), ("STOCK", &at_stock)];
    let sidecar = Onehop::run_file(&example("sidecar.yaml"), &env);
    assert_eq!(get(sidecar.at("inbound"), "orders", "/hello").body(), "/hello");
    assert_eq!(get(sidecar.at("outbound"), "stock.shop.svc", "/items").body(), "/items");
    let unknown = get(sidecar.at("outbound"), "elsewhere.example", "/items");
    assert!(unknown.status() >= 400, "{}", unknown.text());
    assert_eq!((app.seen(), stock.seen()), (1, 1));
}

#[test]
fn the_bff_asks_browsers_for_a_token_and_calls_without_one() {
    let (bff, orders) = (echo(), echo());
    let (at_bff, at_orders) = (bff.address.to_string(), orders.address.to_string());
    let any = "127.0.0.1:0";
    let env = [("ADMIN", any), ("WEB", any), ("MESH", any), ("BFF", &at_bff), ("ORDERS", &at_orders)];
    let hop = Onehop::run_file(&example("bff.yaml"), &env);
    assert_eq!(get(hop.at("web"), "shop.example.com", "/").status(), 401);
    assert_eq!(get(hop.at("mesh"), "orders", "/items").body(), "/items");
    assert_eq!((bff.seen(), orders.seen()), (0, 1));
}

#[test]
fn explain_follows_a_url_to_its_endpoint() {
    let config = example("edge.yaml");
    let explain = |url: &str, key: &str| {
        let out = Command::new(common::binary())
            .args(["explain", "-c"])
            .arg(&config)
            .args(["GET", url, "-H", key])
            .output()
            .expect("it runs");
        String::from_utf8(out.stdout).expect("text")
    };
    let good = explain("http://localhost/v1/orders/7", "x-api-key: acme-demo-key");
    assert!(good.contains("route orders") && good.contains("service orders"), "{good}");
    let bad = explain("http://localhost/v1/orders/7", "x-api-key: wrong");
    assert!(bad.contains("401") && !bad.contains("service orders"), "{bad}");
}

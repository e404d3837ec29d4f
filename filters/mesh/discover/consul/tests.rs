use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::{Value, json};

use super::*;
use crate::api::fixture::{Estate, section};
use crate::contract::Directory;
use crate::mesh::discover::stub::{self, Stub, followed, shown};

fn instance(address: &str, port: u16, status: &str) -> Value {
    json!({
        "Node": {"Node": "n1", "Address": "10.9.9.9", "Datacenter": "dc1", "Meta": {"zone": "of-node"}},
        "Service": {"ID": "x", "Service": "stock", "Tags": ["v2"], "Address": address, "Port": port,
            "Meta": {"version": "2"}, "Weights": {"Passing": 10, "Warning": 2}},
        "Checks": [{"Status": "passing"}, {"Status": status}],
    })
}

fn told(index: u64, list: Value) -> http::Response<http_body_util::Full<Bytes>> {
    let mut response = stub::json(list);
    response.headers_mut().insert(INDEX, HeaderValue::from(index));
    response
}

fn discover(config: Value) -> Arc<dyn Discover> {
    let directory = Directory::default();
    let mut estate = Estate::default();
    build(&section(config), &mut estate.build("services.stock", &directory)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn instances_are_read() {
    let mut nowhere = instance("some.host", 80, "passing");
    nowhere["Service"]["Port"] = json!(0);
    let text = json!([
        instance("10.0.0.1", 80, "passing"),
        instance("", 81, "warning"),
        instance("10.0.0.3", 80, "critical"),
        nowhere,
    ]);
    let found = core::parse(text.to_string().as_bytes()).expect("good");
    assert_eq!(shown(&found), ["10.0.0.1:80 x10 of-node", "10.9.9.9:81 x2 of-node"]);
    assert_eq!(found[0].labels.find("version"), Some("2"));
    assert_eq!(found[0].labels.find("tag.v2"), Some(""));
    assert_eq!(found[0].labels.find("datacenter"), Some("dc1"));
    assert!(core::parse(b"{}").is_err());
}

#[tokio::test]
async fn a_change_ends_the_wait() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (change, changed) = tokio::sync::watch::channel(false);
    let count = asked.clone();
    let stub = Stub::start(move |rq| {
        let n = count.fetch_add(1, SeqCst);
        let mut changed = changed.clone();
        let hangs = rq.uri().query().is_some_and(|q| q.contains("index="));
        Box::pin(async move {
            if hangs && n == 1 {
                let _ = changed.wait_for(|is| *is).await;
                return told(8, json!([instance("10.0.0.2", 80, "passing")]));
            }
            if n > 1 {
                // Restored from a backup: the index went back, so the next question must begin anew.
                return told(3, json!([instance("10.0.0.3", 80, "passing")]));
            }
            told(7, json!([instance("10.0.0.1", 80, "passing")]))
        })
    })
    .await;
    let config = json!({"service": "a b", "servers": ["http://127.0.0.1:1", stub.url], "tags": ["v2"], "token": "t"});
    let mut reports = followed(&*discover(config));
    assert_eq!(shown(&reports.recv().await.expect("told").expect("good")), ["10.0.0.1:80 x10 of-node"]);
    change.send(true).expect("heard");
    assert_eq!(shown(&reports.recv().await.expect("told").expect("good")), ["10.0.0.2:80 x10 of-node"]);
    for _ in 0..2 {
        assert_eq!(shown(&reports.recv().await.expect("told").expect("good")), ["10.0.0.3:80 x10 of-node"]);
    }
    let asked = stub.asked.lock().clone();
    assert_eq!(asked[0], "GET /v1/health/service/a%20b?stale&tag=v2&passing=1 ");
    assert_eq!(asked[1], "GET /v1/health/service/a%20b?stale&tag=v2&passing=1&index=7&wait=300s ");
    assert!(asked[2].contains("index=8"), "{asked:?}");
    assert!(!asked[3].contains("index="), "the index went back: {asked:?}");
}

#[tokio::test]
async fn failures_are_told_and_nothing_is_lost() {
    for (code, expected) in [(403, "status 403"), (500, "status 500"), (200, "X-Consul-Index")] {
        let stub = Stub::start(move |_| Box::pin(async move { stub::status(code) })).await;
        let mut reports = followed(&*discover(json!({"service": "stock", "servers": [stub.url]})));
        let why = reports.recv().await.expect("told").expect_err("a failure");
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn mistakes_are_named() {
    let directory = Directory::default();
    let mut estate = Estate::default();
    for (config, expected) in [
        (json!({"service": "", "servers": []}), "has a name"),
        (json!({"service": "a", "servers": []}), "no server"),
        (json!({"service": "a", "servers": ["ftp://x"]}), "neither https nor http"),
        (json!({"service": "a", "wait": "1h"}), "1s to 10m"),
    ] {
        let error = match build(&section(config), &mut estate.build("services.stock", &directory)) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expected), "{error}");
    }
}

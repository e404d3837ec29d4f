use serde_json::{Value, json};

use super::*;
use crate::api::fixture::{Estate, section};
use crate::contract::Directory;
use crate::mesh::discover::stub::{self, Stub, followed, shown};

fn instance(ip: &str, status: &str) -> Value {
    json!({
        "hostName": "host-1", "app": "STOCK", "ipAddr": ip, "status": status, "overriddenStatus": "UNKNOWN",
        "port": {"$": 8080, "@enabled": "true"}, "securePort": {"$": "8443", "@enabled": "false"},
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "metadata": {"@class": "java.util.Collections$EmptyMap", "zone": "a", "version": "2"},
    })
}

fn discover(config: Value) -> Arc<dyn Discover> {
    let directory = Directory::default();
    let mut estate = Estate::default();
    build(&section(config), &mut estate.build("services.stock", &directory)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn instances_are_read() {
    let mut out = instance("10.0.0.4", "UP");
    out["overriddenStatus"] = json!("OUT_OF_SERVICE");
    let list = json!([instance("10.0.0.1", "UP"), instance("10.0.0.2", "DOWN"), instance("10.0.0.3", "STARTING"), out]);
    let text = json!({"application": {"name": "STOCK", "instance": list}}).to_string();
    let found = core::parse(text.as_bytes(), false).expect("good");
    assert_eq!(shown(&found), ["10.0.0.1:8080 x1 a"]);
    assert_eq!(found[0].labels.find("version"), Some("2"));
    assert_eq!(found[0].labels.iter().count(), 2, "nothing of the Java class");
    assert!(core::parse(text.as_bytes(), true).expect("good").is_empty(), "the secure port is off");

    // One instance is not a list; newer servers write real booleans.
    let mut one = instance("10.0.0.1", "UP");
    one["securePort"] = json!({"$": 8443, "@enabled": true});
    let text = json!({"application": {"name": "STOCK", "instance": one}}).to_string();
    assert_eq!(shown(&core::parse(text.as_bytes(), true).expect("good")), ["10.0.0.1:8443 x1 a"]);
    assert!(core::parse(b"<application/>", false).is_err());
}

#[tokio::test]
async fn servers_are_asked_in_turn() {
    let broken = Stub::start(|_| Box::pin(async { stub::status(503) })).await;
    let good = Stub::start(|rq| {
        Box::pin(async move {
            assert_eq!(rq.headers()[AUTHORIZATION], "Basic dTpw");
            stub::json(json!({"application": {"instance": [instance("10.0.0.1", "UP")]}}))
        })
    })
    .await;
    let servers = [format!("{}/eureka/", broken.url), format!("{}/eureka", good.url)];
    let config = json!({"app": "stock", "servers": servers, "interval": "1s", "username": "u", "password": "p"});
    let mut reports = followed(&*discover(config));
    for _ in 0..2 {
        assert_eq!(shown(&reports.recv().await.expect("told").expect("good")), ["10.0.0.1:8080 x1 a"]);
    }
    assert_eq!(good.asked.lock()[0], "GET /eureka/apps/STOCK ");
    assert_eq!(broken.asked.lock().len(), 1, "the one that answers is asked first from then on");
}

#[tokio::test]
async fn an_unknown_application_is_empty_and_a_failure_is_none() {
    let none = Stub::start(|_| Box::pin(async { stub::status(404) })).await;
    let mut reports = followed(&*discover(json!({"app": "x", "servers": [none.url]})));
    assert_eq!(reports.recv().await.expect("told"), Ok(Vec::new()));
    let refused = Stub::start(|_| Box::pin(async { stub::status(401) })).await;
    let mut reports = followed(&*discover(json!({"app": "x", "servers": [refused.url]})));
    assert!(reports.recv().await.expect("told").is_err_and(|why| why.contains("401")));
}

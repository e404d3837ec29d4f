use serde_json::{Value, json};

use super::*;
use crate::api::fixture::{Estate, section};
use crate::contract::Directory;
use crate::mesh::discover::stub::{self, Stub, followed, shown};

fn instance(ip: &str, weight: f64, healthy: bool, enabled: bool) -> Value {
    json!({"ip": ip, "port": 80, "weight": weight, "healthy": healthy, "enabled": enabled, "ephemeral": true,
        "clusterName": "berlin", "serviceName": "SHOP@@stock", "metadata": {"zone": "a", "version": "2"}})
}

fn discover(config: Value) -> Arc<dyn Discover> {
    let directory = Directory::default();
    let mut estate = Estate::default();
    build(&section(config), &mut estate.build("services.stock", &directory)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn both_interfaces_are_read() {
    let hosts = json!([
        instance("10.0.0.1", 1.0, true, true),
        instance("10.0.0.2", 0.001, true, true),
        instance("10.0.0.3", 0.0, true, true),
        instance("10.0.0.4", 1.0, false, true),
        instance("10.0.0.5", 1.0, true, false),
    ]);
    let expected = ["10.0.0.1:80 x100 a", "10.0.0.2:80 x1 a", "10.0.0.3:80 x0 a"];
    let first = json!({"name": "SHOP@@stock", "hosts": hosts, "cacheMillis": 10000}).to_string();
    let third = json!({"code": 0, "message": "success", "data": hosts}).to_string();
    for text in [first, third] {
        let found = core::parse(text.as_bytes()).expect("good");
        assert_eq!(shown(&found), expected);
        assert_eq!((found[0].labels.find("cluster"), found[0].labels.find("version")), (Some("berlin"), Some("2")));
    }
    assert!(core::parse(br#"{"code": 403, "message": "no", "data": null}"#).is_err());
    assert!(core::parse(b"server is DOWN").is_err());
}

#[tokio::test]
async fn a_server_of_either_version_is_asked_with_a_token() {
    for old in [true, false] {
        let stub = Stub::start(move |rq| {
            let path = rq.uri().path().to_owned();
            let body = rq.body().clone();
            Box::pin(async move {
                match (path.as_str(), old) {
                    ("/nacos/v1/auth/login", true) | ("/nacos/v3/auth/user/login", false) => {
                        assert_eq!(body, "username=u&password=p%26w");
                        stub::json(json!({"accessToken": "t/1", "tokenTtl": 18000}))
                    }
                    ("/nacos/v1/ns/instance/list", true) => {
                        stub::json(json!({"hosts": [instance("10.0.0.1", 1.0, true, true)]}))
                    }
                    ("/nacos/v3/client/ns/instance/list", false) => {
                        stub::json(json!({"code": 0, "data": [instance("10.0.0.1", 1.0, true, true)]}))
                    }
                    _ => stub::status(404),
                }
            })
        })
        .await;
        let config = json!({"service": "stock", "servers": [stub.url], "group": "SHOP", "namespace": "n",
            "clusters": ["a", "b"], "username": "u", "password": "p&w", "interval": "1s"});
        let mut reports = followed(&*discover(config));
        for _ in 0..2 {
            assert_eq!(shown(&reports.recv().await.expect("told").expect("good")), ["10.0.0.1:80 x100 a"]);
        }
        let asked = stub.asked.lock().clone();
        let logins = asked.iter().filter(|a| a.starts_with("POST") && a.contains("login"));
        assert_eq!(logins.count(), if old { 1 } else { 2 }, "once per interface: {asked:?}");
        let list = asked.iter().rfind(|a| a.starts_with("GET")).expect("asked");
        for part in ["serviceName=stock", "groupName=SHOP", "namespaceId=n", "a%2Cb", "accessToken=t%2F1"] {
            assert!(list.contains(part), "{part} in {list}");
        }
    }
}

#[tokio::test]
async fn a_refused_login_is_a_failure() {
    let stub = Stub::start(|_| Box::pin(async { stub::status(403) })).await;
    let config = json!({"service": "stock", "servers": [stub.url], "username": "u", "password": "p"});
    let mut reports = followed(&*discover(config));
    assert!(reports.recv().await.expect("told").is_err_and(|why| why.contains("login: status 403")));
}

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;

use crate::api::fixture::request;
use crate::contract::mesh::{Address, Affinity, Endpoint};
use crate::contract::principal::Workload;
use crate::contract::{Conn, RequestCx, Role};
use crate::mesh::bed::{self, Bed};

fn built(json: &str) -> Result<Arc<dyn Affinity>, crate::contract::ConfigError> {
    let Role::Affinity(build) = super::ENTRY.role else { panic!("an affinity") };
    Bed::default().build(|b| build(&bed::node(json), b))
}

fn from(peer: &str, trusted: bool, values: &[&'static str]) -> RequestCx {
    let mut rq = request("GET", "/");
    let peer: SocketAddr = format!("{peer}:5000").parse().expect("an address");
    let (local, client) = (rq.conn.local, peer);
    rq.conn = Arc::new(Conn { id: 1, listener: "web".into(), peer, local, client, trusted, mesh: false, tls: None });
    for value in values {
        rq.headers.append("x-endpoint", HeaderValue::from_static(value));
    }
    rq
}

fn id(address: &str) -> u64 {
    Endpoint::id_of("stock", &Address::Tcp(address.parse().expect("an address")))
}

#[test]
fn trusted_callers_name_an_endpoint() {
    let by = built(r#"{"header":"X-Endpoint"}"#).expect("valid");
    let mut rq = from("203.0.113.9", true, &["10.0.0.2:80"]);
    assert_eq!(by.wanted(&mut rq), Some(id("10.0.0.2:80")));
    assert!(!rq.headers.contains_key("x-endpoint"));
    assert_eq!(by.wanted(&mut from("203.0.113.9", true, &[" [::1]:80 "])), Some(id("[::1]:80")));
    let unix = Endpoint::id_of("stock", &Address::Unix("/run/a.sock".into()));
    assert_eq!(by.wanted(&mut from("203.0.113.9", true, &["unix:///run/a.sock"])), Some(unix));
    for wrong in [&["app:80"][..], &["10.0.0.2"], &["10.0.0.2:80", "10.0.0.2:80"], &[]] {
        assert_eq!(by.wanted(&mut from("203.0.113.9", true, wrong)), None, "{wrong:?}");
    }
}

#[test]
fn strangers_do_not() {
    let by = built(r#"{"header":"x-endpoint"}"#).expect("valid");
    let mut rq = from("10.1.2.3", false, &["10.0.0.2:80"]);
    assert_eq!(by.wanted(&mut rq), None);
    assert!(!rq.headers.contains_key("x-endpoint"), "nor does it go on");

    let by = built(r#"{"header":"x-endpoint","networks":["10.0.0.0/8","192.0.2.1"],"workloads":["spiffe://a/ops/*"]}"#)
        .expect("valid");
    assert!(by.wanted(&mut from("10.1.2.3", false, &["10.0.0.2:80"])).is_some());
    assert!(by.wanted(&mut from("192.0.2.1", false, &["10.0.0.2:80"])).is_some());
    assert!(by.wanted(&mut from("203.0.113.9", false, &["10.0.0.2:80"])).is_none());
    let workload = |name: &str| {
        let mut rq = from("203.0.113.9", false, &["10.0.0.2:80"]);
        let id: Arc<str> = name.into();
        rq.workload = Some(Arc::new(Workload { names: vec![id.clone()], id, subject: "".into(), thumbprint: [0; 32] }));
        rq
    };
    assert!(by.wanted(&mut workload("spiffe://a/ops/canary")).is_some());
    assert!(by.wanted(&mut workload("spiffe://a/shop")).is_none());
}

#[test]
fn sections() {
    for bad in [
        "{}",
        r#"{"header":"x y"}"#,
        r#"{"header":"x","networks":["10.0.0.0/33"]}"#,
        r#"{"header":"x","workloads":["*"]}"#,
        r#"{"header":"x","workloads":["a*b"]}"#,
        r#"{"header":"x","all":true}"#,
    ] {
        assert!(built(bad).is_err(), "{bad}");
    }
}

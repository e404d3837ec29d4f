use std::net::Ipv4Addr;
use std::time::Duration;

use crate::contract::Role;
use crate::mesh::bed::{self, Bed};
use crate::mesh::discover::dns::server::{Says, Server, report};

#[tokio::test]
async fn records_say_port_weight_and_tier() {
    let server = Server::start(Says::Services(
        vec![(20, 0, 9002, "b.test."), (10, 7, 9001, "a.test."), (10, 3, 0, "port-zero.test."), (5, 1, 1, ".")],
        60,
    ))
    .await;
    *server.hosts.lock() = Says::Addresses(vec![Ipv4Addr::new(10, 1, 1, 1)], 60);
    let Role::Discover(build) = super::ENTRY.role else { panic!("a discovery kind") };
    let section = bed::node(&format!(r#"{{"name":"_grpc._tcp.stock.test.","resolver":"{}"}}"#, server.address));
    let srv = Bed::default().build(|b| build(&section, b)).expect("valid");
    let (report, mut told) = report();
    let task = tokio::spawn(srv.watch(report).expect("watched"));
    let news = tokio::time::timeout(Duration::from_secs(20), told.recv()).await.expect("in time").expect("news");
    let mut found: Vec<_> =
        news.expect("an answer").into_iter().map(|f| (f.priority, f.weight, f.address.to_string())).collect();
    found.sort();
    assert_eq!(found, [(10, 7, "10.1.1.1:9001".to_owned()), (20, 1, "10.1.1.1:9002".to_owned())]);
    task.abort();
}

#[test]
fn sections() {
    let Role::Discover(build) = super::ENTRY.role else { panic!("a discovery kind") };
    let ok = |json: &str| Bed::default().build(|b| build(&bed::node(json), b)).is_ok();
    assert!(ok(r#""_grpc._tcp.stock.internal""#));
    assert!(!ok(r#""_grpc._tcp.stock internal""#) && !ok(r#"{"name":"a","port":1}"#) && !ok("[]"));
}

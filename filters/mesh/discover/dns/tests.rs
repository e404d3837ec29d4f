use std::net::Ipv4Addr;
use std::time::Duration;

use super::server::{Says, Server, report};
use crate::contract::Role;
use crate::contract::mesh::Found;
use crate::mesh::bed::{self, Bed};
use crate::mesh::chance::Dice;
use crate::mesh::discover::resolve::{Resolver, Settings};

fn build(json: &str) -> Result<std::sync::Arc<dyn crate::contract::mesh::Discover>, crate::contract::ConfigError> {
    let Role::Discover(build) = super::ENTRY.role else { panic!("a discovery kind") };
    Bed::default().build(|b| build(&bed::node(json), b))
}

fn addresses(found: &[Found]) -> Vec<String> {
    let mut list: Vec<String> = found.iter().map(|f| f.address.to_string()).collect();
    list.sort();
    list
}

#[tokio::test]
async fn answers_failures_and_absence_are_told_apart() {
    let server = Server::start(Says::Addresses(vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)], 1)).await;
    let dns = build(&format!(r#"{{"name":"orders.test.","port":8080,"resolver":"{}","minTtl":"1s"}}"#, server.address))
        .expect("valid");
    assert!(dns.initial().is_empty());
    assert_eq!(dns.describe(), "dns orders.test.:8080");
    let (report, mut told) = report();
    let task = tokio::spawn(dns.watch(report).expect("names are watched"));
    let next = async |told: &mut tokio::sync::mpsc::UnboundedReceiver<_>| {
        tokio::time::timeout(Duration::from_secs(20), told.recv()).await.expect("in time").expect("the watch lives")
    };
    let first: Result<Vec<Found>, String> = next(&mut told).await;
    assert_eq!(addresses(&first.expect("an answer")), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    server.say(Says::ServFail);
    let second = next(&mut told).await;
    assert!(second.is_err(), "SERVFAIL is no answer: {second:?}");
    server.say(Says::NxDomain);
    assert_eq!(next(&mut told).await, Ok(Vec::new()), "NXDOMAIN is one");
    server.say(Says::Addresses(vec![Ipv4Addr::new(10, 0, 0, 3)], 60));
    assert_eq!(addresses(&next(&mut told).await.expect("an answer")), ["10.0.0.3:8080"]);
    task.abort();
}

#[tokio::test]
async fn the_lifetime_is_the_record_s() {
    let server = Server::start(Says::Addresses(vec![Ipv4Addr::LOCALHOST], 42)).await;
    let resolver = Resolver::new(Settings { resolver: Some(server.address), ..Settings::default() }).expect("built");
    let answer = resolver.addresses("a.test.", 80).await.expect("an answer");
    assert_eq!(answer.ttl, Duration::from_secs(42));
    server.say(Says::Addresses(Vec::new(), 0));
    assert!(resolver.addresses("a.test.", 80).await.expect("an answer without addresses").list.is_empty());
}

#[test]
fn pauses_have_a_floor_a_ceiling_and_jitter() {
    let s = Settings::default();
    let mut dice = Dice::new(5);
    let mut pauses =
        |ttl| -> Vec<u128> { (0..100).map(|_| s.pause(Duration::from_secs(ttl), &mut dice).as_millis()).collect() };
    let floor = pauses(0);
    assert!(floor.iter().all(|p| (5_000..=5_500).contains(p)));
    assert!(pauses(100_000).iter().all(|p| *p <= 300_500));
    let usual = pauses(60);
    assert!(usual.iter().all(|p| (54_000..=60_500).contains(p)) && usual.iter().any(|p| p != &usual[0]));
}

#[test]
fn sections() {
    assert!(build(r#""orders.shop.svc:8080""#).is_ok());
    assert_eq!(build(r#""10.0.0.1:80""#).expect("an address will do").initial().len(), 1);
    for bad in [
        r#""orders""#,
        r#"{"name":"orders"}"#,
        r#"{"name":"a b","port":80}"#,
        r#"{"name":"a","port":0}"#,
        r#"{"name":"a","port":80,"minTtl":"100ms"}"#,
        r#"{"name":"a","port":80,"minTtl":"9s","maxTtl":"8s"}"#,
        r#"{"name":"a","port":80,"ttl":"8s"}"#,
        r#"{"name":"a","port":80,"resolver":"nowhere"}"#,
    ] {
        assert!(build(bad).is_err(), "{bad}");
    }
}

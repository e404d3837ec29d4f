//! SIGTERM.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tokio::time::Instant;

use super::common::Onehop;
use super::common::authority::Authority;
use super::common::backend::{Backend, Mood};
use super::common::load::{Load, Plan};
use super::common::streams::LongStream;
use super::{forward, head, until};

#[test]
fn a_drain_under_load_fails_no_request() {
    let (app, authority) = (Backend::start(Mood::Slow(5)), Authority::new());
    let dir = tempfile::tempdir().expect("a folder");
    let (crt, key) = authority.issue(dir.path(), "one");
    let yaml = forward(&[&app], ", retry: { attempts: 0 }").replace(
        "listeners: {",
        &format!(
            "listeners: {{ safe: {{ bind: \"127.0.0.1:0\", tls: {{ certificates: [{{ cert: \"{}\", key: \"{}\" }}] }} }},",
            crt.display(),
            key.display()
        ),
    );
    let mut hop = Onehop::start(&yaml);
    let (web, safe, tls) = (hop.at("web"), hop.at("safe"), Some(authority.client()));
    let pause = Duration::from_millis(2);
    let base = Plan { clients: 6, pause, ..Plan::get(web, "/") };
    let plans = [
        base.clone(),
        Plan { h2: true, clients: 3, ..base.clone() },
        Plan { per_connection: 2, clients: 2, ..base.clone() },
        Plan { to: safe, tls: tls.clone(), clients: 3, ..base.clone() },
        Plan { to: safe, tls, h2: true, clients: 2, ..base },
    ];
    let loads = plans.map(Load::start);
    for load in &loads {
        load.wait_for(20);
    }
    // The pause before listeners close is for balancers: clients notice nothing of it.
    hop.signal("TERM");
    until("readiness falls first", || hop.admin_get("/readyz").status() == 503);
    loads.iter().for_each(Load::wind_down);
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0), "{}", hop.log());
    until("clients are sent away", || loads.iter().all(Load::ended));
    for (load, what) in loads.into_iter().zip(["h1", "h2", "short h1", "tls h1", "tls h2"]) {
        load.stop().assert_clean(what, 20);
    }
}

#[test]
fn a_slow_answer_is_waited_for() {
    let app = Backend::start(Mood::Slow(800));
    let mut hop = Onehop::start(&forward(&[&app], ""));
    let web = hop.at("web");
    let asking = std::thread::spawn(move || super::common::get(web, "localhost", "/"));
    until("the request is with the endpoint", || app.requests() == 1);
    hop.signal("TERM");
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(asking.join().expect("no panic").status(), 200);
}

#[test]
fn an_open_websocket_ends_with_the_grace() {
    let app = Backend::start(Mood::Well);
    let mut hop = Onehop::start(&forward(&[&app], "").replace("drain: 3s", "drain: 1s"));
    let socket = LongStream::websocket(hop.at("web"), "/");
    let begun = Instant::now();
    hop.signal("TERM");
    std::thread::sleep(Duration::from_millis(600));
    socket.still_echoes();
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0));
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    until("the client hears of it", || socket.end().is_some());
}

#[test]
fn a_second_signal_ends_at_once() {
    let app = Backend::start(Mood::Silent);
    let mut hop = Onehop::start(&forward(&[&app], "").replace("drain: 3s", "drain: 60s"));
    let mut waiting = TcpStream::connect(hop.at("web")).expect("a connection");
    waiting.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
    until("the request is with the endpoint", || app.requests() == 1);
    hop.signal("TERM");
    until("the drain has begun", || hop.log().contains("draining"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(hop.wait(Duration::ZERO), None, "it waits for the request");
    let begun = Instant::now();
    hop.signal("TERM");
    assert!(hop.wait(Duration::from_secs(5)).is_some(), "{}", hop.log());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    let _ = waiting.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn idle_connections_hold_nothing_up() {
    let mut hop = Onehop::start(&(head("") + "routes: [{ name: pong, respond: { body: pong } }]\n"));
    let idle: Vec<_> = (0..20).map(|_| TcpStream::connect(hop.at("web")).expect("a connection")).collect();
    let begun = Instant::now();
    hop.signal("INT");
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0));
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    drop(idle);
}

#[test]
fn the_admin_page_drains_too() {
    let mut hop = Onehop::start(&(head("") + "routes: [{ name: pong, respond: { body: pong } }]\n"));
    let answer = super::common::exchange(
        hop.admin(),
        b"POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(answer.status(), 202);
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0));
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::config::Section;
use super::core::{HEALTHY, Standing, UNHEALTHY, UNKNOWN};
use crate::contract::Role;
use crate::contract::mesh::{Address, Endpoint};
use crate::mesh::bed::{self, Bed};

#[test]
fn standing() {
    let mut s = Standing::new(UNKNOWN);
    assert!(s.feed(true, 2, 3) && s.health == HEALTHY, "the first pass is enough");
    assert!(!s.feed(false, 2, 3) && !s.feed(false, 2, 3) && !s.feed(true, 2, 3));
    assert!(!s.feed(false, 2, 3) && !s.feed(false, 2, 3) && s.feed(false, 2, 3) && s.health == UNHEALTHY);
    assert!(!s.feed(true, 2, 3) && !s.feed(false, 2, 3) && !s.feed(true, 2, 3) && s.feed(true, 2, 3));
    assert_eq!(s.health, HEALTHY);
    let mut unknown = Standing::new(UNKNOWN);
    assert!(!unknown.feed(false, 2, 3) && !unknown.feed(false, 2, 3) && unknown.feed(false, 2, 3));
    assert_eq!(unknown.health, UNHEALTHY);
}

#[test]
fn sections() {
    for bad in [
        "{}",
        r#"{"http":{"path":"/"},"tcp":{}}"#,
        r#"{"http":{"path":"healthz"}}"#,
        r#"{"tcp":{},"interval":"0s"}"#,
        r#"{"tcp":{},"healthy":0}"#,
        r#"{"http":{"path":"/","expectedStatuses":["300-200"]}}"#,
        r#"{"grpc":{},"tcp":{}}"#,
        r#"{"grpc":{"host":"a b"}}"#,
        r#"{"tcp":{},"port":0}"#,
        r#"{"tcp":{},"initially":"unknown"}"#,
    ] {
        assert!(Section::settings(&bed::node(bad)).is_err(), "{bad}");
    }
    let good = r#"{"http":{"path":"/healthz","host":"a.b","expectedStatuses":[200,"204-206"]},"interval":"5s","timeout":"1s","healthy":2,"unhealthy":3}"#;
    assert!(Section::settings(&bed::node(good)).is_ok());
}

/// Answers every connection with this status; 0 closes without an answer. Sends what it read.
async fn server(status: Arc<AtomicU16>) -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 1024];
            let n = stream.read(&mut head).await.unwrap_or(0);
            let _ = tell.send(String::from_utf8_lossy(&head[..n]).into_owned());
            let status = status.load(Relaxed);
            if status != 0 {
                let _ = stream.write_all(format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        }
    });
    (address, told)
}

#[tokio::test]
async fn an_endpoint_falls_ill_and_recovers_and_is_forgotten() {
    let status = Arc::new(AtomicU16::new(200));
    let (address, mut told) = server(status.clone()).await;
    let endpoint = Arc::new(Endpoint::new(1, Address::Tcp(address), "".into(), 0, 1));
    let set: Arc<[Arc<Endpoint>]> = Arc::new([endpoint.clone()]);
    let Role::Check(build) = super::ENTRY.role else { panic!("a check") };
    let section = bed::node(r#"{"http":{"path":"/healthz?x=1"},"interval":"10ms","timeout":"500ms"}"#);
    let check = Bed::default().build(|b| build(&section, b)).expect("valid");
    let task = tokio::spawn(check.run(Arc::new(move || Some(set.clone())), None));
    let becomes = async |health: u8| {
        let reached = async {
            while endpoint.state.health.load(Relaxed) != health {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("in time");
    };
    becomes(HEALTHY).await;
    let head = told.recv().await.expect("a probe").to_lowercase();
    assert!(head.starts_with("get /healthz?x=1 http/1.1\r\n") && head.contains("user-agent: onehop-health"), "{head}");
    assert!(head.contains(&format!("host: {address}")), "{head}");
    status.store(500, Relaxed);
    becomes(UNHEALTHY).await;
    assert!(!endpoint.available(crate::contract::now()));
    status.store(204, Relaxed);
    becomes(HEALTHY).await;
    status.store(0, Relaxed);
    becomes(UNHEALTHY).await;
    task.abort();
    becomes(UNKNOWN).await;
}

#[test]
fn who_has_to_pass_first() {
    let mut s = Standing::of(UNHEALTHY, true);
    assert_eq!(s.shown(), UNHEALTHY);
    assert!(!s.feed(false, 2, 3) && s.shown() == UNHEALTHY, "a failure changes nothing");
    assert!(s.feed(true, 2, 3) && s.shown() == HEALTHY, "the first pass is enough");
    let mut known = Standing::of(HEALTHY, true);
    assert!(!known.feed(true, 2, 3) && known.shown() == HEALTHY);
    assert_eq!(Standing::of(UNKNOWN, true).shown(), UNKNOWN, "who was there before is not taken away");
    assert_eq!(Standing::of(UNHEALTHY, false).shown(), UNHEALTHY);
}

/// A gRPC server whose health service says this; 0 = it has none. Sends the authority it was asked by.
async fn grpc_server(status: Arc<AtomicU16>) -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (status, tell) = (status.clone(), tell.clone());
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let _ = tell.send(format!("{} {}", request.method(), request.uri()));
                    let head = http::Response::builder().header("content-type", "application/grpc");
                    match status.load(Relaxed) {
                        0 => {
                            let head = head.header("grpc-status", "12").body(()).expect("a head");
                            let _ = respond.send_response(head, true);
                        }
                        n => {
                            let mut body = respond.send_response(head.body(()).expect("a head"), false).expect("open");
                            let message = [0, 0, 0, 0, 2, 8, u8::try_from(n).expect("small")];
                            let _ = body.send_data(bytes::Bytes::copy_from_slice(&message), false);
                            let trailers = [("grpc-status", "0")]
                                .map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v)));
                            let _ = body.send_trailers(trailers.into_iter().collect());
                        }
                    }
                }
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_grpc_server_says_how_it_is() {
    let status = Arc::new(AtomicU16::new(1));
    let (address, mut told) = grpc_server(status.clone()).await;
    let settings = Section::settings(&bed::node(r#"{"grpc":{"service":"shop.v1.Orders","host":"orders.internal"}}"#));
    let settings = settings.expect("valid");
    let probe = async || super::probe::probe(&settings, &Address::Tcp(address), None).await;
    assert_eq!(probe().await, Ok(()));
    assert_eq!(told.recv().await.as_deref(), Some("POST http://orders.internal/grpc.health.v1.Health/Check"));
    for (n, why) in [(2, "not serving"), (3, "not known"), (0, "no health service"), (7, "status 7")] {
        status.store(n, Relaxed);
        let said = probe().await.expect_err("not healthy");
        assert!(said.contains(why), "{said}");
    }
    // A server that does not speak HTTP/2.
    let (h1, _told) = server(Arc::new(AtomicU16::new(200))).await;
    assert!(super::probe::probe(&settings, &Address::Tcp(h1), None).await.is_err());
    // Another port than the endpoint's.
    status.store(1, Relaxed);
    let json = format!(r#"{{"grpc":{{}},"port":{}}}"#, address.port());
    let elsewhere = Section::settings(&bed::node(&json)).expect("valid");
    assert_eq!(super::probe::probe(&elsewhere, &Address::Tcp(h1), None).await, Ok(()));
}

#[tokio::test]
async fn an_endpoint_that_has_to_pass_first() {
    let status = Arc::new(AtomicU16::new(503));
    let (address, mut told) = server(status.clone()).await;
    let endpoint = Arc::new(Endpoint::new(1, Address::Tcp(address), "".into(), 0, 1));
    endpoint.state.health.store(UNHEALTHY, Relaxed);
    let set: Arc<[Arc<Endpoint>]> = Arc::new([endpoint.clone()]);
    let Role::Check(build) = super::ENTRY.role else { panic!("a check") };
    let section = bed::node(r#"{"http":{"path":"/"},"interval":"10ms","initially":"unhealthy"}"#);
    let check = Bed::default().build(|b| build(&section, b)).expect("valid");
    assert!(check.starts_unhealthy());
    let task = tokio::spawn(check.run(Arc::new(move || Some(set.clone())), None));
    for _ in 0..3 {
        told.recv().await.expect("a probe");
        assert_eq!(endpoint.state.health.load(Relaxed), UNHEALTHY);
    }
    status.store(200, Relaxed);
    let limit = crate::contract::now() + Duration::from_secs(20);
    while endpoint.state.health.load(Relaxed) != HEALTHY {
        assert!(crate::contract::now() < limit, "in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    task.abort();
}

#[tokio::test]
async fn it_ends_when_the_service_is_gone() {
    let Role::Check(build) = super::ENTRY.role else { panic!("a check") };
    let check = Bed::default().build(|b| build(&bed::node(r#"{"tcp":{}}"#), b)).expect("valid");
    tokio::time::timeout(Duration::from_secs(5), check.run(Arc::new(|| None), None)).await.expect("ends");
}

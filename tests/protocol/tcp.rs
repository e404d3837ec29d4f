//! Connections that are passed on: by listener, by server name, with and without TLS, and the PROXY protocol to endpoints.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::SockRef;

use crate::common::authority::Authority;
use crate::common::{Client, Endpoint, Onehop, eventually, scripted};

/// Listeners, routes and services under the usual head.
fn config(listeners: &str, routes: &str, services: &str) -> String {
    format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nlifecycle: {{ drain: 2s }}\nlisteners:\n{listeners}\n\
         routes:\n{routes}\nservices:\n{services}\ntelemetry: {{ accessLog: {{ path: /dev/stderr }} }}\n"
    )
}

/// One TCP listener, `db`, before these endpoints.
fn plain(endpoints: &[SocketAddr], route: &str, service: &str) -> String {
    let all: Vec<String> = endpoints.iter().map(|at| format!("\"{at}\"")).collect();
    config(
        "  db: { bind: \"127.0.0.1:0\", protocols: [tcp] }",
        &format!("- {{ name: db, listeners: [db], to: db{route} }}"),
        &format!("  db: {{ discover: {{ static: [{}] }}{service} }}", all.join(", ")),
    )
}

/// Speaks first, then says everything back, and its last word after the client's end.
fn banner() -> SocketAddr {
    scripted(|mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"bye\r\n");
    })
}

/// A port that refuses.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound")
}

fn dial(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    stream.set_nodelay(true).expect("an option");
    stream
}

fn rest(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    all
}

/// The access log's lines that carry this.
fn logged(hop: &Onehop, what: &str) -> Vec<serde_json::Value> {
    eventually("the line is written", || hop.log().lines().any(|l| l.starts_with('{') && l.contains(what)));
    hop.log().lines().filter(|l| l.contains(what)).filter_map(|l| serde_json::from_str(l).ok()).collect()
}

#[test]
fn a_server_that_speaks_first_is_heard_and_each_side_ends_for_itself() {
    let up = banner();
    let hop = Onehop::start(&plain(&[up], "", ""));
    let mut stream = dial(hop.at("db"));
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).expect("the greeting, before a word of ours");
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"hello").expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(rest(&mut stream), b"hellobye\r\n", "what came after our end");
    let line = &logged(&hop, "\"route\":\"db\"")[0];
    assert_eq!((&line["protocol"], &line["service"], &line["listener"]), (&"tcp".into(), &"db".into(), &"db".into()));
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&5.into(), &21.into()));
    assert_eq!((line["endpoint"].as_str(), line.get("reason")), (Some(&*up.to_string()), None));
    assert!(line.get("status").is_none() && line["attempts"] == 1, "{line}");
    let metrics = hop.admin_get("/metrics").body();
    for series in [
        "onehop_tcp_received_bytes_total{service=\"db\"} 5",
        "onehop_tcp_sent_bytes_total{service=\"db\"} 21",
        "onehop_tcp_connections_total{service=\"db\",outcome=\"closed\"} 1",
        "onehop_tcp_connections_open{service=\"db\"} 0",
        "onehop_connections_total{listener=\"db\",outcome=\"accepted\"} 1",
    ] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }
}

#[test]
fn an_endpoint_that_refuses_is_replaced_by_another() {
    let (dead, up) = (closed(), banner());
    let hop = Onehop::start(&plain(&[dead, up], "", ", loadBalancer: { policy: round-robin }"));
    for _ in 0..12 {
        assert_eq!(dial(hop.at("db")).take(3).bytes().filter_map(Result::ok).collect::<Vec<_>>(), b"220");
    }
    eventually("a try was repeated", || hop.log().contains("\"attempts\":2,\"retries\":[\"connect-failed\"]"));
    // Five refusals in a row, and the endpoint is left alone.
    let view = hop.admin_get("/endpoints").body();
    assert!(view.contains("ejected_for_ms"), "{view}");
}

#[test]
fn no_endpoint_is_no_orderly_end() {
    let hop = Onehop::start(&plain(&[closed()], "", ""));
    let error = dial(hop.at("db")).read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let line = &logged(&hop, "\"reason\"")[0];
    assert_eq!((&line["reason"], &line["bytes_out"]), (&"connect-failed".into(), &0.into()));
    let metrics = hop.admin_get("/metrics").body();
    assert!(metrics.contains("onehop_tcp_connections_total{service=\"db\",outcome=\"connect-failed\"} 1"), "{metrics}");
}

#[test]
fn a_service_that_fails_is_replaced_by_its_fallback() {
    let yaml = plain(&[closed()], "", ", fallback: { service: spare }");
    let yaml =
        yaml.replace("\ntelemetry", &format!("\n  spare: {{ discover: {{ static: [\"{}\"] }} }}\ntelemetry", banner()));
    let hop = Onehop::start(&yaml);
    let mut stream = dial(hop.at("db"));
    let mut greeting = [0; 3];
    stream.read_exact(&mut greeting).expect("the spare one's greeting");
    drop(stream);
    assert_eq!(logged(&hop, "\"service\"")[0]["service"], "spare");
}

#[test]
fn a_reset_is_passed_on_as_one_both_ways() {
    let up = scripted(|mut stream| {
        let mut seen = [0; 1];
        let _ = stream.read_exact(&mut seen);
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    let hop = Onehop::start(&plain(&[up], "", ""));
    let mut stream = dial(hop.at("db"));
    stream.write_all(b"x").expect("sent");
    assert_eq!(stream.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(logged(&hop, "\"reason\"")[0]["reason"], "reset");

    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let up = scripted(move |mut stream| {
        let mut seen = [0; 1];
        let _ = stream.read_exact(&mut seen);
        let _ = tell.lock().expect("no panic").send(stream.read(&mut seen).map_err(|e| e.kind()));
    });
    let hop = Onehop::start(&plain(&[up], "", ""));
    let mut stream = dial(hop.at("db"));
    stream.write_all(b"x").expect("sent");
    eventually("the byte is there", || {
        hop.admin_get("/metrics").body().contains("received_bytes_total{service=\"db\"} 1")
    });
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(stream);
    let end = told.recv_timeout(Duration::from_secs(5)).expect("the endpoint hears of it");
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert_eq!(logged(&hop, "\"reason\"")[0]["reason"], "client-gone");
}

#[test]
fn a_connection_that_stands_still_is_ended() {
    let hop = Onehop::start(&plain(&[banner()], ", timeouts: { idle: 300ms }", ""));
    let mut stream = dial(hop.at("db"));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(120));
        stream.write_all(b".").expect("alive");
    }
    assert_eq!(rest(&mut stream), b"220 ready\r\n....");
    assert_eq!(logged(&hop, "\"reason\"")[0]["reason"], "idle-timeout");
}

#[test]
fn places_are_held_for_as_long_as_connections_stand() {
    let hop = Onehop::start(&plain(
        &[banner()],
        "",
        ", circuitBreaker: { maxConnections: 1, maxPending: 1, pendingTimeout: 100ms }",
    ));
    let mut first = dial(hop.at("db"));
    first.read_exact(&mut [0; 3]).expect("served");
    assert!(dial(hop.at("db")).read(&mut [0]).is_err(), "the second waits in vain");
    drop(first);
    eventually("there is room again", || matches!(dial(hop.at("db")).read(&mut [0]), Ok(1)));
}

/// A TLS endpoint that answers `ok` to any request for `localhost`.
fn secure(authority: &Authority, dir: &Path, name: &str) -> Onehop {
    let (crt, key) = authority.issue(dir, name);
    Onehop::start(&format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nlisteners:\n  web: {{ bind: \"127.0.0.1:0\", tls: {{ certificates: \
         [{{ cert: \"{}\", key: \"{}\" }}] }} }}\nroutes: [{{ name: {name}, respond: {{ body: \"{name}\" }} }}]\n",
        crt.display(),
        key.display()
    ))
}

/// The first flight of a client that asks for this name, or for none.
fn hello(authority: &Authority, name: Option<&'static str>) -> (ClientConnection, Vec<u8>) {
    let mut config = (*authority.client()).clone();
    config.enable_sni = name.is_some();
    let name = ServerName::try_from(name.unwrap_or("localhost")).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory");
    (client, bytes)
}

/// The same handshake message in records of `record` bytes.
fn fragmented(flight: &[u8], record: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in flight[5..].chunks(record) {
        out.extend([22, 3, 1]);
        out.extend(u16::try_from(part.len()).expect("short").to_be_bytes());
        out.extend(part);
    }
    out
}

fn ask(client: ClientConnection, stream: TcpStream) -> String {
    let mut tls = rustls::StreamOwned::new(client, stream);
    let _ = tls.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    String::from_utf8_lossy(&rest(&mut tls)).into_owned()
}

fn passing(first: &Onehop, other: &Onehop, more: &str) -> String {
    config(
        "  tls: { bind: \"127.0.0.1:0\", tls: { mode: passthrough }, limits: { tlsTimeout: 1s } }",
        &format!(
            "- {{ name: a, listeners: [tls], hosts: [localhost], to: a }}\n- {{ name: b, listeners: [tls], hosts: [\"*.b.example\"], to: b }}\n{more}"
        ),
        &format!(
            "  a: {{ discover: {{ static: [\"{}\"] }} }}\n  b: {{ discover: {{ static: [\"{}\"] }} }}",
            first.at("web"),
            other.at("web")
        ),
    )
}

#[test]
fn tls_is_passed_through_by_server_name_however_the_hello_comes() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let (a, b) = (secure(&authority, dir.path(), "a"), secure(&authority, dir.path(), "b"));
    let hop = Onehop::start(&passing(&a, &b, ""));
    // Whole; in two segments; byte by byte over many records.
    for (segment, record) in [(usize::MAX, 16_000), (700, 16_000), (97, 64)] {
        let (client, flight) = hello(&authority, Some("localhost"));
        let mut stream = dial(hop.at("tls"));
        for part in fragmented(&flight, record).chunks(segment) {
            stream.write_all(part).expect("sent");
            std::thread::sleep(Duration::from_millis(1));
        }
        let answer = ask(client, stream);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\na"), "{answer}");
    }
    // The certificate is for another name: the name alone chose the endpoint.
    let (_, flight) = hello(&authority, Some("x.b.example"));
    let mut stream = dial(hop.at("tls"));
    stream.write_all(&flight).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(rest(&mut stream).first(), Some(&22), "a ServerHello");
    eventually("it went to b", || !logged(&hop, "\"sni\":\"x.b.example\"").is_empty());
    let line = &logged(&hop, "\"sni\":\"x.b.example\"")[0];
    assert_eq!((&line["service"], &line["protocol"]), (&"b".into(), &"tls".into()));
}

#[test]
fn a_name_that_no_route_has_is_refused_in_tls() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let (a, b) = (secure(&authority, dir.path(), "a"), secure(&authority, dir.path(), "b"));
    let hop = Onehop::start(&passing(&a, &b, ""));
    for name in [Some("b.example"), Some("other.example"), None] {
        let (_, flight) = hello(&authority, name);
        let mut stream = dial(hop.at("tls"));
        stream.write_all(&flight).expect("sent");
        assert_eq!(rest(&mut stream), [21, 3, 3, 0, 2, 2, 112], "unrecognized_name for {name:?}");
    }
    assert_eq!(logged(&hop, "no-route").len(), 3);
    // What is no TLS, or never becomes one, ends without a word.
    let mut stream = dial(hop.at("tls"));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    assert_eq!(rest(&mut stream), b"");
    let mut slow = dial(hop.at("tls"));
    slow.write_all(&[22, 3, 1, 2, 0, 1]).expect("sent");
    assert_eq!(rest(&mut slow), b"");
    eventually("both are counted", || {
        let metrics = hop.admin_get("/metrics").body();
        metrics.contains("onehop_connections_total{listener=\"tls\",outcome=\"tls-failed\"} 1")
            && metrics.contains("onehop_connections_total{listener=\"tls\",outcome=\"timed-out\"} 1")
    });
    // With a route for all, whoever names nobody goes there.
    let hop = Onehop::start(&passing(&a, &b, "- { name: rest, listeners: [tls], to: b }"));
    let (client, flight) = hello(&authority, None);
    let mut stream = dial(hop.at("tls"));
    stream.write_all(&flight).expect("sent");
    assert!(ask(client, stream).ends_with("\r\n\r\nb"));
}

#[test]
fn tls_ends_here_and_begins_anew_towards_the_endpoint() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let up = secure(&authority, dir.path(), "up");
    let (crt, key) = authority.issue(dir.path(), "edge");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("a file");
    let hop = Onehop::start(&config(
        &format!(
            "  mq: {{ bind: \"127.0.0.1:0\", protocols: [tcp], tls: {{ certificates: [{{ cert: \"{}\", key: \"{}\" }}] }} }}",
            crt.display(),
            key.display()
        ),
        "- { name: mq, listeners: [mq], hosts: [localhost], to: mq }",
        &format!(
            "  mq: {{ discover: {{ static: [\"{}\"] }}, tls: {{ ca: \"{}\", sni: localhost }} }}",
            up.at("web"),
            ca.display()
        ),
    ));
    let name = ServerName::try_from("localhost").expect("a name");
    let client = ClientConnection::new(authority.client(), name).expect("a client");
    let answer = ask(client, dial(hop.at("mq")));
    assert!(answer.ends_with("\r\n\r\nup"), "{answer}");
    assert_eq!(logged(&hop, "\"sni\":\"localhost\"")[0]["protocol"], "tcp");
}

#[test]
fn endpoints_are_told_who_connects() {
    for (version, known) in [("v1", true), ("v2", true), ("v2", false)] {
        let (tell, told) = std::sync::mpsc::channel();
        let tell = std::sync::Mutex::new(tell);
        let up = scripted(move |mut stream| drop(tell.lock().expect("no panic").send(rest(&mut stream))));
        let listener = if known {
            "  db: { bind: \"127.0.0.1:0\", protocols: [tcp], proxyProtocol: required, trustedProxies: [127.0.0.1/32] }"
        } else {
            "  db: { bind: \"127.0.0.1:0\", protocols: [tcp] }"
        };
        let hop = Onehop::start(&config(
            listener,
            "- { name: db, listeners: [db], to: db }",
            &format!("  db: {{ discover: {{ static: [\"{up}\"] }}, proxyProtocol: {version} }}"),
        ));
        let mut stream = dial(hop.at("db"));
        if known {
            stream.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 5678\r\n").expect("sent");
        }
        stream.write_all(b"data").expect("sent");
        let own = stream.local_addr().expect("bound").port().to_be_bytes();
        let here = hop.at("db").port().to_be_bytes();
        drop(stream);
        let seen = told.recv_timeout(Duration::from_secs(5)).expect("the endpoint was called");
        let signature = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
        let expected = match (version, known) {
            ("v1", _) => b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 5678\r\ndata".to_vec(),
            (_, true) => [&signature[..], &[192, 0, 2, 7, 198, 51, 100, 1, 4, 210, 22, 46], b"data"].concat(),
            _ => [&signature[..], &[127, 0, 0, 1, 127, 0, 0, 1], &own, &here, b"data"].concat(),
        };
        assert_eq!(seen, expected, "{version}");
    }
}

#[test]
fn http_connections_with_a_proxy_header_are_one_callers_alone() {
    let up = Endpoint::start(|head, _| {
        let told = head.lines().next().unwrap_or_default().to_owned();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}", told.len()).into_bytes()
    });
    let service = format!("  up: {{ discover: {{ static: [\"{}\"] }}, proxyProtocol: v1 }}", up.address);
    let hop = Onehop::start(&config("  edge: { bind: \"127.0.0.1:0\" }", "- { name: all, to: up }", &service));
    let ask = |client: &mut Client| {
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        client.answer().body()
    };
    let (mut one, mut two) = (Client::to(hop.at("edge")), Client::to(hop.at("edge")));
    // The endpoint takes the header for a part of the head that follows it: only the first request has one.
    let first = ask(&mut one);
    assert!(first.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{first}");
    assert_eq!(ask(&mut one), "GET / HTTP/1.1", "the same caller, the same connection");
    let second = ask(&mut two);
    assert!(second.starts_with("PROXY TCP4 ") && second != first, "{second}");
    assert_eq!((ask(&mut one).as_str(), ask(&mut two).as_str()), ("GET / HTTP/1.1", "GET / HTTP/1.1"));
}

#[test]
fn connections_live_through_a_reload_and_end_with_their_listener() {
    let up = banner();
    let mut hop = Onehop::start(&plain(&[up], "", ""));
    let mut stream = dial(hop.at("db"));
    stream.read_exact(&mut [0; 11]).expect("served");
    let (status, text) = hop.reload(&plain(&[up, banner()], ", timeouts: { idle: 9m }", ""));
    assert_eq!(status, 200, "{text}");
    stream.write_all(b"a").expect("alive");
    stream.read_exact(&mut [0; 1]).expect("alive");
    // Told to end, it may go on for the grace; nobody new comes in.
    hop.signal("TERM");
    eventually("the listener is closed", || TcpStream::connect(hop.at("db")).is_err());
    stream.write_all(b"b").expect("alive");
    stream.read_exact(&mut [0; 1]).expect("alive");
    assert!(stream.read(&mut [0; 1]).is_err(), "cut when the grace is over");
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(logged(&hop, "\"reason\"")[0]["reason"], "draining");
}

#[test]
fn a_listener_that_goes_ends_its_connections_after_the_grace() {
    let up = banner();
    let hop = Onehop::start(&plain(&[up], "", ""));
    let mut stream = dial(hop.at("db"));
    stream.read_exact(&mut [0; 11]).expect("served");
    let without = plain(&[up], "", "")
        .replace("  db: { bind: \"127.0.0.1:0\", protocols: [tcp] }", "  web: { bind: \"127.0.0.1:0\" }");
    let (status, text) = hop.reload(&without.replace("listeners: [db], ", ""));
    assert_eq!(status, 200, "{text}");
    stream.write_all(b"a").expect("alive");
    stream.read_exact(&mut [0; 1]).expect("alive, for a while");
    assert!(stream.read(&mut [0; 1]).is_err(), "cut");
    assert_eq!(logged(&hop, "draining")[0]["route"], "db");
}

#[test]
fn who_may_connect_is_judged_before_anything_else() {
    let guarded = |rules: &str, listener: &str| {
        config(
            &format!("  db: {{ bind: \"127.0.0.1:0\", ipRules: {rules}{listener} }}"),
            if listener.contains("tcp") {
                "- { name: db, listeners: [db], to: db }"
            } else {
                "- { name: web, to: db }"
            },
            &format!("  db: {{ discover: {{ static: [\"{}\"] }} }}", banner()),
        )
    };
    let counted = |hop: &Onehop, outcome: &str| {
        let series = format!("onehop_connections_total{{listener=\"db\",outcome=\"{outcome}\"}} ");
        let metrics = hop.admin_get("/metrics").body();
        metrics.lines().find_map(|l| l.strip_prefix(&series)?.parse::<u64>().ok()).unwrap_or(0)
    };
    for listener in [", protocols: [tcp]", ""] {
        let hop = Onehop::start(&guarded("{ deny: [127.0.0.0/8] }", listener));
        let mut stream = dial(hop.at("db"));
        // Closed without a word, by an end or by a reset.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(rest(&mut stream), b"");
        assert_eq!(counted(&hop, "forbidden"), 1);
    }
    let hop = Onehop::start(&guarded("{ allow: [127.0.0.1] }", ", protocols: [tcp]"));
    dial(hop.at("db")).read_exact(&mut [0; 3]).expect("welcome");
    // Behind a PROXY header it is the client that counts, not the balancer.
    let proxied = ", protocols: [tcp], proxyProtocol: required, trustedProxies: [127.0.0.1/32]";
    let hop = Onehop::start(&guarded("{ allow: [192.0.2.0/24], deny: [192.0.2.9] }", proxied));
    let ask = |client: &str| {
        let mut stream = dial(hop.at("db"));
        let _ = stream.write_all(format!("PROXY TCP4 {client} 198.51.100.1 1 2\r\n").as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        rest(&mut stream).len()
    };
    assert_eq!((ask("192.0.2.7"), ask("192.0.2.9"), ask("203.0.113.1")), (16, 0, 0));
    assert_eq!(counted(&hop, "forbidden"), 2);
}

#[test]
fn a_client_holds_only_so_many_connections() {
    let yaml = config(
        "  db: { bind: \"127.0.0.1:0\", protocols: [tcp], limits: { connectionsPerClient: 2 }, \
         proxyProtocol: optional, trustedProxies: [127.0.0.1/32] }",
        "- { name: db, listeners: [db], to: db }",
        &format!("  db: {{ discover: {{ static: [\"{}\"] }} }}", banner()),
    );
    let hop = Onehop::start(&yaml);
    let open = |client: &str| {
        let mut stream = dial(hop.at("db"));
        stream.write_all(format!("PROXY TCP4 {client} 198.51.100.1 1 2\r\n").as_bytes()).expect("sent");
        let served = stream.read_exact(&mut [0; 11]).is_ok();
        (stream, served)
    };
    let held = [open("192.0.2.1"), open("192.0.2.1"), open("192.0.2.2")];
    assert!(held.iter().all(|(_, served)| *served));
    assert!(!open("192.0.2.1").1, "the third of one client");
    // A reload forgets nobody.
    assert_eq!(hop.reload(&(yaml + "# again\n")).0, 200);
    assert!(!open("192.0.2.1").1);
    let [first, ..] = held;
    drop(first);
    eventually("its place is free", || open("192.0.2.1").1);
}

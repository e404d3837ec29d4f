//! Calls through a sidecar to hosts that no route names.

use serde_json::Value;

use crate::common::{Client, Endpoint, Onehop, eventually, get};

fn start(known: &Endpoint) -> Onehop {
    Onehop::start(&format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\n\
         listeners: {{ out: {{ bind: \"127.0.0.1:0\", capture: outbound, unknownHosts: passthrough }} }}\n\
         routes: [{{ name: stock, hosts: [stock], matches: [{{ path: {{ prefix: /v1 }} }}], to: stock }}]\n\
         services: {{ stock: {{ discover: {{ static: [\"{}\"] }} }} }}\n\
         telemetry: {{ accessLog: {{ path: /dev/stderr }} }}\n",
        known.address
    ))
}

fn lines(hop: &Onehop) -> Vec<Value> {
    hop.log().lines().filter(|l| l.starts_with("{\"ts\"")).map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_host_that_no_route_names_is_called_itself() {
    let (known, stranger) = (
        Endpoint::ok(),
        Endpoint::start(|head, body| {
            let body = [head.lines().next().unwrap().as_bytes(), b" ", body].concat();
            [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()
        }),
    );
    let hop = start(&known);
    let host = stranger.address.to_string();
    let mut client = Client::to(hop.at("out"));
    for n in 1..=3 {
        let head = format!("POST /any?n={n} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 4\r\n\r\nbody");
        client.send(head.as_bytes());
        let answer = client.answer();
        assert_eq!((answer.status(), answer.body()), (200, format!("POST /any?n={n} HTTP/1.1 body")));
    }
    assert!(stranger.last().to_lowercase().contains(&format!("\r\nhost: {host}\r\n")), "{}", stranger.last());
    eventually("three lines", || lines(&hop).len() == 3);
    for line in lines(&hop) {
        let seen = (line["route"].as_str(), line["endpoint"].as_str(), &line["attempts"], line.get("reason"));
        assert_eq!(seen, (Some("passthrough"), Some(&*host), &1.into(), None), "{line}");
    }
    // A host that has routes is served by them alone.
    assert_eq!(get(hop.at("out"), "stock", "/v1/x").status(), 200);
    assert_eq!(get(hop.at("out"), "stock", "/v2").status(), 404);
    assert_eq!((known.seen(), stranger.seen()), (1, 3));
}

#[test]
fn what_cannot_or_may_not_be_reached_is_refused() {
    let known = Endpoint::ok();
    let hop = start(&known);
    let out = hop.at("out");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // No resolver is asked for a label of more than 63 bytes.
    let nobody = format!("{}.test", "a".repeat(64));
    for (host, status, reason) in [
        (out.to_string(), 508, "loop-detected"),
        ("169.254.169.254".to_owned(), 403, "forbidden"),
        (format!("0.0.0.0:{}", hop.admin().port()), 403, "forbidden"),
        (nobody, 502, "unknown-host"),
        (closed.to_string(), 502, "connect-failed"),
    ] {
        let answer = get(out, &host, "/");
        assert!(answer.status() == status && answer.text().contains(reason), "{host}: {}", answer.text());
    }
}

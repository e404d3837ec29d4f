//! An OTLP collector decodes what onehop exports: one server span, one client span for each attempt, linked as they ran.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::Value;

use super::common::{Endpoint, Onehop, get_with};
use super::kit::{Server, eventually, python};

#[test]
fn a_retried_request_makes_one_server_span_and_a_client_span_per_attempt() {
    let (collector, otlp) = Server::start_on_a_port(&mut python("otlp_receiver.py"));
    let calls = AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |_, _| match calls.fetch_add(1, SeqCst) {
        0 => b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n".to_vec(),
    });
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0', trustedProxies: [127.0.0.0/8] }} }}\n\
         routes: [{{ name: orders, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{}'] }}, retry: {{ attempts: 1, retryOn: [503], backoff: 1ms }} }} }}\n\
         telemetry: {{ tracing: {{ otlp: 'http://{otlp}', sample: 0% }} }}\n",
        endpoint.address
    ));
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let answer =
        get_with(onehop.at("web"), "a.example", "/v1?q=secret", &format!("traceparent: 00-{trace}-{parent}-01\r\n"));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    // Not sampled by its caller, nor by the ratio: no span.
    let other = "00-11111111111111111111111111111111-2222222222222222-00";
    assert_eq!(get_with(onehop.at("web"), "a.example", "/v2", &format!("traceparent: {other}\r\n")).status(), 200);

    let spans =
        || -> Vec<Value> { collector.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    eventually("three spans arrive", || spans().iter().filter(|span| span["trace"].is_string()).count() >= 3);
    let spans: Vec<Value> = spans().into_iter().filter(|span| span["trace"].is_string()).collect();
    assert_eq!(spans.len(), 3, "{spans:#?}");
    assert!(spans.iter().all(|span| span["trace"] == trace && span["ordered"] == true), "{spans:#?}");
    assert!(!format!("{spans:?}").contains("secret"), "no query in a span: {spans:#?}");

    let of = |kind: &str| spans.iter().filter(|span| span["kind"] == kind).collect::<Vec<_>>();
    let servers = of("SPAN_KIND_SERVER");
    assert_eq!(servers.len(), 1, "{spans:#?}");
    assert_eq!(servers[0]["parent"], parent);
    assert_eq!(servers[0]["attributes"]["http.response.status_code"], "200");
    assert!(servers[0]["resource"]["service.name"].is_string(), "{spans:#?}");

    let mut tries = of("SPAN_KIND_CLIENT");
    tries.sort_by_key(|span| span["attributes"]["http.response.status_code"] == "200");
    assert_eq!(tries.len(), 2, "{spans:#?}");
    assert!(tries.iter().all(|span| span["parent"] == servers[0]["span"]), "{spans:#?}");
    assert_eq!(tries[0]["attributes"]["http.response.status_code"], "503");
    assert_eq!(tries[1]["attributes"]["http.response.status_code"], "200");

    // What the endpoint was told to be its parent is the span of that very attempt.
    let heads = endpoint.heads.lock().expect("no panic under the lock").clone();
    for (attempt, head) in tries.iter().zip(&heads) {
        let id = attempt["span"].as_str().expect("a span id");
        assert!(head.contains(&format!("00-{trace}-{id}-01")), "{id} in {head}");
    }
}

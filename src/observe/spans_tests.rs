use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use onehop_filters::contract::trail::Outcome;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample as _};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn plan(otlp: &str) -> plan::Tracing {
    plan::Tracing { otlp: otlp.into(), sample: 1.0, service_name: "edge".into(), restart: false }
}

/// Keeps what it gets, or fails.
#[derive(Clone, Debug, Default)]
struct Memory {
    spans: Arc<Mutex<Vec<SpanData>>>,
    service: Arc<Mutex<String>>,
    broken: bool,
}

impl SpanExporter for Memory {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        if self.broken {
            return Err(OTelSdkError::InternalFailure("down".into()));
        }
        self.spans.lock().extend(batch);
        Ok(())
    }
    fn set_resource(&mut self, resource: &Resource) {
        let name = resource.get(&opentelemetry::Key::new(semconv::SERVICE_NAME));
        *self.service.lock() = name.expect("a name").to_string();
    }
}

fn request<'a>(attempts: &'a [AttemptSpan<'a>], trail: &'a Trail) -> ServerSpan<'a> {
    ServerSpan {
        trace: Trace { trace_id: 0xabc, parent: 7, span: 8, sampled: true },
        link: None,
        route: "orders",
        method: &Method::GET,
        host: "shop.example",
        path: "/orders/1",
        https: true,
        version: Version::HTTP_2,
        status: Some(StatusCode::OK),
        reason: None,
        client_ip: Some(IpAddr::from([192, 0, 2, 1])),
        user_agent: "curl/8",
        started: now(),
        ended: now() + Duration::from_millis(5),
        attempts,
        trail,
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|a| a.key.as_str() == key).map(|a| a.value.to_string())
}

#[tokio::test]
async fn a_request_with_a_retry() {
    let memory = Memory::default();
    let registry = Registry::default();
    let tracer = Tracer::with_exporter(memory.clone(), &plan(""), &registry, &Handle::current());
    let address = Address::Tcp("10.0.0.7:8080".parse().expect("an address"));
    let start = now();
    let first = AttemptSpan {
        span: 9,
        service: "stock",
        endpoint: Some(&address),
        status: None,
        reason: Some(Reason::ConnectFailed),
        started: start,
        ended: start + Duration::from_millis(1),
    };
    let second = AttemptSpan { span: 10, status: Some(StatusCode::OK), reason: None, ..first.clone() };
    let mut trail = Trail::default();
    trail.note("jwt", Outcome::Pass, "cached", 0, Duration::from_micros(3));
    tracer.server_span(&ServerSpan { link: Some((5, 6)), ..request(&[first, second], &trail) });
    assert!(tracer.flush(PATIENCE).await);

    let spans = memory.spans.lock();
    let [server, failed, answered] = &spans[..] else { panic!("three spans, not {}", spans.len()) };
    assert_eq!(*memory.service.lock(), "edge");
    assert!(spans.iter().all(|s| s.span_context.trace_id() == TraceId::from(0xabc_u128)));
    assert_eq!((&*server.name, &server.span_kind), ("GET orders", &SpanKind::Server));
    assert_eq!((server.parent_span_id, server.span_context.span_id()), (SpanId::from(7), SpanId::from(8)));
    assert!(server.parent_span_is_remote && server.status == Status::Unset);
    assert_eq!(server.links[0].span_context.trace_id(), TraceId::from(5_u128));
    assert_eq!(server.events[0].name, "jwt");
    assert!((server.start_time..=server.end_time).contains(&server.events[0].timestamp));
    let expected = [
        ("http.request.method", "GET"),
        ("http.route", "orders"),
        ("url.path", "/orders/1"),
        ("url.scheme", "https"),
        ("http.response.status_code", "200"),
        ("client.address", "192.0.2.1"),
        ("network.protocol.version", "2"),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(server, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!((&failed.span_kind, failed.parent_span_id), (&SpanKind::Client, SpanId::from(8)));
    assert!(matches!(failed.status, Status::Error { .. }));
    assert_eq!(attribute(failed, "error.type").as_deref(), Some("connect-failed"));
    assert_eq!(attribute(failed, "http.request.resend_count"), None);
    assert_eq!(attribute(answered, "http.request.resend_count").as_deref(), Some("1"));
    assert_eq!(attribute(answered, "server.port").as_deref(), Some("8080"));
    assert_eq!(answered.status, Status::Unset);
    let took = server.end_time.duration_since(server.start_time).expect("in order");
    assert!(took >= Duration::from_millis(5));
}

#[tokio::test]
async fn errors_are_errors() {
    let memory = Memory::default();
    let tracer = Tracer::with_exporter(memory.clone(), &plan(""), &Registry::default(), &Handle::current());
    let trail = Trail::default();
    let odd = Method::from_bytes(b"BREW").expect("a token");
    let base = request(&[], &trail);
    tracer.server_span(&ServerSpan {
        status: Some(StatusCode::NOT_FOUND),
        reason: Some(Reason::NoRoute),
        ..base.clone()
    });
    tracer.server_span(&ServerSpan { status: Some(StatusCode::BAD_GATEWAY), ..base.clone() });
    tracer.server_span(&ServerSpan { status: None, reason: Some(Reason::ClientGone), method: &odd, route: "", ..base });
    assert!(tracer.flush(PATIENCE).await);
    let spans = memory.spans.lock();
    assert_eq!(spans[0].status, Status::Unset, "a 4xx is not the server's error");
    assert_eq!(attribute(&spans[1], "error.type").as_deref(), Some("502"));
    assert!(matches!(spans[1].status, Status::Error { .. }));
    assert_eq!(attribute(&spans[2], "error.type").as_deref(), Some("client-gone"));
    assert_eq!(&*spans[2].name, "HTTP");
    assert_eq!(attribute(&spans[2], "http.request.method_original").as_deref(), Some("BREW"));
}

#[tokio::test]
async fn what_cannot_be_exported_is_counted() {
    let registry = Registry::default();
    let memory = Memory { broken: true, ..Memory::default() };
    let tracer = Tracer::with_exporter(memory, &plan(""), &registry, &Handle::current());
    let trail = Trail::default();
    // The exporter's task does not run before the first await: the queue fills.
    for _ in 0..QUEUE + 10 {
        tracer.server_span(&request(&[], &trail));
    }
    assert_eq!(tracer.dropped.value(), 10);
    assert!(tracer.flush(PATIENCE).await);
    assert_eq!(tracer.dropped.value(), (QUEUE + 10) as u64);
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    let registry = Registry::default();
    for wrong in ["not a url", "https://collector:4317"] {
        let error = Tracer::new(&plan(wrong), &registry, &Handle::current()).err().expect("refused");
        assert!(error.to_string().starts_with("telemetry.tracing.otlp: "), "{error}");
    }
}

#[tokio::test]
async fn a_collector_gets_them() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let (sender, mut calls) = mpsc::channel(4);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("accepts");
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let sender = sender.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let _ = sender.send((path, body)).await;
                // An empty ExportTraceServiceResponse: no compression, length 0; then OK in the trailers.
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
                let response = http::Response::builder().header("content-type", "application/grpc").body(body);
                Ok::<_, hyper::Error>(response.expect("valid"))
            }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(socket), service)
            .await;
    });
    let registry = Registry::default();
    let tracer = Tracer::new(&plan(&format!("http://{address}")), &registry, &Handle::current()).expect("builds");
    tracer.server_span(&request(&[], &Trail::default()));
    assert!(tracer.flush(PATIENCE).await);
    let (path, body) = calls.recv().await.expect("one call");
    assert_eq!(path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    for text in ["edge", "GET orders", "http.route", "shop.example"] {
        assert!(memchr::memmem::find(&body, text.as_bytes()).is_some(), "{text}");
    }
    let exported = registry.counter("onehop_spans_total", "", &[("outcome", "exported")]);
    assert_eq!((exported.value(), tracer.dropped.value()), (1, 0));
}

proptest! {
    #[test]
    fn a_larger_ratio_keeps_what_a_smaller_kept(id in any::<u128>(), a in 0.0..1.0f64, b in 0.0..1.0f64) {
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        prop_assert!(!sample(id, low) || sample(id, high));
    }

    #[test]
    fn the_sdk_decides_alike(id in 1u128.., ratio in 0.0..=1.0f64) {
        let sampler = Sampler::TraceIdRatioBased(ratio);
        let theirs = sampler.should_sample(None, TraceId::from(id), "", &SpanKind::Server, &[], &[]).decision;
        prop_assert_eq!(sample(id, ratio), theirs == SamplingDecision::RecordAndSample);
    }

    #[test]
    fn the_ratio_is_kept(seed in any::<u64>(), ratio in 0.0..=1.0f64) {
        let mut x = seed | 1;
        let kept = (0..4000).filter(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sample(u128::from(x ^ x >> 29), ratio)
        });
        let share = kept.count() as f64 / 4000.0;
        prop_assert!((share - ratio).abs() < 0.06, "{share} for {ratio}");
    }
}

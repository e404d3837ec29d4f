//! The filter at work in the engine, without a socket.

use http::{Request, Response};
use http_body_util::BodyExt;
use onehop::config::Source;
use onehop::hop::Hop;
use onehop::proxy::exchange::Outgoing;
use onehop_filters::BUILTIN;
use onehop_filters::contract::{Body, Entry};
use tower::ServiceExt;

fn entries() -> &'static [Entry] {
    Box::leak([BUILTIN, &[onehop_custom_filter::ENTRY]].concat().into_boxed_slice())
}

fn start(text: &str) -> Result<Hop, String> {
    let dir = std::env::current_dir().expect("a working directory");
    let text = text.replace("version: 1\n", "version: 1\nadmin: { bind: none }\n");
    let text = text.replace("127.0.0.1:8080", "127.0.0.1:0");
    Hop::start(vec![Source::Text { name: "test.yaml".to_owned(), text, dir }], entries()).map_err(|e| e.to_string())
}

async fn get(hop: &Hop, version: Option<&str>) -> Response<Outgoing> {
    let mut rq = Request::get("/items").header("host", "localhost");
    if let Some(version) = version {
        rq = rq.header("x-api-version", version);
    }
    let service = hop.service("public").expect("the listener is there");
    service.oneshot(rq.body(Body::Empty).expect("a good request")).await.expect("never fails")
}

#[tokio::test]
async fn a_third_party_filter_stands_level_with_the_built_in_ones() {
    let hop = start(onehop_custom_filter::ENTRY.example).expect("the example is a good config");
    for (asked, used) in [(None, "2026-01"), (Some("2025-06"), "2025-06")] {
        let rs = get(&hop, asked).await;
        assert_eq!(
            (rs.status().as_u16(), &rs.headers()["x-api-version"]),
            (200, &http::HeaderValue::from_static(used))
        );
    }
    let rs = get(&hop, Some("1999-12")).await;
    assert_eq!(rs.status(), 400);
    let body = rs.into_body().collect().await.expect("a body").to_bytes();
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("Served are: 2025-06, 2026-01."), "{body}");
}

#[test]
fn its_mistakes_are_reported_with_their_place() {
    let wrong = onehop_custom_filter::ENTRY.example.replace("supported: [", "default: \"3\", supported: [");
    let Err(report) = start(&wrong) else { panic!("version 3 is not among the supported ones") };
    assert!(report.contains("test.yaml:9:") && report.contains("not among the supported versions"), "{report}");
}

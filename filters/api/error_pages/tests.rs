use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::Directory;
use crate::contract::filter::Verdict;

fn made(config: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(config)), &mut Estate::default().build("routes.orders", &Directory::default()))
}

fn failure(status: u16, reason: &str, origin: Origin) -> ResponseCx {
    let mut headers = HeaderMap::new();
    let details = format!("onehop; error=x; details=\"{reason} by quota: words\"");
    headers.insert(PROXY_STATUS, HeaderValue::try_from(details).expect("a value"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(ETAG, HeaderValue::from_static("\"1\""));
    ResponseCx { status: StatusCode::from_u16(status).expect("a status"), headers, body: Body::full("{}"), origin }
}

async fn shown(config: serde_json::Value, accept: &'static str, mut rs: ResponseCx) -> (String, String) {
    let filter = made(config).unwrap_or_else(|e| panic!("{e}"));
    let mut rq = request("GET", "/");
    rq.request_id = HeaderValue::from_static("<\"id\">");
    rq.headers.insert("accept", HeaderValue::from_static(accept));
    assert!(matches!(decided(filter.on_response(&mut rq, &mut rs)), Verdict::Next));
    let kind = rs.headers[CONTENT_TYPE].to_str().expect("text").to_owned();
    (kind, String::from_utf8(rs.body.collect().await.expect("whole").to_bytes().to_vec()).expect("text"))
}

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[tokio::test]
async fn browsers_get_html_and_programs_json() {
    let config = || {
        json!([
            { "at": ["over-quota"], "html": "<p>slow down" },
            { "at": ["4xx", 503], "html": "<p>${status} ${reason} ${title} ${requestId}", "json": "{\"id\":\"${ requestId }\"}" },
        ])
    };
    let (kind, body) = shown(config(), BROWSER, failure(403, "forbidden", Origin::Fault)).await;
    assert_eq!(kind, "text/html; charset=utf-8");
    assert_eq!(body, "<p>403 forbidden The caller may not do this. &lt;&quot;id&quot;&gt;");
    let (kind, body) = shown(config(), "*/*", failure(403, "forbidden", Origin::Fault)).await;
    assert_eq!((&*kind, &*body), ("application/json", r#"{"id":"<\"id\">"}"#));
    // The first page that fits, by reason.
    let (_, body) = shown(config(), BROWSER, failure(429, "over-quota", Origin::Fault)).await;
    assert_eq!(body, "<p>slow down");
    // It has no JSON: the problem stays.
    let (kind, body) = shown(config(), "application/json", failure(429, "over-quota", Origin::Fault)).await;
    assert_eq!((&*kind, &*body), ("application/problem+json", "{}"));
    // No page fits.
    let (kind, _) = shown(config(), BROWSER, failure(500, "internal", Origin::Fault)).await;
    assert_eq!(kind, "application/problem+json");
}

#[tokio::test]
async fn only_whose_answers_are_meant() {
    let page = |whose: &str| json!([{ "at": ["5xx"], "for": whose, "html": "page" }]);
    for (whose, origin, replaced) in [
        ("own", Origin::Fault, true),
        ("own", Origin::Upstream, false),
        ("upstream", Origin::Upstream, true),
        ("upstream", Origin::Fault, false),
        ("all", Origin::Upstream, true),
        ("all", Origin::Fault, true),
        ("all", Origin::Filter, false),
    ] {
        let (_, body) = shown(page(whose), BROWSER, failure(503, "shed", origin)).await;
        assert_eq!(body == "page", replaced, "{whose} {origin:?}");
    }
}

#[test]
fn grpc_and_head_keep_their_form() {
    let filter = made(json!([{ "at": ["5xx"], "json": "{}" }])).unwrap_or_else(|e| panic!("{e}"));
    let mut rs = failure(503, "shed", Origin::Fault);
    rs.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let _ = decided(filter.on_response(&mut request("POST", "/"), &mut rs));
    assert_eq!(rs.headers[CONTENT_TYPE], "application/grpc");

    let mut rs = failure(503, "shed", Origin::Fault);
    rs.body = Body::Empty;
    let _ = decided(filter.on_response(&mut request("HEAD", "/"), &mut rs));
    assert!(matches!(rs.body, Body::Empty));
    assert_eq!(rs.headers[CONTENT_TYPE], "application/json");
    assert!(!rs.headers.contains_key(ETAG));
}

#[test]
fn who_prefers_html() {
    for (accept, html) in [
        (BROWSER, true),
        ("*/*", false),
        ("text/html", true),
        ("text/*", true),
        ("text/html;q=0.5, application/json", false),
        ("application/json;q=0.5, text/html;q=0.6", true),
        ("text/html;q=0, */*", false),
        ("text/html;q=x", false),
        ("", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static(accept));
        assert_eq!(prefers_html(&headers), html, "{accept}");
    }
}

#[test]
fn pages_come_from_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("down.html");
    std::fs::write(&file, "<p>${title}").expect("a file");
    made(json!([{ "at": ["5xx"], "html": { "file": file } }])).unwrap_or_else(|e| panic!("{e}"));
    std::fs::write(&file, "<p>${titel}").expect("a file");
    let e = made(json!([{ "at": ["5xx"], "html": { "file": file } }])).err().expect("a mistake");
    assert!(e.to_string().contains("${titel}"), "{e}");
}

#[test]
fn mistakes() {
    for (config, message) in [
        (json!([]), "no page"),
        (json!([{ "at": [], "html": "x" }]), "no failure"),
        (json!([{ "at": [404] }]), "no text"),
        (json!([{ "at": [200], "html": "x" }]), "`200` is no failure"),
        (json!([{ "at": ["over-quotta"], "html": "x" }]), "did you mean `over-quota`"),
        (json!([{ "at": ["5xx"], "html": "${secret}" }]), "means nothing here"),
        (json!([{ "at": ["5xx"], "html": "${status" }]), "means nothing here"),
        (json!([{ "at": ["5xx"], "html": { "file": "/no/such" } }]), "/no/such"),
        (json!([{ "at": ["5xx"], "html": "x", "jsonType": "a/b" }]), "no `json`"),
        (json!([{ "at": ["5xx"], "html": "x", "for": "others" }]), "unknown value"),
    ] {
        let found = made(config.clone()).err().unwrap_or_else(|| panic!("{config}")).to_string();
        assert!(found.contains(message), "{config}: {found}");
    }
}

proptest! {
    #[test]
    fn no_request_id_leaves_its_place(id in "\\PC{0,20}") {
        let facts = Facts { status: StatusCode::BAD_GATEWAY, reason: "reset", title: "t", request_id: &id };
        let html = Template::compile("<p>${requestId}</p>", Escape::Html).expect("a template").render(&facts);
        prop_assert_eq!(html.matches('<').count(), 2);
        let json = Template::compile(r#"{"id":"${requestId}"}"#, Escape::Json).expect("a template").render(&facts);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,30}", accept in "\\PC{0,30}") {
        let _ = Template::compile(&text, Escape::Html);
        if let Ok(value) = HeaderValue::try_from(accept) {
            prefers_html(&HeaderMap::from_iter([(http::header::ACCEPT, value)]));
        }
    }
}

use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::Directory;
use crate::contract::filter::Verdict;

fn made(config: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(config)), &mut Estate::default().build("routes.orders", &Directory::default()))
}

fn asked(config: serde_json::Value, rq: &mut RequestCx) -> Verdict {
    decided(made(config).unwrap_or_else(|e| panic!("{e}")).on_request(rq))
}

#[test]
fn the_route_is_closed_with_a_problem_or_a_page() {
    let rq = &mut request("GET", "/");
    let Verdict::Fail(fault) = asked(json!({ "retryAfter": "10m" }), rq) else { panic!("closed") };
    assert_eq!((fault.reason, fault.status()), (Reason::Maintenance, StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(fault.headers.expect("there")[RETRY_AFTER], "600");

    let page = json!({ "status": 423, "body": "<h1>later</h1>", "contentType": "text/html", "retryAfter": "100ms" });
    let Verdict::Reply(reply) = asked(page.clone(), rq) else { panic!("a page") };
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()[CONTENT_TYPE]),
        (423, &HeaderValue::from_static("text/html"))
    );
    assert_eq!(
        (&reply.headers()[RETRY_AFTER], &reply.headers()[CACHE_CONTROL]),
        (&HeaderValue::from(1), &HeaderValue::from_static("no-store"))
    );

    rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    assert!(matches!(asked(page, rq), Verdict::Fail(_)), "a gRPC caller reads no page");
}

#[test]
fn those_who_work_on_it_get_in() {
    let config = json!({ "allow": "request.headers['x-key'] == 'k'", "allowIps": ["192.0.2.7", "10.0.0.0/8"] });
    let rq = &mut request("GET", "/");
    assert!(matches!(asked(config.clone(), rq), Verdict::Next), "by address");
    rq.client_ip = "192.0.2.8".parse().expect("an address");
    assert!(matches!(asked(config.clone(), rq), Verdict::Fail(_)));
    rq.headers.insert("x-key", HeaderValue::from_static("k"));
    assert!(matches!(asked(config, rq), Verdict::Next), "by key");
    assert!(matches!(asked(json!({ "enabled": false }), &mut request("GET", "/")), Verdict::Next));
}

#[test]
fn mistakes() {
    for (config, message) in [
        (json!({ "status": 200 }), "does not say"),
        (json!({ "contentType": "text/html" }), "no `body`"),
        (json!({ "body": "x", "contentType": "a\nb" }), "not the value"),
        (json!({ "allowIps": ["here"] }), "neither an address"),
    ] {
        let found = made(config.clone()).err().unwrap_or_else(|| panic!("{config}")).to_string();
        assert!(found.contains(message), "{config}: {found}");
    }
}

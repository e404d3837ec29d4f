//! JSON callers of a real gRPC server.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::common::{Onehop, descriptors, exchange, get, get_with};
use super::kit::{Server, python};

fn body(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn json_callers_reach_a_grpc_server() {
    let folder = tempfile::tempdir().expect("a folder");
    descriptors(folder.path());
    let set = folder.path().join("shop.pb");
    let (_server, address) = Server::start_on_a_port(python("shop_server.py").arg(&set));
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: shop, transcode: {{ descriptors: {}, services: [shop.v1.Shop] }}, to: shop }}]\n\
         services: {{ shop: {{ discover: {{ static: ['{address}'] }}, protocol: grpc }} }}\n",
        set.display()
    ));
    let to = onehop.at("web");

    // Path, query, metadata both ways; a number that JSON cannot hold is text.
    let answer = get_with(to, "a.example", "/v1/orders/o-1?states=PAID&page.size=3", "x-who: ann\r\n");
    assert_eq!((answer.status(), answer.header("x-order").as_deref()), (200, Some("o-1")), "{}", answer.text());
    let order = json!({ "name": "o-1", "totalCents": "9007199254740993", "state": "PAID", "lines": ["1", "3"],
        "labels": { "who": "ann" } });
    assert_eq!(body(&answer.body()), order);

    let post = |path: &str, text: &str| {
        let mut request = format!("POST {path} HTTP/1.1\r\nhost: a.example\r\ncontent-type: application/json\r\n");
        let _ = write!(request, "content-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
        exchange(to, request.as_bytes())
    };
    let made = post("/v1/shelves/s-1/orders?dryRun=true", r#"{"name":"o-2","labels":{"a":"grüße"}}"#);
    assert_eq!(body(&made.body()), json!({ "name": "s-1/o-2?", "labels": { "a": "grüße" } }), "{}", made.text());
    let wrong = post("/v1/shelves/s-1/orders", r#"{"nome":"o-2"}"#);
    assert_eq!(wrong.status(), 400, "{}", wrong.text());

    // A stream, whole and cut short by the server.
    let lines = |path: &str| -> Vec<Value> {
        let answer = get(to, "a.example", path);
        assert_eq!(answer.header("content-type").as_deref(), Some("application/x-ndjson"), "{}", answer.text());
        unchunked(&answer.body()).lines().map(body).collect()
    };
    let counted =
        |n: u8| if n == 0 { json!({ "name": "o" }) } else { json!({ "name": "o", "totalCents": n.to_string() }) };
    assert_eq!(lines("/v1/orders/o:watch"), [counted(0), counted(1), counted(2)]);
    let cut = lines("/v1/orders/o:watch?full=true");
    assert_eq!((cut.len(), &cut[3]["error"]["code"]), (4, &json!(15)), "{cut:?}");

    // The server's own failure, with its details; a call it does not have; and none at all.
    let failed = get(to, "a.example", "/v1/fail/x");
    let detail = json!({ "@type": "type.googleapis.com/shop.v1.Order", "name": "x" });
    assert_eq!(failed.status(), 400, "{}", failed.text());
    assert_eq!(body(&failed.body()), json!({ "code": 9, "message": "sold out", "details": [detail] }));
    assert_eq!(post("/v1/orders/o:cancel", "{}").status(), 501, "unimplemented");
    assert_eq!(get(to, "a.example", "/v2/nothing").status(), 404);
}

/// The data of a chunked body; one that is not chunked as it is.
fn unchunked(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { return body.to_owned() };
        let Some(data) = after.get(..size) else { return body.to_owned() };
        out.push_str(data);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    if out.is_empty() { body.to_owned() } else { out }
}

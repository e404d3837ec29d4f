use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::fixture::{Estate, section};
use crate::contract::Directory;
use crate::mesh::discover::stub::{self, Stub, followed, shown};

fn discover(config: Value) -> Arc<dyn Discover> {
    let directory = Directory::default();
    let mut estate = Estate::default();
    build(&section(config), &mut estate.build("services.stock", &directory)).unwrap_or_else(|e| panic!("{e}"))
}

fn range(revision: u64, values: &[&str]) -> Value {
    let kvs: Vec<Value> =
        values.iter().map(|v| json!({"key": STANDARD.encode("/s/1"), "value": STANDARD.encode(v)})).collect();
    json!({"header": {"cluster_id": "1", "revision": revision.to_string()}, "kvs": kvs, "count": kvs.len().to_string()})
}

#[test]
fn values_are_read() {
    let answer = range(
        9,
        &[
            "10.0.0.1:80\n",
            r#"{"address": "10.0.0.2:80", "weight": 3, "zone": "a", "labels": {"v": "2"}}"#,
            r#"{"Op": 0, "Addr": "10.0.0.3:80", "Metadata": {"v": "3"}}"#,
            "stock.shop:80",
            "{",
        ],
    );
    let answer = core::parse(answer.to_string().as_bytes()).expect("good");
    assert_eq!(answer.revision, 9);
    assert_eq!(shown(&answer.found), ["10.0.0.1:80 x1 ", "10.0.0.2:80 x3 a", "10.0.0.3:80 x1 "]);
    assert_eq!((answer.found[1].labels.find("v"), answer.found[2].labels.find("v")), (Some("2"), Some("3")));
    assert_eq!(answer.wrong.len(), 2, "{:?}", answer.wrong);
    assert!(answer.wrong[0].starts_with("/s/1: `stock.shop` is a name"), "{:?}", answer.wrong);
    assert!(core::parse(br#"{"error": "etcdserver: permission denied"}"#).is_err());
    let empty = core::parse(br#"{"header": {"revision": "4"}}"#).expect("no key is an answer");
    assert!(empty.found.is_empty());
}

#[test]
fn lines_of_a_watch_are_read() {
    assert_eq!(core::told(br#"{"result": {"created": true}}"#), Ok(Told::Nothing));
    assert_eq!(core::told(br#"{"result": {"events": [{"type": "DELETE", "kv": {}}]}}"#), Ok(Told::Changed));
    let compacted = br#"{"result": {"canceled": true, "compact_revision": "7", "cancel_reason": "compacted"}}"#;
    assert_eq!(core::told(compacted), Err("watch: compacted".to_owned()));
    assert!(core::told(br#"{"error": {"grpc_code": 14}}"#).is_err());
    assert!(core::told(b"<html>").is_err());
}

proptest! {
    /// A key is in the range exactly if it has the prefix.
    #[test]
    fn the_range_is_the_prefix(prefix in prop::collection::vec(any::<u8>(), 1..4), key in prop::collection::vec(any::<u8>(), 0..6)) {
        let end = core::range_end(&prefix);
        let inside = key >= prefix && (end == [0] || key < end);
        prop_assert_eq!(inside, key.starts_with(&prefix));
    }
}

#[tokio::test]
async fn a_change_is_read_and_a_login_renewed() {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = reads.clone();
    let stub = Stub::start(move |rq| {
        let (path, token) = (rq.uri().path().to_owned(), rq.headers().get(AUTHORIZATION).cloned());
        let count = count.clone();
        Box::pin(async move {
            if path == "/v3/auth/authenticate" {
                return stub::json(json!({"header": {}, "token": "t.1"}));
            }
            assert_eq!(token.expect("a token"), "t.1");
            match path.as_str() {
                "/v3/kv/range" => match count.fetch_add(1, SeqCst) {
                    0 => stub::json(range(5, &["10.0.0.1:80"])),
                    1 => stub::json(range(6, &["10.0.0.1:80", "10.0.0.2:80"])),
                    _ => stub::status(401),
                },
                _ => {
                    let lines = "{\"result\":{\"created\":true}}\n{\"result\":{\"events\":[{\"kv\":{}}]}}\n";
                    http::Response::new(http_body_util::Full::new(lines.into()))
                }
            }
        })
    })
    .await;
    let config = json!({"prefix": "/s/", "servers": [stub.url], "username": "u", "password": "p"});
    let mut reports = followed(&*discover(config));
    assert_eq!(shown(&reports.recv().await.expect("told").expect("good")), ["10.0.0.1:80 x1 "]);
    assert_eq!(reports.recv().await.expect("told").expect("good").len(), 2);
    assert!(reports.recv().await.expect("told").is_err_and(|why| why.contains("401")), "the token is worn out");
    let asked = stub.asked.lock().clone();
    assert_eq!(asked[0], "POST /v3/auth/authenticate {\"name\":\"u\",\"password\":\"p\"}");
    assert!(asked[1].contains("\"range_end\":\"L3Mw\""), "the prefix, one higher: {asked:?}");
    assert!(asked[2].contains("\"start_revision\":\"6\""), "{asked:?}");
}

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use prost_reflect::DescriptorPool;
use prost_reflect::prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::api::fixture::{Estate, request, section};
use crate::contract::entry::Directory;
use crate::contract::{BodyError, Moment};

/// The descriptor set of `tests/data/proto`, as a file.
fn set(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/proto");
    let mut compiler = protox::Compiler::new([root]).expect("the folder is there");
    compiler.include_imports(true).open_file("shop/shop.proto").expect("the proto compiles");
    let set = compiler.encode_file_descriptor_set();
    let file = dir.join("shop.pb");
    std::fs::write(&file, set).expect("write");
    file
}

fn config(file: &Path, more: Value) -> Value {
    let mut config = json!({ "descriptors": file, "services": ["shop.v1.Shop"] });
    config.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    config
}

struct Bed {
    filter: Arc<dyn Filter>,
    pool: DescriptorPool,
    _dir: tempfile::TempDir,
}

fn bed(more: Value) -> Bed {
    let dir = tempfile::tempdir().expect("a folder");
    let file = set(dir.path());
    let pool = DescriptorPool::decode(&*std::fs::read(&file).expect("read")).expect("a set");
    let node = section(config(&file, more));
    let filter = build(Some(&node), &mut Estate::default().build("routes.shop", &Directory::default()));
    Bed { filter: filter.unwrap_or_else(|e| panic!("{e}")), pool, _dir: dir }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn done(step: Step<'_>) -> Verdict {
    match step {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => runtime().block_on(later),
    }
}

fn read(body: Body) -> Result<Vec<u8>, Reason> {
    runtime().block_on(body.collect()).map(|all| all.to_bytes().to_vec()).map_err(|fault| fault.reason)
}

impl Bed {
    /// What goes upstream: the call and its message as JSON.
    fn sent(&self, method: &str, target: &str, body: &str) -> Result<(String, Value), Box<Fault>> {
        let mut rq = request(method, target);
        rq.body = Body::full(body.to_owned());
        match done(self.filter.on_request(&mut rq)) {
            Verdict::Next => {
                assert_eq!(
                    (rq.method.as_str(), &rq.headers[CONTENT_TYPE]),
                    ("POST", &HeaderValue::from_static("application/grpc"))
                );
                assert!(rq.scratch.find::<Dialect>().is_some_and(|d| d.grpc.is_none()));
                let frame = read(rq.body).expect("whole");
                assert_eq!(
                    (frame[0], u32::from_be_bytes(frame[1..5].try_into().expect("four")) as usize),
                    (0, frame.len() - 5)
                );
                let name = rq.target.path().rsplit('/').next().expect("a method").to_owned();
                let service = self.pool.get_service_by_name("shop.v1.Shop").expect("the service");
                let input = service.methods().find(|m| m.name() == name).expect("the method").input();
                let message = DynamicMessage::decode(input, &frame[5..]).expect("a message");
                Ok((rq.target.to_string(), serde_json::to_value(message).expect("JSON")))
            }
            Verdict::Fail(fault) => Err(fault),
            Verdict::Reply(_) => panic!("it never answers by itself"),
        }
    }

    fn message(&self, json: Value) -> Vec<u8> {
        let order = self.pool.get_message_by_name("shop.v1.Order").expect("the message");
        message::frame(&DynamicMessage::deserialize(order, json).expect("an order")).expect("small")
    }

    /// What an answer of the service becomes.
    fn answered(
        &self,
        method: &str,
        target: &str,
        accept: &'static str,
        rs: ResponseCx,
    ) -> Result<(u16, HeaderMap, String), Reason> {
        let mut rq = request(method, target);
        rq.headers.insert(ACCEPT, HeaderValue::from_static(accept));
        assert!(matches!(done(self.filter.on_request(&mut rq)), Verdict::Next), "{method} {target}");
        let mut rs = rs;
        match done(self.filter.on_response(&mut rq, &mut rs)) {
            Verdict::Next => {
                let text = String::from_utf8(read(rs.body)?).expect("text");
                Ok((rs.status.as_u16(), rs.headers, text))
            }
            Verdict::Fail(fault) => Err(fault.reason),
            Verdict::Reply(_) => panic!("it never answers by itself"),
        }
    }
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (http::HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

fn answer(pieces: Vec<Vec<u8>>, trailers: &[(&'static str, &'static str)]) -> ResponseCx {
    let data = pieces.into_iter().map(|piece| Ok::<_, BodyError>(Frame::data(Bytes::from(piece))));
    let body = Body::stream(StreamBody::new(stream::iter(
        data.chain([Ok(Frame::trailers(fields(trailers)))]).collect::<Vec<_>>(),
    )));
    let headers = fields(&[("content-type", "application/grpc"), ("x-initial", "1")]);
    ResponseCx { status: StatusCode::OK, headers, body, origin: Origin::Upstream }
}

#[test]
fn requests_become_messages() {
    let bed = bed(json!({}));
    let get = "/shop.v1.Shop/Get";
    for (method, target, body, call, message) in [
        ("GET", "/v1/shelves/a/orders/7", "", get, json!({"name": "shelves/a/orders/7"})),
        ("GET", "/v1/orders/a%2Fb", "", get, json!({"name": "a/b"})),
        ("REPORT", "/v1/orders/7", "", get, json!({"name": "7"})),
        (
            "GET",
            "/v1/orders/7?full=true&states=PAID&states=0&since=2026-01-02T03:04:05Z&most=9&page.size=3&page.ratio=0.5&token=_-8",
            "",
            get,
            json!({
                "name": "7", "full": true, "states": ["PAID", "OPEN"], "since": "2026-01-02T03:04:05Z", "most": "9",
                "page": {"size": 3, "ratio": 0.5}, "token": "/+8="
            }),
        ),
        ("GET", "/v1/orders/7?name=forged", "", get, json!({"name": "7"})),
        (
            "POST",
            "/v1/shelves/s/orders?dryRun=true",
            r#"{"totalCents": "12", "state": "PAID", "lines": ["a"], "labels": {"k": "v"}}"#,
            "/shop.v1.Shop/Create",
            json!({"shelf": "s", "dryRun": true, "order": {"totalCents": "12", "state": "PAID", "lines": ["a"], "labels": {"k": "v"}}}),
        ),
        (
            "POST",
            "/v1/orders/7:cancel",
            r#"{"name": "forged", "total_cents": 5}"#,
            "/shop.v1.Shop/Cancel",
            json!({"name": "7", "totalCents": "5"}),
        ),
        ("POST", "/v1/orders/7:cancel", "", "/shop.v1.Shop/Cancel", json!({"name": "7"})),
    ] {
        let sent = bed
            .sent(method, target, body)
            .unwrap_or_else(|fault| panic!("{method} {target}: {fault} {:?}", fault.lists));
        assert_eq!(sent, (call.to_owned(), message), "{method} {target}");
    }
}

#[test]
fn what_is_not_offered_is_refused() {
    let bed = bed(json!({"limit": "64B"}));
    let long = format!(r#"{{"lines": ["{}"]}}"#, "x".repeat(80));
    for (method, target, body, reason, pointer) in [
        ("GET", "/v2/orders/7", "", Reason::NotDescribed, None),
        ("POST", "/v1/upload", "{}", Reason::NotDescribed, None),
        ("POST", "/shop.v1.Shop/Plain", "{}", Reason::NotDescribed, None),
        ("PUT", "/v1/orders/7", "", Reason::MethodRefused, None),
        ("GET", "/v1/orders/7?nope=1", "", Reason::InvalidRequest, Some("query.nope")),
        ("GET", "/v1/orders/7?full=maybe", "", Reason::InvalidRequest, Some("query.full")),
        ("GET", "/v1/orders/7?page=1", "", Reason::InvalidRequest, Some("query.page")),
        ("GET", "/v1/orders/7?full=%ff", "", Reason::InvalidRequest, Some("query")),
        ("GET", "/v1/orders/7", "{}", Reason::InvalidRequest, Some("")),
        ("POST", "/v1/orders/7:cancel", "{", Reason::InvalidRequest, Some("")),
        ("POST", "/v1/orders/7:cancel", r#"{"nope": 1}"#, Reason::InvalidRequest, Some("")),
        ("POST", "/v1/orders/7:cancel", r#"{"lines": "secret"}"#, Reason::InvalidRequest, Some("")),
        ("POST", "/v1/orders/7:cancel?state=PAID", "{}", Reason::InvalidRequest, Some("query.state")),
        ("POST", "/v1/shelves/s/orders", r#"{}, "shelf": "x""#, Reason::InvalidRequest, Some("")),
        ("POST", "/v1/shelves/s/orders?order.name=x", "{}", Reason::InvalidRequest, Some("query.order.name")),
        ("POST", "/v1/orders/7:cancel", &long, Reason::BodyTooLarge, None),
    ] {
        let fault = bed.sent(method, target, body).expect_err(target);
        assert_eq!(fault.reason, reason, "{method} {target} {body}");
        let first = fault.lists.as_ref().map(|lists| lists.errors[0].clone());
        assert_eq!(first.as_ref().map(|e| e.pointer.as_str()), pointer, "{method} {target} {body}");
        assert!(!format!("{fault} {first:?}").contains("secret"), "{first:?}");
        if reason == Reason::MethodRefused {
            assert_eq!(fault.headers.expect("fields")[ALLOW], "GET, REPORT");
        }
    }
}

#[test]
fn types_and_codings_of_bodies() {
    let bed = bed(json!({"unknown": "ignore"}));
    assert_eq!(
        bed.sent("POST", "/v1/orders/7:cancel?x=1", r#"{"nope": 1}"#).map(|s| s.1).ok(),
        Some(json!({"name": "7"}))
    );
    for (name, value) in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let mut rq = request("POST", "/v1/orders/7:cancel");
        rq.body = Body::full("{}");
        rq.headers.insert(name, HeaderValue::from_static(value));
        assert!(
            matches!(done(bed.filter.on_request(&mut rq)), Verdict::Fail(fault) if fault.reason == Reason::UnsupportedMedia)
        );
    }
    let mut rq = request("POST", "/shop.v1.Shop/Anything");
    rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
    assert!(matches!(bed.filter.on_request(&mut rq), Step::Done(Verdict::Next)), "gRPC passes");
    assert_eq!(rq.path(), "/shop.v1.Shop/Anything");
}

#[test]
fn calls_without_an_annotation() {
    let bed = bed(json!({"autoMapping": true}));
    assert_eq!(
        bed.sent("POST", "/shop.v1.Shop/Plain", r#"{"full": true}"#).ok(),
        Some(("/shop.v1.Shop/Plain".to_owned(), json!({"full": true})))
    );
}

#[test]
fn messages_become_answers() {
    let bed = bed(json!({}));
    let order = || bed.message(json!({"name": "7", "totalCents": "9007199254740993", "lines": ["a"]}));
    let text = r#"{"name":"7","totalCents":"9007199254740993","lines":["a"]}"#;
    let (status, headers, body) =
        bed.answered("GET", "/v1/orders/7", "", answer(vec![order()], &[("grpc-status", "0")])).expect("answered");
    assert_eq!((status, &*body), (200, text));
    assert_eq!(headers, fields(&[("content-type", "application/json"), ("x-initial", "1")]));

    let cancel = |rs| bed.answered("POST", "/v1/orders/7:cancel", "", rs).expect("answered").2;
    assert_eq!(cancel(answer(vec![order()], &[("grpc-status", "0")])), r#"["a"]"#, "response_body");
    assert_eq!(cancel(answer(vec![bed.message(json!({}))], &[("grpc-status", "0")])), "[]", "its default, too");

    let cut: Vec<Vec<u8>> = order().chunks(7).map(<[u8]>::to_vec).collect();
    let stream = || [cut.clone(), vec![order()]].concat();
    let (_, headers, body) =
        bed.answered("GET", "/v1/orders/7:watch", "", answer(stream(), &[("grpc-status", "0")])).expect("answered");
    assert_eq!(
        (headers[CONTENT_TYPE].as_bytes(), &*body),
        (&b"application/x-ndjson"[..], &*format!("{text}\n{text}\n"))
    );
    let late = [("grpc-status", "15"), ("grpc-message", "half%20gone")];
    let (_, headers, body) =
        bed.answered("GET", "/v1/orders/7:watch", "text/event-stream", answer(vec![order()], &late)).expect("answered");
    assert_eq!(headers[CONTENT_TYPE], "text/event-stream");
    assert_eq!(body, format!("data: {text}\n\nevent: error\ndata: {{\"code\":15,\"message\":\"half gone\"}}\n\n"));
    let (_, _, body) = bed
        .answered("GET", "/v1/orders/7:watch", "", answer(vec![order()[..6].to_vec()], &[("grpc-status", "0")]))
        .expect("answered");
    assert_eq!(body, "{\"error\":{\"code\":13,\"message\":\"the service ended within a message\"}}\n");
}

#[test]
fn options_of_the_mapping() {
    let bed = bed(json!({"json": {"defaults": true, "protoNames": true, "enumNumbers": true}}));
    let (.., body) = bed
        .answered(
            "GET",
            "/v1/orders/7",
            "",
            answer(vec![bed.message(json!({"state": "PAID"}))], &[("grpc-status", "0")]),
        )
        .expect("answered");
    assert_eq!(body, r#"{"name":"","total_cents":"0","state":1,"lines":[],"labels":{}}"#);
}

#[test]
fn errors_are_a_status_with_details() {
    let bed = bed(json!({}));
    for (code, http) in [
        ("1", 499),
        ("2", 500),
        ("3", 400),
        ("4", 504),
        ("5", 404),
        ("6", 409),
        ("7", 403),
        ("8", 429),
        ("9", 400),
        ("12", 501),
        ("14", 503),
        ("16", 401),
        ("77", 500),
        ("x", 500),
    ] {
        let (status, ..) =
            bed.answered("GET", "/v1/orders/7", "", answer(vec![], &[("grpc-status", code)])).expect("answered");
        assert_eq!(status, http, "{code}");
    }
    let any = bed.pool.get_message_by_name("google.rpc.Status").expect("the message");
    let details = DynamicMessage::deserialize(
        any,
        json!({
            "code": 5, "message": "gone", "details": [{"@type": "type.googleapis.com/shop.v1.Page", "size": 3}]
        }),
    )
    .expect("a status")
    .encode_to_vec();
    let details = base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, details);
    let mut rs = answer(vec![], &[]);
    rs.headers.extend(fields(&[("grpc-status", "5"), ("grpc-message", "gone%21")]));
    rs.headers.insert("grpc-status-details-bin", HeaderValue::try_from(details).expect("base64"));
    let (status, headers, body) = bed.answered("GET", "/v1/orders/7", "", rs).expect("answered");
    assert_eq!((status, headers.len()), (404, 2));
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        body,
        json!({"code": 5, "message": "gone!", "details": [{"@type": "type.googleapis.com/shop.v1.Page", "size": 3}]})
    );
}

#[test]
fn an_endpoint_that_is_no_grpc_service() {
    let bed = bed(json!({"limit": "16B"}));
    let ok = &[("grpc-status", "0")][..];
    for (pieces, reason) in [
        (vec![vec![1, 0, 0, 0, 0]], Reason::BodyUnusable),
        (vec![vec![0, 0, 0, 0, 9, 1]], Reason::BodyUnusable),
        (vec![vec![0, 0, 0, 0, 1, 0xff]], Reason::BodyUnusable),
        (vec![], Reason::BodyUnusable),
        (vec![vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0]], Reason::BodyUnusable),
        (vec![vec![0, 0, 0, 1, 0]], Reason::ResponseBodyTooLarge),
        (vec![vec![0; 64]], Reason::ResponseBodyTooLarge),
    ] {
        assert_eq!(
            bed.answered("GET", "/v1/orders/7", "", answer(pieces.clone(), ok)).map(|a| a.2),
            Err(reason),
            "{pieces:?}"
        );
    }
    assert_eq!(
        bed.answered("GET", "/v1/orders/7:watch", "", answer(vec![vec![1, 0, 0, 0, 0]], ok)).map(|a| a.2),
        Err(Reason::BodyUnusable)
    );
    let page = |status: u16, origin| ResponseCx {
        status: StatusCode::from_u16(status).expect("a status"),
        headers: fields(&[("content-type", "text/html")]),
        body: Body::full("<p>"),
        origin,
    };
    assert_eq!(
        bed.answered("GET", "/v1/orders/7", "", page(200, Origin::Upstream)).map(|a| a.2),
        Err(Reason::BodyUnusable)
    );
    assert_eq!(
        bed.answered("GET", "/v1/orders/7", "", page(503, Origin::Upstream)).map(|a| (a.0, a.2)),
        Ok((503, "<p>".to_owned()))
    );
    assert_eq!(
        bed.answered("GET", "/v1/orders/7", "", page(502, Origin::Fault)).map(|a| (a.0, a.2)),
        Ok((502, "<p>".to_owned()))
    );
}

#[test]
fn bad_sections_name_their_cure() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = set(dir.path());
    std::fs::write(dir.path().join("bad.pb"), "not a set").expect("write");
    for (bad, says) in [
        (config(&file, json!({"services": []})), "no service is offered"),
        (config(&file, json!({"services": ["shop.v1.Shops"]})), "did you mean `shop.v1.Shop`"),
        (config(&dir.path().join("none.pb"), json!({})), "none.pb"),
        (config(&dir.path().join("bad.pb"), json!({})), "protoc"),
        (config(&file, json!({"limit": "0B"})), "from 1B"),
        (config(&file, json!({"unknown": "drop"})), "refuse, ignore"),
        (config(&file, json!({"descriptor": "x"})), "did you mean `descriptors`"),
    ] {
        let e = build(Some(&section(bad.clone())), &mut Estate::default().build("routes.r", &Directory::default()));
        let e = e.err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
    let directory = Directory { http1: [("r".to_owned(), "old".to_owned())].into(), ..Directory::default() };
    let e = build(Some(&section(config(&file, json!({})))), &mut Estate::default().build("routes.r", &directory)).err();
    assert!(e.is_some_and(|e| e.to_string().contains("services.old")));
}

#[test]
fn a_changed_set_is_taken_and_a_bad_one_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = set(dir.path());
    let bytes = std::fs::read(&file).expect("read");
    let mut estate = Estate::default();
    let directory = Directory::default();
    let filter =
        build(Some(&section(config(&file, json!({})))), &mut estate.build("routes.r", &directory)).expect("builds");
    let covers = |path: &str| {
        let mut rq = request("GET", path);
        rq.deadline = Moment::MAX;
        matches!(done(filter.on_request(&mut rq)), Verdict::Next)
    };
    assert!(covers("/v1/orders/7") && !covers("/v9/orders/7"));
    // A path of the same length, so that the set stays one.
    let at = bytes.windows(17).position(|w| w == b"/v1/orders/{name}").expect("the template");
    let mut changed = bytes.clone();
    changed[at + 2] = b'9';
    let tasks = estate.publish();
    let follower = std::thread::spawn(move || runtime().block_on(futures_util::future::join_all(tasks)));
    let replace = |content: &[u8]| {
        std::fs::write(dir.path().join("new"), content).expect("write");
        std::fs::rename(dir.path().join("new"), &file).expect("rename");
    };
    replace(b"bad");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(covers("/v1/orders/7"), "the last good one stays");
    replace(&changed);
    let until = crate::contract::now() + std::time::Duration::from_secs(10);
    while !covers("/v9/orders/7") && crate::contract::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(covers("/v9/orders/7") && !covers("/v1/orders/7"), "the new one is in force");
    drop((filter, estate));
    follower.join().expect("it ends with what it serves");
}

proptest! {
    /// Whatever a service sends, it is read or refused.
    #[test]
    fn no_bytes_break_the_frames(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 1usize..9) {
        let mut frames = Frames::default();
        for piece in bytes.chunks(cut) {
            frames.push(piece);
            while let Ok(Some(message)) = frames.next(16) {
                prop_assert!(message.len() <= 16);
            }
        }
    }
}

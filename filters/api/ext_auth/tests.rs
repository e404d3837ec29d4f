use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ::http::header::{LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use ::http::{HeaderMap, Method, Request, Response};
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::core::{Changes, How};
use super::proto::{
    BoolValue, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpResponse, HttpStatus,
    OkHttpResponse, QueryParameter, Status,
};
use super::*;
use crate::api::fixture::{Estate, directory, request, section, services, settled};
use crate::contract::call::Answering;
use crate::contract::{Body, Services};

fn made(config: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(config)), &mut Estate::default().build("routes.orders", &directory(&["authz"])))
}

fn good(config: serde_json::Value) -> Arc<dyn Filter> {
    made(config).unwrap_or_else(|e| panic!("{e}"))
}

/// Whoever is asked by HTTP: keeps the questions.
#[derive(Default)]
struct Asked(Mutex<Vec<Request<Bytes>>>);

impl Asked {
    fn server(self: &Arc<Self>, answer: impl Fn() -> Response<Body> + Send + Sync + 'static) -> Arc<dyn Services> {
        let asked = self.clone();
        services(move |_, call| {
            let (asked, answer) = (asked.clone(), answer());
            Box::pin(async move {
                let (head, body) = call.request.into_parts();
                let body = body.collect().await.expect("whole").to_bytes();
                asked.0.lock().push(Request::from_parts(head, body));
                Ok(answer)
            })
        })
    }
    fn only(&self) -> Request<Bytes> {
        let mut asked = self.0.lock();
        assert_eq!(asked.len(), 1);
        asked.remove(0)
    }
}

fn answer(status: u16, fields: &[(&'static str, &'static str)], body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in fields {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

fn with(rq: &mut RequestCx, fields: &[(&'static str, &'static str)]) {
    for (name, value) in fields {
        rq.headers.append(*name, HeaderValue::from_static(value));
    }
}

#[tokio::test]
async fn forward_auth_describes_the_request_and_copies_what_is_listed() {
    let asked = Arc::new(Asked::default());
    let filter = good(json!({
        "http": { "service": "authz", "path": "/check?v=1" },
        "headers": { "toUpstream": ["x-user", "x-acme-*"], "toClient": ["set-cookie"] },
        "context": { "x-route": "r-${request.method}" },
    }));
    let mut rq = request("DELETE", "/v1/orders/7?x=1");
    let fields =
        &[("x-user", "yes"), ("x-other", "no"), ("x-acme-team", "red"), ("set-cookie", "a=1"), ("set-cookie", "b=2")];
    rq.services = asked.server(|| answer(204, fields, ""));
    with(
        &mut rq,
        &[
            ("authorization", "Bearer t"),
            ("cookie", "c=1"),
            ("x-user", "root"),
            ("x-acme-admin", "1"),
            ("accept", "*/*"),
        ],
    );
    assert!(matches!(settled(filter.on_request(&mut rq)).await, Verdict::Next));

    let question = asked.only();
    assert_eq!((question.method(), question.uri().to_string().as_str()), (&Method::GET, "/check?v=1"));
    let told = |name: &str| question.headers().get(name).map(|v| v.to_str().expect("text").to_owned());
    assert_eq!(told("x-forwarded-method").as_deref(), Some("DELETE"));
    assert_eq!(told("x-forwarded-uri").as_deref(), Some("/v1/orders/7?x=1"));
    assert_eq!(told("x-forwarded-host").as_deref(), Some("api.example.com:8443"));
    assert_eq!(told("x-forwarded-for").as_deref(), Some("192.0.2.7"));
    assert_eq!(told("authorization").as_deref(), Some("Bearer t"));
    assert_eq!(told("x-route").as_deref(), Some("r-DELETE"));
    assert_eq!(told("accept"), None, "not listed");

    assert_eq!(rq.headers["x-user"], "yes", "not what the caller says");
    assert_eq!(rq.headers["x-acme-team"], "red");
    assert!(!rq.headers.contains_key("x-acme-admin") && !rq.headers.contains_key("x-other"));
    assert_eq!(rq.reply_headers.iter().filter(|(n, _)| *n == SET_COOKIE).count(), 2);
}

#[tokio::test]
async fn a_prefix_keeps_method_and_path_and_the_body_streams_on() {
    let asked = Arc::new(Asked::default());
    let filter = good(json!({
        "http": { "service": "authz", "prefix": "/auth/" }, "body": { "limit": "4B", "allowPartial": true },
    }));
    let mut rq = request("PUT", "/a?b=c");
    rq.services = asked.server(|| answer(200, &[], ""));
    let chunks = ["abc", "def", "ghi"].map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes()))));
    rq.body = Body::stream(StreamBody::new(stream::iter(chunks)));
    assert!(matches!(settled(filter.on_request(&mut rq)).await, Verdict::Next));
    let question = asked.only();
    assert_eq!(question.uri().to_string(), "http://api.example.com:8443/auth/a?b=c");
    assert_eq!((question.method(), &question.body()[..]), (&Method::PUT, &b"abcd"[..]));
    assert_eq!(question.headers()["x-envoy-auth-partial-body"], "true");
    let body = std::mem::take(&mut rq.body).collect().await.expect("whole").to_bytes();
    assert_eq!(body, "abcdefghi", "the upstream gets all of it");

    let strict = good(json!({ "http": { "service": "authz", "path": "/" }, "body": { "limit": "4B" } }));
    let mut rq = request("PUT", "/");
    rq.body = Body::full("abcde");
    let Verdict::Fail(fault) = settled(strict.on_request(&mut rq)).await else { panic!("too long") };
    assert_eq!(fault.reason, Reason::BodyTooLarge);
}

#[tokio::test]
async fn refusals_go_to_the_client_as_they_are() {
    let filter = good(json!({ "http": { "service": "authz", "path": "/check" } }));
    let ask = async |answer: fn() -> Response<Body>, fields: &[(&'static str, &'static str)]| {
        let mut rq = request("GET", "/");
        rq.services = Arc::new(Asked::default()).server(answer);
        with(&mut rq, fields);
        settled(filter.on_request(&mut rq)).await
    };
    let challenge = || answer(401, &[("www-authenticate", "Basic"), ("connection", "close"), ("x-a", "b")], "who?");
    let Verdict::Reply(reply) = ask(challenge, &[]).await else { panic!("an answer") };
    assert_eq!(
        (reply.status(), &reply.headers()[WWW_AUTHENTICATE]),
        (StatusCode::UNAUTHORIZED, &"Basic".parse().expect("a value"))
    );
    assert!(reply.headers().contains_key("x-a") && !reply.headers().contains_key("connection"));
    assert_eq!(reply.into_body().collect().await.expect("whole").to_bytes(), "who?");

    let login =
        || answer(302, &[("location", "https://id.example/login"), ("set-cookie", "s=1"), ("set-cookie", "t=2")], "");
    let Verdict::Reply(reply) = ask(login, &[]).await else { panic!("a redirect") };
    assert_eq!((reply.status(), reply.headers().get_all(SET_COOKIE).iter().count()), (StatusCode::FOUND, 2));
    assert!(reply.headers().contains_key(LOCATION) && !reply.headers().contains_key(CONTENT_TYPE));

    let Verdict::Fail(fault) = ask(|| answer(451, &[], ""), &[]).await else { panic!("a problem") };
    assert_eq!((fault.reason, fault.status().as_u16()), (Reason::Forbidden, 451));
    let Verdict::Fail(fault) = ask(challenge, &[("content-type", "application/grpc")]).await else {
        panic!("a gRPC caller reads no body")
    };
    assert_eq!(fault.reason, Reason::Unauthenticated);
    assert!(fault.headers.expect("kept").contains_key(WWW_AUTHENTICATE));
}

#[tokio::test]
async fn nobody_passes_while_nobody_decides() {
    let fails: [fn() -> Answering; 3] = [
        || Box::pin(async { Err(Box::new(Fault::new(Reason::ConnectFailed))) }),
        || Box::pin(async { Ok(answer(500, &[], "")) }),
        || Box::pin(std::future::pending()),
    ];
    for play in fails {
        let ask = async |more: serde_json::Value| {
            let mut config = json!({ "http": { "service": "authz", "path": "/" }, "timeout": "10ms", "headers": { "toUpstream": ["x-user"] } });
            config.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
            let mut rq = request("GET", "/");
            rq.services = services(move |_, _| play());
            with(&mut rq, &[("x-user", "root")]);
            let verdict = settled(good(config).on_request(&mut rq)).await;
            assert!(!rq.headers.contains_key("x-user"), "whatever becomes of it");
            verdict
        };
        let Verdict::Fail(fault) = ask(json!({})).await else { panic!("closed") };
        assert_eq!((fault.reason, fault.status().as_u16()), (Reason::AuthorizationUnavailable, 503));
        let Verdict::Fail(fault) = ask(json!({ "statusOnError": 403 })).await else { panic!("closed") };
        assert_eq!(fault.status().as_u16(), 403);
        assert!(matches!(ask(json!({ "failOpen": true })).await, Verdict::Next));
    }
}

#[tokio::test]
async fn answers_are_remembered_by_what_the_config_says() {
    let count = Arc::new(AtomicUsize::new(0));
    let filter = good(json!({
        "http": { "service": "authz", "path": "/" }, "headers": { "toUpstream": ["x-user"] },
        "cache": { "by": "request.headers['authorization']", "ttl": "1h" },
    }));
    let ask = async |token: Option<&'static str>| {
        let mut rq = request("GET", "/");
        let count = count.clone();
        rq.services = services(move |_, call: Call| {
            count.fetch_add(1, SeqCst);
            let known = call.request.headers().get("authorization").is_some_and(|v| v == "good");
            Box::pin(async move { Ok(answer(if known { 200 } else { 403 }, &[("x-user", "ann")], "")) })
        });
        rq.headers.extend(token.map(|t| (AUTHORIZATION, HeaderValue::from_static(t))));
        (matches!(settled(filter.on_request(&mut rq)).await, Verdict::Next), rq.headers.contains_key("x-user"))
    };
    for _ in 0..3 {
        assert_eq!(ask(Some("good")).await, (true, true), "with what the answer said");
        assert_eq!(ask(Some("bad")).await, (false, false));
    }
    assert_eq!(count.load(SeqCst), 2);
    ask(None).await;
    ask(None).await;
    assert_eq!(count.load(SeqCst), 4, "no text, no memory");
}

fn grpc_answer(message: &CheckResponse) -> Response<Body> {
    let bytes = message.encode_to_vec();
    let framed = [&[0], &u32::try_from(bytes.len()).expect("short").to_be_bytes()[..], &bytes].concat();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    let frames = [Ok(Frame::data(framed.into())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(Body::stream(StreamBody::new(stream::iter(frames))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn option(key: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(proto::HeaderValue { key: key.into(), value: value.into(), ..proto::HeaderValue::default() }),
        append: append.map(|value| BoolValue { value }),
        append_action: action,
    }
}

#[tokio::test]
async fn the_question_by_grpc_says_everything() {
    let asked = Arc::new(Asked::default());
    let filter = good(json!({
        "grpc": { "service": "authz" }, "body": { "limit": "1KiB" }, "context": { "tenant": "t-${request.method}" },
    }));
    let mut rq = request("POST", "/v1/orders?x=1");
    with(&mut rq, &[("x-a", "1"), ("x-a", "2"), ("cookie", "a=1"), ("cookie", "b=2")]);
    rq.headers.insert("x-bytes", HeaderValue::from_bytes(b"a\xffb").expect("a value"));
    rq.body = Body::full("hello");
    rq.services =
        asked.server(|| grpc_answer(&CheckResponse { status: Some(Status { code: 0 }), http_response: None }));
    assert!(matches!(settled(filter.on_request(&mut rq)).await, Verdict::Next));
    let question = asked.only();
    assert_eq!(question.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
    let attributes = CheckRequest::decode(&question.body()[5..]).expect("a message").attributes.expect("there");
    assert_eq!(attributes.context_extensions["tenant"], "t-POST");
    let peer = |p: Option<proto::Peer>| p.and_then(|p| p.address?.socket_address).map(|a| (a.address, a.port_value));
    assert_eq!(peer(attributes.source), Some(("192.0.2.7".to_owned(), 5000)));
    assert_eq!(peer(attributes.destination), Some(("192.0.2.1".to_owned(), 80)));
    let http = attributes.request.and_then(|r| r.http).expect("there");
    assert_eq!((&*http.method, &*http.path, &*http.host), ("POST", "/v1/orders?x=1", "api.example.com:8443"));
    assert_eq!((&*http.body, http.size, &*http.protocol, &*http.id), ("hello", 5, "HTTP/1.1", "rid-1"));
    assert_eq!(http.headers["x-a"], "1,2");
    assert_eq!(http.headers["cookie"], "a=1; b=2");
    assert_eq!(http.headers["x-bytes"], "a\u{fffd}b");
    assert_eq!(http.headers[":path"], "/v1/orders?x=1");
    assert_eq!(http.headers["x-envoy-auth-partial-body"], "false");
}

async fn ruled(rq: &mut RequestCx, config: serde_json::Value, answer: CheckResponse) -> Verdict {
    let mut full = json!({ "grpc": { "service": "authz" } });
    full.as_object_mut().expect("a map").extend(config.as_object().expect("a map").clone());
    rq.services = Arc::new(Asked::default()).server(move || grpc_answer(&answer));
    settled(good(full).on_request(rq)).await
}

#[tokio::test]
async fn what_an_answer_by_grpc_changes() {
    let ok = OkHttpResponse {
        headers: vec![
            option("x-set", "new", None, 0),
            option("x-append", "new", Some(true), 0),
            option("x-absent", "new", None, 1),
            option("x-there", "new", None, 3),
            option("x-not-there", "new", None, 3),
            option("host", "evil.example", None, 0),
            option(":path", "/evil", None, 0),
            option("content-length", "1", None, 0),
        ],
        headers_to_remove: vec!["x-gone".into(), "host".into(), "not a name".into()],
        response_headers_to_add: vec![option("x-seen", "1", None, 0)],
        query_parameters_to_set: vec![QueryParameter { key: "u".into(), value: "a&b".into() }],
        query_parameters_to_remove: vec!["token".into()],
    };
    let answer = CheckResponse { status: Some(Status::default()), http_response: Some(HttpResponse::Ok(ok)) };
    let fields = [("x-set", "old"), ("x-append", "old"), ("x-absent", "old"), ("x-there", "old"), ("x-gone", "1")];
    let mut rq = request("GET", "/a?token=s&k=v&u=1&to%6ben=2");
    with(&mut rq, &fields);
    assert!(matches!(ruled(&mut rq, json!({}), answer.clone()).await, Verdict::Next));
    assert_eq!(rq.headers["x-set"], "new");
    assert_eq!(rq.headers.get_all("x-append").iter().collect::<Vec<_>>(), ["old", "new"]);
    assert_eq!(
        (&rq.headers["x-absent"], &rq.headers["x-there"]),
        (&"old".parse().expect("v"), &"new".parse().expect("v"))
    );
    for name in ["x-not-there", "x-gone", "host", "content-length"] {
        assert!(!rq.headers.contains_key(name), "{name}");
    }
    assert_eq!(rq.target, "/a?k=v&u=a%26b");
    assert_eq!(rq.reply_headers.len(), 1);

    let mut rq = request("GET", "/");
    with(&mut rq, &fields);
    let limits = json!({ "headers": { "toUpstream": ["x-set"], "toClient": ["x-other"] } });
    let _ = ruled(&mut rq, limits, answer).await;
    assert_eq!(
        (&rq.headers["x-set"], &rq.headers["x-there"]),
        (&"new".parse().expect("v"), &"old".parse().expect("v"))
    );
    assert!(rq.headers.contains_key("x-gone") && rq.reply_headers.is_empty());
}

#[tokio::test]
async fn refusals_by_grpc() {
    let denied = |code, body: &str, headers| {
        let denied = DeniedHttpResponse { status: Some(HttpStatus { code }), headers, body: body.into() };
        CheckResponse { status: Some(Status { code: 7 }), http_response: Some(HttpResponse::Denied(denied)) }
    };
    let rq = &mut request("GET", "/");
    let answer = denied(
        402,
        "{}",
        vec![
            option("content-type", "application/json", None, 0),
            option("set-cookie", "a", None, 0),
            option("set-cookie", "b", None, 0),
        ],
    );
    let Verdict::Reply(reply) = ruled(rq, json!({}), answer).await else { panic!("an answer") };
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()[CONTENT_TYPE]),
        (402, &"application/json".parse().expect("v"))
    );
    assert_eq!(reply.headers().get_all(SET_COOKIE).iter().count(), 2);

    let bare = |code| CheckResponse { status: Some(Status { code }), http_response: None };
    for (answer, reason, status) in [
        (bare(7), Reason::Forbidden, 403),
        (bare(16), Reason::Unauthenticated, 401),
        (denied(0, "", vec![]), Reason::Forbidden, 403),
        (denied(429, "", vec![]), Reason::Forbidden, 429),
        // What cannot be carried out decides nothing.
        (denied(7, "", vec![]), Reason::AuthorizationUnavailable, 503),
        (denied(403, "", vec![option("bad name", "x", None, 0)]), Reason::AuthorizationUnavailable, 503),
        (denied(403, "", vec![option("x", "a\nb", None, 0)]), Reason::AuthorizationUnavailable, 503),
        (CheckResponse::default(), Reason::AuthorizationUnavailable, 503),
        (
            CheckResponse { status: Some(Status { code: 0 }), ..denied(403, "", vec![]) },
            Reason::AuthorizationUnavailable,
            503,
        ),
    ] {
        let shown = format!("{answer:?}");
        let Verdict::Fail(fault) = ruled(rq, json!({}), answer).await else { panic!("{shown}") };
        assert_eq!((fault.reason, fault.status().as_u16()), (reason, status), "{shown}");
    }
}

#[test]
fn nobody_is_asked_about_a_hypothetical_request() {
    let filter = good(json!({ "http": { "service": "authz", "path": "/" } }));
    let mut rq = request("GET", "/");
    rq.dry_run = true;
    assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)));
}

#[test]
fn mistakes() {
    let http = || json!({ "service": "authz", "path": "/" });
    let table = [
        (json!({}), "exactly one of `grpc` and `http`"),
        (json!({ "http": http(), "grpc": { "service": "authz" } }), "exactly one"),
        (json!({ "http": { "service": "authz" } }), "exactly one of `path`"),
        (json!({ "http": { "service": "authz", "path": "check" } }), "not a path"),
        (json!({ "grpc": { "service": "autz" } }), "there is no service `autz`"),
        (json!({ "http": http(), "statusOnError": 200 }), "nobody could decide"),
        (json!({ "http": http(), "timeout": "0s" }), "no time"),
        (json!({ "http": http(), "body": { "limit": "2MiB" } }), "so much of a body"),
        (json!({ "http": http(), "headers": { "toUpstream": ["*"] } }), "every field"),
        (json!({ "http": http(), "headers": { "toAuth": ["a b"] } }), "not the name"),
        (json!({ "http": http(), "cache": { "by": "1 +", "ttl": "1s" } }), ""),
        (json!({ "http": http(), "cache": { "by": "request.path", "ttl": "1s", "maxEntries": 0 } }), "not remembered"),
        (json!({ "http": http(), "context": { "not a name": "x" } }), "not the name"),
    ];
    for (config, message) in table {
        let found = made(config.clone()).err().unwrap_or_else(|| panic!("{config}")).to_string();
        assert!(found.contains(message), "{config}: {found}");
    }
}

proptest! {
    #[test]
    fn no_answer_panics_and_none_takes_the_engine_s_fields(
        names in proptest::collection::vec("[a-zA-Z:-]{0,18}|host|te|content-length|x-onehop-a", 0..6),
        value in "\\PC{0,12}",
        code in -5i32..700,
    ) {
        let options: Vec<_> = names.iter().map(|n| option(n, &value, None, 0)).collect();
        let ok = OkHttpResponse { headers: options.clone(), headers_to_remove: names, ..OkHttpResponse::default() };
        let all = Names::default();
        let answer = CheckResponse { status: Some(Status { code: 0 }), http_response: Some(HttpResponse::Ok(ok)) };
        if let Ok(Ruling::Allow(changes)) = grpc::ruling(answer, &all, &all) {
            prop_assert!(changes.fields.iter().all(|(n, _, how)| !core::is_ours(n) && *how == How::Set));
            prop_assert!(changes.remove.iter().all(|n| !core::is_ours(n)));
        }
        let denied = DeniedHttpResponse { status: Some(HttpStatus { code }), headers: options, body: value };
        let answer = CheckResponse { status: Some(Status { code: 7 }), http_response: Some(HttpResponse::Denied(denied)) };
        let _ = grpc::ruling(answer, &all, &all);
    }

    #[test]
    fn a_query_stays_one(query in "[ -~]{0,30}", key in "\\PC{1,8}", value in "\\PC{0,8}") {
        let Ok(target) = PathAndQuery::try_from(format!("/p?{query}")) else { return Ok(()) };
        let mut rq = request("GET", "/");
        rq.target = target;
        Changes { query: vec![(key, value)], ..Changes::default() }.apply(&mut rq);
        prop_assert_eq!(rq.path(), "/p");
        prop_assert!(rq.target.query().is_some_and(|q| !q.contains([' ', '#'])));
    }
}

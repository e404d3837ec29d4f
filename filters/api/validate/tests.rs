use http::HeaderMap;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, request, section};
use crate::contract::entry::Directory;

const ORDERS: &str = include_str!("../../../tests/data/orders.yaml");

struct Bed {
    filter: Arc<dyn Filter>,
    estate: Estate,
    dir: tempfile::TempDir,
}

fn try_build(dir: &std::path::Path, config: Value, estate: &mut Estate) -> Result<Arc<dyn Filter>, ConfigError> {
    let directory = Directory::default();
    let mut build = estate.build("routes.r", &directory);
    build.dir = dir.to_owned();
    super::build(Some(&section(config)), &mut build)
}

/// With `orders.yaml` and `money.json` beside the configuration.
fn bed(config: Value) -> Bed {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("orders.yaml"), ORDERS).expect("write");
    std::fs::write(dir.path().join("money.json"), r#"{"type": "integer", "minimum": 0}"#).expect("write");
    let mut estate = Estate::default();
    let filter = try_build(dir.path(), config, &mut estate).unwrap_or_else(|e| panic!("{e}"));
    Bed { filter, estate, dir }
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

fn rq(method: &str, target: &str, fields: &[(&'static str, &'static str)], body: &str) -> RequestCx {
    let mut rq = request(method, target);
    for (name, value) in fields {
        rq.headers.append(*name, HeaderValue::from_static(value));
    }
    rq.body = Body::full(body.to_owned());
    rq
}

/// `reason pointer pointer`, or nothing.
fn judged(verdict: Verdict) -> String {
    match verdict {
        Verdict::Next => String::new(),
        Verdict::Fail(fault) => {
            let pointers =
                fault.lists.iter().flat_map(|lists| &lists.errors).map(|mistake| format!(" {}", mistake.pointer));
            format!("{}{}", fault.reason, pointers.collect::<String>())
        }
        Verdict::Reply(_) => panic!("it never answers"),
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn bodies_against_a_schema() {
    let bed = bed(json!({
        "body": {"schema": {
            "type": "object", "required": ["id"], "additionalProperties": false,
            "properties": {"id": {"type": "integer"}, "price": {"$ref": "money.json"}, "mail": {"type": "string", "format": "email"}}
        }, "required": true},
        "limit": "100B", "maxDepth": 3
    }));
    let long = format!(r#"{{"id": 1{}}}"#, " ".repeat(100));
    for (fields, body, expected) in [
        (&[JSON][..], r#"{"id": 1, "price": 5}"#, ""),
        (&[("content-type", "application/problem+json; charset=utf-8")], r#"{"id": 1}"#, ""),
        (&[JSON], r#"{"id": "x", "price": -1}"#, "invalid-request /id /price"),
        (&[JSON], r#"{"a": 1}"#, "invalid-request  "),
        (&[JSON], r#"{"id": 1, "mail": "nobody"}"#, "invalid-request /mail"),
        (&[JSON], r#"{"id": 1, "id": 2}"#, "invalid-request "),
        (&[JSON], r#"{"id": [[[1]]]}"#, "invalid-request "),
        (&[JSON], "{", "invalid-request "),
        (&[JSON], "", "invalid-request "),
        (&[JSON], &long, "body-too-large"),
        (&[("content-type", "text/plain")], "{}", "unsupported-media"),
        (&[], "{}", "unsupported-media"),
        (&[JSON, ("content-encoding", "gzip")], "{}", "unsupported-media"),
    ] {
        let mut rq = rq("POST", "/", fields, body);
        assert_eq!(judged(done(bed.filter.on_request(&mut rq))), expected, "{body}");
        if expected.is_empty() {
            let read = runtime().block_on(http_body_util::BodyExt::collect(rq.body)).expect("whole").to_bytes();
            assert_eq!(read, body.as_bytes(), "it goes on as it came");
        }
    }
}

#[test]
fn queries_and_headers_against_a_schema() {
    let bed = bed(json!({
        "query": {"type": "object", "additionalProperties": false, "properties": {
            "page": {"type": "integer", "minimum": 1}, "tag": {"type": "array", "items": {"type": "string"}, "maxItems": 2}
        }},
        "headers": {"type": "object", "required": ["x-tenant"], "properties": {"x-tenant": {"pattern": "^[a-z]+$"}}}
    }));
    let tenant = ("x-tenant", "acme");
    for (target, fields, expected) in [
        ("/?page=2&tag=a&tag=b", &[tenant][..], ""),
        ("/?page=0", &[tenant], "invalid-request query.page"),
        ("/?page=1&page=2", &[tenant], "invalid-request query.page"),
        ("/?tag=a&tag=b&tag=c", &[tenant], "invalid-request query.tag"),
        ("/?other=1", &[tenant], "invalid-request query"),
        ("/?page=%ff", &[tenant], "invalid-request query"),
        ("/", &[], "invalid-request headers"),
        ("/", &[("x-tenant", "A1")], "invalid-request headers.x-tenant"),
    ] {
        assert_eq!(
            judged(done(bed.filter.on_request(&mut rq("GET", target, fields, "")))),
            expected,
            "{target} {fields:?}"
        );
    }
}

#[test]
fn requests_against_a_description() {
    let bed = bed(json!({"openapi": "orders.yaml"}));
    let form = ("content-type", "application/x-www-form-urlencoded");
    for (method, target, fields, body, expected) in [
        ("GET", "/api/orders/7", &[][..], "", ""),
        ("HEAD", "/api/orders/7", &[], "", ""),
        ("GET", "/api/orders/mine", &[], "", ""),
        ("GET", "/api/orders/abc", &[], "", "invalid-request path.id"),
        ("GET", "/api/orders/7?expand=lines&expand=total", &[], "", ""),
        ("GET", "/api/orders/7?expand=all", &[], "", "invalid-request query.expand/0"),
        (
            "GET",
            "/api/orders?filter%5Bmax%5D=9&ids=1,2&page=3",
            &[("x-trace", "1,2"), ("cookie", "a=1; sid=abc")],
            "",
            "",
        ),
        (
            "GET",
            "/api/orders?filter[max]=x&ids=1,b&page=3",
            &[("x-trace", "1,x")],
            "",
            "invalid-request query.ids/1 query.filter/max headers.x-trace/1",
        ),
        ("GET", "/api/orders", &[], "", "invalid-request query.page"),
        ("GET", "/api/orders?page=1", &[("cookie", "sid=x")], "", "invalid-request cookies.sid"),
        ("GET", "/api/none", &[], "", "not-described"),
        ("GET", "/orders/7", &[], "", "not-described"),
        ("PUT", "/api/orders", &[], "", "method-refused"),
        ("POST", "/api/orders", &[JSON], r#"{"lines": [{"sku": "a", "count": 1}], "note": null}"#, ""),
        (
            "POST",
            "/api/orders",
            &[JSON],
            r#"{"lines": [{"sku": "a", "count": 0}, {"sku": 1}]}"#,
            "invalid-request /lines/0/count /lines/1 /lines/1/sku",
        ),
        ("POST", "/api/orders", &[JSON], "", "invalid-request "),
        ("POST", "/api/orders", &[form], "note=hi&express=true", ""),
        ("POST", "/api/orders", &[form], "express=maybe", "invalid-request /express"),
        ("POST", "/api/orders", &[("content-type", "text/csv")], "a,b", ""),
        ("POST", "/api/orders", &[("content-type", "image/png")], "x", "unsupported-media"),
    ] {
        let verdict = done(bed.filter.on_request(&mut rq(method, target, fields, body)));
        if let Verdict::Fail(fault) = &verdict
            && fault.reason == Reason::MethodRefused
        {
            assert_eq!(fault.headers.as_ref().expect("fields")[ALLOW], "GET, POST");
        }
        assert_eq!(judged(verdict), expected, "{method} {target} {body}");
    }
}

/// What became of an answer to `GET /api/orders/7`.
fn answered(bed: &Bed, status: u16, fields: &[(&'static str, &'static str)], body: &str) -> String {
    let mut rq = rq("GET", "/api/orders/7", &[], "");
    assert_eq!(judged(done(bed.filter.on_request(&mut rq))), "");
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let status = StatusCode::from_u16(status).expect("a status");
    let mut rs = ResponseCx { status, headers, body: Body::full(body.to_owned()), origin: Origin::Upstream };
    judged(done(bed.filter.on_response(&mut rq, &mut rs)))
}

#[test]
fn answers_against_a_description() {
    let bed = bed(json!({"openapi": "orders.yaml", "response": "enforce", "limit": "64B"}));
    assert!(bed.filter.needs().response);
    let long = format!(r#"{{"id": 7{}}}"#, " ".repeat(64));
    for (status, fields, body, expected) in [
        (200, &[JSON][..], r#"{"id": 7}"#, ""),
        (200, &[JSON], r#"{"id": "7"}"#, "invalid-response /id"),
        (200, &[JSON], "{", "invalid-response "),
        (200, &[JSON], "", "invalid-response "),
        (200, &[JSON], &long, "response-body-too-large"),
        (200, &[("content-type", "text/html")], "<p>", "invalid-response headers.content-type"),
        (404, &[("content-type", "application/problem+json")], r#"{"title": "x"}"#, ""),
        (404, &[("content-type", "application/problem+json")], "{}", "invalid-response "),
        (304, &[], "", ""),
        (201, &[JSON], "{}", "invalid-response status"),
    ] {
        assert_eq!(answered(&bed, status, fields, body), expected, "{status} {body}");
    }
    let bed = self::bed(json!({"openapi": "orders.yaml", "response": "shadow"}));
    assert_eq!(answered(&bed, 200, &[JSON], r#"{"id": "7"}"#), "", "only counted");
    let bed = self::bed(json!({"openapi": "orders.yaml"}));
    assert!(!bed.filter.needs().response);
}

#[test]
fn a_shadow_refuses_nothing_and_touches_nothing() {
    let bed =
        bed(json!({"body": {"schema": {"type": "object"}}, "openapi": "orders.yaml", "shadow": true, "limit": "4B"}));
    for (method, target, fields, body) in [
        ("GET", "/api/none", &[][..], ""),
        ("POST", "/api/orders", &[JSON], "[]"),
        ("POST", "/api/orders", &[JSON], "[1, 2, 3, 4]"),
        ("POST", "/api/orders", &[("content-type", "image/png")], "x"),
    ] {
        let mut rq = rq(method, target, fields, body);
        assert_eq!(judged(done(bed.filter.on_request(&mut rq))), "", "{target} {body}");
        let read = runtime().block_on(http_body_util::BodyExt::collect(rq.body)).expect("whole").to_bytes();
        assert_eq!(read, body.as_bytes());
    }
}

#[test]
fn mistakes_are_few_and_quote_nobody() {
    let bed = bed(json!({"body": {"schema": {
        "type": "object", "additionalProperties": false, "propertyNames": {"maxLength": 3},
        "properties": {"a": {"items": {"type": "integer"}}, "b": {"enum": ["x"]}, "c": {"const": 1}, "d": {"pattern": "^x"},
            "e": {"format": "ipv4"}, "f": {"uniqueItems": true}, "g": {"not": {}}, "h": {"anyOf": [{"type": "integer"}]},
            "i": {"minLength": 99}, "j": {"contains": {"type": "null"}}, "k": {"multipleOf": 7}}
    }}}));
    let hush = |name: &str| format!(r#""{name}": "hush-{name}""#);
    let members: Vec<String> = ["b", "c", "d", "e", "g", "h", "i", "hush1"].iter().map(|n| hush(n)).collect();
    let text = format!(
        r#"{{"a": [{}], "f": ["hush", "hush"], "j": ["hush"], "k": 5, {}}}"#,
        vec!["\"hush\""; 50].join(","),
        members.join(",")
    );
    let Verdict::Fail(fault) = done(bed.filter.on_request(&mut rq("POST", "/", &[JSON], &text))) else {
        panic!("refused")
    };
    let errors = fault.lists.expect("mistakes").errors;
    assert_eq!(errors.len(), 16);
    assert!(errors.iter().all(|mistake| !mistake.detail.contains("hush") && mistake.detail.len() <= 200), "{errors:?}");
    // Without the long list, every kind of mistake is told.
    let text = format!(r#"{{"f": ["hush", "hush"], "j": ["hush"], "k": 5, {}}}"#, members.join(","));
    let Verdict::Fail(fault) = done(bed.filter.on_request(&mut rq("POST", "/", &[JSON], &text))) else {
        panic!("refused")
    };
    let errors = fault.lists.expect("mistakes").errors;
    assert!(errors.len() >= 12 && errors.iter().all(|mistake| !mistake.detail.contains("hush")), "{errors:#?}");
}

#[test]
fn references_stay_in_the_folder_of_the_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    let inside = dir.path().join("conf");
    std::fs::create_dir(&inside).expect("a folder");
    std::fs::write(dir.path().join("secret.json"), "{}").expect("write");
    std::os::unix::fs::symlink(dir.path().join("secret.json"), inside.join("link.json")).expect("a link");
    std::fs::write(inside.join("good.json"), r#"{"$defs": {"n": {"type": "integer"}}}"#).expect("write");
    for (reference, says) in [
        ("../secret.json", "not in the folder"),
        ("link.json", "not in the folder"),
        ("https://example.com/a.json", "not a file"),
        ("http://127.0.0.1:1/a.json", "not a file"),
        ("none.json", "none.json"),
        ("good.json#/$defs/m", "m"),
    ] {
        let e = try_build(&inside, json!({"body": {"schema": {"$ref": reference}}}), &mut Estate::default());
        let e = e.err().unwrap_or_else(|| panic!("{reference}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{reference}: {e}");
    }
    try_build(&inside, json!({"body": {"schema": {"$ref": "good.json#/$defs/n"}}}), &mut Estate::default())
        .expect("builds");
}

#[test]
fn bad_sections_name_their_cure() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in [
        ("two.yaml", "swagger: '2.0'\n"),
        ("lost.yaml", "openapi: 3.1.0\npaths: {/a: {get: {parameters: [{$ref: '#/components/parameters/x'}]}}}\n"),
        ("round.yaml", "openapi: 3.1.0\npaths: {/a: {$ref: '#/paths/~1a'}}\n"),
        ("style.yaml", "openapi: 3.1.0\npaths: {'/{a}': {get: {parameters: [{name: a, in: path, style: matrix}]}}}\n"),
        (
            "regex.yaml",
            "openapi: 3.1.0\npaths: {/a: {get: {parameters: [{name: a, in: query, schema: {pattern: '('}}]}}}\n",
        ),
        ("yaml.yaml", "openapi: [\n"),
    ] {
        std::fs::write(dir.path().join(name), text).expect("write");
    }
    let schema = json!({"schema": {"type": "object"}});
    for (bad, says) in [
        (json!({}), "nothing to check"),
        (json!({"body": {}}), "`schema` is missing"),
        (json!({"body": {"schema": {"type": "objekt"}}}), "/type"),
        (json!({"body": {"schema": {"pattern": "("}}}), "("),
        (json!({"body": {"schema": {"pattern": "(?=a)"}}}), "(?=a)"),
        (json!({"body": {"schema": "none.json"}}), "none.json"),
        (json!({"body": {"schema": 7}}), "the name of a file"),
        (json!({"body": schema.clone(), "limit": "0B"}), "from 1B"),
        (json!({"body": schema.clone(), "maxDepth": 500}), "from 1 to 128"),
        (json!({"body": schema.clone(), "response": "enforce"}), "add `openapi`"),
        (json!({"body": schema.clone(), "basePath": "/a"}), "add `openapi`"),
        (json!({"body": schema, "response": "off"}), "skip, shadow, enforce"),
        (json!({"openapi": "two.yaml"}), "neither 3.0 nor 3.1"),
        (json!({"openapi": "lost.yaml"}), "leads nowhere"),
        (json!({"openapi": "round.yaml"}), "circles"),
        (json!({"openapi": "style.yaml"}), "`matrix`"),
        (json!({"openapi": "regex.yaml"}), "schema"),
        (json!({"openapi": "yaml.yaml"}), "yaml.yaml"),
        (json!({"openapi": "none.yaml"}), "none.yaml"),
        (json!({"openapi": "two.yaml", "basePath": "a"}), "does not begin"),
    ] {
        let e = try_build(dir.path(), bad.clone(), &mut Estate::default()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

#[test]
fn words_of_three_zero_are_understood() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = "openapi: 3.0.3\npaths: {/a: {post: {requestBody: {content: {application/json: {schema: {type: object, \
        properties: {n: {type: integer, nullable: true, minimum: 0, exclusiveMinimum: true}, e: {type: string, nullable: true, enum: [a]}}}}}}}}}\n";
    std::fs::write(dir.path().join("old.yaml"), text).expect("write");
    let filter =
        try_build(dir.path(), json!({"openapi": "old.yaml"}), &mut Estate::default()).unwrap_or_else(|e| panic!("{e}"));
    for (body, expected) in [
        (r#"{"n": null, "e": null}"#, ""),
        (r#"{"n": 1, "e": "a"}"#, ""),
        (r#"{"n": 0, "e": "b"}"#, "invalid-request /e /n"),
    ] {
        let mut got: Vec<String> = judged(done(filter.on_request(&mut rq("POST", "/a", &[JSON], body))))
            .split(' ')
            .map(str::to_owned)
            .collect();
        got[1..].sort();
        assert_eq!(got.join(" "), expected, "{body}");
    }
}

#[test]
fn a_changed_description_is_taken_and_a_bad_one_is_not() {
    let mut bed = bed(json!({"openapi": "orders.yaml"}));
    let tasks = bed.estate.publish();
    let follower = std::thread::spawn(move || runtime().block_on(futures_util::future::join_all(tasks)));
    let covers = |target: &str| judged(done(bed.filter.on_request(&mut rq("GET", target, &[], "")))).is_empty();
    let replace = |text: &str| {
        std::fs::write(bed.dir.path().join("new"), text).expect("write");
        std::fs::rename(bed.dir.path().join("new"), bed.dir.path().join("orders.yaml")).expect("rename");
    };
    assert!(covers("/api/orders/7"));
    replace("openapi: [");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(covers("/api/orders/7"), "the last good one stays");
    replace(&ORDERS.replace("/api", "/v2"));
    let until = crate::contract::now() + std::time::Duration::from_secs(10);
    while !covers("/v2/orders/7") && crate::contract::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(covers("/v2/orders/7") && !covers("/api/orders/7"));
    drop((bed.filter, bed.estate));
    follower.join().expect("it ends with what it serves");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is sent is judged, and never with more than it says.
    #[test]
    fn no_request_panics(path in "/(api/orders)?[/a-z0-9%]{0,8}", query in "[a-z=&%\\[\\]0-9,]{0,16}", body in "\\PC{0,12}") {
        use std::sync::OnceLock;
        static FILTER: OnceLock<Arc<dyn Filter>> = OnceLock::new();
        let filter = FILTER.get_or_init(|| bed(json!({"openapi": "orders.yaml"})).filter);
        if let Ok(target) = format!("{path}?{query}").parse() {
            let mut rq = rq("POST", "/", &[JSON], &body);
            rq.target = target;
            let _ = judged(done(filter.on_request(&mut rq)));
        }
    }
}

/// A process that leaves out what it may.
struct Busy;

impl crate::contract::Services for Busy {
    fn call(
        self: Arc<Self>,
        _: crate::contract::ServiceId,
        _: crate::contract::Call,
    ) -> crate::contract::call::Answering {
        Box::pin(async { Err(Box::new(Fault::new(Reason::NoEndpoint))) })
    }
    fn leaves_out(&self, work: Optional) -> bool {
        work == Optional::Validation
    }
}

#[test]
fn only_what_refuses_nothing_is_left_out() {
    for (config, looked) in [
        (json!({"openapi": "orders.yaml", "shadow": true}), false),
        (json!({"openapi": "orders.yaml", "shadow": true, "response": "shadow"}), false),
        (json!({"openapi": "orders.yaml", "shadow": true, "response": "enforce"}), true),
        (json!({"openapi": "orders.yaml"}), true),
    ] {
        let bed = bed(config.clone());
        let mut rq = rq("GET", "/nowhere", &[], "");
        rq.services = Arc::new(Busy);
        let step = bed.filter.on_request(&mut rq);
        assert_eq!(matches!(step, Step::Wait(_)), looked, "{config}");
    }
}

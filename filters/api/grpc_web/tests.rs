use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::entry::Directory;
use crate::contract::filter::Verdict;
use crate::contract::{BodyError, Fault, Origin, Reason};

fn filter() -> Arc<dyn Filter> {
    build(Some(&section(json!({}))), &mut Estate::default().build("routes.r", &Directory::default())).expect("builds")
}

fn frames(frames: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
    Body::stream(StreamBody::new(stream::iter(frames)))
}

fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

fn trailers(fields: &[(&'static str, &'static str)]) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::trailers(map(fields)))
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

fn read(body: Body) -> Result<Vec<u8>, Reason> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let all = runtime.block_on(body.collect()).map_err(|fault| fault.reason)?;
    assert!(all.trailers().is_none(), "gRPC-Web has none");
    Ok(all.to_bytes().to_vec())
}

fn framed(text: &str) -> Vec<u8> {
    let mut out = vec![0x80];
    out.extend(u32::try_from(text.len()).expect("small").to_be_bytes());
    out.extend(text.as_bytes());
    out
}

/// A call in this form, and what its answer becomes.
fn call(content_type: &'static str, accept: Option<&'static str>, rs: ResponseCx) -> (HeaderMap, Vec<u8>) {
    let filter = filter();
    let mut rq = request("POST", "/s.S/M");
    rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(accept) = accept {
        rq.headers.insert(ACCEPT, HeaderValue::from_static(accept));
    }
    assert!(matches!(decided(filter.on_request(&mut rq)), Verdict::Next));
    let mut rs = rs;
    assert!(matches!(decided(filter.on_response(&mut rq, &mut rs)), Verdict::Next));
    assert_eq!(rs.status, StatusCode::OK);
    (rs.headers, read(rs.body).expect("whole"))
}

fn answer(status: u16, fields: &[(&'static str, &'static str)], body: Body) -> ResponseCx {
    let status = StatusCode::from_u16(status).expect("a status");
    ResponseCx { status, headers: map(fields), body, origin: Origin::Upstream }
}

#[test]
fn requests_become_grpc() {
    for (web, grpc, text) in [
        ("application/grpc-web", "application/grpc", false),
        ("application/grpc-web+proto", "application/grpc+proto", false),
        ("Application/gRPC-Web+json; charset=utf-8", "application/grpc+json", false),
        ("application/grpc-web-text", "application/grpc", true),
        ("application/grpc-web-text+proto", "application/grpc+proto", true),
    ] {
        let mut rq = request("POST", "/s.S/M");
        rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static(web));
        let message = b"\0\0\0\0\x02hi".to_vec();
        rq.body = Body::full(if text { framing::encode(&message) } else { message.clone() });
        assert!(matches!(decided(filter().on_request(&mut rq)), Verdict::Next));
        assert_eq!(rq.headers[CONTENT_TYPE], grpc, "{web}");
        assert_eq!(read(rq.body), Ok(message), "{web}");
    }
}

#[test]
fn other_requests_are_not_touched() {
    for other in ["application/grpc", "application/grpc+proto", "application/grpc-webx", "application/json"] {
        let filter = filter();
        let mut rq = request("POST", "/");
        rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static(other));
        rq.body = Body::full("x");
        assert!(matches!(decided(filter.on_request(&mut rq)), Verdict::Next));
        assert!(rq.headers[CONTENT_TYPE] == other && matches!(rq.body, Body::Full(_)));
        let mut rs = answer(404, &[("content-type", "text/plain")], Body::full("x"));
        assert!(matches!(decided(filter.on_response(&mut rq, &mut rs)), Verdict::Next));
        assert_eq!((rs.status.as_u16(), read(rs.body)), (404, Ok(b"x".to_vec())));
    }
}

#[test]
fn a_text_that_is_none_is_refused() {
    for body in [frames(vec![data(b"AAE")]), frames(vec![data(b"AA"), data(b"!!")])] {
        let mut rq = request("POST", "/");
        rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc-web-text"));
        rq.body = body;
        assert!(matches!(decided(filter().on_request(&mut rq)), Verdict::Next));
        assert_eq!(read(rq.body), Err(Reason::BadBody));
    }
}

#[test]
fn trailers_are_the_last_frame() {
    let stream = || {
        let end = trailers(&[("grpc-status", "0"), ("x-end", "1")]);
        answer(
            200,
            &[("content-type", "application/grpc"), ("x-a", "1")],
            frames(vec![data(b"\0\0\0\0\x01a"), data(b""), end]),
        )
    };
    let (headers, body) = call("application/grpc-web+proto", None, stream());
    assert_eq!(headers, map(&[("content-type", "application/grpc-web+proto"), ("x-a", "1")]));
    assert_eq!(body, [b"\0\0\0\0\x01a".to_vec(), framed("grpc-status: 0\r\nx-end: 1\r\n")].concat());

    let (headers, text) = call("application/grpc-web-text", None, stream());
    assert_eq!(headers[CONTENT_TYPE], "application/grpc-web-text+proto");
    let mut decoded = Vec::new();
    framing::Decoder::default().push(&text, &mut decoded).expect("base64");
    assert_eq!(decoded, body);
    let (headers, binary) = call("application/grpc-web-text", Some("application/grpc-web"), stream());
    assert_eq!((headers[CONTENT_TYPE].as_bytes(), binary), (&b"application/grpc-web+proto"[..], body));
}

#[test]
fn a_failure_is_a_frame_whoever_had_it() {
    let only = [
        ("content-type", "application/grpc"),
        ("grpc-status", "5"),
        ("grpc-message", "not%20here"),
        ("retry-after", "1"),
    ];
    let (headers, body) = call("application/grpc-web", None, answer(200, &only, Body::Empty));
    assert_eq!(headers, map(&[("content-type", "application/grpc-web+proto"), ("retry-after", "1")]));
    assert_eq!(body, framed("grpc-status: 5\r\ngrpc-message: not%20here\r\n"));

    for (status, code) in [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (500, 2), (200, 2)] {
        let (_, body) =
            call("application/grpc-web", None, answer(status, &[("content-type", "text/html")], Body::full("<p>")));
        let message = format!("the service answered with status {status} and no gRPC");
        assert_eq!(body, framed(&format!("grpc-status: {code}\r\ngrpc-message: {message}\r\n")));
    }

    let cut = answer(200, &[("content-type", "application/grpc")], frames(vec![data(b"\0\0\0\0\0")]));
    let (_, body) = call("application/grpc-web", None, cut);
    assert!(body.ends_with(&framed("grpc-status: 2\r\ngrpc-message: the service ended without a status\r\n")));
}

#[test]
fn a_stream_that_breaks_off_breaks_off() {
    let mut rq = request("POST", "/");
    rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc-web"));
    let filter = filter();
    assert!(matches!(decided(filter.on_request(&mut rq)), Verdict::Next));
    assert!(
        rq.scratch
            .find::<Dialect>()
            .is_some_and(|d| d.grpc.as_ref().is_some_and(|t| t == "application/grpc-web+proto"))
    );
    let body = frames(vec![data(b"\0\0\0\0\0"), Err(Box::new(Fault::new(Reason::Reset)))]);
    let mut rs = answer(200, &[("content-type", "application/grpc")], body);
    assert!(matches!(decided(filter.on_response(&mut rq, &mut rs)), Verdict::Next));
    assert_eq!(read(rs.body), Err(Reason::Reset));
}

#[test]
fn a_service_of_http1_cannot_be_called() {
    let directory = Directory { http1: [("r".to_owned(), "old".to_owned())].into(), ..Directory::default() };
    let e =
        build(Some(&section(json!({}))), &mut Estate::default().build("routes.r", &directory)).err().expect("refused");
    assert!(e.to_string().contains("services.old"), "{e}");
    let e = build(Some(&section(json!({"x": 1}))), &mut Estate::default().build("routes.r", &directory)).err();
    assert!(e.is_some_and(|e| e.to_string().contains("unknown key `x`")));
}

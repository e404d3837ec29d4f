//! One table from a [`Fault`] to the answer the caller sees.
//!
//! HTTP callers get an RFC 9457 problem, gRPC callers a trailers-only answer, and a head that was refused before it
//! became a request gets raw HTTP/1.1 bytes. All three carry the reason's stable code and RFC 9209 `Proxy-Status`.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use onehop_filters::contract::{Body, Fault, Lists, Reason};

use crate::observe::json;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Longest `grpc-message` and `details` we write, in bytes: clients limit the size of a head too.
const MAX_TEXT: usize = 512;

/// What the answer depends on besides the fault.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `x-request-id`, which becomes the problem's `instance`.
    pub request_id: &'a [u8],
    /// HEAD: the answer has no body (RFC 9110 section 9.3.2).
    pub head: bool,
    /// The request's `content-type` if it is a gRPC call.
    pub grpc: Option<&'a HeaderValue>,
}

impl<'a> Asked<'a> {
    /// Reads the facts off a request.
    #[must_use]
    pub fn of(method: &Method, headers: &'a HeaderMap, request_id: &'a HeaderValue) -> Self {
        Self {
            request_id: request_id.as_bytes(),
            head: method == Method::HEAD,
            grpc: headers.get(CONTENT_TYPE).filter(|v| is_grpc(v)),
        }
    }
}

/// Whether a `content-type` announces gRPC or gRPC-Web.
#[must_use]
pub fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type
        .as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')) || rest.starts_with(b"-web"))
}

/// The answer to a request that failed.
#[must_use]
pub fn response(fault: &Fault, asked: &Asked<'_>) -> Response<Body> {
    match asked.grpc {
        Some(content_type) => grpc(fault, content_type),
        None => problem(fault, asked),
    }
}

fn problem(fault: &Fault, asked: &Asked<'_>) -> Response<Body> {
    let body = if asked.head { Body::Empty } else { Body::full(problem_json(fault, asked.request_id)) };
    let mut response = Response::new(body);
    *response.status_mut() = fault.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM);
    common(headers, fault);
    response
}

/// A "Trailers-Only" answer: the gRPC status stands in the head and there is no body
/// (gRPC over HTTP/2, "Responses"). gRPC-Web allows the same.
fn grpc(fault: &Fault, content_type: &HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.clone());
    headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(fault)));
    if let Ok(message) = HeaderValue::try_from(grpc_message(fault)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    common(headers, fault);
    response
}

/// Fields that every answer of ours carries, and those that come with the fault.
fn common(headers: &mut HeaderMap, fault: &Fault) {
    headers.insert(PROXY_STATUS, proxy_status(fault));
    // 404, 405, 414 and others may be cached without being asked to (RFC 9110 section 15.1); ours are about this moment.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in fault.headers.iter().flat_map(|h| h.iter()) {
        if ![CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, CONNECTION].contains(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    if momentary(fault.reason) && !headers.contains_key(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // RFC 9110 section 15.5.6: a 405 must have the field; empty means that no method is allowed.
    if fault.reason == Reason::MethodRefused && !headers.contains_key(ALLOW) {
        headers.insert(ALLOW, HeaderValue::from_static(""));
    }
}

/// Failures that pass by themselves soon: the caller is told to come back.
const fn momentary(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Overloaded
            | Reason::Draining
            | Reason::NoHealthyEndpoint
            | Reason::BreakerOpen
            | Reason::PendingOverflow
            | Reason::PendingTimeout
            | Reason::IdentityUnavailable
            | Reason::AuthorizationUnavailable
            | Reason::Shed
    )
}

/// RFC 9457 section 3, with the extension members `reason`, `filter` and, where identities were asked, `tried`.
fn problem_json(fault: &Fault, request_id: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(320);
    out.extend_from_slice(br#"{"type":"urn:onehop:problem:"#);
    out.extend_from_slice(fault.reason.code().as_bytes());
    out.extend_from_slice(br#"","title":"#);
    json::string(&mut out, fault.reason.title().as_bytes());
    out.extend_from_slice(br#","status":"#);
    out.extend_from_slice(fault.status().as_str().as_bytes());
    if !fault.detail.is_empty() {
        out.extend_from_slice(br#","detail":"#);
        json::string(&mut out, fault.detail.as_bytes());
    }
    if !request_id.is_empty() {
        // `instance` is a URI reference; an id of other characters is percent-encoded.
        out.extend_from_slice(br#","instance":"urn:onehop:request:"#);
        uri_encode(&mut out, request_id);
        out.extend_from_slice(br#"","request_id":"#);
        json::string(&mut out, request_id);
    }
    out.extend_from_slice(br#","reason":""#);
    out.extend_from_slice(fault.reason.code().as_bytes());
    out.push(b'"');
    if !fault.by.is_empty() {
        out.extend_from_slice(br#","filter":"#);
        json::string(&mut out, fault.by.as_bytes());
    }
    if let Some(Lists { tried, .. }) = fault.lists.as_deref() {
        let mut next: &[u8] = br#","tried":["#;
        for one in tried {
            out.extend_from_slice(next);
            next = b",";
            out.extend_from_slice(br#"{"identity":"#);
            json::string(&mut out, one.identity.as_bytes());
            out.extend_from_slice(br#","outcome":""#);
            out.extend_from_slice(one.outcome.as_bytes());
            out.push(b'"');
            if !one.why.is_empty() {
                out.extend_from_slice(br#","why":"#);
                json::string(&mut out, one.why.as_bytes());
            }
            out.push(b'}');
        }
        out.extend_from_slice(if tried.is_empty() { b"" } else { b"]" });
    }
    if let Some(Lists { errors, .. }) = fault.lists.as_deref() {
        let mut next: &[u8] = br#","errors":["#;
        for mistake in errors {
            out.extend_from_slice(next);
            out.extend_from_slice(br#"{"pointer":"#);
            json::string(&mut out, mistake.pointer.as_bytes());
            out.extend_from_slice(br#","detail":"#);
            json::string(&mut out, mistake.detail.as_bytes());
            out.push(b'}');
            next = b",";
        }
        if !errors.is_empty() {
            out.push(b']');
        }
    }
    out.extend_from_slice(b"}\n");
    out
}

fn uri_encode(out: &mut Vec<u8>, bytes: &[u8]) {
    for &b in bytes {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(b);
        } else {
            percent(out, b);
        }
    }
}

fn percent(out: &mut Vec<u8>, b: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
}

/// RFC 9209: `onehop; error=TOKEN; details="..."`. `details` is an RFC 8941 string: printable ASCII, `"` and `\` escaped.
#[must_use]
pub fn proxy_status(fault: &Fault) -> HeaderValue {
    let mut text = String::with_capacity(96);
    let _ = write!(text, "onehop; error={}; details=\"{}", fault.reason.proxy_error(), fault.reason.code());
    if !fault.by.is_empty() {
        text.push_str(" by ");
        sf_push(&mut text, fault.by);
    }
    if !fault.detail.is_empty() {
        text.push_str(": ");
        sf_push(&mut text, &fault.detail);
    }
    text.push('"');
    HeaderValue::try_from(text).expect("only printable ASCII was written")
}

fn sf_push(text: &mut String, words: &str) {
    for c in words.chars().take(MAX_TEXT) {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' => text.push(c),
            _ => text.push('?'),
        }
    }
}

/// The title and the detail, percent-encoded as gRPC over HTTP/2 asks ("Status-Message").
fn grpc_message(fault: &Fault) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    let detail = if fault.detail.is_empty() { "" } else { &*fault.detail };
    let gap = if detail.is_empty() { "" } else { " " };
    for b in [fault.reason.title(), gap, detail].iter().flat_map(|s| s.bytes()) {
        if out.len() >= MAX_TEXT {
            break;
        }
        match b {
            b'%' => percent(&mut out, b),
            b' '..=b'~' => out.push(b),
            _ => percent(&mut out, b),
        }
    }
    out
}

/// Status code of the gRPC answer: the reason's own meaning where gRPC has a word for it, else what
/// the "HTTP to gRPC Status Code Mapping" document gives for the HTTP status.
#[must_use]
pub fn grpc_status(fault: &Fault) -> u16 {
    const CANCELLED: u16 = 1;
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    if let Some(status) = fault.grpc {
        return status;
    }
    let reason = fault.reason;
    match reason {
        Reason::ClientGone => CANCELLED,
        // gRPC servers answer an oversized message with this; retrying the same call cannot help.
        Reason::BodyTooLarge | Reason::HeadTooLarge | Reason::UriTooLong | Reason::OverQuota => RESOURCE_EXHAUSTED,
        Reason::HeadTimeout | Reason::BodyTimeout => DEADLINE_EXCEEDED,
        Reason::BadBody | Reason::InvalidRequest => INVALID_ARGUMENT,
        // Unlike the other timeouts this one proves that the call never ran.
        Reason::ConnectTimeout => UNAVAILABLE,
        _ => match fault.status() {
            StatusCode::UNAUTHORIZED => UNAUTHENTICATED,
            StatusCode::FORBIDDEN => PERMISSION_DENIED,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => UNIMPLEMENTED,
            StatusCode::GATEWAY_TIMEOUT => DEADLINE_EXCEEDED,
            StatusCode::BAD_GATEWAY => match reason {
                Reason::BadResponse | Reason::ResponseTooLarge => INTERNAL,
                _ => UNAVAILABLE,
            },
            StatusCode::SERVICE_UNAVAILABLE => UNAVAILABLE,
            _ => INTERNAL,
        },
    }
}

/// A whole HTTP/1.1 answer for a head that was refused before any request existed. The connection ends with it.
#[must_use]
pub fn render_h1(fault: &Fault, request_id: &[u8]) -> Bytes {
    let body = problem_json(fault, request_id);
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, PROBLEM);
    common(&mut headers, fault);
    let status = fault.status();
    let mut out = Vec::with_capacity(384 + body.len());
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    // RFC 9110 section 6.6.1: whoever has a clock dates its answers.
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    let length = body.len().to_string();
    let fixed = [("connection", "close"), ("date", date.as_str()), ("content-length", length.as_str())];
    for (name, value) in fixed {
        field(&mut out, name, value.as_bytes());
    }
    for (name, value) in &headers {
        field(&mut out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(&body);
    out.into()
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use onehop_filters::contract::Mistake;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn read(response: Response<Body>) -> (http::response::Parts, Vec<u8>) {
        let (parts, body) = response.into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect()).expect("known bytes are ready");
        (parts, body.expect("known bytes do not fail").to_bytes().to_vec())
    }

    fn asked(request_id: &[u8]) -> Asked<'_> {
        Asked { request_id, head: false, grpc: None }
    }

    #[test]
    fn every_reason_is_a_problem() {
        for &reason in Reason::ALL {
            let fault = Fault::new(reason).detail("why \"so\"\n").by("quota");
            let (parts, body) = read(response(&fault, &asked(b"id-1")));
            assert_eq!(parts.status, reason.status());
            assert_eq!(parts.headers[CONTENT_TYPE], "application/problem+json");
            assert_eq!(parts.headers[CACHE_CONTROL], "no-store");
            let status = parts.headers["proxy-status"].to_str().expect("ASCII");
            let start = format!("onehop; error={}; details=\"{} by quota: ", reason.proxy_error(), reason.code());
            assert_eq!(status, format!(r#"{start}why \"so\"?""#));
            let problem: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(problem["type"], format!("urn:onehop:problem:{}", reason.code()));
            assert_eq!(problem["title"], reason.title());
            assert_eq!(problem["status"], reason.status().as_u16());
            assert_eq!(problem["detail"], "why \"so\"\n");
            assert_eq!(problem["instance"], "urn:onehop:request:id-1");
            assert_eq!(problem["reason"], reason.code());
            assert_eq!(problem["filter"], "quota");
        }
    }

    #[test]
    fn mistakes_are_listed() {
        let mistakes = |n: usize| {
            let one = |i| Mistake { pointer: format!("/a/{i}"), detail: "is \"wrong\"".to_owned() };
            Fault::new(Reason::InvalidRequest).errors((0..n).map(one).collect())
        };
        for n in [0, 1, 2] {
            let (_, body) = read(response(&mistakes(n), &asked(b"")));
            let problem: Value = serde_json::from_slice(&body).expect("JSON");
            let listed = problem["errors"].as_array().map_or(0, Vec::len);
            assert_eq!(listed, n);
            assert!(n == 0 || problem["errors"][n - 1]["detail"] == "is \"wrong\"", "{problem}");
        }
    }

    #[test]
    fn every_reason_is_a_grpc_status() {
        let content_type = HeaderValue::from_static("application/grpc+proto");
        for &reason in Reason::ALL {
            let fault = Fault::new(reason).detail("50 % für dich");
            let asked = Asked { grpc: Some(&content_type), ..asked(b"id") };
            let (parts, body) = read(response(&fault, &asked));
            assert_eq!(parts.status, StatusCode::OK, "{reason}");
            assert_eq!(parts.headers[CONTENT_TYPE], "application/grpc+proto");
            assert!(body.is_empty());
            let code: u16 = parts.headers["grpc-status"].to_str().expect("ASCII").parse().expect("a number");
            assert!((1..=16).contains(&code), "{reason} is not OK");
            let message = parts.headers["grpc-message"].to_str().expect("ASCII");
            assert!(message.ends_with("50 %25 f%C3%BCr dich"), "{message}");
        }
    }

    #[test]
    fn grpc_words() {
        let table = [
            (Reason::Unauthenticated, 16),
            (Reason::Forbidden, 7),
            (Reason::NoRoute, 12),
            (Reason::MethodRefused, 12),
            (Reason::OverQuota, 8),
            (Reason::BreakerOpen, 14),
            (Reason::ConnectFailed, 14),
            (Reason::ConnectTimeout, 14),
            (Reason::Deadline, 4),
            (Reason::BadRequest, 13),
            (Reason::BadResponse, 13),
            (Reason::Internal, 13),
            (Reason::ClientGone, 1),
        ];
        for (reason, code) in table {
            assert_eq!(grpc_status(&Fault::new(reason)), code, "{reason}");
        }
    }

    #[test]
    fn grpc_is_told_from_its_look_alikes() {
        let yes = ["application/grpc", "application/grpc+proto", "application/grpc;x=y", "application/grpc-web+proto"];
        for ok in yes {
            assert!(is_grpc(&HeaderValue::from_static(ok)), "{ok}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let id = HeaderValue::from_static("id");
        assert!(Asked::of(&Method::POST, &headers, &id).grpc.is_some());
        for no in ["application/grpcx", "application/json", "text/application/grpc"] {
            assert!(!is_grpc(&HeaderValue::from_static(no)), "{no}");
        }
    }

    #[test]
    fn a_filter_may_choose_the_status() {
        let fault = Fault::new(Reason::Injected).answer(StatusCode::IM_A_TEAPOT).grpc_status(8);
        let (parts, body) = read(response(&fault, &asked(b"id")));
        assert_eq!(parts.status, StatusCode::IM_A_TEAPOT);
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON")["status"], 418);
        let grpc = HeaderValue::from_static("application/grpc");
        let (parts, _) = read(response(&fault, &Asked { grpc: Some(&grpc), ..asked(b"id") }));
        assert_eq!((parts.status, &parts.headers["grpc-status"]), (StatusCode::OK, &HeaderValue::from_static("8")));
        let fault = Fault::new(Reason::Injected).answer(StatusCode::FORBIDDEN);
        assert_eq!(grpc_status(&fault), 7, "the status that was chosen is the one that is mapped");
    }

    #[test]
    fn head_has_no_body() {
        let headers = HeaderMap::new();
        let id = HeaderValue::from_static("id");
        let (parts, body) = read(response(&Fault::new(Reason::NoRoute), &Asked::of(&Method::HEAD, &headers, &id)));
        assert_eq!(parts.status, StatusCode::NOT_FOUND);
        assert!(body.is_empty());
    }

    #[test]
    fn fields_of_the_fault_are_kept_and_framing_is_ours() {
        let fault = Fault::new(Reason::Unauthenticated)
            .header(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            .header(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"))
            .header(CONTENT_LENGTH, HeaderValue::from_static("9999"));
        let (parts, _) = read(response(&fault, &asked(b"id")));
        assert_eq!(parts.headers.get_all(http::header::WWW_AUTHENTICATE).iter().count(), 2);
        assert!(!parts.headers.contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn retry_after_is_told_once() {
        let (parts, _) = read(response(&Fault::new(Reason::Draining), &asked(b"")));
        assert_eq!(parts.headers[RETRY_AFTER], "1");
        let fault = Fault::new(Reason::BreakerOpen).header(RETRY_AFTER, HeaderValue::from_static("30"));
        let (parts, _) = read(response(&fault, &asked(b"")));
        assert_eq!(parts.headers.get_all(RETRY_AFTER).iter().collect::<Vec<_>>(), ["30"]);
    }

    #[test]
    fn raw_answers_parse() {
        for &reason in Reason::ALL {
            let bytes = render_h1(&Fault::new(reason).detail("bad \u{7} line\r\nx: y"), b"a b\xff");
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let mut head = httparse::Response::new(&mut fields);
            let at = head.parse(&bytes).expect("valid").unwrap();
            assert_eq!(head.code, Some(reason.status().as_u16()));
            let value = |name: &str| head.headers.iter().find(|h| h.name == name).map(|h| h.value.to_vec());
            assert_eq!(value("connection").expect("there"), b"close");
            assert_eq!(value("content-length").expect("there"), (bytes.len() - at).to_string().into_bytes());
            assert!(value("date").is_some() && value("x").is_none());
            let problem: Value = serde_json::from_slice(&bytes[at..]).expect("JSON");
            assert_eq!(problem["instance"], "urn:onehop:request:a%20b%FF");
        }
    }

    proptest! {
        #[test]
        fn any_detail_is_safe(detail in any::<String>(), id in any::<Vec<u8>>(), pick in 0..Reason::ALL.len()) {
            let fault = Fault::new(Reason::ALL[pick]).detail(detail.clone());
            let (parts, body) = read(response(&fault, &asked(&id)));
            let status = parts.headers["proxy-status"].as_bytes();
            prop_assert!(status.iter().all(|b| (b' '..=b'~').contains(b)));
            let problem: Value = serde_json::from_slice(&body).expect("JSON");
            if !detail.is_empty() {
                prop_assert_eq!(problem["detail"].as_str(), Some(detail.as_str()));
            }
            let grpc = HeaderValue::from_static("application/grpc");
            let (parts, _) = read(response(&fault, &Asked { grpc: Some(&grpc), ..asked(&id) }));
            prop_assert!(parts.headers["grpc-message"].len() <= MAX_TEXT + 2);
        }
    }
}

//! What a request says of the browser behind it, and answers for it.

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, LOCATION, ORIGIN};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::contract::{Body, RequestCx};

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Longest URL that a login returns to; a longer one is given up for `/`.
const MAX_RETURN: usize = 2048;

fn field<'r>(rq: &'r RequestCx, name: &HeaderName) -> Option<&'r str> {
    rq.headers.get(name).and_then(|v| v.to_str().ok())
}

/// Whether somebody opens a page: only then a login page can be shown in its place. Scripts follow redirects to another
/// site in vain, so they are told 401.
pub fn is_navigation(rq: &RequestCx) -> bool {
    if rq.method != Method::GET || rq.headers.contains_key(&REQUESTED_WITH) {
        return false;
    }
    match field(rq, &SEC_FETCH_MODE) {
        Some(mode) => mode == "navigate" && field(rq, &SEC_FETCH_DEST).is_none_or(|dest| dest == "document"),
        None => field(rq, &ACCEPT).is_some_and(|accept| accept.to_ascii_lowercase().contains("text/html")),
    }
}

/// Whether a script asks, as far as the browser says.
pub fn is_script(rq: &RequestCx) -> bool {
    rq.headers.contains_key(&REQUESTED_WITH) || field(rq, &SEC_FETCH_MODE).is_some_and(|mode| mode != "navigate")
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Our own pages, or the user's own hand.
    Own,
    /// Another site's page.
    Other,
    /// The browser does not say.
    Unknown,
}

pub fn site(rq: &RequestCx) -> Site {
    match (field(rq, &SEC_FETCH_SITE), rq.headers.get(ORIGIN)) {
        (Some("same-origin" | "none"), _) => Site::Own,
        (Some(_), _) => Site::Other,
        (None, Some(from)) if from.as_bytes() == origin(rq).as_bytes() => Site::Own,
        (None, Some(_)) => Site::Other,
        (None, None) => Site::Unknown,
    }
}

/// Scheme and authority that the browser used.
pub fn origin(rq: &RequestCx) -> String {
    format!("{}://{}", if rq.https { "https" } else { "http" }, rq.authority)
}

/// Whether the browser is on this machine: then it trusts the way without TLS.
pub fn is_loopback(rq: &RequestCx) -> bool {
    let host = rq.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Where a login returns to: a path of this very host, or browsers could be sent anywhere with our word for it.
pub fn safe_return(target: &str) -> &str {
    let own = target.starts_with('/') && !target.starts_with("//") && !target.contains('\\');
    if own && target.len() <= MAX_RETURN { target } else { "/" }
}

/// Sends the browser elsewhere.
pub fn go_to(status: StatusCode, location: &str) -> Response<Body> {
    let mut reply = blank(status);
    match HeaderValue::try_from(location) {
        Ok(location) => drop(reply.headers_mut().insert(LOCATION, location)),
        Err(_) => *reply.status_mut() = StatusCode::BAD_GATEWAY,
    }
    reply
}

/// A page. It loads nothing and stands in no frame.
pub fn page(html: String) -> Response<Body> {
    let mut reply = blank(StatusCode::OK);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'");
    headers.insert(http::header::CONTENT_SECURITY_POLICY, policy);
    *reply.body_mut() = Body::full(html);
    reply
}

/// A JSON object.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut reply = blank(status);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *reply.body_mut() = Body::full(value.to_string());
    reply
}

/// Nothing of a login is kept by caches or told to other sites.
pub fn blank(status: StatusCode) -> Response<Body> {
    let mut reply = Response::new(Body::Empty);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.headers_mut().insert(http::header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    reply
}

/// For HTML text and attributes.
pub fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::request;

    fn with(method: &str, headers: &[(&'static str, &'static str)]) -> RequestCx {
        let mut rq = request(method, "/");
        for (name, value) in headers {
            rq.headers.insert(*name, HeaderValue::from_static(value));
        }
        rq
    }

    #[test]
    fn only_pages_are_redirected() {
        for (method, headers, page) in [
            ("GET", &[("accept", "text/html,*/*")][..], true),
            ("GET", &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")], true),
            ("GET", &[("sec-fetch-mode", "navigate")], true),
            ("GET", &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")], false),
            ("GET", &[("sec-fetch-mode", "cors"), ("accept", "text/html")], false),
            ("GET", &[("accept", "text/html"), ("x-requested-with", "XMLHttpRequest")], false),
            ("GET", &[("accept", "application/json")], false),
            ("GET", &[("accept", "*/*")], false),
            ("GET", &[], false),
            ("POST", &[("sec-fetch-mode", "navigate"), ("accept", "text/html")], false),
            ("HEAD", &[("accept", "text/html")], false),
        ] {
            assert_eq!(is_navigation(&with(method, headers)), page, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_return_stays_on_the_host() {
        for good in ["/", "/a?b=c&d=//e", "/a/b"] {
            assert_eq!(safe_return(good), good);
        }
        for bad in ["//evil.example/", "/\\evil.example", "https://evil.example/", "", "evil", "*"] {
            assert_eq!(safe_return(bad), "/", "{bad}");
        }
        assert_eq!(safe_return(&format!("/{}", "x".repeat(3000))), "/");
    }

    #[test]
    fn sites_are_told_apart() {
        for (headers, wanted) in [
            (&[("sec-fetch-site", "same-origin")][..], Site::Own),
            (&[("sec-fetch-site", "none")], Site::Own),
            (&[("sec-fetch-site", "same-site")], Site::Other),
            (&[("sec-fetch-site", "cross-site"), ("origin", "http://api.example.com:8443")], Site::Other),
            (&[("origin", "http://api.example.com:8443")], Site::Own),
            (&[("origin", "https://evil.example")], Site::Other),
            (&[("origin", "null")], Site::Other),
            (&[], Site::Unknown),
        ] {
            assert_eq!(site(&with("POST", headers)), wanted, "{headers:?}");
        }
    }
}

//! Who may ask for what. Pure.
//!
//! The danger on loopback is a browser: any page it shows can send requests to 127.0.0.1. A page cannot read answers
//! across origins, unless a name it controls is made to resolve to 127.0.0.1 (DNS rebinding); hence the check of `host`.
//! It can send requests blindly; hence no change of state for a request that a browser made for a page.

use std::net::IpAddr;

use http::header::{HOST, HeaderName, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};
use onehop_filters::contract::{Fault, Reason};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// From where a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Through the unix socket: the file mode has decided already, and no browser gets there.
    Unix,
    /// From this host.
    Loopback,
    /// From elsewhere.
    Remote,
}

impl Peer {
    /// Of a TCP peer.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.to_canonical().is_loopback() { Self::Loopback } else { Self::Remote }
    }
}

/// Refuses what a browser may have been tricked into, and what a remote peer may not see. `public`: health and metrics.
///
/// # Errors
/// 400 or 421 for the `host`, 403 for the rest.
pub fn check(request: &Parts, peer: Peer, public: bool) -> Result<(), Fault> {
    if peer != Peer::Unix {
        host(request)?;
    }
    let read = request.method == Method::GET || request.method == Method::HEAD;
    if peer == Peer::Remote && !(public && read) {
        return Err(Fault::new(Reason::Forbidden).detail("other hosts may only read health and metrics"));
    }
    if !read && made_by_a_page(request) {
        return Err(Fault::new(Reason::Forbidden).detail("web pages may change nothing here"));
    }
    Ok(())
}

/// Exactly one `host` (RFC 9112 section 3.2), and one that nobody's DNS decides about: an address or `localhost`.
fn host(request: &Parts) -> Result<(), Fault> {
    let mut named = 0;
    let fields = request.headers.get_all(HOST).iter().map(|h| Authority::try_from(h.as_bytes()).ok());
    // In absolute form the target's authority counts, and must agree with the rule all the same.
    for authority in fields.inspect(|_| named += 1).chain(request.uri.authority().cloned().map(Some)) {
        let Some(authority) = authority else {
            return Err(Fault::new(Reason::BadHost).detail("the host is malformed"));
        };
        if authority.as_str().contains('@') || !local(authority.host()) {
            return Err(Fault::new(Reason::Misdirected).detail("ask by IP address or as localhost"));
        }
    }
    match named {
        1 => Ok(()),
        0 if request.version == Version::HTTP_10 => Ok(()),
        _ => Err(Fault::new(Reason::BadHost).detail("exactly one host is needed")),
    }
}

fn local(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    // RFC 6761 section 6.3: `localhost` and the names below it are loopback, and browsers do not ask DNS for them.
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn made_by_a_page(request: &Parts) -> bool {
    let site = request.headers.get(SEC_FETCH_SITE).map(http::HeaderValue::as_bytes);
    request.headers.contains_key(ORIGIN) || site.is_some_and(|s| s != b"none")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/reload");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("valid").into_parts().0
    }

    fn verdict(method: &str, fields: &[(&str, &str)], peer: Peer, public: bool) -> Option<Reason> {
        check(&parts(method, fields), peer, public).err().map(|f| f.reason)
    }

    #[test]
    fn a_name_from_dns_is_refused() {
        for ok in
            ["localhost", "LOCALHOST:9901", "localhost.", "a.localhost:1", "127.0.0.1:9901", "[::1]:9901", "10.1.2.3"]
        {
            assert_eq!(verdict("GET", &[("host", ok)], Peer::Loopback, false), None, "{ok}");
        }
        for bad in
            ["evil.example", "evil.example:9901", "127.0.0.1.evil.example", "localhost.evil.example", "u@127.0.0.1"]
        {
            assert_eq!(verdict("GET", &[("host", bad)], Peer::Loopback, false), Some(Reason::Misdirected), "{bad}");
            assert_eq!(verdict("GET", &[("host", bad)], Peer::Unix, false), None, "no browser gets there");
        }
    }

    #[test]
    fn one_host_is_needed() {
        assert_eq!(verdict("GET", &[], Peer::Loopback, true), Some(Reason::BadHost));
        let two = [("host", "localhost"), ("host", "127.0.0.1")];
        assert_eq!(verdict("GET", &two, Peer::Loopback, true), Some(Reason::BadHost));
        assert_eq!(verdict("GET", &[("host", "a b")], Peer::Loopback, true), Some(Reason::BadHost));
        let mut old = parts("GET", &[]);
        old.version = Version::HTTP_10;
        assert!(check(&old, Peer::Loopback, true).is_ok());
        let mut absolute = parts("GET", &[("host", "localhost")]);
        absolute.uri = "http://evil.example/config".parse().expect("a target");
        assert_eq!(check(&absolute, Peer::Loopback, true).err().map(|f| f.reason), Some(Reason::Misdirected));
    }

    #[test]
    fn pages_change_nothing() {
        let host = ("host", "localhost");
        for extra in [("origin", "http://localhost:9901"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
            assert_eq!(verdict("POST", &[host, extra], Peer::Loopback, false), Some(Reason::Forbidden), "{extra:?}");
            assert_eq!(verdict("GET", &[host, extra], Peer::Loopback, false), None);
        }
        assert_eq!(verdict("POST", &[host], Peer::Loopback, false), None);
        assert_eq!(verdict("PUT", &[host, ("sec-fetch-site", "none")], Peer::Loopback, false), None);
    }

    #[test]
    fn others_read_what_is_public() {
        let host = &[("host", "10.0.0.1:9901")];
        assert_eq!(verdict("GET", host, Peer::Remote, true), None);
        assert_eq!(verdict("GET", host, Peer::Remote, false), Some(Reason::Forbidden));
        assert_eq!(verdict("POST", host, Peer::Remote, true), Some(Reason::Forbidden));
        assert_eq!(Peer::of("::ffff:127.0.0.1".parse().expect("an address")), Peer::Loopback);
        assert_eq!(Peer::of("192.0.2.1".parse().expect("an address")), Peer::Remote);
    }
}

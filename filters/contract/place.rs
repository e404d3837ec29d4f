//! Where credentials stand in a request: found, and taken out before the request goes upstream.

use http::header::COOKIE;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::request::RequestCx;

/// A place a credential can stand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<str>),
    /// A query parameter.
    Query(Box<str>),
}

/// What stands in a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// One credential.
    One(String),
    /// More than one, or one that is not text: never guessed between (two proxies may guess differently).
    Ambiguous,
}

impl Found {
    fn only(mut values: impl Iterator<Item = Option<String>>) -> Self {
        match (values.next(), values.next()) {
            (None, _) => Self::Absent,
            (Some(Some(one)), None) => Self::One(one),
            _ => Self::Ambiguous,
        }
    }
}

impl Place {
    /// Looks for it.
    #[must_use]
    pub fn find(&self, rq: &RequestCx) -> Found {
        match self {
            Self::Header(name) => {
                Found::only(rq.headers.get_all(name).iter().map(|v| v.to_str().ok().map(|v| v.trim().to_owned())))
            }
            Self::Cookie(name) => {
                Found::only(cookies(rq).filter(|(n, _)| *n == &**name).map(|(_, v)| v.map(ToOwned::to_owned)))
            }
            Self::Query(name) => Found::only(parameters(rq).filter(|p| is_named(p, name)).map(|p| {
                let value = p.split_once('=').map_or("", |(_, v)| v);
                percent_decode_str(value).decode_utf8().ok().map(std::borrow::Cow::into_owned)
            })),
        }
    }

    /// Removes it.
    pub fn strip(&self, rq: &mut RequestCx) {
        match self {
            Self::Header(name) => {
                rq.headers.remove(name);
            }
            Self::Cookie(name) => strip_cookies(rq, |cookie| cookie == name.as_bytes()),
            Self::Query(name) => {
                let kept: Vec<&str> = parameters(rq).filter(|p| !is_named(p, name)).collect();
                let target =
                    if kept.is_empty() { rq.path().to_owned() } else { format!("{}?{}", rq.path(), kept.join("&")) };
                rq.target = PathAndQuery::try_from(target).expect("parts of a valid target are a valid target");
            }
        }
    }
}

/// Removes a cookie and those whose names go on with a dot behind its name: the parts of a long one, and its helpers.
pub fn strip_cookie_family(rq: &mut RequestCx, name: &str) {
    let rest = |cookie: &[u8]| cookie.strip_prefix(name.as_bytes()).map(|rest| rest.is_empty() || rest[0] == b'.');
    strip_cookies(rq, |cookie| rest(cookie) == Some(true));
}

fn strip_cookies(rq: &mut RequestCx, is_ours: impl Fn(&[u8]) -> bool) {
    let kept: Vec<Vec<u8>> = rq.headers.get_all(COOKIE).iter().map(|line| keep(line, &is_ours)).collect();
    rq.headers.remove(COOKIE);
    for line in kept.into_iter().filter(|l| !l.is_empty()) {
        if let Ok(line) = HeaderValue::from_bytes(&line) {
            rq.headers.append(COOKIE, line);
        }
    }
}

/// RFC 6265 section 4.2.1. A line that is not text carries no cookie of ours.
fn cookies(rq: &RequestCx) -> impl Iterator<Item = (&str, Option<&str>)> {
    rq.headers.get_all(COOKIE).iter().filter_map(|l| l.to_str().ok()).flat_map(|line| {
        line.split(';').map(|pair| match pair.trim().split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (pair.trim(), None),
        })
    })
}

fn keep(line: &HeaderValue, is_ours: &impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let is_ours = |pair: &[u8]| {
        let end = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        is_ours(pair[..end].trim_ascii())
    };
    let kept: Vec<&[u8]> =
        line.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii).filter(|p| !is_ours(p)).collect();
    kept.join(b"; ".as_slice())
}

fn parameters(rq: &RequestCx) -> impl Iterator<Item = &str> {
    rq.target.query().unwrap_or_default().split('&').filter(|p| !p.is_empty())
}

fn is_named(pair: &str, name: &str) -> bool {
    let written = pair.split_once('=').map_or(pair, |(n, _)| n);
    written == name || percent_decode_str(written).decode_utf8().is_ok_and(|n| n == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::request;

    #[test]
    fn finds_one_and_refuses_to_guess() {
        let mut rq = request("GET", "/a?x=1&k%65y=s%20t&y");
        let query = Place::Query("key".into());
        assert_eq!(query.find(&rq), Found::One("s t".into()));
        query.strip(&mut rq);
        assert_eq!(rq.target, "/a?x=1&y");
        assert_eq!(query.find(&rq), Found::Absent);
        rq.target = "/a?key=1&key=2".parse().expect("a target");
        assert_eq!(query.find(&rq), Found::Ambiguous);
        query.strip(&mut rq);
        assert_eq!(rq.target, "/a");

        let cookie = Place::Cookie("sid".into());
        rq.headers.append(COOKIE, HeaderValue::from_static("a=1; sid=abc; b=2"));
        rq.headers.append(COOKIE, HeaderValue::from_static("c=3"));
        assert_eq!(cookie.find(&rq), Found::One("abc".into()));
        cookie.strip(&mut rq);
        let left: Vec<_> = rq.headers.get_all(COOKIE).iter().collect();
        assert_eq!(left, ["a=1; b=2", "c=3"]);

        rq.headers.insert(COOKIE, HeaderValue::from_static("sid=1; sid.0=2; sid.login.x=3; side=4"));
        strip_cookie_family(&mut rq, "sid");
        assert_eq!(rq.headers[COOKIE], "side=4");

        let header = Place::Header(HeaderName::from_static("x-api-key"));
        rq.headers.append("x-api-key", HeaderValue::from_static("k"));
        assert_eq!(header.find(&rq), Found::One("k".into()));
        rq.headers.append("x-api-key", HeaderValue::from_static("k"));
        assert_eq!(header.find(&rq), Found::Ambiguous, "two are refused even if they are equal");
        header.strip(&mut rq);
        assert_eq!(header.find(&rq), Found::Absent);
    }
}

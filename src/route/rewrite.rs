//! Rewritten targets and redirect locations. Pure.

use http::uri::{Authority, InvalidUri, PathAndQuery};
use http::{HeaderValue, StatusCode};
pub use onehop_filters::contract::rewrite::{replace_prefix, with_path};

use crate::config::plan::{PathRewrite, Redirect};

/// The target after a rewrite; `covered` is the length of the path that the route's prefix matched
/// (see [`super::Hit::covered`]).
///
/// # Errors
/// The configured path has bytes no URI may have.
pub fn rewrite(target: &PathAndQuery, covered: usize, rule: &PathRewrite) -> Result<PathAndQuery, InvalidUri> {
    match rule {
        PathRewrite::ReplaceFull(path) => with_path(target, path),
        PathRewrite::ReplacePrefix(replacement) => {
            let path = target.path();
            // Never a wrong cut: what is not a boundary of the path covers nothing.
            let prefix = path.get(..covered).unwrap_or("");
            with_path(target, &replace_prefix(path, prefix, replacement))
        }
    }
}

/// What a redirect needs of the request.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The client's scheme is https.
    pub https: bool,
    /// Host and optional port.
    pub authority: &'a Authority,
    /// Normalised path, and query.
    pub target: &'a PathAndQuery,
    /// See [`super::Hit::covered`].
    pub covered: usize,
}

/// Status and `Location` of a redirect.
///
/// A port is written if the rule names one, or if neither scheme nor host nor port is changed and the client used one;
/// the scheme's default port is never written.
///
/// # Errors
/// The configured parts do not make a URI.
pub fn redirect(asked: Asked<'_>, rule: &Redirect) -> Result<(StatusCode, HeaderValue), InvalidUri> {
    let asked_scheme = if asked.https { "https" } else { "http" };
    let scheme = rule.scheme.as_deref().unwrap_or(asked_scheme);
    let host = rule.host.as_deref().unwrap_or_else(|| asked.authority.host());
    let same_origin = rule.host.is_none() && scheme == asked_scheme;
    let port = rule.port.or_else(|| if same_origin { asked.authority.port_u16() } else { None });
    let port = port.filter(|p| !matches!((scheme, p), ("http", 80) | ("https", 443)));
    let target = match &rule.path {
        Some(path) => rewrite(asked.target, asked.covered, path)?,
        None => asked.target.clone(),
    };
    // `OPTIONS *` has no path to go to.
    let target = if target.as_str().starts_with('/') { target.as_str() } else { "" };
    let mut location = String::with_capacity(scheme.len() + host.len() + target.len() + 10);
    location.extend([scheme, "://", host]);
    if let Some(port) = port {
        location.push(':');
        location.push_str(itoa::Buffer::new().format(port));
    }
    location.push_str(target);
    let uri = http::Uri::try_from(location)?;
    // A parsed URI is visible ASCII.
    let value = HeaderValue::try_from(uri.to_string()).unwrap_or_else(|_| HeaderValue::from_static("/"));
    Ok((rule.status, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Redirect {
        Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND }
    }

    fn location(https: bool, authority: &'static str, target: &'static str, covered: usize, rule: &Redirect) -> String {
        let (authority, target) = (Authority::from_static(authority), PathAndQuery::from_static(target));
        let asked = Asked { https, authority: &authority, target: &target, covered };
        redirect(asked, rule).unwrap().1.to_str().unwrap().to_owned()
    }

    #[test]
    fn targets_are_rewritten() {
        let target = PathAndQuery::from_static("/foo/x?q=1");
        let prefix = |to: &str| PathRewrite::ReplacePrefix(to.to_owned());
        assert_eq!(rewrite(&target, 4, &prefix("/bar")).unwrap(), "/bar/x?q=1");
        assert_eq!(rewrite(&target, 4, &prefix("/")).unwrap(), "/x?q=1");
        assert_eq!(rewrite(&target, 0, &prefix("/bar")).unwrap(), "/bar/foo/x?q=1");
        assert_eq!(rewrite(&target, 999, &prefix("/bar")).unwrap(), "/bar/foo/x?q=1");
        assert_eq!(rewrite(&target, 4, &PathRewrite::ReplaceFull("/all".to_owned())).unwrap(), "/all?q=1");
    }

    #[test]
    fn redirects_change_only_what_is_asked() {
        let to = |f: &dyn Fn(&mut Redirect)| {
            let mut r = rule();
            f(&mut r);
            r
        };
        let https = to(&|r| r.scheme = Some("https".into()));
        assert_eq!(location(false, "a.com", "/x?y", 0, &https), "https://a.com/x?y");
        assert_eq!(location(false, "a.com:80", "/x", 0, &https), "https://a.com/x");
        assert_eq!(location(false, "a.com:8080", "/x", 0, &https), "https://a.com/x");
        let host = to(&|r| r.host = Some("b.org".into()));
        assert_eq!(location(true, "a.com:8443", "/x", 0, &host), "https://b.org/x");
        assert_eq!(location(false, "[::1]:8080", "/x", 0, &https), "https://[::1]/x");
        let port = to(&|r| r.port = Some(8443));
        assert_eq!(location(true, "a.com", "/x", 0, &port), "https://a.com:8443/x");
        let default_port = to(&|r| (r.scheme, r.port) = (Some("https".into()), Some(443)));
        assert_eq!(location(false, "a.com:8080", "/", 0, &default_port), "https://a.com/");
        let path = to(&|r| r.path = Some(PathRewrite::ReplacePrefix("/v1".into())));
        assert_eq!(location(false, "a.com:8080", "/old/x?q", 4, &path), "http://a.com:8080/v1/x?q");
        assert_eq!(location(false, "a.com:80", "/old", 4, &path), "http://a.com/v1");
        assert_eq!(location(false, "a.com", "*", 0, &https), "https://a.com/");
    }

    #[test]
    fn a_redirect_has_its_status() {
        let (authority, target) = (Authority::from_static("a.com"), PathAndQuery::from_static("/"));
        let asked = Asked { https: false, authority: &authority, target: &target, covered: 0 };
        let moved = Redirect { status: StatusCode::MOVED_PERMANENTLY, ..rule() };
        assert_eq!(redirect(asked, &moved).unwrap().0, StatusCode::MOVED_PERMANENTLY);
    }
}

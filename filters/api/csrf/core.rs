//! Whether a request may come from where it says: pure. The scheme is that of Go's `http.CrossOriginProtection` and of
//! tower-http's `csrf`, with `Referer` where a browser sends no `Origin`.

use http::{HeaderMap, HeaderName, Method};

pub const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The browser says that another site asked for it.
    CrossSite,
    /// An old browser, and the origin is not this host.
    OtherOrigin,
}

/// What a request is judged by.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    /// Host and port as the caller named them.
    pub authority: &'a str,
    pub https: bool,
}

/// Judges a request; `allowed` knows the origins of the config.
pub fn judge(asked: &Asked<'_>, allowed: impl Fn(&str) -> bool) -> Result<(), Refused> {
    if is_safe(asked) {
        return Ok(());
    }
    let origin = text(asked.headers, &http::header::ORIGIN);
    // A request that carries two is nobody's browser's.
    let exempt = || matches!(origin, Text::One(origin) if allowed(origin));
    match text(asked.headers, &SEC_FETCH_SITE) {
        // Lower case by the Fetch Metadata draft, section 2.3. `none`: the user typed it.
        Text::One("same-origin" | "none") => return Ok(()),
        Text::One("") | Text::Absent => {}
        Text::One(_) | Text::Unclear if exempt() => return Ok(()),
        Text::One(_) | Text::Unclear => return Err(Refused::CrossSite),
    }
    let source = match origin {
        Text::Absent | Text::One("") => text(asked.headers, &http::header::REFERER),
        other => other,
    };
    match source {
        // No browser: a cross-site request of one has at least one of the three.
        Text::Absent | Text::One("") => Ok(()),
        Text::One(source) if same_host(source, asked) || allowed(origin_of(source)) => Ok(()),
        Text::One(_) | Text::Unclear => Err(Refused::OtherOrigin),
    }
}

/// RFC 9110 section 9.2.1, but for what opens a WebSocket: it is a GET that carries cookies and asks no leave of CORS.
fn is_safe(asked: &Asked<'_>) -> bool {
    matches!(*asked.method, Method::GET | Method::HEAD | Method::OPTIONS)
        && !asked.headers.contains_key(SEC_WEBSOCKET_KEY)
}

enum Text<'a> {
    Absent,
    One(&'a str),
    /// Repeated, or not text.
    Unclear,
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Text<'a> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Text::Absent,
        (Some(line), None) => line.to_str().map_or(Text::Unclear, |line| Text::One(line.trim())),
        _ => Text::Unclear,
    }
}

/// `scheme://host[:port]` of an origin or of a URL.
fn origin_of(url: &str) -> &str {
    let Some((scheme, rest)) = url.split_once("://") else { return url };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    &url[..scheme.len() + 3 + end]
}

/// Browsers leave the scheme's own port out, callers may write it.
fn same_host(source: &str, asked: &Asked<'_>) -> bool {
    let Some((scheme, host)) = origin_of(source).split_once("://") else { return false };
    let plain = |host: &str, port: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    let port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return false,
    };
    // A page in the clear is anybody's who sits on the way: it may not act on an encrypted host. The other way round
    // somebody may end TLS in front of us without saying so.
    !(asked.https && scheme == "http") && plain(host, port) == plain(asked.authority, port)
}

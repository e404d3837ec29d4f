//! How long an answer stands and for which requests: RFC 9111 as `http-cache-semantics` reads it, with the two directives
//! of RFC 5861 that it leaves out.

use std::time::{Duration, SystemTime};

use http::header::{AGE, AUTHORIZATION, CACHE_CONTROL, DATE, ETAG, EXPIRES, LAST_MODIFIED, PRAGMA, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_cache_semantics::{BeforeRequest, CacheOptions, CachePolicy};

/// Response fields that decide about keeping.
const DECISIVE: [HeaderName; 8] = [CACHE_CONTROL, EXPIRES, DATE, AGE, PRAGMA, VARY, ETAG, LAST_MODIFIED];

/// What the configuration adds to what answers say.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Answers marked `private` may be kept.
    pub private: bool,
    /// Freshness of answers that say nothing.
    pub default_ttl: Duration,
    /// See RFC 5861.
    pub stale_if_error: Duration,
    /// See RFC 5861.
    pub stale_while_revalidate: Duration,
    /// Requests cannot demand anything.
    pub ignore_request: bool,
}

/// A request, as far as it decides about kept answers.
pub struct Asked(Box<Request<()>>);

impl Asked {
    /// `authenticated`: somebody was identified, and the key does not tell callers apart.
    pub fn new(headers: &HeaderMap, authenticated: bool, rules: &Rules) -> Self {
        let mut request = Request::new(());
        *request.method_mut() = Method::GET;
        let kept = request.headers_mut();
        kept.clone_from(headers);
        // The credential itself was taken away by the filter that checked it; it counts all the same.
        if authenticated {
            kept.insert(AUTHORIZATION, HeaderValue::from_static("-"));
        } else {
            kept.remove(AUTHORIZATION);
        }
        plain(kept);
        if rules.ignore_request {
            kept.remove(CACHE_CONTROL);
            kept.remove(PRAGMA);
        }
        Self(Box::new(request))
    }

    /// `only-if-cached` (RFC 9111 section 5.2.1.7).
    pub fn only_if_cached(&self) -> bool {
        directive(self.0.headers(), "only-if-cached").is_some()
    }
}

/// What a kept answer is worth to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Worth {
    /// Belongs to another request (`Vary`).
    Nothing,
    /// May be given, for so long.
    Fresh(Duration),
    /// May be given while a new one is fetched.
    WhileRevalidating,
    /// Must be checked first; may it stand in if that fails?
    Stale { if_error: bool },
}

/// See the module.
pub struct Freshness {
    policy: CachePolicy,
    /// How old it may get and still be fresh.
    lifetime: Duration,
    /// The request's fields that it varies by.
    varied: HeaderMap,
    /// For how long beyond its freshness it may stand in for a failure.
    if_error: Duration,
    /// For how long beyond its freshness it may be given while a new one is fetched.
    while_revalidating: Duration,
}

impl Freshness {
    /// `None`: the answer must not be kept.
    pub fn of(asked: &Asked, status: StatusCode, headers: &HeaderMap, rules: &Rules, now: SystemTime) -> Option<Self> {
        // A cookie is for one caller, whatever else the answer says; and what varies by everything fits nobody twice.
        if headers.contains_key(header::SET_COOKIE)
            || status == StatusCode::PARTIAL_CONTENT
            || headers.get_all(VARY).iter().any(|v| v.as_bytes().contains(&b'*'))
        {
            return None;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        for name in DECISIVE {
            for value in headers.get_all(&name) {
                response.headers_mut().append(&name, value.clone());
            }
        }
        plain(response.headers_mut());
        let silent = directive(headers, "max-age").is_none()
            && directive(headers, "s-maxage").is_none()
            && directive(headers, "no-cache").is_none()
            && !headers.contains_key(EXPIRES);
        if silent {
            if rules.default_ttl.is_zero() && !headers.contains_key(ETAG) && !headers.contains_key(LAST_MODIFIED) {
                return None;
            }
            let ttl = HeaderValue::try_from(format!("max-age={}", rules.default_ttl.as_secs())).ok()?;
            response.headers_mut().append(CACHE_CONTROL, ttl);
        }
        let options = CacheOptions { shared: !rules.private, cache_heuristic: 0.0, ..CacheOptions::default() };
        let policy = CachePolicy::new_options(&varying(asked, headers), &response, now, options);
        if !policy.is_storable() {
            return None;
        }
        // RFC 5861 section 4: these forbid any use without a successful check.
        let strict =
            ["must-revalidate", "proxy-revalidate", "no-cache"].iter().any(|d| directive(headers, d).is_some());
        // `s-maxage` implies `proxy-revalidate`, which only the answer itself can lift, not a default of ours.
        let implied = !rules.private && directive(headers, "s-maxage").is_some();
        let allowed = |name, default| match directive(headers, name).map(str::parse) {
            Some(Ok(seconds)) if !strict => Duration::from_secs(seconds),
            None if !strict && !implied => default,
            _ => Duration::ZERO,
        };
        let if_error = allowed("stale-if-error", rules.stale_if_error);
        let while_revalidating = allowed("stale-while-revalidate", rules.stale_while_revalidate);
        let useful = !policy.is_stale(now)
            || headers.contains_key(ETAG)
            || headers.contains_key(LAST_MODIFIED)
            || !(if_error + while_revalidating).is_zero();
        let lifetime = policy.time_to_live(now) + policy.age(now);
        let varied = varied(asked, headers);
        useful.then_some(Self { policy, lifetime, varied, if_error, while_revalidating })
    }

    /// What it is worth to a request now.
    pub fn worth(&self, asked: &Asked, now: SystemTime) -> Worth {
        match self.policy.before_request(&*asked.0, now) {
            BeforeRequest::Fresh(_) => Worth::Fresh(self.policy.time_to_live(now)),
            BeforeRequest::Stale { matches: false, .. } => Worth::Nothing,
            BeforeRequest::Stale { .. } => {
                let demanded = directive(asked.0.headers(), "no-cache").is_some()
                    || asked.0.headers().contains_key(PRAGMA)
                    || ["max-age", "min-fresh"].iter().any(|d| directive(asked.0.headers(), d).is_some());
                let past = self.past(now);
                if !demanded && past.is_some_and(|past| past < self.while_revalidating) {
                    Worth::WhileRevalidating
                } else {
                    Worth::Stale { if_error: past.is_none_or(|past| past < self.if_error) && !self.if_error.is_zero() }
                }
            }
        }
    }

    /// How long ago it went stale; `None`: it has not.
    fn past(&self, now: SystemTime) -> Option<Duration> {
        self.policy.is_stale(now).then(|| self.policy.age(now).saturating_sub(self.lifetime))
    }

    /// `Age` (RFC 9111 section 5.1).
    pub fn age(&self, now: SystemTime) -> Duration {
        self.policy.age(now)
    }

    /// Whether the other answers the same requests, so that one of the two is enough.
    pub fn covers(&self, other: &Self) -> bool {
        self.varied == other.varied
    }
}

/// The request as far as the answer depends on it, or its keeping does: the rest need not be remembered.
fn varying(asked: &Asked, response: &HeaderMap) -> Request<()> {
    let mut request = Request::new(());
    *request.headers_mut() = varied(asked, response);
    for name in [AUTHORIZATION, CACHE_CONTROL] {
        for value in asked.0.headers().get_all(&name) {
            request.headers_mut().append(&name, value.clone());
        }
    }
    request
}

/// The request fields that the answer names in `Vary`.
fn varied(asked: &Asked, response: &HeaderMap) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for name in vary(response) {
        for value in asked.0.headers().get_all(&name) {
            fields.append(&name, value.clone());
        }
    }
    fields
}

fn vary(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> + '_ {
    let names = headers.get_all(VARY).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    names.filter_map(|name| HeaderName::try_from(name.trim()).ok())
}

/// Puts what may be written in many ways as it is judged: directives in lower case (RFC 9111 section 5.2), and an `Age`
/// that is not one number of seconds as an age beyond any freshness (section 5.1: in doubt an answer is stale).
fn plain(headers: &mut HeaderMap) {
    if headers.get_all(CACHE_CONTROL).iter().any(|line| line.as_bytes().iter().any(u8::is_ascii_uppercase)) {
        let lines: Vec<HeaderValue> = headers.get_all(CACHE_CONTROL).iter().cloned().collect();
        headers.remove(CACHE_CONTROL);
        for line in lines {
            if let Ok(lower) = HeaderValue::try_from(line.as_bytes().to_ascii_lowercase()) {
                headers.append(CACHE_CONTROL, lower);
            }
        }
    }
    let mut ages = headers.get_all(AGE).iter();
    let first = ages.next().map(|age| !age.is_empty() && age.as_bytes().iter().all(u8::is_ascii_digit));
    if first == Some(false) || ages.next().is_some() {
        headers.insert(AGE, HeaderValue::from_static("2147483648"));
    }
}

/// The value of a `Cache-Control` directive; empty if it has none.
pub fn directive<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).find_map(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

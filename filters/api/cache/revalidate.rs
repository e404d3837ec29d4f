//! Asking whether a kept answer still holds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};

use super::freshness::{Asked, Freshness, Rules};
use super::store::{Entry, Join};
use super::{Cache, Conditions};
use crate::contract::{Body, Buffered, Call, RequestCx, ServiceId, now};

/// How long a fetch behind the caller's back may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Fields of a 304 that say nothing about the kept body (RFC 9111 section 3.2).
const OF_THE_BODY: [http::HeaderName; 6] = [
    CONTENT_LENGTH,
    CONTENT_ENCODING,
    CONTENT_RANGE,
    ETAG,
    http::HeaderName::from_static("content-md5"),
    http::HeaderName::from_static("content-digest"),
];

/// Makes a request ask only for what changed since the kept answer (RFC 9111 section 4.3.1).
pub fn conditions(request: &mut HeaderMap, kept: &HeaderMap) {
    if let Some(tag) = kept.get(ETAG) {
        request.insert(IF_NONE_MATCH, tag.clone());
    }
    if let Some(date) = kept.get(LAST_MODIFIED) {
        request.insert(IF_MODIFIED_SINCE, date.clone());
    }
}

/// The kept answer after a 304, with the fields that came with it (RFC 9111 section 3.2); `None`: it may no longer be kept.
pub fn renewed(kept: &Entry, told: &HeaderMap, asked: &Asked, rules: &Rules, now: SystemTime) -> Option<Entry> {
    let mut headers = kept.headers.clone();
    headers.remove(http::header::AGE);
    for name in told.keys().filter(|name| !OF_THE_BODY.contains(name)) {
        headers.remove(name);
        for value in told.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    let freshness = Freshness::of(asked, kept.status, &headers, rules, now)?;
    Some(Entry { status: kept.status, headers, body: kept.body.clone(), freshness })
}

/// Whether a caller with these conditions has the answer already (RFC 9110 sections 13.1.2 and 13.1.3).
pub fn unchanged(none_match: &[HeaderValue], modified_since: Option<&HeaderValue>, kept: &HeaderMap) -> bool {
    if !none_match.is_empty() {
        let Some(tag) = kept.get(ETAG).and_then(|tag| tag.to_str().ok()) else { return false };
        let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let tag = weak(tag);
        return none_match
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(tags)
            .any(|candidate| candidate == "*" || weak(candidate) == tag);
    }
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
    match (modified_since.and_then(date), kept.get(LAST_MODIFIED).and_then(date)) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// The entity tags of a list; a comma may stand inside the quotes.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(str::trim)
    .filter(|tag| !tag.is_empty())
}

impl Cache {
    /// Fetches a new answer behind the caller's back, unless somebody does already.
    pub(super) fn refresh(&self, rq: &RequestCx, key: &str, asked: Asked, old: &Arc<Entry>) {
        let Some(service) = chosen(&rq.route.to) else { return };
        let Join::Lead(flight) = self.store.join(key) else { return };
        let mut headers = rq.headers.clone();
        let _ = Conditions::take(&mut headers);
        conditions(&mut headers, &old.headers);
        let host = rq.upstream_host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(rq.authority.as_str());
        let uri = Uri::builder().scheme("http").authority(host).path_and_query(rq.target.clone()).build();
        let Ok(uri) = uri else { return };
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let answering =
            rq.services.clone().call(service, Call { request, deadline: now() + PATIENCE, trace: rq.trace });
        let (store, rules, largest, bytes) =
            (self.store.clone(), self.rules, self.largest, self.counters.bytes.clone());
        let (key, old, revalidated) = (key.to_owned(), old.clone(), self.counters.revalidated.clone());
        tokio::spawn(async move {
            // Held to the end: who misses in the meantime waits for this.
            let _flight = flight;
            let Ok(response) = answering.await else { return };
            let now = SystemTime::now();
            if response.status() == StatusCode::NOT_MODIFIED {
                revalidated.inc();
                match renewed(&old, response.headers(), &asked, &rules, now) {
                    Some(entry) => store.put(&key, Arc::new(entry), Some(&old)),
                    None => store.remove(&key),
                }
            } else if let Some(entry) = received(response, &asked, &rules, largest, now).await {
                store.put(&key, Arc::new(entry), Some(&old));
            }
            bytes.set(store.weight().cast_signed());
        });
    }
}

async fn received(
    response: Response<Body>,
    asked: &Asked,
    rules: &Rules,
    largest: usize,
    now: SystemTime,
) -> Option<Entry> {
    let (parts, mut body) = response.into_parts();
    let freshness = Freshness::of(asked, parts.status, &parts.headers, rules, now)?;
    match body.buffer(largest).await {
        Ok(Buffered::Whole(body)) => Some(Entry { status: parts.status, headers: parts.headers, body, freshness }),
        _ => None,
    }
}

/// The service of a route with the most weight: a fetch behind somebody's back need not follow the split.
fn chosen(to: &[(ServiceId, u32)]) -> Option<ServiceId> {
    to.iter().filter(|(_, weight)| *weight > 0).max_by_key(|(_, weight)| *weight).map(|(service, _)| *service)
}

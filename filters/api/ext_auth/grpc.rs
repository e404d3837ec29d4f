//! The question and the answer in Envoy's terms (`envoy.service.auth.v3`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use http_body::Body as _;

use super::core::{Changes, Denial, How, Names, Ruling, is_ours};
use super::proto::{self, CheckRequest, CheckResponse, HeaderValueOption, HttpResponse};
use crate::contract::RequestCx;

/// What is asked.
pub fn question(rq: &RequestCx, seen: &Names, body: Option<&Part>, context: HashMap<String, String>) -> CheckRequest {
    let mut headers = text_of(&rq.headers, seen);
    for (name, value) in [
        (":method", rq.method.as_str()),
        (":authority", rq.authority.as_str()),
        (":path", rq.target.as_str()),
        (":scheme", scheme(rq)),
    ] {
        headers.insert(name.to_owned(), value.to_owned());
    }
    let size = rq.body.size_hint().exact().and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
    let mut http = proto::HttpRequest {
        id: String::from_utf8_lossy(rq.request_id.as_bytes()).into_owned(),
        method: rq.method.to_string(),
        headers,
        path: rq.target.to_string(),
        host: rq.authority.to_string(),
        scheme: scheme(rq).to_owned(),
        size,
        protocol: if rq.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        ..proto::HttpRequest::default()
    };
    if let Some(part) = body {
        http.headers.insert(super::PARTIAL.as_str().to_owned(), part.partial.to_string());
        // A protobuf string is UTF-8: other bytes would make the whole question unreadable.
        match std::str::from_utf8(&part.bytes) {
            Ok(text) if !part.raw => text.clone_into(&mut http.body),
            _ => http.raw_body = part.bytes.clone(),
        }
    }
    let principal = rq.workload.as_ref().map_or_else(String::new, |w| w.id.to_string());
    let now = jiff::Timestamp::now();
    CheckRequest {
        attributes: Some(proto::AttributeContext {
            source: Some(peer(rq.client_ip, rq.conn.client, principal)),
            destination: Some(peer(rq.conn.local.ip(), rq.conn.local, String::new())),
            request: Some(proto::Request {
                time: Some(proto::Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond() }),
                http: Some(http),
            }),
            context_extensions: context,
            tls_session: rq
                .conn
                .tls
                .as_ref()
                .and_then(|tls| tls.sni.as_ref())
                .map(|sni| proto::TlsSession { sni: sni.to_string() }),
        }),
    }
}

/// A body, or its beginning.
pub struct Part {
    pub bytes: Bytes,
    pub partial: bool,
    /// As bytes even if it is text.
    pub raw: bool,
}

pub const fn scheme(rq: &RequestCx) -> &'static str {
    if rq.https { "https" } else { "http" }
}

fn peer(ip: IpAddr, socket: SocketAddr, principal: String) -> proto::Peer {
    // The port belongs to the address only if no proxy stands between.
    let port = if socket.ip().to_canonical() == ip.to_canonical() { socket.port() } else { 0 };
    let address = proto::SocketAddress { address: ip.to_string(), port_value: port.into() };
    proto::Peer { address: Some(proto::Address { socket_address: Some(address) }), principal }
}

/// Repeated fields are joined; bytes that are no UTF-8 are replaced, so that they cannot break the question.
fn text_of(headers: &HeaderMap, seen: &Names) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = HashMap::with_capacity(headers.len() + 5);
    for (name, value) in headers.iter().filter(|(name, _)| seen.has(name)) {
        let text = String::from_utf8_lossy(value.as_bytes());
        match all.get_mut(name.as_str()) {
            Some(old) => {
                // RFC 9110 section 5.3; cookies are joined their own way (RFC 9113 section 8.2.3).
                old.push_str(if name == COOKIE { "; " } else { "," });
                old.push_str(&text);
            }
            None => drop(all.insert(name.as_str().to_owned(), text.into_owned())),
        }
    }
    all
}

/// What was answered.
///
/// # Errors
/// It cannot be carried out: never a reason to let the request pass.
pub fn ruling(answer: CheckResponse, upstream: &Names, client: &Names) -> Result<Ruling, &'static str> {
    let code = answer.status.ok_or("it has no status")?.code;
    match (code, answer.http_response) {
        (0, None) => Ok(Ruling::Allow(Arc::default())),
        (0, Some(HttpResponse::Ok(ok))) => allowed(ok, upstream, client),
        (0, Some(HttpResponse::Denied(_))) => Err("its status is OK and its answer a denial"),
        (_, Some(HttpResponse::Denied(denied))) => denial(denied),
        // 16 = UNAUTHENTICATED.
        (code, _) => {
            let status = if code == 16 { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
            Ok(Ruling::Deny(Arc::new(Denial { status, ..Denial::default() })))
        }
    }
}

fn allowed(ok: proto::OkHttpResponse, upstream: &Names, client: &Names) -> Result<Ruling, &'static str> {
    let mut changes = Changes::default();
    let wanted = |names: &Names, name: &HeaderName| !is_ours(name) && (names.is_empty() || names.has(name));
    for option in ok.headers {
        // The proto's own words: unless `append` says otherwise, a field of the request is replaced.
        let Some((name, value)) = field(&option)? else { continue };
        let how = match (option.append, option.append_action) {
            (Some(append), _) if append.value => How::Append,
            (None, 1) => How::AddIfAbsent,
            (None, 3) => How::OverwriteIfThere,
            _ => How::Set,
        };
        if wanted(upstream, &name) {
            changes.fields.push((name, value, how));
        }
    }
    for name in ok.headers_to_remove {
        // Envoy's rule: pseudo fields and `Host` stay.
        if let Ok(name) = HeaderName::try_from(name)
            && wanted(upstream, &name)
        {
            changes.remove.push(name);
        }
    }
    for option in ok.response_headers_to_add {
        if let Some((name, value)) = field(&option)?
            && wanted(client, &name)
        {
            changes.reply.push((name, value));
        }
    }
    changes.query = ok.query_parameters_to_set.into_iter().map(|q| (q.key, q.value)).collect();
    changes.remove_query = ok.query_parameters_to_remove;
    Ok(Ruling::Allow(Arc::new(changes)))
}

fn denial(denied: proto::DeniedHttpResponse) -> Result<Ruling, &'static str> {
    let status = match denied.status.map_or(0, |s| s.code) {
        0 => StatusCode::FORBIDDEN,
        code => u16::try_from(code)
            .ok()
            .filter(|code| (200..=599).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or("its status is none of HTTP's")?,
    };
    let mut headers = HeaderMap::new();
    for option in denied.headers {
        let Some((name, value)) = field(&option)?.filter(|(name, _)| !is_ours(name)) else { continue };
        let appends = option.append.map_or(name == SET_COOKIE, |append| append.value);
        if appends {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
    Ok(Ruling::Deny(Arc::new(Denial { status, headers, body: denied.body.into() })))
}

/// `None`: a pseudo field, which nobody may change.
fn field(option: &HeaderValueOption) -> Result<Option<(HeaderName, HeaderValue)>, &'static str> {
    let Some(header) = &option.header else { return Err("a field has no name") };
    if header.key.starts_with(':') {
        return Ok(None);
    }
    let bytes = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let name = HeaderName::try_from(header.key.as_str()).map_err(|_| "a field's name is none")?;
    let value = HeaderValue::from_bytes(bytes).map_err(|_| "a field's value is none")?;
    Ok(Some((name, value)))
}

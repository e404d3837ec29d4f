//! What an expression may name, and how it is read from a request without copying.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use serde_json::Value as Json;

use super::super::request::RequestCx;

/// A value while an expression is evaluated; borrowed from the request or the expression wherever possible.
#[derive(Clone, Debug)]
pub(super) enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// A list of plain strings (scopes).
    Texts(&'a [Arc<str>]),
    /// A list or a map inside a claim.
    Json(&'a Json),
}

/// A path from a root variable that was resolved when the expression was compiled.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Attr {
    UserSub,
    UserScopes,
    /// Names below the claims of the token.
    Claim(Vec<String>),
    ConsumerName,
    ConsumerPlan,
    ConsumerScopes,
    WorkloadId,
    WorkloadNamespace,
    WorkloadServiceAccount,
    WorkloadTrustDomain,
    RouteName,
    Method,
    Path,
    Host,
    Scheme,
    RequestId,
    Header(HeaderName),
    Query(String),
    ClientIp,
    ListenerName,
}

/// Root variables and their fields; `*` = any name.
pub(super) const ROOTS: &[(&str, &[&str])] = &[
    ("user", &["*"]),
    ("consumer", &["name", "plan", "scopes"]),
    ("workload", &["id", "namespace", "serviceAccount", "trustDomain"]),
    ("route", &["name"]),
    ("request", &["method", "path", "host", "headers", "query", "scheme", "id"]),
    ("client", &["ip"]),
    ("listener", &["name"]),
];

impl Attr {
    /// The attribute a path of names leads to; `None` for what is not a leaf (`user`, `request.headers`).
    pub(super) fn of(path: &[&str]) -> Option<Self> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Some(match path {
            ["user", "sub"] | ["user", "claims", "sub"] => Self::UserSub,
            ["user", "scopes"] => Self::UserScopes,
            ["user", "claims", rest @ ..] if !rest.is_empty() => Self::Claim(owned(rest)),
            ["user", rest @ ..] if !rest.is_empty() && rest[0] != "claims" => Self::Claim(owned(rest)),
            ["consumer", "name"] => Self::ConsumerName,
            ["consumer", "plan"] => Self::ConsumerPlan,
            ["consumer", "scopes"] => Self::ConsumerScopes,
            ["workload", "id"] => Self::WorkloadId,
            ["workload", "namespace"] => Self::WorkloadNamespace,
            ["workload", "serviceAccount"] => Self::WorkloadServiceAccount,
            ["workload", "trustDomain"] => Self::WorkloadTrustDomain,
            ["route", "name"] => Self::RouteName,
            ["request", "method"] => Self::Method,
            ["request", "path"] => Self::Path,
            ["request", "host"] => Self::Host,
            ["request", "scheme"] => Self::Scheme,
            ["request", "id"] => Self::RequestId,
            ["request", "headers", name] => Self::Header(HeaderName::try_from(*name).ok()?),
            ["request", "query", name] => Self::Query((*name).to_owned()),
            ["client", "ip"] => Self::ClientIp,
            ["listener", "name"] => Self::ListenerName,
            _ => return None,
        })
    }

    /// Whether the value, where there is one, is always text.
    pub(super) const fn is_text(&self) -> bool {
        !matches!(self, Self::UserScopes | Self::ConsumerScopes | Self::Claim(_))
    }

    pub(super) const fn is_list(&self) -> bool {
        matches!(self, Self::UserScopes | Self::ConsumerScopes)
    }

    /// Reads it; `None` where the request has no such attribute.
    pub(super) fn read<'a>(&self, rq: &'a RequestCx) -> Option<Val<'a>> {
        let text = |s: &'a str| Some(Val::Text(Cow::Borrowed(s)));
        match self {
            Self::UserSub => rq.user.as_ref().filter(|u| !u.subject.is_empty()).and_then(|u| text(&u.subject)),
            Self::UserScopes => rq.user.as_ref().map(|u| Val::Texts(&u.scopes)),
            Self::Claim(path) => {
                let (first, rest) = path.split_first()?;
                let mut at = rq.user.as_ref()?.claims.get(first)?;
                for name in rest {
                    at = at.as_object()?.get(name)?;
                }
                Some(Val::of_json(at))
            }
            Self::ConsumerName => rq.consumer.as_ref().and_then(|c| text(&c.name)),
            Self::ConsumerPlan => rq.consumer.as_ref()?.plan.as_ref().and_then(|p| text(&p.name)),
            Self::ConsumerScopes => rq.consumer.as_ref().map(|c| Val::Texts(&c.scopes)),
            Self::WorkloadId => rq.workload.as_ref().and_then(|w| text(&w.id)),
            Self::WorkloadNamespace => spiffe(rq)?.namespace.and_then(text),
            Self::WorkloadServiceAccount => spiffe(rq)?.service_account.and_then(text),
            Self::WorkloadTrustDomain => text(spiffe(rq)?.trust_domain),
            Self::RouteName => text(&rq.route.name),
            Self::Method => text(rq.method.as_str()),
            Self::Path => text(rq.path()),
            Self::Host => text(rq.host()),
            Self::Scheme => text(if rq.https { "https" } else { "http" }),
            Self::RequestId => rq.request_id.to_str().ok().and_then(text),
            Self::Header(name) => header(&rq.headers, name).map(Val::Text),
            Self::Query(name) => query(rq.target.query()?, name).map(Val::Text),
            Self::ClientIp => Some(Val::Text(Cow::Owned(rq.client_ip.to_string()))),
            Self::ListenerName => text(&rq.conn.listener),
        }
    }
}

impl<'a> Val<'a> {
    pub(super) fn of_json(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            // A number beyond i64 becomes a float, here and in the fallback alike.
            Json::Number(n) => n.as_i64().map_or_else(|| Self::Float(n.as_f64().unwrap_or(f64::NAN)), Self::Int),
            Json::String(s) => Self::Text(Cow::Borrowed(s)),
            Json::Array(_) | Json::Object(_) => Self::Json(json),
        }
    }

    /// CEL equality: numbers compare across kinds, other kinds are simply unequal.
    #[expect(clippy::cast_precision_loss, reason = "CEL compares int and double as doubles")]
    pub(super) fn equals(&self, other: &Val<'_>) -> bool {
        let listed =
            |a: &[Arc<str>], b: &[Json]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| b.as_str() == Some(a));
        match (self, other) {
            (Self::Null, Val::Null) => true,
            (Self::Bool(a), Val::Bool(b)) => a == b,
            (Self::Int(a), Val::Int(b)) => a == b,
            (Self::Float(a), Val::Float(b)) => a == b,
            (Self::Int(a), Val::Float(b)) => *a as f64 == *b,
            (Self::Float(a), Val::Int(b)) => *a == *b as f64,
            (Self::Text(a), Val::Text(b)) => a == b,
            (Self::Texts(a), Val::Texts(b)) => a == b,
            (Self::Json(a), Val::Json(b)) => json_equals(a, b),
            (Self::Texts(a), Val::Json(Json::Array(b))) => listed(a, b),
            (Self::Json(Json::Array(a)), Val::Texts(b)) => listed(b, a),
            _ => false,
        }
    }

    /// `self in list`; `None` where CEL has no overload.
    pub(super) fn within(&self, list: &Val<'_>) -> Option<bool> {
        match list {
            Val::Texts(items) => Some(match self {
                Self::Text(t) => items.iter().any(|i| **i == **t),
                _ => false,
            }),
            Val::Json(Json::Array(items)) => Some(items.iter().any(|i| self.equals(&Val::of_json(i)))),
            Val::Json(Json::Object(map)) => Some(match self {
                Self::Text(t) => map.contains_key(t.as_ref()),
                _ => false,
            }),
            // Never a substring test: `'admin' in user.role` must not be true for `not-admin`.
            _ => None,
        }
    }
}

fn json_equals(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| json_equals(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| json_equals(v, w)))
        }
        (Json::Array(_) | Json::Object(_), _) | (_, Json::Array(_) | Json::Object(_)) => false,
        _ => Val::of_json(a).equals(&Val::of_json(b)),
    }
}

/// A field as text: several lines are one value, joined as RFC 9110 section 5.3 allows.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    let mut joined = Cow::Borrowed(first);
    for more in values {
        let joined = joined.to_mut();
        joined.push_str(", ");
        joined.push_str(more.to_str().ok()?);
    }
    Some(joined)
}

/// The first parameter of this name, decoded.
pub(super) fn query<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    parameters(query).find(|(n, _)| n == name).map(|(_, v)| v)
}

/// Parameters in order, decoded; what is not UTF-8 is left out.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|p| !p.is_empty()).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(name)?, decode(value)?))
    })
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return percent_decode_str(&spaced).decode_utf8().ok().map(|t| Cow::Owned(t.into_owned()));
    }
    percent_decode_str(text).decode_utf8().ok()
}

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
pub(super) struct Spiffe<'a> {
    pub(super) trust_domain: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) service_account: Option<&'a str>,
}

pub(super) fn spiffe(rq: &RequestCx) -> Option<Spiffe<'_>> {
    let rest = rq.workload.as_ref()?.id.strip_prefix("spiffe://")?;
    let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    // The Kubernetes form, exactly: other paths have no namespace and no service account.
    let (namespace, service_account) = match path.split('/').collect::<smallvec::SmallVec<[&str; 6]>>().as_slice() {
        ["ns", ns, "sa", sa] if !ns.is_empty() && !sa.is_empty() => (Some(*ns), Some(*sa)),
        _ => (None, None),
    };
    Some(Spiffe { trust_domain, namespace, service_account })
}

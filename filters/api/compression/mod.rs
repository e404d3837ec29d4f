//! `compression`: encodes answers with zstd, Brotli or gzip for callers that take them so.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use http::{HeaderValue, Method, StatusCode};
use http_body::Body as _;

use self::core::{Type, choose, is_taboo};
use crate::api::content::{self, Coding};
use crate::contract::filter::{Filter, Needs, Step};
use crate::contract::metrics::Counter;
use crate::contract::{Build, ConfigError, Entry, Node, Phase, RequestCx, ResponseCx, Role};
use config::{Algorithm, Config, MIN_LENGTH, TYPES};

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "compression",
    summary: "Encodes answers with zstd, Brotli or gzip",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Encode, implied: |_, _| false, build },
};

struct Compression {
    /// In our order, with the effort for each.
    codings: Vec<Coding>,
    level: Option<u8>,
    min_length: u64,
    types: Vec<Type>,
    encoded: Vec<Counter>,
}

/// What was agreed with the caller, noted before an inner filter changes its fields.
struct Agreed(Option<Coding>);

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("compression is never implied").read()?;
    let mut codings = Vec::new();
    if let Some(algorithms) = &config.algorithms {
        for algorithm in &algorithms.value {
            let coding = coding(algorithm.value);
            if codings.contains(&coding) {
                return Err(ConfigError::at(algorithm.span, format!("`{}` stands twice", coding.name()))
                    .help("name each once, the favourite first"));
            }
            codings.push(coding);
        }
        if codings.is_empty() {
            return Err(ConfigError::at(algorithms.span, "no algorithm is left").help("name some of: zstd, br, gzip"));
        }
    } else {
        codings.extend([Coding::Zstd, Coding::Brotli, Coding::Gzip]);
    }
    if let Some(level) = config.level.as_ref().filter(|level| !(1..=9).contains(&level.value)) {
        return Err(
            ConfigError::at(level.span, format!("`level` is {}", level.value)).help("from 1 (fast) to 9 (small)")
        );
    }
    let types = match &config.types {
        None => TYPES.iter().filter_map(|text| Type::read(text)).collect(),
        Some(types) if types.value.is_empty() => {
            return Err(ConfigError::at(types.span, "no type is left").help("such as `[application/json, text/*]`"));
        }
        Some(types) => types
            .value
            .iter()
            .map(|text| {
                if is_taboo(&text.value) {
                    return Err(ConfigError::at(text.span, format!("`{}` is never compressed", text.value))
                        .help("event streams and gRPC would wait for a codec; take it out"));
                }
                Type::read(&text.value).ok_or_else(|| {
                    ConfigError::at(text.span, format!("`{}` is not a media type", text.value))
                        .help("such as `application/json`, `text/*`, `+json`")
                })
            })
            .collect::<Result<_, _>>()?,
    };
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope).to_owned();
    let encoded = codings.iter().map(|coding| {
        let labels = [("route", route.as_str()), ("coding", coding.name())];
        build.metrics.counter("onehop_compressed_responses_total", "Responses that were encoded, by coding", &labels)
    });
    Ok(Arc::new(Compression {
        encoded: encoded.collect(),
        codings,
        level: config.level.map(|level| level.value),
        min_length: config.min_length.map_or(MIN_LENGTH, |size| size.0),
        types,
    }))
}

const fn coding(algorithm: Algorithm) -> Coding {
    match algorithm {
        Algorithm::Zstd => Coding::Zstd,
        Algorithm::Br => Coding::Brotli,
        Algorithm::Gzip => Coding::Gzip,
    }
}

/// Cheap enough for every answer: the codecs' own defaults are made for files.
const fn usual_level(coding: Coding) -> i32 {
    match coding {
        Coding::Zstd => 3,
        Coding::Brotli => 4,
        Coding::Gzip | Coding::Deflate => 5,
    }
}

/// The caller's wishes on one line.
fn wishes(headers: &HeaderMap) -> Cow<'_, str> {
    let mut lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let first = lines.next().unwrap_or_default();
    match lines.next() {
        None => Cow::Borrowed(first),
        Some(second) => Cow::Owned(lines.fold(format!("{first},{second}"), |all, line| all + "," + line)),
    }
}

fn forbids_transforms(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|directive| directive.trim().eq_ignore_ascii_case("no-transform"))
}

impl Compression {
    /// Whether this answer, by itself, is one to encode for whoever wants it so.
    fn covers(&self, rs: &ResponseCx) -> bool {
        // A switch of protocols, a part of a representation, and what has no content stay as they are.
        let whole = (rs.status.is_success() || rs.status.is_client_error() || rs.status.is_server_error())
            && !matches!(rs.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT);
        let length = rs.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let tiny = rs.body.size_hint().exact().filter(|n| *n > 0).or(length).is_some_and(|n| n < self.min_length);
        whole
            && !tiny
            && !rs.headers.contains_key(CONTENT_ENCODING)
            && !forbids_transforms(&rs.headers)
            && content::media_type(&rs.headers)
                .is_some_and(|t| !is_taboo(t) && self.types.iter().any(|own| own.covers(t)))
    }
}

impl Filter for Compression {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let agreed = choose(&wishes(&rq.headers), &self.codings);
        rq.scratch.put(Agreed(agreed));
        Step::NEXT
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let agreed = rq.scratch.take::<Agreed>().and_then(|Agreed(coding)| coding);
        if rs.status == StatusCode::NOT_MODIFIED {
            // As the answer with the content would have said it (RFC 9110 section 15.4.5).
            content::vary(&mut rs.headers, "accept-encoding");
            content::weaken(&mut rs.headers);
            return Step::NEXT;
        }
        if rq.method == Method::CONNECT || !self.covers(rs) {
            return Step::NEXT;
        }
        content::vary(&mut rs.headers, "accept-encoding");
        let Some(coding) = agreed else { return Step::NEXT };
        if rq.method == Method::HEAD {
            // Nobody knows the length that a GET would get; HEAD may leave it out (RFC 9110 section 9.3.2).
            rs.headers.remove(CONTENT_LENGTH);
            content::weaken(&mut rs.headers);
            return Step::NEXT;
        }
        if rs.body.is_end_stream() {
            return Step::NEXT;
        }
        content::changed(&mut rs.headers);
        rs.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        let level = self.level.map_or(usual_level(coding), i32::from);
        rs.body = content::encode(std::mem::take(&mut rs.body), coding, level);
        if let Some(at) = self.codings.iter().position(|own| *own == coding) {
            self.encoded[at].inc();
        }
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

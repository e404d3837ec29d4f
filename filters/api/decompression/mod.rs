//! `decompression`: decodes request bodies, within limits.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::HeaderValue;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http_body::Body as _;

use crate::api::content::{self, Coding, Limits};
use crate::contract::filter::{Filter, Step};
use crate::contract::{Body, Build, ConfigError, Entry, Fault, Node, Phase, Reason, RequestCx, Role};
use config::{Algorithm, Config, LIMIT, RATIO};

const NAME: &str = "decompression";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Decodes request bodies within limits",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    // After authentication, which may check a digest of what was sent; by name before `validate`.
    role: Role::Api { phase: Phase::Validate, implied: |_, _| false, build },
};

struct Decompression {
    codings: Vec<Coding>,
    limits: Limits,
    /// What is taken, for whoever sent something else (RFC 9110 section 12.5.3).
    taken: HeaderValue,
}

fn build(node: Option<&Node>, _: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("decompression is never implied").read()?;
    let codings: Vec<Coding> = match &config.algorithms {
        None => vec![Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd],
        Some(names) if names.value.is_empty() => {
            return Err(
                ConfigError::at(names.span, "no algorithm is left").help("name some of: gzip, deflate, br, zstd")
            );
        }
        Some(names) => names.value.iter().map(|name| coding(name.value)).collect(),
    };
    let zero = |span| ConfigError::at(span, "zero refuses every body").help("take `decompression` out, or allow some");
    if let Some(limit) = config.limit.as_ref().filter(|limit| limit.value.0 == 0) {
        return Err(zero(limit.span));
    }
    if let Some(ratio) = config.ratio.as_ref().filter(|ratio| ratio.value == 0) {
        return Err(zero(ratio.span));
    }
    let names: Vec<&str> = codings.iter().map(|coding| coding.name()).collect();
    let taken = HeaderValue::try_from(names.join(", ")).expect("names of codings are tokens");
    let limits = Limits {
        size: config.limit.map_or(LIMIT, |limit| limit.value.0),
        ratio: config.ratio.map_or(RATIO, |ratio| ratio.value),
        over: Reason::BodyTooLarge,
        broken: Reason::BadBody,
        by: NAME,
    };
    Ok(Arc::new(Decompression { codings, limits, taken }))
}

const fn coding(algorithm: Algorithm) -> Coding {
    match algorithm {
        Algorithm::Gzip => Coding::Gzip,
        Algorithm::Deflate => Coding::Deflate,
        Algorithm::Br => Coding::Brotli,
        Algorithm::Zstd => Coding::Zstd,
    }
}

impl Filter for Decompression {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if !rq.headers.contains_key(CONTENT_ENCODING) {
            return Step::NEXT;
        }
        let codings = content::codings(&rq.headers).filter(|all| all.iter().all(|c| self.codings.contains(c)));
        let Some(codings) = codings else {
            let fault =
                Fault::new(Reason::UnsupportedMedia).detail("the coding of the body is not taken here").by(NAME);
            return Step::fail(fault.header(ACCEPT_ENCODING, self.taken.clone()));
        };
        rq.headers.remove(CONTENT_ENCODING);
        if !codings.is_empty() && !rq.body.is_end_stream() {
            content::changed(&mut rq.headers);
            // The last one applied comes off first.
            for coding in codings.into_iter().rev() {
                let body: Body = std::mem::take(&mut rq.body);
                rq.body = content::decode(body, coding, self.limits);
            }
        }
        Step::NEXT
    }
}

//! `maintenance`: an answer in place of the route while it is being worked on, for all but those who work on it.

mod config;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use ipnet::IpNet;

use crate::contract::filter::{Filter, Step};
use crate::contract::{Body, Build, ConfigError, Entry, Expr, Fault, Node, Phase, Reason, RequestCx, Role, Spot};
use config::Config;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "maintenance",
    summary: "Answers in place of a route that is being worked on",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Guard, implied: |_, _| false, build },
};

struct Maintenance {
    enabled: bool,
    status: StatusCode,
    retry_after: Option<HeaderValue>,
    body: Option<(HeaderValue, Bytes)>,
    allow: Option<Expr>,
    networks: Vec<IpNet>,
}

fn build(node: Option<&Node>, _: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("maintenance is never implied");
    let config: Config = node.read()?;
    let status = match &config.status {
        None => StatusCode::SERVICE_UNAVAILABLE,
        Some(status) => StatusCode::from_u16(status.value)
            .ok()
            .filter(|s| s.is_client_error() || s.is_server_error())
            .ok_or_else(|| {
                ConfigError::at(status.span, format!("{} does not say that the route is closed", status.value))
                    .help("400 to 599")
            })?,
    };
    let kind = match &config.content_type {
        None => HeaderValue::from_static("text/plain; charset=utf-8"),
        Some(kind) if config.body.is_some() => HeaderValue::try_from(kind.value.as_str())
            .map_err(|_| ConfigError::at(kind.span, "this is not the value of a header field"))?,
        Some(kind) => {
            return Err(ConfigError::at(kind.span, "there is no `body` of this type").help("add `body`"));
        }
    };
    Ok(Arc::new(Maintenance {
        enabled: config.enabled,
        status,
        retry_after: config.retry_after.map(|d| HeaderValue::from(d.0.as_secs().max(1))),
        body: config.body.map(|body| (kind, body.into())),
        allow: config.allow.as_ref().map(|e| Expr::condition(&e.value, e.span)).transpose()?,
        networks: config.allow_ips.iter().map(network).collect::<Result<_, _>>()?,
    }))
}

fn network(text: &Spot<String>) -> Result<IpNet, ConfigError> {
    let net = text.value.parse().or_else(|_| text.value.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| {
        ConfigError::at(text.span, format!("`{}` is neither an address nor a network", text.value))
            .help("write `10.0.0.0/8` or `192.0.2.7`")
    })
}

impl Filter for Maintenance {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if !self.enabled
            || self.networks.iter().any(|net| net.contains(&rq.client_ip))
            || self.allow.as_ref().is_some_and(|allow| allow.bool(rq))
        {
            return Step::NEXT;
        }
        let grpc = rq.headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        let Some((kind, body)) = self.body.as_ref().filter(|_| !grpc) else {
            let mut fault = Fault::new(Reason::Maintenance).answer(self.status);
            if let Some(retry_after) = &self.retry_after {
                fault = fault.header(RETRY_AFTER, retry_after.clone());
            }
            return Step::fail(fault);
        };
        let mut response = Response::new(Body::full(body.clone()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, kind.clone());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(retry_after) = &self.retry_after {
            headers.insert(RETRY_AFTER, retry_after.clone());
        }
        Step::reply(response)
    }
}

//! `discover: { consul: NAME }`: the healthy instances of a service in Consul, told by blocking queries.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};

use super::registry::{Asked, Servers, escaped, follow};
use crate::contract::client::Bounds;
use crate::contract::mesh::{Discover, Found, Report};
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::{Build, Entry, Role};

const AGENT: &str = "http://127.0.0.1:8500";
const WAIT: Duration = Duration::from_secs(300);
const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
/// Largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;
/// At most one answer in this time, whatever the index says: a service that flaps must not keep us busy.
const LEAST: Duration = Duration::from_millis(100);

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "consul",
    summary: "Endpoints are the healthy instances of a service in Consul",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let config = config::read(section)?;
    let agent = [Spot { span: section.span, value: AGENT.to_owned() }];
    let servers = Servers::new(config.servers.as_deref().unwrap_or(&agent), config.ca.as_ref(), build, section)?;
    let token = match &config.token {
        None => None,
        Some(secret) => {
            let token = secret.reveal(&build.dir).map_err(|why| ConfigError::at(section.span, why))?;
            let mut token = HeaderValue::try_from(token)
                .map_err(|_| ConfigError::at(section.span, "the token cannot stand in a header field"))?;
            token.set_sensitive(true);
            Some(token)
        }
    };
    let mut query = format!("/v1/health/service/{}?stale", escaped(&config.service.value));
    for (name, value) in config
        .tags
        .iter()
        .map(|tag| ("tag", tag))
        .chain(config.datacenter.iter().map(|dc| ("dc", dc)))
        .chain(config.filter.iter().map(|filter| ("filter", filter)))
    {
        let _ = write!(query, "&{name}={}", escaped(value));
    }
    if !config.warning {
        query.push_str("&passing=1");
    }
    let wait = config.wait.map_or(WAIT, |wait| wait.value.0);
    Ok(Arc::new(Consul(Arc::new(Asks { service: config.service.value, servers, token, query, wait }))))
}

struct Consul(Arc<Asks>);

struct Asks {
    service: String,
    servers: Servers,
    token: Option<HeaderValue>,
    query: String,
    wait: Duration,
}

impl Discover for Consul {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(follow(Session { asks: self.0.clone(), index: 0 }, report)))
    }
    fn describe(&self) -> String {
        format!("consul {} at {}", self.0.service, self.0.servers.describe())
    }
}

/// Where one follower is.
struct Session {
    asks: Arc<Asks>,
    index: u64,
}

impl Asked for Session {
    fn pause(&self) -> Duration {
        LEAST
    }

    fn forget(&mut self) {
        self.index = 0;
    }

    async fn ask(&mut self) -> Result<Vec<Found>, String> {
        let answer = self.asks.ask(self.index).await?;
        // An index that goes back belongs to a restored or another server: begin anew (Consul API, "Blocking Queries").
        self.index = if answer.index < self.index { 0 } else { answer.index };
        Ok(answer.found)
    }
}

struct Answer {
    index: u64,
    found: Vec<Found>,
}

impl Asks {
    /// Hangs until something is newer than `index`; 0 answers at once.
    async fn ask(&self, index: u64) -> Result<Answer, String> {
        let mut path = self.query.clone();
        let mut timeout = Duration::from_secs(10);
        if index > 0 {
            let _ = write!(path, "&index={index}&wait={}s", self.wait.as_secs());
            // The server adds up to a sixteenth at random.
            timeout += self.wait + self.wait / 16;
        }
        let mut request = Request::get(path).body(Bytes::new()).map_err(|e| format!("request: {e}"))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(TOKEN, token.clone());
        }
        let bounds = Bounds { timeout, body: MAX_ANSWER, repeatable: true };
        let response = self.servers.call(request, bounds).await?;
        if response.status() != StatusCode::OK {
            let text = String::from_utf8_lossy(response.body());
            let text: String = text.chars().filter(|c| !c.is_control()).take(120).collect();
            return Err(format!("status {}: {text}", response.status().as_u16()));
        }
        let index = response.headers().get(INDEX).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        // Without an index the next question would not hang.
        let index = index.filter(|n| *n > 0).ok_or("the answer has no X-Consul-Index")?;
        Ok(Answer { index, found: core::parse(response.body())? })
    }
}

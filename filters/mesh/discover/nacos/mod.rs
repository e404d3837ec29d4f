//! `discover: { nacos: { service: NAME, servers: [..] } }`: the healthy instances of a service in Nacos.

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
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde::Deserialize;

use super::registry::{Asked, Servers, escaped, follow};
use crate::contract::client::Bounds;
use crate::contract::mesh::{Discover, Found, Report};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role, now};

const INTERVAL: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "nacos",
    summary: "Endpoints are the healthy instances of a service in Nacos",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let mut config = config::read(section)?;
    for url in &mut config.servers {
        let bare = url.value.trim_end_matches('/');
        if bare.split_once("://").is_some_and(|(_, rest)| !rest.contains('/')) {
            url.value = format!("{bare}/nacos");
        }
    }
    let servers = Servers::new(&config.servers, config.ca.as_ref(), build, section)?;
    let login = match (&config.username, &config.password) {
        (Some(username), Some(password)) => {
            let password = password.reveal(&build.dir).map_err(|why| ConfigError::at(section.span, why))?;
            Some(format!("username={}&password={}", escaped(username), escaped(&password)))
        }
        _ => None,
    };
    let mut query = format!("serviceName={}&groupName={}", escaped(&config.service.value), escaped(&config.group));
    if let Some(namespace) = &config.namespace {
        let _ = write!(query, "&namespaceId={}", escaped(namespace));
    }
    if !config.clusters.is_empty() {
        // One interface asks for `clusters`, the other for `clusterName`; each ignores the other's.
        let clusters = config.clusters.join(",");
        let _ = write!(query, "&clusters={0}&clusterName={0}", escaped(&clusters));
    }
    let name = format!("{}@@{}", config.group, config.service.value);
    let interval = config.interval.map_or(INTERVAL, |interval| interval.value.0);
    Ok(Arc::new(Nacos(Arc::new(Asks { name, servers, login, query, interval }))))
}

struct Nacos(Arc<Asks>);

struct Asks {
    name: String,
    servers: Servers,
    login: Option<String>,
    query: String,
    interval: Duration,
}

impl Discover for Nacos {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let session = Session { asks: self.0.clone(), interface: Interface::First, token: None };
        Some(Box::pin(follow(session, report)))
    }
    fn describe(&self) -> String {
        format!("nacos {} at {}", self.0.name, self.0.servers.describe())
    }
}

/// What one follower knows of its servers.
struct Session {
    asks: Arc<Asks>,
    interface: Interface,
    token: Option<(String, Moment)>,
}

/// Nacos up to 2 speaks the first, Nacos 3 the third.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interface {
    First,
    Third,
}

impl Interface {
    const fn list(self) -> &'static str {
        match self {
            Self::First => "/v1/ns/instance/list",
            Self::Third => "/v3/client/ns/instance/list",
        }
    }
    const fn login(self) -> &'static str {
        match self {
            Self::First => "/v1/auth/login",
            Self::Third => "/v3/auth/user/login",
        }
    }
    const fn other(self) -> Self {
        match self {
            Self::First => Self::Third,
            Self::Third => Self::First,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    access_token: String,
    /// Seconds.
    token_ttl: u64,
}

impl Asked for Session {
    fn pause(&self) -> Duration {
        self.asks.interval
    }

    /// Whatever was wrong, the next question logs in anew.
    fn forget(&mut self) {
        self.token = None;
    }

    async fn ask(&mut self) -> Result<Vec<Found>, String> {
        let asks = self.asks.clone();
        let (status, body) = match asks.list(self).await? {
            // This server speaks the other interface.
            (StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::NOT_IMPLEMENTED, _) => {
                self.interface = self.interface.other();
                self.token = None;
                asks.list(self).await?
            }
            answered => answered,
        };
        match status {
            StatusCode::OK => core::parse(&body),
            other => Err(format!("status {}", other.as_u16())),
        }
    }
}

impl Asks {
    async fn list(&self, session: &mut Session) -> Result<(StatusCode, Bytes), String> {
        let mut path = format!("{}?{}&healthyOnly=true", session.interface.list(), self.query);
        if let Some(token) = self.token(session).await? {
            let _ = write!(path, "&accessToken={}", escaped(token));
        }
        let request = Request::get(path).body(Bytes::new()).map_err(|e| format!("request: {e}"))?;
        let response = self.servers.call(request, Bounds { body: MAX_ANSWER, ..Bounds::default() }).await?;
        Ok((response.status(), response.into_body()))
    }

    /// The token of this login; `None`: none is needed.
    async fn token<'a>(&self, session: &'a mut Session) -> Result<Option<&'a str>, String> {
        let Some(login) = &self.login else { return Ok(None) };
        if session.token.as_ref().is_none_or(|(_, until)| now() >= *until) {
            let request = Request::post(session.interface.login())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Bytes::from(login.clone()))
                .map_err(|e| format!("request: {e}"))?;
            let response = self.servers.call(request, Bounds { repeatable: true, ..Bounds::default() }).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
                other => return Err(format!("login: status {}", other.as_u16())),
            }
            let token: Token = serde_json::from_slice(response.body()).map_err(|e| format!("login: {e}"))?;
            // Renewed well before it ends.
            let until = now() + Duration::from_secs(token.token_ttl).mul_f64(0.8);
            session.token = Some((token.access_token, until));
        }
        Ok(session.token.as_ref().map(|(token, _)| token.as_str()))
    }
}

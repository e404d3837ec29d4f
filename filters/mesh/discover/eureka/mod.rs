//! `discover: { eureka: { app: NAME, servers: [..] } }`: the instances of an application in Netflix Eureka that are up.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderValue, Request, StatusCode};

use super::registry::{Asked, Servers, escaped, follow};
use crate::contract::client::Bounds;
use crate::contract::mesh::{Discover, Found, Report};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

const INTERVAL: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "eureka",
    summary: "Endpoints are the instances of an application in Eureka that are up",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let config = config::read(section)?;
    let servers = Servers::new(&config.servers, config.ca.as_ref(), build, section)?;
    let authorization = match (&config.username, &config.password) {
        (Some(username), Some(password)) => {
            let password = password.reveal(&build.dir).map_err(|why| ConfigError::at(section.span, why))?;
            let text = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
            let mut value = HeaderValue::try_from(text).expect("base64 can stand in a field");
            value.set_sensitive(true);
            Some(value)
        }
        _ => None,
    };
    // Applications are kept in capitals.
    let app = config.app.value.to_ascii_uppercase();
    let interval = config.interval.map_or(INTERVAL, |interval| interval.value.0);
    Ok(Arc::new(Eureka(Arc::new(Asks { app, servers, authorization, secure: config.secure, interval }))))
}

struct Eureka(Arc<Asks>);

struct Asks {
    app: String,
    servers: Servers,
    authorization: Option<HeaderValue>,
    secure: bool,
    interval: Duration,
}

impl Discover for Eureka {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(follow(self.0.clone(), report)))
    }
    fn describe(&self) -> String {
        format!("eureka {} at {}", self.0.app, self.0.servers.describe())
    }
}

impl Asked for Arc<Asks> {
    fn pause(&self) -> Duration {
        self.interval
    }

    async fn ask(&mut self) -> Result<Vec<Found>, String> {
        let mut request = Request::get(format!("/apps/{}", escaped(&self.app)))
            .header(ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|e| format!("request: {e}"))?;
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let bounds = Bounds { body: MAX_ANSWER, ..Bounds::default() };
        let response = self.servers.call(request, bounds).await?;
        match response.status() {
            StatusCode::OK => core::parse(response.body(), self.secure),
            // No instance of it is registered: an answer, not a failure.
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            other => Err(format!("status {}", other.as_u16())),
        }
    }
}

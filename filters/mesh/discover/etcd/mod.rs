//! `discover: { etcd: { prefix: /services/stock/ } }`: every key below a prefix is an endpoint.

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
use bytes::{Buf as _, Bytes, BytesMut};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use self::core::{Answer, Told};
use super::registry::{Patience, Servers};
use crate::contract::client::Bounds;
use crate::contract::mesh::{Discover, Report};
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::{Build, Entry, Role};

const MEMBER: &str = "http://127.0.0.1:2379";
/// Largest answer that is read, and largest line of a watch.
const MAX_ANSWER: usize = 16 << 20;
/// Everything is read anew at least so often: a connection that died in silence must not hide changes for ever.
const REREAD: Duration = Duration::from_secs(300);
/// Changes that come together are answered by one question.
const SETTLE: Duration = Duration::from_millis(50);

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "etcd",
    summary: "Endpoints are the keys below a prefix in etcd",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let config = config::read(section)?;
    let member = [Spot { span: section.span, value: MEMBER.to_owned() }];
    let servers = Servers::new(config.servers.as_deref().unwrap_or(&member), config.ca.as_ref(), build, section)?;
    let login = match (config.username, &config.password) {
        (Some(name), Some(password)) => {
            let password = password.reveal(&build.dir).map_err(|why| ConfigError::at(section.span, why))?;
            Some(json!({ "name": name, "password": password }).to_string())
        }
        _ => None,
    };
    Ok(Arc::new(Etcd(Arc::new(Asks { prefix: config.prefix.value, servers, login }))))
}

struct Etcd(Arc<Asks>);

struct Asks {
    prefix: String,
    servers: Servers,
    login: Option<String>,
}

impl Discover for Etcd {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(follow(self.0.clone(), report)))
    }
    fn describe(&self) -> String {
        format!("etcd {} at {}", self.0.prefix, self.0.servers.describe())
    }
}

/// Reads everything, then waits for a change, over and over: an event is a reason to look, never the truth itself, so
/// nothing can be missed between the two.
async fn follow(asks: Arc<Asks>, report: Report) {
    let mut patience = Patience::new();
    let mut token = None;
    loop {
        let failure = async {
            let answer = asks.read(&mut token).await?;
            if !answer.wrong.is_empty() {
                tracing::warn!(
                    prefix = asks.prefix,
                    wrong = answer.wrong.join("; "),
                    "etcd: values that are no endpoints"
                );
            }
            report.found(answer.found);
            asks.changed(answer.revision + 1, token.as_ref()).await
        };
        match failure.await {
            Ok(()) => patience.reset(),
            Err(why) => {
                token = None;
                report.failed(why);
                patience.wait().await;
            }
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

impl Asks {
    async fn read(&self, token: &mut Option<HeaderValue>) -> Result<Answer, String> {
        if token.is_none()
            && let Some(login) = &self.login
        {
            let body =
                self.call("/v3/auth/authenticate", login.clone(), None).await.map_err(|e| format!("login: {e}"))?;
            let answer: Token = serde_json::from_slice(&body).map_err(|e| format!("login: {e}"))?;
            let mut value = HeaderValue::try_from(answer.token).map_err(|e| format!("login: {e}"))?;
            value.set_sensitive(true);
            *token = Some(value);
        }
        let question = json!({ "key": self.key(), "range_end": self.end() });
        core::parse(&self.call("/v3/kv/range", question.to_string(), token.as_ref()).await?)
    }

    async fn call(&self, path: &str, body: String, token: Option<&HeaderValue>) -> Result<Bytes, String> {
        let bounds = Bounds { body: MAX_ANSWER, repeatable: true, ..Bounds::default() };
        let response = self.servers.call(post(path, body, token)?, bounds).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            other => Err(format!("status {}", other.as_u16())),
        }
    }

    /// Waits until something below the prefix changes from this revision on, or [`REREAD`].
    async fn changed(&self, revision: u64, token: Option<&HeaderValue>) -> Result<(), String> {
        let create = json!({ "create_request": {
            "key": self.key(), "range_end": self.end(), "start_revision": revision.to_string(),
        } });
        let request = post("/v3/watch", create.to_string(), token)?;
        let response = self.servers.open(request, Duration::from_secs(5)).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("watch: status {}", response.status().as_u16()));
        }
        match tokio::time::timeout(REREAD, change(response.into_body())).await {
            Ok(told) => told?,
            Err(_) => return Ok(()),
        }
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    fn key(&self) -> String {
        STANDARD.encode(&self.prefix)
    }

    fn end(&self) -> String {
        STANDARD.encode(core::range_end(self.prefix.as_bytes()))
    }
}

/// Reads a watch, a line at a time, up to the first change.
async fn change(mut body: Incoming) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            if core::told(&line)? == Told::Changed {
                return Ok(());
            }
        }
        let frame = body.frame().await.ok_or("watch: ended")?.map_err(|e| format!("watch: {e}"))?;
        if let Some(data) = frame.data_ref() {
            if buffer.len() + data.len() > MAX_ANSWER {
                return Err("watch: a line without end".to_owned());
            }
            buffer.extend_from_slice(data);
        }
    }
}

fn post(path: &str, body: String, token: Option<&HeaderValue>) -> Result<Request<Bytes>, String> {
    let mut request = Request::post(path).body(Bytes::from(body)).map_err(|e| format!("request: {e}"))?;
    if let Some(token) = token {
        request.headers_mut().insert(AUTHORIZATION, token.clone());
    }
    Ok(request)
}

//! List and watch, as the API wants it: everything is read once, then changes follow from the version of that list; when
//! they can no longer be had from there, everything is read again.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;

use super::Wanted;
use super::access::Access;
use super::config::Port;
use super::slices::{EndpointSlice, Metadata, Slices};
use crate::contract::client::Bounds;
use crate::contract::mesh::Report;
use crate::contract::now;
use crate::mesh::chance::Dice;
use crate::mesh::discover::registry::{Patience, escaped};

/// Slices of one page of a list.
const PAGE: u32 = 100;
/// Largest page, and largest line of a watch.
const MAX_ANSWER: usize = 16 << 20;
/// The server ends a watch after about this time; the next goes on where it was.
const WATCH: Duration = Duration::from_secs(290);
/// What a server may take longer than it was asked for.
const SLACK: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);
/// Changes that come together are told together.
const SETTLE: Duration = Duration::from_millis(50);
/// A watch that ends sooner is no use: the next one waits, whatever it ended with.
const LEAST: Duration = Duration::from_secs(1);

/// Why a watch or a list does not go on.
enum Stop {
    /// Changes from there on are no longer kept: everything is to be read again (410 Gone).
    Expired,
    Failed(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

pub async fn follow(wanted: Arc<Wanted>, report: Report) {
    let mut patience = Patience::new();
    loop {
        let failure = async {
            let access = wanted.access()?;
            let mut session = Session { port: wanted.port.clone(), wanted: &wanted, access, slices: Slices::default() };
            session.follow(&report, &mut patience).await
        };
        let Err(why) = failure.await;
        report.failed(why);
        patience.wait().await;
    }
}

/// What is known from one list on.
struct Session<'a> {
    wanted: &'a Wanted,
    access: Access,
    slices: Slices,
    /// As the slices have it: what a Service calls by a number has a name there.
    port: Option<Port>,
}

impl Session<'_> {
    /// Lists and watches until that fails twice in a row; one failed watch is taken up again where it was.
    async fn follow(&mut self, report: &Report, patience: &mut Patience) -> Result<std::convert::Infallible, String> {
        let mut dice = Dice::fresh();
        loop {
            self.port = self.port().await?;
            let mut version = match self.list().await {
                Ok(version) => version,
                Err(Stop::Expired) => continue,
                Err(Stop::Failed(why)) => return Err(why),
            };
            self.tell(report);
            patience.reset();
            let mut broken = false;
            loop {
                let started = now();
                match self.changes(&mut version, report, dice.jitter(WATCH, 0.1)).await {
                    Ok(()) => broken = false,
                    Err(Stop::Expired) => break,
                    Err(Stop::Failed(why)) if broken => return Err(why),
                    // Connections break; only if the next attempt fails, too, what is known may be out of date.
                    Err(Stop::Failed(why)) => {
                        tracing::debug!(service = self.wanted.service, why, "kubernetes: the watch broke");
                        broken = true;
                    }
                }
                if now().since(started) < LEAST {
                    tokio::time::sleep(dice.jitter(LEAST, 0.2)).await;
                }
            }
        }
    }

    fn tell(&self, report: &Report) {
        match self.slices.endpoints(self.port.as_ref(), self.wanted.family) {
            Ok(found) => report.found(found),
            Err(why) => report.failed(why),
        }
    }

    fn namespace(&self) -> &str {
        self.wanted.namespace.as_deref().unwrap_or(&self.access.namespace)
    }

    /// The port as slices have it. They know a Service's ports by name and the pods' numbers only.
    async fn port(&self) -> Result<Option<Port>, String> {
        let Some(Port::Number(number)) = self.wanted.port else { return Ok(self.wanted.port.clone()) };
        let path = format!("/api/v1/namespaces/{}/services/{}", self.namespace(), self.wanted.service);
        let bounds = Bounds { body: MAX_ANSWER, ..Bounds::default() };
        let response = self.access.remote.call(self.get(&path)?, bounds).await?;
        match response.status() {
            StatusCode::OK => {
                let service: Service = serde_json::from_slice(response.body()).map_err(|e| format!("Service: {e}"))?;
                let port = service.spec.ports.into_iter().find(|port| port.port == number);
                let port = port.ok_or_else(|| format!("the Service has no port {number}"))?;
                Ok(Some(Port::Name(port.name.unwrap_or_default())))
            }
            // Slices can be there without a Service: then the number can only be theirs.
            StatusCode::NOT_FOUND => Ok(Some(Port::Number(number))),
            other => Err(format!("Service: {}", told(other, response.body()))),
        }
    }

    /// Reads all slices; their version.
    async fn list(&mut self) -> Result<String, Stop> {
        let mut slices = Slices::default();
        let mut next = String::new();
        loop {
            let path = format!("{}&limit={PAGE}&continue={}", self.path(), escaped(&next));
            let bounds = Bounds { body: MAX_ANSWER, timeout: CONNECT, ..Bounds::default() };
            let response = self.access.remote.call(self.get(&path)?, bounds).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::GONE => return Err(Stop::Expired),
                other => return Err(Stop::Failed(format!("EndpointSlices: {}", told(other, response.body())))),
            }
            let list: List = serde_json::from_slice(response.body()).map_err(|e| format!("EndpointSlices: {e}"))?;
            list.items.unwrap_or_default().into_iter().for_each(|slice| slices.put(slice));
            next = list.metadata.next;
            if next.is_empty() {
                self.slices = slices;
                return Ok(list.metadata.resource_version);
            }
        }
    }

    /// Follows changes from this version on until the server ends the watch.
    async fn changes(&mut self, version: &mut String, report: &Report, lasts: Duration) -> Result<(), Stop> {
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            self.path(),
            escaped(version),
            lasts.as_secs()
        );
        let response = self.access.remote.open(self.get(&path)?, CONNECT).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::GONE => return Err(Stop::Expired),
            other => return Err(Stop::Failed(format!("watch: {}", told(other, b"")))),
        }
        // It answers, so what is known is what there is.
        self.tell(report);
        let mut lines = Lines { body: response.into_body(), buffer: BytesMut::new() };
        let end = tokio::time::sleep(lasts + SLACK);
        tokio::pin!(end);
        let mut news = false;
        loop {
            let settled = async {
                if news {
                    tokio::time::sleep(SETTLE).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                line = lines.next() => match line {
                    Ok(Some(line)) => news |= self.change(&line, version)?,
                    ended => {
                        if news {
                            self.tell(report);
                        }
                        return ended.map(drop).map_err(Stop::Failed);
                    }
                },
                () = settled => {
                    news = false;
                    self.tell(report);
                }
                () = &mut end => return Err(Stop::Failed("watch: the server does not end it".to_owned())),
            }
        }
    }

    /// Takes a line of a watch; whether something changed.
    fn change(&mut self, line: &[u8], version: &mut String) -> Result<bool, Stop> {
        let event: Event = serde_json::from_slice(line).map_err(|e| format!("watch: {e}"))?;
        let object = event.object.get();
        let slice = || serde_json::from_str::<EndpointSlice>(object).map_err(|e| format!("watch: {e}"));
        match event.kind {
            Kind::Added | Kind::Modified => {
                let slice = slice()?;
                version.clone_from(&slice.metadata.resource_version);
                self.slices.put(slice);
                Ok(true)
            }
            Kind::Deleted => {
                let slice = slice()?;
                version.clone_from(&slice.metadata.resource_version);
                self.slices.remove(&slice.metadata.name);
                Ok(true)
            }
            Kind::Bookmark => {
                let mark: Mark = serde_json::from_str(object).map_err(|e| format!("watch: {e}"))?;
                *version = mark.metadata.resource_version;
                Ok(false)
            }
            Kind::Error => {
                let status: Status = serde_json::from_str(object).unwrap_or_default();
                if status.code == StatusCode::GONE.as_u16() {
                    return Err(Stop::Expired);
                }
                Err(Stop::Failed(format!("watch: {} {}", status.code, short(&status.message))))
            }
            Kind::Other => Ok(false),
        }
    }

    fn path(&self) -> String {
        let selector = format!("kubernetes.io/service-name={}", self.wanted.service);
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector={}",
            self.namespace(),
            escaped(&selector)
        )
    }

    fn get(&self, path: &str) -> Result<Request<Bytes>, String> {
        // The server may be behind a prefix, as behind Rancher.
        let base = self.access.remote.uri().path().trim_end_matches('/');
        let mut request =
            Request::get(format!("{base}{path}")).body(Bytes::new()).map_err(|e| format!("request: {e}"))?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(value) = self.access.authorization()? {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }
}

/// A body, a line at a time.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// `None`: it ended as it should. May be dropped and asked again without loss.
    async fn next(&mut self) -> Result<Option<BytesMut>, String> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.buffer[seen..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(seen + end);
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            seen = self.buffer.len();
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| format!("watch: {e}"))?;
            if let Some(data) = frame.data_ref() {
                if self.buffer.len() + data.len() > MAX_ANSWER {
                    return Err("watch: a line without end".to_owned());
                }
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Option<Vec<EndpointSlice>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Mark {
    metadata: Metadata,
}

/// `meta/v1.Status`: why a question was refused.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Deserialize)]
struct ServiceSpec {
    #[serde(default)]
    ports: Vec<ServicePort>,
}

#[derive(Deserialize)]
struct ServicePort {
    name: Option<String>,
    port: u16,
}

/// A refusal and its reason.
fn told(status: StatusCode, body: &[u8]) -> String {
    let said: Status = serde_json::from_slice(body).unwrap_or_default();
    format!("status {} {}", status.as_u16(), short(&said.message)).trim_end().to_owned()
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

//! What discovery kinds that ask a registry over HTTP share: several servers, patience between failures, and how an
//! answer's addresses are read.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::contract::client::{Bounds, Remote};
use crate::contract::mesh::{Address, Found, Report};
use crate::contract::section::{ConfigError, Spot};
use crate::contract::{Build, Node};
use crate::mesh::chance::Dice;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Share by which pauses differ, so that instances do not ask in step.
const JITTER: f64 = 0.2;

/// The servers of a registry, the one that answered last first.
pub struct Servers {
    all: Vec<Remote>,
    current: AtomicUsize,
}

impl Servers {
    /// Checks the URLs. Unencrypted ones are allowed: an agent on the same host or network is the usual place.
    pub fn new(urls: &[Spot<String>], ca: Option<&PathBuf>, build: &Build<'_>, at: &Node) -> Result<Self, ConfigError> {
        if urls.is_empty() {
            return Err(ConfigError::at(at.span, "no server to ask").help("name at least one URL"));
        }
        let ca = ca.map(|ca| build.path(ca));
        let remote = |url: &Spot<String>| {
            Remote::new(&url.value, ca.as_deref(), true)
                .map_err(|why| ConfigError::at(url.span, why).help("such as `http://127.0.0.1:8500`"))
        };
        Ok(Self { all: urls.iter().map(remote).collect::<Result<_, _>>()?, current: AtomicUsize::new(0) })
    }

    /// Asks one server after the other until one answers, be it with a refusal. A server's own failure (5xx) is none.
    pub async fn call(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, String> {
        self.each(|remote| {
            let request = request.clone();
            async move {
                let response = remote.call(based(request, remote)?, bounds).await?;
                judged(response.status()).map(|()| response)
            }
        })
        .await
    }

    /// The same for an answer that streams.
    pub async fn open(&self, request: Request<Bytes>, patience: Duration) -> Result<Response<Incoming>, String> {
        self.each(|remote| {
            let request = request.clone();
            async move {
                let response = remote.open(based(request, remote)?, patience).await?;
                judged(response.status()).map(|()| response)
            }
        })
        .await
    }

    async fn each<'a, T, F: Future<Output = Result<T, String>>>(
        &'a self,
        ask: impl Fn(&'a Remote) -> F,
    ) -> Result<T, String> {
        let first = self.current.load(Relaxed);
        let mut failure = String::new();
        for n in 0..self.all.len() {
            let at = (first + n) % self.all.len();
            match ask(&self.all[at]).await {
                Ok(answer) => {
                    self.current.store(at, Relaxed);
                    return Ok(answer);
                }
                Err(why) => failure = format!("{}: {why}", self.all[at].uri()),
            }
        }
        Err(failure)
    }

    /// For `/endpoints`.
    pub fn describe(&self) -> String {
        self.all.iter().map(|remote| remote.uri().to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// A server's failure says nothing about the question.
fn judged(status: StatusCode) -> Result<(), String> {
    if status.is_server_error() { Err(format!("status {}", status.as_u16())) } else { Ok(()) }
}

/// The request below the path of the server's own URL: registries live behind prefixes such as `/eureka`.
fn based(mut request: Request<Bytes>, remote: &Remote) -> Result<Request<Bytes>, String> {
    let base = remote.uri().path().trim_end_matches('/');
    if !base.is_empty() {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = format!("{base}{path}").parse().map_err(|e| format!("request: {e}"))?;
    }
    Ok(request)
}

/// Pauses between failures: doubled each time, never in step with others.
pub struct Patience {
    failures: u32,
    dice: Dice,
}

impl Patience {
    /// Before any failure.
    pub fn new() -> Self {
        Self { failures: 0, dice: Dice::fresh() }
    }

    /// It went well.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits after a failure.
    pub async fn wait(&mut self) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(5)).min(MAX_PAUSE);
        self.failures += 1;
        tokio::time::sleep(self.dice.jitter(pause, JITTER)).await;
    }

    /// A regular pause.
    pub async fn pause(&mut self, regular: Duration) {
        tokio::time::sleep(self.dice.jitter(regular, JITTER / 2.0)).await;
    }
}

/// A source that is asked over and over.
pub trait Asked: Send {
    /// One question: what is there now.
    fn ask(&mut self) -> impl Future<Output = Result<Vec<Found>, String>> + Send;
    /// Pause after an answer.
    fn pause(&self) -> Duration;
    /// A question failed: forgets what the failure may be due to.
    fn forget(&mut self) {}
}

/// Asks for ever: regularly while there are answers, ever more seldom while there are none.
pub async fn follow(mut source: impl Asked, report: Report) {
    let mut patience = Patience::new();
    loop {
        match source.ask().await {
            Ok(found) => {
                patience.reset();
                report.found(found);
                patience.pause(source.pause()).await;
            }
            Err(why) => {
                source.forget();
                report.failed(why);
                patience.wait().await;
            }
        }
    }
}

/// An address as registries write it; `None`: a name, or nothing that listens.
pub fn address(host: &str, port: u16) -> Option<Address> {
    let ip: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    (port != 0).then(|| Address::Tcp((ip, port).into()))
}

/// A part of a path or a query.
pub fn escaped(text: &str) -> impl std::fmt::Display + '_ {
    const PLAIN: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    percent_encoding::utf8_percent_encode(text, PLAIN)
}

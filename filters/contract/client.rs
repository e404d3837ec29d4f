//! A small HTTP client for what filters ask of the outside by URL: key sets, tokens, discovery documents, registries.
//! No redirects, no cookies; every call is bounded in time and in size. A service of the configuration is called through
//! [`super::Services`] instead, which balances and retries.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::worker;

/// Connections a worker keeps open to one server while nobody calls.
const IDLE: usize = 4;
/// Silence after which TCP asks whether the peer is still there.
const ALIVE: Duration = Duration::from_secs(30);

/// How long and how large an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connect, handshake, answer, together.
    pub timeout: Duration,
    /// Bytes of its body.
    pub body: usize,
    /// May be sent twice although its method does not say so: a question asked by POST.
    pub repeatable: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), body: 1 << 20, repeatable: false }
    }
}

/// A server that a URL names, and how to trust it.
pub struct Target {
    uri: Uri,
    host: String,
    /// What its certificate is for.
    name: String,
    port: u16,
    tls: Option<Trust>,
    alpn: &'static [u8],
}

/// Certificates or a key.
#[derive(Clone, Copy, Debug)]
pub enum Pem<'a> {
    /// In a file.
    File(&'a Path),
    /// Written out.
    Text(&'a str),
}

/// TLS towards a [`Target`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity<'a> {
    /// Whom to trust; without it, the system's certificates.
    pub ca: Option<Pem<'a>>,
    /// Certificate chain to show, and its key.
    pub own: Option<(Pem<'a>, Pem<'a>)>,
    /// Name to verify instead of the URL's host.
    pub name: Option<&'a str>,
}

/// Whom to trust. The system's certificates are read at the first call, not by every config that names a URL.
enum Trust {
    Own(Arc<ClientConfig>),
    System(OnceLock<Arc<ClientConfig>>),
}

/// A connection, encrypted or not.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Target {
    /// Checks a URL. `http` is only for loopback hosts unless `plaintext` allows it.
    ///
    /// # Errors
    /// A sentence about what is wrong with the URL or a file.
    pub fn new(url: &str, identity: Identity<'_>, plaintext: bool, alpn: &'static [u8]) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("`{url}` is not a URL: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("`{url}` has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err("credentials cannot stand in the URL".to_owned());
        }
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let tls = match uri.scheme_str() {
            Some("https") if identity.ca.is_none() && identity.own.is_none() => Some(Trust::System(OnceLock::new())),
            Some("https") => {
                let mut config = match identity.own {
                    None => verifying(identity.ca)?.with_no_client_auth(),
                    Some((cert, key)) => showing(identity.ca, cert, key)?,
                };
                config.alpn_protocols = vec![alpn.to_vec()];
                Some(Trust::Own(Arc::new(config)))
            }
            Some("http") if loopback || plaintext => None,
            Some("http") => return Err(format!("`{url}` is not encrypted: whoever is on the way could forge tokens")),
            _ => return Err(format!("`{url}` is neither https nor http")),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let name = identity.name.unwrap_or(&host).to_owned();
        Ok(Self { uri, host, name, port, tls, alpn })
    }

    /// Its URL.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// A sentence for the log.
    pub async fn connect(&self) -> Result<Box<dyn Wire>, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| format!("connect: {e}"))?;
        // Questions may hang for minutes and streams for days: a peer that vanished must not be waited for that long.
        let alive = TcpKeepalive::new().with_time(ALIVE).with_interval(ALIVE / 3).with_retries(3);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
        stream.set_nodelay(true).map_err(|e| format!("connect: {e}"))?;
        let tls = match &self.tls {
            None => return Ok(Box::new(stream)),
            Some(Trust::Own(tls)) => tls.clone(),
            Some(Trust::System(tls)) => match tls.get() {
                Some(tls) => tls.clone(),
                None => {
                    let mut made = trusting(None)?;
                    made.alpn_protocols = vec![self.alpn.to_vec()];
                    tls.get_or_init(|| Arc::new(made)).clone()
                }
            },
        };
        let name = ServerName::try_from(self.name.clone()).map_err(|e| format!("host name: {e}"))?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        Ok(Box::new(connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?))
    }
}

/// A server to ask over HTTP/1.1, with connections that are kept.
pub struct Remote {
    target: Target,
    /// Per worker, most recently used last. Contended by nobody.
    idle: Box<[Mutex<Vec<SendRequest<Full<Bytes>>>>]>,
}

impl From<Target> for Remote {
    fn from(target: Target) -> Self {
        Self { target, idle: (0..worker::shards()).map(|_| Mutex::default()).collect() }
    }
}

impl Remote {
    /// Checks a URL. `http` is only for loopback hosts unless `plaintext` allows it.
    ///
    /// # Errors
    /// A sentence about what is wrong with the URL or the CA file.
    pub fn new(url: &str, ca: Option<&Path>, plaintext: bool) -> Result<Self, String> {
        let identity = Identity { ca: ca.map(Pem::File), ..Identity::default() };
        Target::new(url, identity, plaintext, b"http/1.1").map(Self::from)
    }

    /// Its URL.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        self.target.uri()
    }

    /// Fetches the document that the URL names; anything but 200 is an error.
    ///
    /// # Errors
    /// A sentence for the log.
    pub async fn get(&self, accept: &'static str, bounds: Bounds) -> Result<Bytes, String> {
        let path = self.uri().path_and_query().map_or("/", |p| p.as_str());
        let request = Request::get(path).header(ACCEPT, accept).body(Bytes::new());
        let response = self.call(request.map_err(|e| format!("request: {e}"))?, bounds).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            other => Err(format!("status {}", other.as_u16())),
        }
    }

    /// Sends a request in origin form (path and query only) and reads the whole answer. `Host` and `User-Agent` are
    /// filled in. A request that a kept connection lost before any answer is sent once more on a new one if that is
    /// safe: it was never sent, its method is idempotent, or it is [`Bounds::repeatable`].
    ///
    /// # Errors
    /// A sentence for the log.
    pub async fn call(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, String> {
        let request = self.addressed(request)?;
        match tokio::time::timeout(bounds.timeout, self.exchange(request, bounds)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", bounds.timeout)),
        }
    }

    /// Sends a request and gives the answer as it comes: for streams that last. Always on a connection of its own, which
    /// ends with the body. `patience`: for connect, handshake and the answer's head.
    ///
    /// # Errors
    /// A sentence for the log.
    pub async fn open(&self, request: Request<Bytes>, patience: Duration) -> Result<Response<Incoming>, String> {
        let request = self.addressed(request)?.map(Full::new);
        let asked = async {
            let mut sender = self.connect().await?;
            sender.send_request(request).await.map_err(|e| format!("HTTP: {e}"))
        };
        match tokio::time::timeout(patience, asked).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {patience:?}")),
        }
    }

    fn addressed(&self, mut request: Request<Bytes>) -> Result<Request<Bytes>, String> {
        let headers = request.headers_mut();
        if !headers.contains_key(HOST) {
            let authority = self.uri().authority().map_or("", |a| a.as_str());
            headers.insert(HOST, HeaderValue::try_from(authority).map_err(|e| format!("host: {e}"))?);
        }
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static("onehop"));
        Ok(request)
    }

    async fn exchange(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, String> {
        let limit = bounds.body;
        if let Some(mut kept) = self.kept() {
            match kept.try_send_request(request.clone().map(Full::new)).await {
                Ok(response) => return self.read(kept, response, limit).await,
                Err(mut lost) => {
                    let unsent = lost.take_message().is_some();
                    if !(unsent || bounds.repeatable || request.method().is_idempotent()) {
                        return Err(format!("HTTP: {}", lost.into_error()));
                    }
                }
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request.map(Full::new)).await.map_err(|e| format!("HTTP: {e}"))?;
        self.read(sender, response, limit).await
    }

    async fn read(
        &self,
        sender: SendRequest<Full<Bytes>>,
        response: Response<Incoming>,
        limit: usize,
    ) -> Result<Response<Bytes>, String> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|e| format!("body: {e}"))?.to_bytes();
        if !sender.is_closed() {
            let mut idle = self.idle[worker::shard()].lock();
            if idle.len() < IDLE {
                idle.push(sender);
            }
        }
        Ok(Response::from_parts(parts, body))
    }

    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle[worker::shard()].lock();
        std::iter::from_fn(|| idle.pop()).find(SendRequest::is_ready)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let io = TokioIo::new(self.target.connect().await?);
        let (sender, connection) = http1::handshake(io).await.map_err(|e| format!("HTTP: {e}"))?;
        // Ends by itself when the sender is dropped.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The client side of TLS that trusts the certificates of a PEM file, or without one those of the system; without such,
/// those built in. Offers no protocol by ALPN.
///
/// # Errors
/// The file cannot be read, or there is no certificate in it.
pub fn trusting(ca: Option<&Path>) -> Result<ClientConfig, String> {
    Ok(verifying(ca.map(Pem::File))?.with_no_client_auth())
}

/// The same with a certificate of our own to show.
fn showing(ca: Option<Pem<'_>>, cert: Pem<'_>, key: Pem<'_>) -> Result<ClientConfig, String> {
    let own = PrivateKeyDer::from_pem_slice(&key.read()?).map_err(|e| format!("{key}: {e}"))?;
    verifying(ca)?.with_client_auth_cert(cert.certificates()?, own).map_err(|e| format!("{cert}: {e}"))
}

fn verifying(ca: Option<Pem<'_>>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = ca {
        for certificate in ca.certificates()? {
            roots.add(certificate).map_err(|e| format!("{ca}: {e}"))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            // A container without a certificate store.
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots))
}

impl Pem<'_> {
    fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        match self {
            Self::File(path) => Ok(std::fs::read(path).map_err(|e| format!("{self}: {e}"))?.into()),
            Self::Text(text) => Ok(text.as_bytes().into()),
        }
    }

    /// At least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let bytes = self.read()?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match all.map_err(|e| format!("{self}: {e}"))? {
            none if none.is_empty() => Err(format!("{self}: no certificate in it")),
            all => Ok(all),
        }
    }
}

impl std::fmt::Display for Pem<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Text(_) => f.write_str("the PEM text"),
        }
    }
}

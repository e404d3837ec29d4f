//! A small HTTP client for what filters ask of the outside by URL: key sets, tokens, discovery documents, registries.
//! No redirects, no cookies; every call is bounded in time and in size. A service of the configuration is called through
//! [`super::Services`] instead, which balances and retries.

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
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::worker;

/// Connections a worker keeps open to one server while nobody calls.
const IDLE: usize = 4;

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

/// A URL and how to trust it.
pub struct Remote {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<Trust>,
    /// Per worker, most recently used last. Contended by nobody.
    idle: Box<[Mutex<Vec<SendRequest<Full<Bytes>>>>]>,
}

/// Whom to trust. The system's certificates are read at the first call, not by every config that names a URL.
enum Trust {
    Own(Arc<ClientConfig>),
    System(OnceLock<Arc<ClientConfig>>),
}

impl Remote {
    /// Checks a URL. `http` is only for loopback hosts unless `plaintext` allows it.
    ///
    /// # Errors
    /// A sentence about what is wrong with the URL or the CA file.
    pub fn new(url: &str, ca: Option<&Path>, plaintext: bool) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("`{url}` is not a URL: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("`{url}` has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err("credentials cannot stand in the URL".to_owned());
        }
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let tls = match uri.scheme_str() {
            Some("https") => Some(match ca {
                Some(ca) => Trust::Own(Arc::new(tls(Some(ca))?)),
                None => Trust::System(OnceLock::new()),
            }),
            Some("http") if loopback || plaintext => None,
            Some("http") => return Err(format!("`{url}` is not encrypted: whoever is on the way could forge tokens")),
            _ => return Err(format!("`{url}` is neither https nor http")),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let idle = (0..worker::shards()).map(|_| Mutex::default()).collect();
        Ok(Self { uri, host, port, tls, idle })
    }

    /// Its URL.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Fetches the document that the URL names; anything but 200 is an error.
    ///
    /// # Errors
    /// A sentence for the log.
    pub async fn get(&self, accept: &'static str, bounds: Bounds) -> Result<Bytes, String> {
        let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
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
            let authority = self.uri.authority().map_or("", |a| a.as_str());
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
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| format!("connect: {e}"))?;
        let tls = match &self.tls {
            None => return handshake(stream).await,
            Some(Trust::Own(tls)) => tls.clone(),
            Some(Trust::System(tls)) => match tls.get() {
                Some(tls) => tls.clone(),
                None => {
                    let made = Arc::new(self::tls(None)?);
                    tls.get_or_init(|| made).clone()
                }
            },
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|e| format!("host name: {e}"))?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        handshake(connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?).await
    }
}

async fn handshake(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| format!("HTTP: {e}"))?;
    // Ends by itself when the sender is dropped.
    tokio::spawn(connection);
    Ok(sender)
}

fn tls(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let wrong = |e| format!("{}: {e}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).map_err(wrong)? {
            roots.add(certificate.map_err(wrong)?).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        if roots.is_empty() {
            return Err(format!("{}: no certificate in it", path.display()));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            // A container without a certificate store.
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

//! One small GET for a key set: no redirects, no cookies, bounded in time and size.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::keys::MAX_SET;

/// Connect, handshake, answer, together.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A URL and how to trust it.
pub struct Remote {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<Trust>,
}

/// Whom to trust. The system's certificates are read at the first fetch, not by every config that names a URL.
enum Trust {
    Own(Arc<ClientConfig>),
    System(OnceLock<Arc<ClientConfig>>),
}

impl Remote {
    /// Checks a URL. `http` is only for loopback hosts unless `plaintext` allows it.
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
        Ok(Self { uri, host, port, tls })
    }

    /// Fetches the document.
    pub async fn get(&self) -> Result<Bytes, String> {
        match tokio::time::timeout(TIMEOUT, self.exchange()).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {}s", TIMEOUT.as_secs())),
        }
    }

    async fn exchange(&self) -> Result<Bytes, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| format!("connect: {e}"))?;
        let tls = match &self.tls {
            None => return self.ask(stream).await,
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
        self.ask(connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?).await
    }

    async fn ask(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Bytes, String> {
        let failed = |e: hyper::Error| format!("HTTP: {e}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
        // Ends by itself when the sender is dropped.
        tokio::spawn(connection);
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let request = Request::get(self.uri.path_and_query().map_or("/", |p| p.as_str()))
            .header(HOST, authority)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, "onehop")
            .body(Empty::<Bytes>::new())
            .map_err(|e| format!("request: {e}"))?;
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_SET).collect().await.map_err(|e| format!("body: {e}"))?;
        Ok(body.to_bytes())
    }
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

//! The way to an OTLP collector over TLS: our own rustls under tonic's channel, so that there is one TLS library with one
//! set of rules in the process.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use http::Uri;
use hyper_util::rt::TokioIo;
use onehop_filters::contract::client;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::spans::{EXPORT_TIMEOUT, SpansError};

/// Whether an address asks for TLS.
pub(super) fn is_secure(otlp: &str) -> bool {
    otlp.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https"))
}

/// A channel that connects when there is something to send, and again when it has to. Without `ca` the system's roots
/// are read, at the first connection.
pub(super) fn channel(otlp: &str, ca: Option<&Path>) -> Result<Channel, SpansError> {
    let wrong = |e: String| SpansError::Tls(e);
    let endpoint = Endpoint::from_shared(otlp.to_owned()).map_err(|e| wrong(e.to_string()))?;
    let uri = endpoint.uri().clone();
    let host = uri.host().ok_or_else(|| wrong(format!("`{otlp}` has no host")))?;
    let host: Arc<str> = host.trim_start_matches('[').trim_end_matches(']').into();
    let name = ServerName::try_from(host.to_string()).map_err(|e| wrong(format!("`{host}`: {e}")))?;
    let port = uri.port_u16().unwrap_or(443);
    let connector = Arc::new(OnceLock::new());
    if let Some(ca) = ca {
        let _ = connector.set(connector_of(Some(ca)).map_err(wrong)?);
    }
    let connect = tower::service_fn(move |_: Uri| {
        let (host, name, connector) = (host.clone(), name.clone(), connector.clone());
        async move {
            let tls = match connector.get() {
                Some(tls) => tls,
                None => {
                    let made = connector_of(None).map_err(io::Error::other)?;
                    connector.get_or_init(|| made)
                }
            };
            secure(tls, TcpStream::connect((&*host, port)).await?, name).await.map(TokioIo::new)
        }
    });
    Ok(endpoint.connect_timeout(EXPORT_TIMEOUT).timeout(EXPORT_TIMEOUT).connect_with_connector_lazy(connect))
}

fn connector_of(ca: Option<&Path>) -> Result<TlsConnector, String> {
    let mut config = client::trusting(ca)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn secure(tls: &TlsConnector, stream: TcpStream, name: ServerName<'static>) -> io::Result<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let stream = tls.connect(name, stream).await?;
    // gRPC is HTTP/2 only.
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("the collector does not agree to HTTP/2"));
    }
    Ok(stream)
}

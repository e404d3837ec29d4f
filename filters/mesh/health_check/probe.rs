//! One probe over a connection of its own: what the pool holds open says nothing about who would accept a new one.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::uri::Authority;
use http::{HeaderValue, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::config::{Probe, Settings};
use super::grpc;
use crate::contract::entry::CheckTls;
use crate::contract::mesh::Address;

pub const AGENT: HeaderValue = HeaderValue::from_static("onehop-health");

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Whether the endpoint passes; else why not. Without a limit of time: the caller has one.
pub async fn probe(settings: &Settings, address: &Address, tls: Option<&CheckTls>) -> Result<(), String> {
    let at = match (address, settings.port) {
        (Address::Tcp(to), Some(port)) => &Address::Tcp((to.ip(), port).into()),
        (address, _) => address,
    };
    ask(&settings.probe, at, tls).await
}

async fn ask(what: &Probe, address: &Address, tls: Option<&CheckTls>) -> Result<(), String> {
    let stream: Box<dyn Stream> = match address {
        Address::Tcp(to) => Box::new(TcpStream::connect(to).await.map_err(|e| format!("connect: {e}"))?),
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(|e| format!("connect: {e}"))?),
    };
    let stream: Box<dyn Stream> = match tls {
        None => stream,
        Some(tls) => {
            let mut config = rustls::ClientConfig::clone(&tls.config);
            // The probe speaks its own version of HTTP, whatever the service's protocol is.
            let version: &[u8] = if matches!(what, Probe::Grpc { .. }) { b"h2" } else { b"http/1.1" };
            config.alpn_protocols = vec![version.to_vec()];
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            Box::new(connector.connect(tls.name.clone(), stream).await.map_err(|e| format!("tls: {e}"))?)
        }
    };
    match what {
        Probe::Tcp => Ok(()),
        Probe::Grpc { service, host } => {
            let host = match (host, address) {
                (Some(host), _) => host.clone(),
                (None, Address::Tcp(to)) => Authority::try_from(to.to_string()).map_err(|e| e.to_string())?,
                (None, Address::Unix(_)) => Authority::from_static("localhost"),
            };
            grpc::check(stream, &host, service, tls.is_some()).await
        }
        Probe::Http { path, host, expected } => {
            let host = match host {
                Some(host) => host.clone(),
                None => match address {
                    Address::Tcp(to) => HeaderValue::try_from(to.to_string()).map_err(|e| e.to_string())?,
                    Address::Unix(_) => HeaderValue::from_static("localhost"),
                },
            };
            let request = Request::get(path.as_str())
                .header(HOST, host)
                .header(USER_AGENT, AGENT)
                .header(CONNECTION, "close")
                .body(Empty::<Bytes>::new())
                .map_err(|e| e.to_string())?;
            let status = get(stream, request).await?;
            if expected.iter().any(|(from, to)| (*from..=*to).contains(&status)) {
                Ok(())
            } else {
                Err(format!("status {status}"))
            }
        }
    }
}

async fn get(stream: Box<dyn Stream>, request: Request<Empty<Bytes>>) -> Result<u16, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Driven here, not spawned: nothing of a probe outlives it. The head decides, the body is not read.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection may end in the very step that brought the answer; else this says that none came.
        _ = connection => answer.await,
    };
    answer.map(|a| a.status().as_u16()).map_err(|e| e.to_string())
}

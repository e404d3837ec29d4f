//! Upgrades: WebSocket and friends over HTTP/1.1 (RFC 9110 section 7.8) and over HTTP/2 (RFC 8441), in any combination.
//!
//! Nothing is tunnelled before the endpoint agreed: bytes the client sent early wait in its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use onehop_filters::contract::{Body, Fault, Reason, RequestCx, ResponseCx, now};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::exchange::{End, Exchange};
use super::ledger;
use crate::edge::switch::Switch;
use crate::runtime::{Drain, Phase, wheel};
use crate::upstream::Io;

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

static PROTOCOL_VERSION: HeaderName = header::SEC_WEBSOCKET_VERSION;

/// The opening handshake of one request: what we must prove to the client, and what the endpoint must prove to us.
pub struct Handshake {
    protocol: Option<HeaderValue>,
    client_h2: bool,
    /// The client's key, for an answer we make (endpoint on HTTP/2), or ours, for a proof we check.
    key: Option<HeaderValue>,
    ours: bool,
}

impl Handshake {
    /// Prepares the request's head for the endpoint. HTTP/2 clients send no key; an HTTP/1.1 endpoint needs one.
    pub fn begin(cx: &mut RequestCx, protocol: Option<&HeaderValue>) -> Self {
        let client_h2 = cx.version == Version::HTTP_2;
        let websocket = protocol.is_some_and(|p| p.as_bytes() == b"websocket");
        let mut key = if websocket { cx.headers.get(header::SEC_WEBSOCKET_KEY).cloned() } else { None };
        let mut ours = false;
        if websocket && client_h2 {
            // RFC 8441 section 5: the method is CONNECT there, GET here.
            cx.method = Method::GET;
            let nonce = [super::seed().to_be_bytes(), super::seed().to_be_bytes()].concat();
            let made = HeaderValue::try_from(STANDARD.encode(nonce)).expect("base64 is a field value");
            cx.headers.insert(header::SEC_WEBSOCKET_KEY, made.clone());
            cx.headers.entry(&PROTOCOL_VERSION).or_insert(HeaderValue::from_static("13"));
            key = Some(made);
            ours = true;
        }
        Self { protocol: protocol.cloned(), client_h2, key, ours }
    }

    /// The endpoint agreed: checks its proof, and turns its answer into the one our client expects.
    pub fn accept(&mut self, rs: &mut ResponseCx, io: Box<dyn Io>, client: Option<Switch>) -> Result<Tunnel, Fault> {
        let Some(client) = client else {
            return Err(Fault::new(Reason::BadResponse)
                .detail("the endpoint switched protocols unasked")
                .by("upgrades"));
        };
        let accept = self.key.as_ref().map(|key| proof(key.as_bytes()));
        if self.ours && rs.status == StatusCode::SWITCHING_PROTOCOLS {
            let given = rs.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            if given.as_ref().map(HeaderValue::as_bytes) != accept.as_ref().map(|a| a.as_bytes()) {
                return Err(Fault::new(Reason::BadResponse)
                    .detail("sec-websocket-accept does not match")
                    .by("upgrades"));
            }
        }
        if self.client_h2 {
            rs.status = StatusCode::OK;
            rs.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        } else {
            if rs.status == StatusCode::OK
                && let Some(accept) = accept
            {
                rs.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
            rs.status = StatusCode::SWITCHING_PROTOCOLS;
            rs.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = &self.protocol {
                rs.headers.insert(header::UPGRADE, protocol.clone());
            }
        }
        rs.body = Body::Empty;
        Ok(Tunnel { client, io })
    }
}

fn proof(key: &[u8]) -> HeaderValue {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(GUID);
    HeaderValue::try_from(STANDARD.encode(sha1.finish())).expect("base64 is a field value")
}

/// Both ends of an agreed tunnel.
pub struct Tunnel {
    client: Switch,
    io: Box<dyn Io>,
}

impl Tunnel {
    /// Copies both ways until both sides are done, or nothing moved for `idle`. The exchange ends with it.
    ///
    /// `drain` is the listener's: the connection's own task ends when the tunnel begins, so the tunnel counts as alive in
    /// its place, and is cut when the listener's grace is over.
    pub fn start(self, mut ex: Box<Exchange>, idle: Option<Duration>, drain: Option<Arc<Drain>>) {
        let ticket = drain.as_ref().map(Drain::enter);
        tokio::spawn(async move {
            let Self { client, io } = self;
            // Counted as they pass: a tunnel that is cut has moved what it has moved.
            let (into, out) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
            let copied = async {
                match client.opened().await {
                    Some(client) => copy(client, io, idle, (&into, &out)).await,
                    None => End::Aborted,
                }
            };
            let end = match drain {
                None => copied.await,
                Some(drain) => tokio::select! {
                    end = copied => end,
                    () = drain.reached(Phase::Kill) => End::Cut(Reason::Draining),
                },
            };
            ex.tally.bytes_in = Some(into);
            ex.tally.bytes_out = out.into_inner();
            ledger::close(ex, end);
            drop(ticket);
        });
    }
}

/// `counts`: bytes from the client, bytes to it.
async fn copy<C>(client: C, upstream: Box<dyn Io>, idle: Option<Duration>, counts: (&AtomicU64, &AtomicU64)) -> End
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut client_in, mut client_out) = tokio::io::split(client);
    let (mut up_in, mut up_out) = tokio::io::split(upstream);
    // Any byte in either direction is life: both pumps share one stamp.
    let last = AtomicU64::new(now().0);
    let (into, out) = counts;
    let pumps = async {
        tokio::join!(pump(&mut client_in, &mut up_out, &last, into), pump(&mut up_in, &mut client_out, &last, out))
    };
    match idle {
        None => {
            pumps.await;
            End::Complete
        }
        Some(idle) => tokio::select! {
            _ = pumps => End::Complete,
            () = stand_still(&last, idle) => End::Cut(Reason::IdleTimeout),
        },
    }
}

async fn stand_still(last: &AtomicU64, idle: Duration) {
    loop {
        let due = onehop_filters::contract::Moment(last.load(Relaxed)) + idle;
        if now() >= due {
            return;
        }
        wheel::deadline(due).await;
    }
}

async fn pump<R, W>(from: &mut R, to: &mut W, last: &AtomicU64, bytes: &AtomicU64)
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        last.store(now().0, Relaxed);
        bytes.fetch_add(n as u64, Relaxed);
        if to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    // Half-close: the other direction may still have something to say.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_is_rfc_6455s_example() {
        assert_eq!(proof(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}

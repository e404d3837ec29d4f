//! Upgrades: WebSocket and friends over HTTP/1.1 (RFC 9110 section 7.8) and over HTTP/2 (RFC 8441), in any combination.
//!
//! Nothing is tunnelled before the endpoint agreed: bytes the client sent early wait in its connection.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use onehop_filters::contract::{Body, Fault, Reason, RequestCx, ResponseCx};

use super::exchange::{End, Exchange};
use super::ledger;
use super::relay::{Ended, Flow, relay};
use crate::edge::switch::Switch;
use crate::runtime::{Drain, Phase};
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
            let Self { client, mut io } = self;
            // Counted as they pass: a tunnel that is cut has moved what it has moved.
            let (mut into, mut out) = (Flow::default(), Flow::default());
            let copied = async {
                let Some(mut client) = client.opened().await else { return End::Aborted };
                match relay(&mut client, &mut io, idle, (&mut into, &mut out)).await {
                    Ended::Idle => End::Cut(Reason::IdleTimeout),
                    Ended::Closed | Ended::ClientBroke | Ended::UpstreamBroke => End::Complete,
                }
            };
            let end = match drain {
                None => copied.await,
                Some(drain) => tokio::select! {
                    end = copied => end,
                    () = drain.reached(Phase::Kill) => End::Cut(Reason::Draining),
                },
            };
            ex.tally.bytes_in = Some(Arc::new(into.bytes.into()));
            ex.tally.bytes_out = out.bytes;
            ledger::close(ex, end);
            drop(ticket);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_is_rfc_6455s_example() {
        assert_eq!(proof(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}

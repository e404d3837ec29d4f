//! One request and its answer. Both directions move in one poll: an endpoint that answers while we still write must
//! not be able to wait for us while we wait for it.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::{HeaderMap, Method, StatusCode};
use onehop_filters::contract::{Body, Fault, Proof, Reason};

use super::body::Incoming;
use super::conn::Conn;
use super::encode;
use super::parse::{self, Framing, ResponseHead};
use super::tunnel::Tunnel;
use super::upload::{Coding, Stopped, Upload};
use crate::upstream::{Head, Informational, Reply, bad, lost};

/// Interim answers before the final one. More is an attack or a bug.
const MAX_INTERIM: u32 = 100;

/// What an exchange is held to.
#[derive(Clone, Copy)]
pub(in crate::upstream) struct Limits {
    /// Bytes of a response head or trailer section.
    pub head: usize,
    /// Exchanges a connection may carry.
    pub requests: u64,
}

/// A failed exchange.
pub(in crate::upstream) struct Failed {
    pub fault: Fault,
    /// The connection ended without a single byte of an answer, which on a reused connection may be the old race
    /// between its close and our request (RFC 9112 section 9.3.1).
    pub silent: bool,
}

/// Sends a request on a connection. The body is taken only if it streams, and put back if the exchange fails while all
/// of it is still there.
pub(in crate::upstream) async fn send(
    mut conn: Box<Conn>,
    head: &Head<'_>,
    body: &mut Body,
    informational: Informational<'_>,
    limits: Limits,
) -> Result<Reply, Failed> {
    let coding = Coding::of(head.method, body, head.upgrade.is_some());
    let hold = head.expect_continue && !matches!(coding, Coding::None | Coding::Length(0));
    conn.write.clear();
    conn.requests += 1;
    encode::request(head, coding, hold, &mut conn.write);
    let streams = matches!(body, Body::Stream(_));
    let sent = match body {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(bytes.clone()),
        Body::Stream(_) => std::mem::take(body),
    };
    let mut exchange = Exchange {
        started: conn.wire.written(),
        conn,
        upload: Upload::new(sent, coding, hold),
        stopped: None,
        limits,
        interim: 0,
        scanned: 0,
        heard: false,
        keep: false,
    };
    let failure = match std::future::poll_fn(|cx| exchange.poll_head(head, informational, cx)).await {
        Ok(response) => match exchange.reply(response, head) {
            Ok(reply) => return Ok(reply),
            Err(fault) => return Err(Failed { fault, silent: false }),
        },
        Err(fault) => fault,
    };
    let silent = !exchange.heard && failure.reason == Reason::Reset;
    if streams && let Some(whole) = exchange.upload.reclaim() {
        *body = whole;
    }
    Err(Failed { fault: failure, silent })
}

/// A connection with a request on it. Dropping it closes the connection, which is how a request is cancelled.
pub(super) struct Exchange {
    pub conn: Box<Conn>,
    upload: Upload,
    /// Why the upload ended before its end.
    stopped: Option<io::Error>,
    pub limits: Limits,
    /// Bytes that had left this host before the exchange.
    started: u64,
    interim: u32,
    scanned: usize,
    /// A byte of an answer arrived.
    heard: bool,
    keep: bool,
}

impl Exchange {
    fn poll_head(
        &mut self,
        head: &Head<'_>,
        informational: Informational<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Fault>> {
        loop {
            self.push(cx)?;
            let read = ready!(self.conn.poll_read(0, cx));
            match read {
                Ok(n) if n > 0 => self.heard = true,
                Ok(_) => return Poll::Ready(Err(self.lost(None))),
                Err(e) => return Poll::Ready(Err(self.lost(Some(&e)))),
            }
            while self.conn.read.has_remaining() {
                let to_head = *head.method == Method::HEAD;
                let parsed = parse::response(&mut self.conn.read, &mut self.scanned, self.limits.head, to_head)?;
                let Some(response) = parsed else { break };
                if !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS {
                    if self.upload.held() {
                        // An answer instead of `100 Continue`: the body is not wanted.
                        self.stopped = Some(io::ErrorKind::Interrupted.into());
                    }
                    self.push(cx)?;
                    return Poll::Ready(Ok(response));
                }
                self.interim(response, informational)?;
            }
        }
    }

    fn interim(&mut self, response: ResponseHead, informational: Informational<'_>) -> Result<(), Fault> {
        self.interim += 1;
        if self.interim > MAX_INTERIM {
            return Err(bad("too many interim answers"));
        }
        if response.status == StatusCode::CONTINUE {
            // It released the body, whose first poll lets our own server side say the same.
            self.upload.go();
        } else if let Some(tell) = informational {
            tell(response.status, response.headers);
        }
        Ok(())
    }

    /// Sends on. A broken connection is not the end: the answer may already be here.
    pub fn push(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        if self.stopped.is_some() {
            return Ok(());
        }
        match self.upload.poll(&mut self.conn, cx) {
            Poll::Ready(Err(Stopped::Io(e))) => self.stopped = Some(e),
            Poll::Ready(Err(Stopped::Body(fault))) => return Err(fault),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Ok(())
    }

    fn lost(&self, e: Option<&io::Error>) -> Fault {
        let mut fault = lost(e.or(self.stopped.as_ref()));
        if self.conn.wire.written() == self.started {
            fault.proof = Proof::NeverRan;
        }
        fault
    }

    fn reply(mut self, response: ResponseHead, head: &Head<'_>) -> Result<Reply, Fault> {
        let ResponseHead { status, version, headers, framing, keep } = response;
        let mut reply = Reply {
            status,
            headers,
            body: Body::Empty,
            upgraded: None,
            reused: false,
            connect: std::time::Duration::ZERO,
            protocol: version,
        };
        self.keep = keep;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if !self.upload.done() || !answers_upgrade(head, &reply.headers) {
                return Err(bad("the endpoint switched to a protocol nobody asked for"));
            }
            reply.upgraded = Some(Box::new(Tunnel::new(self.conn)));
            return Ok(reply);
        }
        match framing {
            Framing::Length(length) if length <= self.conn.read.len() as u64 => {
                // All of it came with the head.
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                reply.body = Body::full(self.conn.read.split_to(length).freeze());
                self.finish();
            }
            _ => reply.body = Body::stream(Incoming::new(self, framing)),
        }
        Ok(reply)
    }

    /// The answer is complete. The connection is used again only if the peer agreed, the request went out whole and
    /// nothing else came in; a request still being sent is cut here, which bounds what a peer that has already answered
    /// can make us send.
    pub fn finish(self) {
        let clean = self.keep && self.stopped.is_none() && self.upload.done() && self.conn.read.is_empty();
        if clean {
            self.conn.rest(self.limits.requests);
        }
    }
}

/// Whether a 101 names exactly the protocol that was asked for (RFC 9110 section 7.8).
fn answers_upgrade(head: &Head<'_>, headers: &HeaderMap) -> bool {
    let mut chosen = headers.get_all(http::header::UPGRADE).iter();
    match (head.upgrade, chosen.next(), chosen.next()) {
        (Some(asked), Some(got), None) => asked.as_bytes().eq_ignore_ascii_case(got.as_bytes()),
        _ => false,
    }
}

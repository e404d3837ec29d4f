//! One request and its answer on a stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::ResponseFuture;
use h2::{Reason as Code, RecvStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use onehop_filters::contract::{Body, Fault, Proof, Reason};

use super::body::Incoming;
use super::head::request;
use super::pump::Pump;
use super::session::{Lease, Session};
use crate::runtime::tunnel::Tunnel;
use crate::upstream::h1::parse::MAX_FIELDS;
use crate::upstream::h1::upload::Coding;
use crate::upstream::{Head, Informational, Reply, bad};

/// Interim answers before the final one.
const MAX_INTERIM: u32 = 100;
/// A known body up to this size is sent without asking for room first.
const AT_ONCE: usize = 16 * 1024;

/// A failed exchange.
pub(in crate::upstream) struct Failed {
    pub fault: Fault,
    /// It was the session, which was closing under us: another one may take the request.
    pub moved: bool,
}

/// Sends a request as a stream of this session. The body is taken only if it streams, and put back if the exchange
/// fails before any of it was asked for.
pub(in crate::upstream) async fn send(
    session: &Arc<Session>,
    head: &Head<'_>,
    body: &mut Body,
    informational: Informational<'_>,
) -> Result<Reply, Failed> {
    let still = |fault| Failed { fault, moved: false };
    if head.upgrade.is_some() && !session.extended_connect() {
        return Err(still(
            Fault::never_ran(Reason::BadResponse).detail("the endpoint does not take extended CONNECT").by("upstream"),
        ));
    }
    let coding = Coding::of(head.method, body, head.upgrade.is_some());
    let empty = matches!(coding, Coding::None | Coding::Length(0));
    let hold = head.expect_continue && !empty;
    let request = request(head, coding, hold).map_err(still)?;

    // A sender of one's own has no stream pending, so it is ready, or the session is over; sending tells.
    let mut sender = session.sender();
    let lease = session.lease();
    let gone = |e: &h2::Error| {
        session.close();
        Failed { fault: Fault { proof: Proof::NeverRan, ..fault(e) }, moved: true }
    };
    // A tunnel's stream stays open on our side.
    let ended = empty && head.upgrade.is_none();
    // An error here means that the stream was never opened.
    let (response, mut stream) = sender.send_request(request, ended).map_err(|e| gone(&e))?;

    let streams = matches!(body, Body::Stream(_));
    let mut done = empty;
    let sent = match body {
        Body::Empty => Body::Empty,
        // Behind its head at once; h2 keeps what the window does not take yet.
        Body::Full(Some(bytes)) if !hold && bytes.len() <= AT_ONCE && head.upgrade.is_none() => {
            // An error means that the stream is closed already, which the answer tells better.
            let _ = stream.send_data(bytes.clone(), true);
            done = true;
            Body::Empty
        }
        Body::Full(bytes) => Body::Full(bytes.clone()),
        Body::Stream(_) => std::mem::take(body),
    };
    let mut call = Call { response, pump: Pump::new(sent, stream, hold, done), interim: 0, gone: false };
    match std::future::poll_fn(|cx| call.poll(cx, informational)).await {
        Ok(response) => reply(head, response, call.pump, lease).map_err(still),
        Err(fault) => {
            if streams && let (Some(whole), _) = call.pump.into_parts() {
                *body = whole;
            }
            // RFC 9113 section 6.8: above the last stream that GOAWAY names, so another session may take it.
            if call.gone {
                session.close();
            }
            Err(Failed { fault, moved: call.gone })
        }
    }
}

struct Call {
    response: ResponseFuture,
    pump: Pump,
    interim: u32,
    /// The peer said GOAWAY before it looked at this stream.
    gone: bool,
}

impl Call {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        informational: Informational<'_>,
    ) -> Poll<Result<Response<RecvStream>, Fault>> {
        loop {
            if let Poll::Ready(Err(fault)) = self.pump.poll(cx) {
                return Poll::Ready(Err(fault));
            }
            match self.response.poll_informational(cx) {
                Poll::Ready(Some(Ok(interim))) => {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Poll::Ready(Err(bad("too many interim answers")));
                    }
                    if interim.status() == StatusCode::CONTINUE {
                        self.pump.go();
                    } else if let Some(tell) = informational {
                        tell(interim.status(), interim.into_parts().0.headers);
                    }
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(self.failed(&e))),
                Poll::Ready(None) => return Pin::new(&mut self.response).poll(cx).map_err(|e| self.failed(&e)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Call {
    fn failed(&mut self, e: &h2::Error) -> Fault {
        self.gone = e.is_remote() && e.is_go_away();
        fault(e)
    }
}

fn reply(head: &Head<'_>, response: Response<RecvStream>, pump: Pump, lease: Lease) -> Result<Reply, Fault> {
    let (parts, stream) = response.into_parts();
    let status = parts.status;
    if !(200..600).contains(&status.as_u16()) {
        return Err(bad("the status is out of range"));
    }
    let mut headers = parts.headers;
    if headers.len() > MAX_FIELDS {
        return Err(Fault::new(Reason::ResponseTooLarge).detail("the head has too many fields").by("upstream"));
    }
    let left = length(&mut headers)?;
    // h2 refuses a head with any other connection-specific field (RFC 9113 section 8.2.2).
    headers.remove(header::TE);
    let mut reply = Reply {
        status,
        headers,
        body: Body::Empty,
        upgraded: None,
        reused: false,
        connect: Duration::ZERO,
        protocol: Version::HTTP_2,
    };
    if head.upgrade.is_some() && status == StatusCode::OK {
        reply.upgraded = Some(Box::new(Tunnel::new(pump.into_parts().1, stream, lease)));
        return Ok(reply);
    }
    let bodiless = *head.method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    if let (true, Some(length)) = (bodiless, left) {
        reply.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    // Nothing may follow these; what does is dropped, and the stream reset.
    if bodiless || status == StatusCode::NO_CONTENT || stream.is_end_stream() {
        return Ok(reply);
    }
    // A body held back for `100 Continue` is not wanted any more. Any other goes on beside the answer, in a task of its
    // own: a caller that sends without reading must not stand still because it does not read.
    let upload = (!pump.done() && !pump.held()).then(|| {
        let mut pump = pump;
        tokio::spawn(async move { drop(std::future::poll_fn(|cx| pump.poll(cx)).await) }).abort_handle()
    });
    reply.body = Body::stream(Incoming::new(stream, left, lease, upload));
    Ok(reply)
}

/// Takes `content-length` out: it frames the message we make, not the one we got.
fn length(headers: &mut HeaderMap) -> Result<Option<u64>, Fault> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.any(|v| v != first) {
        return Err(bad("content-length differs from itself"));
    }
    let length = first
        .to_str()
        .ok()
        .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| bad("content-length is malformed"))?;
    headers.remove(header::CONTENT_LENGTH);
    Ok(Some(length))
}

/// What a stream's failure proves (RFC 9113 section 8.7): a stream refused by the peer, or above the last one its GOAWAY
/// names, was not processed.
fn fault(e: &h2::Error) -> Fault {
    let refused = e.is_remote() && e.is_reset() && e.reason() == Some(Code::REFUSED_STREAM);
    let fault = if refused || (e.is_remote() && e.is_go_away()) {
        Fault::never_ran(Reason::RefusedStream)
    } else if e.is_io() || e.is_remote() {
        Fault::new(Reason::Reset)
    } else {
        Fault::new(Reason::BadResponse)
    };
    fault.detail(e.to_string()).by("upstream")
}

//! One stream: its request goes to the service, its answer to the client, in a task of its own.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE, EXPECT};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use onehop_filters::contract::{BodyError, now};
use tokio::sync::oneshot;

use super::Tunnel;
use super::date;
use super::upload::Upload;
use crate::edge::body::Incoming;
use crate::edge::conn::{Alarm, Exchange, Framing, Wire, after, catch};
use crate::edge::serve::{Link, Serve};

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Hands a request to the service and spawns what remains to be done. `patience`: how long a client may leave a frame of
/// the answer waiting for its window.
pub fn begin<S: Serve>(
    serve: &Arc<S>,
    link: &Arc<Link>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    patience: Duration,
) {
    let exchange = Wire::begin(link, Framing::Length(0), false);
    let (head, body) = request.into_parts();
    let (body, connect) = if head.method == Method::CONNECT {
        let (tell, opened) = oneshot::channel();
        (Incoming::Connect(opened), Some((body, tell)))
    } else {
        let expects = head.headers.get(EXPECT).is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let length = head.headers.get(CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse().ok());
        (Upload::incoming(body, length, expects.then(|| link.clone())), None)
    };
    let stream = Stream { respond, exchange, patience };
    let request = Request::from_parts(head, body);
    let id = stream.respond.stream_id().as_u32();
    match catch_unwind(AssertUnwindSafe(|| serve.call(request, link, id))) {
        Ok(answer) => drop(tokio::spawn(stream.run(answer, connect))),
        Err(_) => stream.panicked(),
    }
}

/// What becomes of a CONNECT's stream.
type Connect = (RecvStream, oneshot::Sender<Tunnel>);

struct Stream {
    respond: SendResponse<Bytes>,
    exchange: Exchange,
    patience: Duration,
}

impl Stream {
    /// Ends early where the client has reset the stream or the connection is over: dropping the rest cancels it.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps room for each argument twice, and tasks are moved about"
    )]
    fn run<B>(
        mut self,
        mut answer: impl Future<Output = Response<B>> + Unpin,
        connect: Option<Connect>,
    ) -> impl Future<Output = ()>
    where
        B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
    {
        async move {
            let Some(answered) = self.answer(&mut answer).await else { return };
            drop(answer);
            let Ok(response) = answered else { return self.panicked() };
            let opens = connect.filter(|_| response.status().is_success());
            let Some((mut body, mut out)) = self.open(response, opens.is_some()) else { return };
            match opens {
                Some((up, tell)) => {
                    self.exchange.ended();
                    // Nobody waits any more: dropping the tunnel resets it.
                    drop(tell.send(Tunnel::new(out, up, self.exchange)));
                }
                None => self.send(&mut body, &mut out).await,
            }
        }
    }

    fn panicked(mut self) {
        self.exchange.link().wire.panicked.store(true, Relaxed);
        self.exchange.ended();
        self.respond.send_reset(Code::INTERNAL_ERROR);
    }

    /// The service's answer, `Err` for a panic. Interim answers go out as they come. `None`: the client has left.
    async fn answer<T>(&mut self, answer: &mut (impl Future<Output = T> + Unpin)) -> Option<Result<T, BodyError>> {
        let (link, respond) = (self.exchange.link(), &mut self.respond);
        poll_fn(|cx| {
            let polled = catch(link, || Pin::new(&mut *answer).poll(cx));
            if link.wire.has_interim.load(Relaxed) {
                let id = respond.stream_id().as_u32();
                // A stream that is closed has no use for them.
                link.wire.take_interim(id, |interim| drop(respond.send_informational(interim)));
            }
            match polled {
                Ok(Poll::Ready(answer)) => Poll::Ready(Some(Ok(answer))),
                Ok(Poll::Pending) => respond.poll_reset(cx).map(|_| None),
                Err(fault) => Poll::Ready(Some(Err(fault))),
            }
        })
        .await
    }

    /// Sends the head. `None`: nothing comes behind it, unless it `opens` a tunnel.
    fn open<B>(&mut self, mut response: Response<B>, opens: bool) -> Option<(B, SendStream<Bytes>)>
    where
        B: http_body::Body,
    {
        if response.status().is_informational() {
            // RFC 9113 section 8.6: no 101. Any other 1xx is no answer either.
            self.exchange.ended();
            self.respond.send_reset(Code::INTERNAL_ERROR);
            return None;
        }
        let bare = response.body().is_end_stream();
        complete(&mut response, bare);
        let (head, body) = response.into_parts();
        let ended = bare && !opens;
        let Ok(out) = self.respond.send_response(Response::from_parts(head, ()), ended) else {
            // Closed meanwhile, or a head that HTTP/2 cannot carry.
            self.respond.send_reset(Code::INTERNAL_ERROR);
            return None;
        };
        if ended {
            self.exchange.ended();
            return None;
        }
        Some((body, out))
    }

    /// Sends a body at the pace of the client's window. A body that fails resets the stream: a cut must be seen.
    async fn send<B>(&mut self, body: &mut B, out: &mut SendStream<Bytes>)
    where
        B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
    {
        loop {
            let link = self.exchange.link();
            let frame = poll_fn(|cx| {
                let polled = catch(link, || Pin::new(&mut *body).poll_frame(cx))
                    .unwrap_or_else(|fault| Poll::Ready(Some(Err(fault))));
                match polled {
                    Poll::Ready(frame) => Poll::Ready(Some(frame)),
                    Poll::Pending => out.poll_reset(cx).map(|_| None),
                }
            })
            .await;
            let sent = match frame {
                // The client has left.
                None => return,
                Some(None) => out.send_data(Bytes::new(), true),
                Some(Some(Err(_))) => {
                    out.send_reset(Code::INTERNAL_ERROR);
                    Ok(())
                }
                Some(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        let last = body.is_end_stream();
                        if !self.send_data(data, last, out).await {
                            return;
                        }
                        if !last {
                            continue;
                        }
                        Ok(())
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => out.send_trailers(trailers),
                        Err(_) => continue,
                    },
                },
            };
            self.exchange.ended();
            if sent.is_err() {
                out.send_reset(Code::INTERNAL_ERROR);
            }
            return;
        }
    }

    /// Sends one chunk as the window allows. False: the stream has ended.
    async fn send_data(&self, mut data: Bytes, last: bool, out: &mut SendStream<Bytes>) -> bool {
        // An empty frame says nothing, and peers count them.
        if data.is_empty() && !last {
            return true;
        }
        loop {
            out.reserve_capacity(data.len());
            let mut room = out.capacity();
            if room == 0 && !data.is_empty() {
                match self.room(out).await {
                    Some(granted) => room = granted,
                    None => return false,
                }
            }
            let part = data.split_to(room.min(data.len()));
            let done = data.is_empty();
            if out.send_data(part, done && last).is_err() {
                return false;
            }
            if done {
                return true;
            }
        }
    }

    /// Waits for the client to open its window. A client that takes nothing for too long has its stream reset: the body is
    /// not polled meanwhile, so no clock in it would ring.
    async fn room(&self, out: &mut SendStream<Bytes>) -> Option<usize> {
        let due = after(now(), self.patience);
        let mut alarm = Alarm::default();
        poll_fn(|cx| {
            if let Poll::Ready(granted) = out.poll_capacity(cx) {
                return Poll::Ready(granted.and_then(Result::ok));
            }
            if due <= now() {
                out.send_reset(Code::CANCEL);
                return Poll::Ready(None);
            }
            alarm.set(cx, due, false);
            Poll::Pending
        })
        .await
    }
}

/// What a server adds to an answer (RFC 9110 sections 6.6.1 and 8.6).
fn complete<B: http_body::Body>(response: &mut Response<B>, bare: bool) {
    let length = if bare { None } else { response.body().size_hint().exact() };
    let headers = response.headers_mut();
    if let Some(length) = length {
        headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    headers.entry(DATE).or_insert_with(date::now);
    // Never the same twice: not worth a place in the encoder's table, nor the walk past all of its kind (RFC 7541
    // section 6.2.3).
    if let Some(id) = headers.get_mut(&REQUEST_ID) {
        id.set_sensitive(true);
    }
}

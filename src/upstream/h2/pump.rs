//! Sending a request body on a stream, in step with the peer's window.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason as Code, SendStream};
use http_body::Body as HttpBody;
use onehop_filters::contract::{Body, Fault, trailers};
use tokio::time::Sleep;

use crate::upstream::h1::upload::CONTINUE_WAIT;

/// See the module.
pub(super) struct Pump {
    body: Body,
    stream: SendStream<Bytes>,
    pending: Bytes,
    hold: Option<Pin<Box<Sleep>>>,
    touched: bool,
    done: bool,
}

impl Pump {
    /// `done`: the head ended the stream already.
    pub fn new(body: Body, stream: SendStream<Bytes>, hold: bool, done: bool) -> Self {
        let hold = hold.then(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT)));
        Self { body, stream, pending: Bytes::new(), hold, touched: false, done }
    }

    pub const fn done(&self) -> bool {
        self.done
    }

    pub fn go(&mut self) {
        self.hold = None;
    }

    pub const fn held(&self) -> bool {
        self.hold.is_some()
    }

    /// The body, if none of it was taken; the stream too, for a tunnel.
    pub fn into_parts(self) -> (Option<Body>, SendStream<Bytes>) {
        ((!self.touched).then_some(self.body), self.stream)
    }

    /// Sends what may be sent. Ready: the end went out, or the peer wants no more (the answer says why). A failed body
    /// resets the stream, so that a cut request never looks complete.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while !self.done {
            if !self.pending.is_empty() {
                if !ready!(self.poll_send(cx)) {
                    self.done = true;
                }
                continue;
            }
            if self.stream.poll_reset(cx).is_ready() {
                self.done = true;
                break;
            }
            if let Some(timer) = &mut self.hold {
                ready!(timer.as_mut().poll(cx));
                self.hold = None;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    self.done = true;
                    let _ = self.stream.send_data(Bytes::new(), true);
                }
                Some(Err(fault)) => {
                    self.done = true;
                    self.stream.send_reset(Code::CANCEL);
                    return Poll::Ready(Err(*fault));
                }
                Some(Ok(frame)) => {
                    self.touched = true;
                    match frame.into_data() {
                        // Empty frames count against us at the peer.
                        Ok(data) => self.pending = data,
                        Err(frame) => {
                            self.done = true;
                            match frame.into_trailers().ok().and_then(trailers::filter) {
                                Some(fields) => drop(self.stream.send_trailers(fields)),
                                None => drop(self.stream.send_data(Bytes::new(), true)),
                            }
                        }
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends some of what is pending. False: the stream is closed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.stream.reserve_capacity(self.pending.len());
        let mut room = self.stream.capacity();
        while room == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(granted)) => room = granted,
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        let part = self.pending.split_to(room.min(self.pending.len()));
        let last = self.pending.is_empty() && self.body.is_end_stream();
        let sent = self.stream.send_data(part, last).is_ok();
        self.done = last;
        Poll::Ready(sent)
    }
}

//! Sending a request: head, then body, as one state machine that is polled next to the reading of the answer.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Method;
use http_body::{Body as HttpBody, Frame, SizeHint};
use onehop_filters::contract::{Body, BodyError, Fault, Reason};
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use super::conn::Conn;
use super::trailers;

/// How long a body waits for `100 Continue` before it goes out regardless (RFC 9110 section 10.1.1).
pub(in crate::upstream) const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Framing of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Coding {
    /// No body and no field about it.
    None,
    /// `content-length`.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
}

impl Coding {
    /// Framing for a body. Methods that promise content say so even of none (RFC 9110 section 8.6).
    pub fn of(method: &Method, body: &Body, upgrade: bool) -> Self {
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        match length {
            Some(0) if !upgrade && matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Self::Length(0),
            Some(0) => Self::None,
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }
}

/// Why sending stopped.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The connection. The answer may still be there to be read.
    Io(io::Error),
    /// The body itself: the request cannot be completed.
    Body(Fault),
}

/// The part of a request that is not sent yet. The head, and each chunk's size line, stand in the connection's buffer.
pub(super) struct Upload {
    body: Body,
    coding: Coding,
    /// How much of the connection's write buffer is sent.
    at: usize,
    payload: Bytes,
    suffix: Bytes,
    /// Frames the body gave, and the length of the first.
    frames: u32,
    first: usize,
    /// The body has ended and its end is queued.
    ended: bool,
    done: bool,
    hold: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    pub fn new(body: Body, coding: Coding, hold: bool) -> Self {
        Self {
            body,
            coding,
            at: 0,
            payload: Bytes::new(),
            suffix: Bytes::new(),
            frames: 0,
            first: 0,
            ended: matches!(coding, Coding::None | Coding::Length(0)),
            done: false,
            hold: hold.then(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT))),
        }
    }

    /// Whether the last byte was handed to the kernel.
    pub const fn done(&self) -> bool {
        self.done
    }

    /// `100 Continue` arrived.
    pub fn go(&mut self) {
        self.hold = None;
    }

    /// Whether the body still waits for `100 Continue`.
    pub const fn held(&self) -> bool {
        self.hold.is_some()
    }

    /// Gives the body back, if it can be sent again from its start: never touched, or its first frame is still whole.
    pub fn reclaim(self) -> Option<Body> {
        match self.frames {
            0 => Some(self.body),
            1 if self.first > 0 && self.payload.len() == self.first => {
                Some(Body::stream(Again { first: Some(self.payload), rest: self.body }))
            }
            _ => None,
        }
    }

    /// Sends what can be sent. Ready once all of it is gone.
    pub fn poll(&mut self, conn: &mut Conn, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            let waiting = self.fill(conn, cx).map_err(Stopped::Body)?;
            if self.at < conn.write.len() || self.payload.has_remaining() || self.suffix.has_remaining() {
                ready!(self.write(conn, cx)).map_err(Stopped::Io)?;
                continue;
            }
            // TLS may still hold what was written.
            ready!(Pin::new(&mut conn.wire).poll_flush(cx)).map_err(Stopped::Io)?;
            if self.ended {
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if waiting {
                return Poll::Pending;
            }
        }
    }

    /// Fetches the next frame when the last one is gone. True: the body has none yet.
    fn fill(&mut self, conn: &mut Conn, cx: &mut Context<'_>) -> Result<bool, Fault> {
        if self.ended || self.payload.has_remaining() || self.suffix.has_remaining() {
            return Ok(false);
        }
        if let Some(timer) = &mut self.hold {
            if timer.as_mut().poll(cx).is_pending() {
                return Ok(true);
            }
            self.hold = None;
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return Ok(true),
            Poll::Ready(None) => self.end(None)?,
            Poll::Ready(Some(Err(fault))) => return Err(*fault),
            Poll::Ready(Some(Ok(frame))) => {
                self.frames = self.frames.saturating_add(1);
                match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => self.queue(data, conn)?,
                    Err(frame) => self.end(frame.into_trailers().ok())?,
                }
            }
        }
        Ok(false)
    }

    fn queue(&mut self, data: Bytes, conn: &mut Conn) -> Result<(), Fault> {
        match &mut self.coding {
            Coding::Chunked => {
                let mut digits = [0u8; 18];
                conn.write.extend_from_slice(size_line(data.len(), &mut digits));
                self.suffix = Bytes::from_static(b"\r\n");
            }
            Coding::Length(left) => match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => return Err(wrong_length("the request body is longer than announced")),
            },
            Coding::None => return Err(wrong_length("the request body was announced as empty")),
        }
        if self.frames == 1 {
            self.first = data.len();
        }
        self.payload = data;
        // Saves the peer a packet: the end travels with the last frame.
        if self.coding == Coding::Length(0) || self.body.is_end_stream() {
            self.end(None)?;
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<http::HeaderMap>) -> Result<(), Fault> {
        self.ended = true;
        match (self.coding, trailers) {
            (Coding::Length(1..), _) => return Err(wrong_length("the request body is shorter than announced")),
            (Coding::Chunked, Some(fields)) => {
                let mut out = Vec::with_capacity(64);
                trailers::write(&fields, &mut out);
                self.suffix = out.into();
            }
            (Coding::Chunked, None) if self.suffix.is_empty() => self.suffix = Bytes::from_static(b"0\r\n\r\n"),
            (Coding::Chunked, None) => self.suffix = Bytes::from_static(b"\r\n0\r\n\r\n"),
            (Coding::Length(0) | Coding::None, _) => {}
        }
        Ok(())
    }

    fn write(&mut self, conn: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Conn { wire, write, .. } = conn;
        let slices = [IoSlice::new(&write[self.at..]), IoSlice::new(&self.payload), IoSlice::new(&self.suffix)];
        // One part alone needs no gathering.
        let from = usize::from(slices[0].is_empty());
        let to = if self.suffix.is_empty() { if self.payload.is_empty() { 1 } else { 2 } } else { 3 };
        let n = match &slices[from..to] {
            [only] => ready!(Pin::new(wire).poll_write(cx, only))?,
            several => ready!(Pin::new(wire).poll_write_vectored(cx, several))?,
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let in_head = n.min(write.len() - self.at);
        self.at += in_head;
        if self.at == write.len() {
            write.clear();
            self.at = 0;
        }
        let in_payload = (n - in_head).min(self.payload.len());
        self.payload.advance(in_payload);
        self.suffix.advance(n - in_head - in_payload);
        Poll::Ready(Ok(()))
    }
}

fn size_line(size: usize, digits: &mut [u8; 18]) -> &[u8] {
    let mut at = digits.len() - 2;
    digits[at..].copy_from_slice(b"\r\n");
    let mut rest = size;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

/// A body whose size hint was not true: the framing promised to the endpoint cannot be kept.
fn wrong_length(detail: &'static str) -> Fault {
    Fault::new(Reason::BadFraming).detail(detail).by("upstream")
}

/// A body whose first frame was taken and put back.
struct Again {
    first: Option<Bytes>,
    rest: Body,
}

impl HttpBody for Again {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |b| b.len() as u64);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(first + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(first + upper);
        }
        hint
    }
}

//! Gathers what the streams of a connection write during one poll into one write. h2 flushes after every larger DATA
//! frame, which would be a system call (and a TLS record) for each; here a flush means nothing, and whoever polls the
//! connection calls [`Handle::poll_drain`] right after, so nothing is ever delayed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::dial::Wire;

/// More than this is not gathered: the peer is slow, and h2 has to feel it.
const CAP: usize = 64 * 1024;
/// A write of this size goes out by itself, uncopied.
const LARGE: usize = 16 * 1024;
/// What an idle connection keeps.
const KEEP: usize = 4 * 1024;

struct State {
    wire: Wire,
    buf: Vec<u8>,
    sent: usize,
}

/// The side h2 writes to. Lock: never contended, both sides are polled by the one task that drives the connection.
pub(super) struct Gather(Arc<Mutex<State>>);

/// The side that writes out.
pub(super) struct Handle(Arc<Mutex<State>>);

pub(super) fn gather(wire: Wire) -> (Gather, Handle) {
    let state = Arc::new(Mutex::new(State { wire, buf: Vec::new(), sent: 0 }));
    (Gather(state.clone()), Handle(state))
}

impl Handle {
    /// Writes out everything gathered. Pending wakes the task, which polls the connection and comes here again.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        ready!(state.poll_drain(cx))?;
        Pin::new(&mut state.wire).poll_flush(cx)
    }
}

impl State {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buf.len() {
            let n = ready!(Pin::new(&mut self.wire).poll_write(cx, &self.buf[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        self.sent = 0;
        self.buf.clear();
        self.buf.shrink_to(KEEP);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Gather {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.0.lock();
        let size = bufs.iter().map(|b| b.len()).sum();
        if size >= LARGE || state.buf.len() + size > CAP {
            ready!(state.poll_drain(cx))?;
        }
        if size >= LARGE {
            return Pin::new(&mut state.wire).poll_write_vectored(cx, bufs);
        }
        for part in bufs {
            state.buf.extend_from_slice(part);
        }
        Poll::Ready(Ok(size))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.lock();
        ready!(state.poll_drain(cx))?;
        Pin::new(&mut state.wire).poll_shutdown(cx)
    }
}

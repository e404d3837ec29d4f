//! The io under HTTP/2. Writes gather in one buffer and leave once per poll of the connection: h2 ends
//! every DATA payload with a flush, which would be one TLS record and one syscall a response.
//!
//! h2 holds one handle; whoever polls the connection holds another and calls [`Handle::poll_out`] after each poll.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use onehop_filters::contract::{Moment, now};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::h2::frames::Frames;
use super::serve::Link;
use super::stream::Stream;

/// Bytes that may wait for the end of the poll; more is written through, or holds h2 back.
const CAP: usize = 64 * 1024;
/// Writes from this size on are not copied.
const LARGE: usize = 16 * 1024;
/// What an idle connection keeps.
const SMALL: usize = 4 * 1024;

/// One of the two ends of the same connection. The lock is never contended: both live in the connection's task.
#[derive(Clone)]
pub struct Handle(Arc<Mutex<Coalesce>>);

/// What the handles share.
pub struct Coalesce {
    io: Stream,
    link: Arc<Link>,
    out: Vec<u8>,
    /// How much of `out` has left.
    gone: usize,
    /// Since when the client takes nothing.
    pub blocked_since: Option<Moment>,
    /// What arrived.
    pub frames: Frames,
    /// Stops reading: the connection is to be closed.
    pub deaf: bool,
}

impl Handle {
    pub fn new(io: Stream, link: Arc<Link>) -> Self {
        Self(Arc::new(Mutex::new(Coalesce {
            io,
            link,
            out: Vec::new(),
            gone: 0,
            blocked_since: None,
            frames: Frames::default(),
            deaf: false,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Coalesce> {
        self.0.lock()
    }

    /// Writes out what gathered. Also after a poll that ended the connection.
    pub fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        ready!(this.drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Closes in good order as far as that needs no waiting: the client owes us nothing any more.
    pub fn close_now(&self, cx: &mut Context<'_>) {
        if self.poll_out(cx).is_ready() {
            let _ = Pin::new(&mut self.lock().io).poll_shutdown(cx);
        }
    }

    /// The io itself, once nobody else has a handle.
    pub fn into_io(self) -> Option<Stream> {
        Arc::into_inner(self.0).map(|shared| shared.into_inner().io)
    }

    /// Gives memory back after a burst.
    pub fn shrink(&self) {
        let mut this = self.lock();
        if this.out.is_empty() && this.out.capacity() > SMALL {
            this.out = Vec::new();
        }
    }
}

impl Coalesce {
    /// Appends a frame that h2 has no words for.
    pub fn append(&mut self, frame: &[u8]) {
        self.out.extend_from_slice(frame);
    }

    /// Marks the coming close a reset.
    pub fn reset_on_close(&self) {
        self.io.reset_on_close();
    }

    fn waiting(&self) -> usize {
        self.out.len() - self.gone
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let written = Pin::new(&mut self.io).poll_write(cx, &self.out[self.gone..]);
            let n = ready!(self.wrote(written))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gone += n;
        }
        self.out.clear();
        self.gone = 0;
        Poll::Ready(Ok(()))
    }

    /// Passes a large write on without a copy, behind what is waiting. `Pending`: nothing of it was taken.
    fn write_through(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        const MOST: usize = 8;
        loop {
            let waiting = self.waiting();
            let mut iov = [IoSlice::new(&[]); MOST];
            iov[0] = IoSlice::new(&self.out[self.gone..]);
            let more = slices.len().min(MOST - 1);
            iov[1..=more].copy_from_slice(&slices[..more]);
            let written = Pin::new(&mut self.io).poll_write_vectored(cx, &iov[usize::from(waiting == 0)..=more]);
            let n = ready!(self.wrote(written))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if n > waiting || waiting == 0 {
                self.out.clear();
                self.gone = 0;
                return Poll::Ready(Ok(n - waiting));
            }
            self.gone += n;
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|s| s.len()).sum();
        if total >= LARGE
            && let Poll::Ready(done) = self.write_through(cx, slices)
        {
            return Poll::Ready(done);
        }
        if self.waiting() + total > CAP {
            ready!(self.drain(cx))?;
        }
        if self.gone > 0 {
            self.out.drain(..self.gone);
            self.gone = 0;
        }
        for slice in slices {
            self.out.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => {
                self.link.wire.add_out(*n);
                self.blocked_since = None;
            }
            Poll::Pending => {
                self.blocked_since.get_or_insert_with(now);
            }
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl AsyncRead for Handle {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut this = self.lock();
        if this.deaf {
            return Poll::Pending;
        }
        let start = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let fresh = &buf.filled()[start..];
        this.frames.watch(fresh);
        this.link.wire.add_in(fresh.len());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Handle {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The owner of the other handle flushes, after this poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.lock().io).poll_shutdown(cx)
    }
}

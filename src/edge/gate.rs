//! Our io under hyper's HTTP/1 server. It hands over whole heads only, watches bodies pass, keeps what belongs to the
//! next request back, and says in our words what hyper would say in its own.
//!
//! It never decides about framing: hyper parses a head and calls the service in the same poll, and the service tells
//! the gate through [`Wire`] how long the body is.
//!
//! [`Wire`]: super::conn::Wire

mod chunk;
mod head;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use onehop_filters::contract::{Fault, Moment, Reason, now};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::chunk::{Chunks, Seen};
use self::head::{Bounds, Head, Progress, Scan, scan};
use super::conn::Framing;
use super::serve::{Link, Settings};
use super::stream::Stream;

/// Bytes of a next request that are read while one is in flight. Beyond it TCP holds the client back.
const HOLD: usize = 16 * 1024;
/// Bytes per read where hyper's buffer is not at hand.
const READ: usize = 4 * 1024;
/// What an ignored `Upgrade` is renamed to on its way to hyper; the same length.
pub(super) const BLANK: &str = "ignored";

/// See the module.
#[derive(Debug)]
pub struct Gate {
    io: Stream,
    link: Arc<Link>,
    bounds: Bounds,
    mode: Mode,
    /// Bytes that hyper has not seen: an unfinished head, or what was pipelined.
    held: Vec<u8>,
    progress: Progress,
    /// The client has closed its side.
    eof: bool,
}

#[derive(Debug)]
enum Mode {
    /// Before or in a head.
    Head,
    /// A whole head lies in `held`; this much of it is to be handed over.
    Passing(usize),
    /// hyper has the head; the service has not been called yet.
    Called,
    /// In a body, with so many bytes to go.
    Length(u64),
    /// In a chunked body.
    Chunked(Chunks),
    /// In a chunked body that broke the grammar.
    Broken,
    /// Another protocol now.
    Tunnel,
    /// Refused: the driver answers.
    Dead,
}

/// What waiting for a head came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A whole head is there.
    Complete,
    /// The client left.
    Eof,
    /// The fault is on the wire.
    Refused,
}

impl Gate {
    /// Boxed: it moves in and out of hyper, and futures that hold it stay small.
    pub fn new(io: Stream, link: Arc<Link>, settings: &Settings) -> Box<Self> {
        let limits = &settings.limits;
        let bounds = Bounds { head: limits.head, target: limits.uri, fields: limits.fields };
        let progress = Progress::default();
        Box::new(Self { io, link, bounds, mode: Mode::Head, held: Vec::new(), progress, eof: false })
    }

    /// The transport, and bytes read but not handed over.
    #[expect(clippy::boxed_local, reason = "a gate lives in its box")]
    pub fn into_parts(self: Box<Self>) -> (Stream, Vec<u8>) {
        (self.io, self.held)
    }

    /// Bytes read but not handed over.
    pub fn seen(&self) -> &[u8] {
        &self.held
    }

    /// When the head now arriving began.
    pub fn begun(&self) -> Option<Moment> {
        self.link.wire.head_since()
    }

    /// Whether the client may still be sending what nobody will read: then a plain close would be a reset.
    pub fn unread(&self) -> bool {
        !self.eof && (!matches!(self.mode, Mode::Head) || !self.held.is_empty())
    }

    /// Reads on towards a head and starts its clock. 0: the client closed.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let n = ready!(self.poll_hold(cx))?;
        if n > 0 {
            self.start_clock();
        }
        Poll::Ready(Ok(n))
    }

    /// Waits for a whole head in our own buffer: no HTTP state is needed until it is there.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Fill>> {
        loop {
            if !self.held.is_empty() {
                match scan(&self.held, self.progress, self.bounds) {
                    Scan::Complete(head) => {
                        blank(&mut self.held, head, &self.link);
                        self.mode = Mode::Passing(head.len);
                        self.progress = Progress::default();
                        self.stop_clock();
                        return Poll::Ready(Ok(Fill::Complete));
                    }
                    Scan::Refuse(fault) => {
                        self.refuse(fault);
                        return Poll::Ready(Ok(Fill::Refused));
                    }
                    Scan::More(progress) => self.progress = progress,
                }
                self.start_clock();
            }
            if self.eof || ready!(self.poll_hold(cx))? == 0 {
                return Poll::Ready(Ok(Fill::Eof));
            }
        }
    }

    /// Refuses what has been read so far.
    pub fn refuse(&mut self, fault: Fault) {
        self.mode = Mode::Dead;
        self.stop_clock();
        self.link.wire.refuse(fault);
    }

    fn start_clock(&self) {
        let since = &self.link.wire.head_since;
        if since.load(Relaxed) == 0 {
            since.store(now().0.max(1), Relaxed);
        }
    }

    fn stop_clock(&self) {
        self.link.wire.head_since.store(0, Relaxed);
    }

    /// One read into our own buffer.
    fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = [MaybeUninit::uninit(); READ];
        let mut buf = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        self.eof |= n == 0;
        self.held.extend_from_slice(buf.filled());
        self.link.wire.add_in(n);
        Poll::Ready(Ok(n))
    }

    /// Between an exchange and the next head: hyper gets nothing, but the socket is read, so that a client that leaves
    /// is noticed. A FIN alone is not told: the driver decides how long a half-closed client may wait.
    fn hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < HOLD && !self.eof {
            match self.poll_hold(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        let wire = &self.link.wire;
        let held = self.eof || !self.held.is_empty();
        wire.held.store(held, Relaxed);
        // hyper may not ask again once the exchange is over: this read is the one that waits for the next head.
        wire.idle.store(!held && matches!(self.mode, Mode::Head), Relaxed);
        if self.eof && wire.eof_since.load(Relaxed) == 0 {
            wire.eof_since.store(now().0.max(1), Relaxed);
        }
        Poll::Pending
    }

    /// While the service works, hyper reads nothing (`half_close` of its builder: it would look for the end of the client
    /// itself, into a new buffer each time, since the request still holds the last one). So whatever flushes looks.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let wire = &self.link.wire;
        if wire.in_flight.load(Relaxed) == 0 || wire.tunnel.load(Relaxed) {
            return Ok(());
        }
        if matches!(self.mode, Mode::Called) {
            self.understood();
        }
        if matches!(self.mode, Mode::Head)
            && let Poll::Ready(Err(e)) = self.hold(cx)
        {
            return Err(e);
        }
        Ok(())
    }

    /// Takes over how the body of the request just called is framed; false: the service has not been called yet.
    fn understood(&mut self) -> bool {
        self.mode = match self.link.wire.take_framing() {
            Some(Framing::Length(0)) => Mode::Head,
            Some(Framing::Length(n)) => Mode::Length(n),
            Some(Framing::Chunked) => Mode::Chunked(Chunks::default()),
            None => return false,
        };
        true
    }

    /// A head for hyper. `Ready(false)`: the mode changed, look again.
    fn pass_head(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let wire = &self.link.wire;
        if wire.in_flight.load(Relaxed) > 0 || wire.unflushed.load(Relaxed) {
            return self.hold(cx).map_ok(|()| true);
        }
        wire.held.store(false, Relaxed);
        if self.held.is_empty() && !self.eof {
            // The common case: the whole head in one read, straight into hyper's buffer.
            let start = buf.filled().len();
            if Pin::new(&mut self.io).poll_read(cx, buf)?.is_pending() {
                wire.idle.store(true, Relaxed);
                return Poll::Pending;
            }
            wire.idle.store(false, Relaxed);
            let fresh = &buf.filled()[start..];
            if fresh.is_empty() {
                self.eof = true;
                return Poll::Ready(Ok(true));
            }
            wire.add_in(fresh.len());
            match scan(fresh, Progress::default(), self.bounds) {
                Scan::Complete(head) => {
                    self.held.extend_from_slice(&fresh[head.len..]);
                    buf.set_filled(start + head.len);
                    blank(&mut buf.filled_mut()[start..], head, &self.link);
                    self.mode = Mode::Called;
                    return Poll::Ready(Ok(true));
                }
                Scan::Refuse(fault) => {
                    buf.set_filled(start);
                    self.refuse(fault);
                    return Poll::Pending;
                }
                Scan::More(progress) => {
                    self.held.extend_from_slice(fresh);
                    self.progress = progress;
                    buf.set_filled(start);
                    self.start_clock();
                }
            }
        }
        wire.idle.store(false, Relaxed);
        match ready!(self.poll_head(cx))? {
            Fill::Complete => Poll::Ready(Ok(false)),
            Fill::Eof => Poll::Ready(Ok(true)),
            Fill::Refused => Poll::Pending,
        }
    }

    /// Bytes for hyper from what is held, else from the transport; says where they start.
    fn fetch(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, most: usize) -> Poll<io::Result<usize>> {
        let start = buf.filled().len();
        if !self.held.is_empty() {
            let n = self.held.len().min(buf.remaining()).min(most);
            buf.put_slice(&self.held[..n]);
            self.held.drain(..n);
            if self.held.is_empty() {
                self.held = Vec::new();
            }
        } else if !self.eof {
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            let n = buf.filled().len() - start;
            self.eof = n == 0;
            self.link.wire.add_in(n);
        }
        Poll::Ready(Ok(start))
    }

    /// Takes everything from `end` on back out of hyper's buffer: it belongs to the next request.
    fn take_back(&mut self, buf: &mut ReadBuf<'_>, end: usize) {
        // What was fetched comes before what is still held.
        self.held.splice(..0, buf.filled()[end..].iter().copied());
        buf.set_filled(end);
    }

    fn pass_length(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, left: u64) -> Poll<io::Result<()>> {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let start = ready!(self.fetch(cx, buf, most))?;
        let n = (buf.filled().len() - start).min(most);
        self.take_back_after(buf, start + n);
        let left = left - n as u64;
        self.mode = if left == 0 { Mode::Head } else { Mode::Length(left) };
        Poll::Ready(Ok(()))
    }

    fn pass_chunks(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, mut chunks: Chunks) -> Poll<io::Result<()>> {
        let start = ready!(self.fetch(cx, buf, usize::MAX))?;
        match chunks.watch(&buf.filled()[start..]) {
            Seen::More => self.mode = Mode::Chunked(chunks),
            Seen::End(n) => {
                self.take_back_after(buf, start + n);
                self.mode = Mode::Head;
            }
            Seen::Broken(n) => {
                buf.set_filled(start + n);
                self.mode = Mode::Broken;
                if n == 0 {
                    return Poll::Ready(Err(broken_chunk()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take_back_after(&mut self, buf: &mut ReadBuf<'_>, end: usize) {
        if buf.filled().len() > end {
            self.take_back(buf, end);
        }
    }

    /// Before any write. `Some(n)`: the bytes are swallowed.
    fn admit(&mut self, cx: &mut Context<'_>, first: &[u8], total: usize) -> Poll<io::Result<Option<usize>>> {
        let wire = &self.link.wire;
        if matches!(self.mode, Mode::Called) && !wire.called.load(Relaxed) {
            // A write after a head, but the service has not been called: hyper refuses it by itself. Its answer has
            // no body and leaves no trace in the log, so ours goes out instead.
            let reason = match first.get(9..12) {
                Some(b"414") => Reason::UriTooLong,
                Some(b"431") => Reason::HeadTooLarge,
                _ => Reason::BadRequest,
            };
            self.refuse(Fault::new(reason).by("http"));
        }
        if matches!(self.mode, Mode::Dead) {
            return Poll::Ready(Ok(Some(total)));
        }
        ready!(self.poll_interim(cx))?;
        Poll::Ready(Ok(None))
    }

    /// Informational responses go out before anything else: what came before them was flushed before the service was
    /// called, and the final answer comes after.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.link.wire.has_interim.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let link = self.link.clone();
        let mut queue = link.wire.interim.lock();
        while !queue.is_empty() {
            let written = Pin::new(&mut self.io).poll_write(cx, &queue);
            let n = ready!(self.wrote(written))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            queue.drain(..n);
        }
        *queue = Vec::new();
        link.wire.has_interim.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Counts a write, and since when one waits.
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let wire = &self.link.wire;
        wire.unflushed.store(true, Relaxed);
        match &written {
            Poll::Ready(Ok(n)) => {
                wire.add_out(*n);
                wire.blocked_since.store(0, Relaxed);
            }
            Poll::Pending => self.blocked(),
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    fn blocked(&self) {
        let since = &self.link.wire.blocked_since;
        if since.load(Relaxed) == 0 {
            since.store(now().0.max(1), Relaxed);
        }
    }
}

/// Renames an `Upgrade` field that must not be seen.
fn blank(bytes: &mut [u8], head: Head, link: &Link) {
    if let Some(at) = head.blank_upgrade {
        link.wire.blanked.store(true, Relaxed);
        bytes[at..at + BLANK.len()].copy_from_slice(BLANK.as_bytes());
    }
}

fn broken_chunk() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the chunked coding is broken")
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.link.wire.tunnel.load(Relaxed) {
            this.mode = Mode::Tunnel;
        }
        loop {
            match this.mode {
                Mode::Head => {
                    if ready!(this.pass_head(cx, buf))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Mode::Passing(left) => {
                    let n = left.min(buf.remaining());
                    let before = buf.filled().len();
                    let _ = this.fetch(cx, buf, n)?;
                    let left = left - (buf.filled().len() - before);
                    this.mode = if left == 0 { Mode::Called } else { Mode::Passing(left) };
                    this.link.wire.idle.store(false, Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Mode::Called => {
                    if !this.understood() {
                        return this.hold(cx);
                    }
                }
                Mode::Length(left) => return this.pass_length(cx, buf, left),
                Mode::Chunked(chunks) => return this.pass_chunks(cx, buf, chunks),
                Mode::Broken => return Poll::Ready(Err(broken_chunk())),
                Mode::Tunnel => return this.fetch(cx, buf, usize::MAX).map_ok(|_| ()),
                Mode::Dead => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(n) = ready!(this.admit(cx, bytes, bytes.len()))? {
            return Poll::Ready(Ok(n));
        }
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first = slices.first().map_or(&[][..], |s| s);
        let total = slices.iter().map(|s| s.len()).sum();
        if let Some(n) = ready!(this.admit(cx, first, total))? {
            return Poll::Ready(Ok(n));
        }
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch(cx)?;
        ready!(this.poll_interim(cx))?;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        let wire = &this.link.wire;
        match &flushed {
            Poll::Ready(Ok(())) => {
                wire.blocked_since.store(0, Relaxed);
                if wire.unflushed.swap(false, Relaxed) && wire.held.load(Relaxed) && wire.in_flight.load(Relaxed) == 0 {
                    wire.task.wake();
                }
            }
            Poll::Pending => this.blocked(),
            Poll::Ready(Err(_)) => {}
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.mode, Mode::Dead) || this.link.wire.reset.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

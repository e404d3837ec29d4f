//! An HTTP/2 stream after a successful extended CONNECT (RFC 8441): bytes both ways, whichever side of us it is on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module. `H` is what must be held as long as it is open. Dropping it before both ends have closed resets the
/// stream.
#[derive(Debug)]
pub struct Tunnel<H> {
    send: SendStream<Bytes>,
    recv: RecvStream,
    read: Bytes,
    _held: H,
}

impl<H> Tunnel<H> {
    /// Both halves of the stream.
    pub const fn new(send: SendStream<Bytes>, recv: RecvStream, held: H) -> Self {
        Self { send, recv, read: Bytes::new(), _held: held }
    }
}

impl<H: Unpin> AsyncRead for Tunnel<H> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.read = data,
                Some(Err(e)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, e))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let take = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..take]);
        self.read.advance(take);
        let _ = self.recv.flow_control().release_capacity(take);
        Poll::Ready(Ok(()))
    }
}

impl<H: Unpin> AsyncWrite for Tunnel<H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(buf.len());
        let mut room = self.send.capacity();
        while room == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(granted)) => room = granted,
                Some(Err(e)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, e))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let part = room.min(buf.len());
        let sent = self.send.send_data(Bytes::copy_from_slice(&buf[..part]), false);
        Poll::Ready(sent.map(|()| part).map_err(|e| io::Error::new(io::ErrorKind::BrokenPipe, e)))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task writes.
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An error means that the stream is closed already.
        let _ = self.send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}

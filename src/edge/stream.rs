//! One accepted connection, whatever carries it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::accept_io::{Plain, Rewind};
use crate::runtime::keep_alive;

/// The transport under HTTP.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS, handshake done. Boxed: a plain connection does not carry its size.
    Tls(Box<TlsStream<Rewind>>),
    /// Bytes that were read ahead (PROXY protocol, a recorded ClientHello), then the rest.
    Prefixed(Box<Prefixed>),
}

/// See [`Stream::Prefixed`].
#[derive(Debug)]
pub struct Prefixed {
    prefix: Bytes,
    rest: Stream,
}

impl Stream {
    /// Gives bytes back that were read ahead.
    #[must_use]
    pub fn with_prefix(self, prefix: Bytes) -> Self {
        if prefix.is_empty() { self } else { Self::Prefixed(Box::new(Prefixed { prefix, rest: self })) }
    }

    /// Makes the coming close a reset, so that a body cut short cannot look complete (RFC 9112 section 8: a
    /// close-delimited message ends with the connection). Unix sockets have no reset.
    pub fn reset_on_close(&self) {
        match self {
            // The socket may be gone already; then there is nothing left to mark.
            Self::Tcp(tcp) => drop(tcp.set_zero_linger()),
            Self::Unix(_) => {}
            Self::Tls(tls) => match tls.get_ref().0.socket() {
                Plain::Tcp(tcp) => drop(tcp.set_zero_linger()),
                Plain::Unix(_) => {}
            },
            Self::Prefixed(prefixed) => prefixed.rest.reset_on_close(),
        }
    }
}

impl Stream {
    /// Asks a peer that is quiet for long whether it is still there: one that vanished without a word is found out, and
    /// devices on the way do not forget the connection.
    pub fn keep_alive(&self) {
        match self {
            Self::Tcp(tcp) => keep_alive(tcp),
            Self::Unix(_) => {}
            Self::Tls(tls) => match tls.get_ref().0.socket() {
                Plain::Tcp(tcp) => keep_alive(tcp),
                Plain::Unix(_) => {}
            },
            Self::Prefixed(prefixed) => prefixed.rest.keep_alive(),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

impl From<UnixStream> for Stream {
    fn from(unix: UnixStream) -> Self {
        Self::Unix(unix)
    }
}

impl From<TlsStream<Rewind>> for Stream {
    fn from(tls: TlsStream<Rewind>) -> Self {
        Self::Tls(Box::new(tls))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
            Self::Prefixed(io) if io.prefix.is_empty() => Pin::new(&mut io.rest).poll_read(cx, buf),
            Self::Prefixed(io) => {
                let n = io.prefix.len().min(buf.remaining());
                buf.put_slice(&io.prefix[..n]);
                io.prefix.advance(n);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Unix(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, bytes),
            Self::Prefixed(io) => Pin::new(&mut io.rest).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Self::Unix(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, slices),
            Self::Prefixed(io) => Pin::new(&mut io.rest).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // Sockets have nothing of their own to flush.
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
            Self::Prefixed(io) => Pin::new(&mut io.rest).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
            Self::Prefixed(io) => Pin::new(&mut io.rest).poll_shutdown(cx),
        }
    }
}

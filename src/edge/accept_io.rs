//! The socket of an accepted connection, as far down as its reader needs to know.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::stream::Stream;

/// A connection, ready for its first request.
#[derive(Debug)]
pub enum Io {
    /// In the clear.
    Tcp(TcpStream),
    /// In the clear, from this machine.
    Unix(UnixStream),
    /// After its handshake. Boxed: idle connections in the clear do not pay for it.
    Tls(Box<TlsStream<Rewind>>),
}

/// A socket without TLS.
#[derive(Debug)]
pub enum Plain {
    /// TCP.
    Tcp(TcpStream),
    /// Unix stream socket.
    Unix(UnixStream),
}

/// A socket under TLS of which some bytes were read too many, behind a PROXY header; they come first.
#[derive(Debug)]
pub struct Rewind {
    first: Bytes,
    io: Plain,
}

impl Rewind {
    pub(super) const fn new(first: Bytes, io: Plain) -> Self {
        Self { first, io }
    }

    /// The socket.
    #[must_use]
    pub const fn socket(&self) -> &Plain {
        &self.io
    }
}

impl Io {
    /// As the transport of a connection; `first` comes before what a socket in the clear gives.
    #[must_use]
    pub fn into_stream(self, first: Bytes) -> Stream {
        match self {
            Self::Tcp(s) => Stream::from(s).with_prefix(first),
            Self::Unix(s) => Stream::from(s).with_prefix(first),
            Self::Tls(s) => Stream::Tls(s),
        }
    }
}

impl From<Plain> for Io {
    fn from(plain: Plain) -> Self {
        match plain {
            Plain::Tcp(s) => Self::Tcp(s),
            Plain::Unix(s) => Self::Unix(s),
        }
    }
}

impl AsyncRead for Rewind {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let n = this.first.len().min(buf.remaining());
        buf.put_slice(&this.first[..n]);
        this.first.advance(n);
        if this.first.is_empty() {
            // An empty view still owns the buffer it was cut from.
            this.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Passes every call on to the one socket inside.
macro_rules! forward {
    ($ty:ty, |$this:ident| $with:ident) => {
        impl AsyncWrite for $ty {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let $this = self.get_mut();
                $with!($this, io => Pin::new(io).poll_write(cx, buf))
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $this = self.get_mut();
                $with!($this, io => Pin::new(io).poll_write_vectored(cx, bufs))
            }
            fn is_write_vectored(&self) -> bool {
                let $this = self;
                $with!($this, io => io.is_write_vectored())
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $this = self.get_mut();
                $with!($this, io => Pin::new(io).poll_flush(cx))
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $this = self.get_mut();
                $with!($this, io => Pin::new(io).poll_shutdown(cx))
            }
        }
    };
}

macro_rules! plain {
    ($this:ident, $io:ident => $call:expr) => {
        match $this {
            Plain::Tcp($io) => $call,
            Plain::Unix($io) => $call,
        }
    };
}
macro_rules! rewind {
    ($this:ident, $io:ident => $call:expr) => {{
        let Rewind { io: $io, .. } = $this;
        $call
    }};
}
macro_rules! any {
    ($this:ident, $io:ident => $call:expr) => {
        match $this {
            Io::Tcp($io) => $call,
            Io::Unix($io) => $call,
            Io::Tls($io) => $call,
        }
    };
}

forward!(Plain, |this| plain);
forward!(Rewind, |this| rewind);
forward!(Io, |this| any);

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        plain!(this, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        any!(this, io => Pin::new(io).poll_read(cx, buf))
    }
}

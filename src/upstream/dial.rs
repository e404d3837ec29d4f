//! Dialling an endpoint: TCP or a unix socket, TLS on top where the service wants it. A tower `Service`, so that a
//! connector from elsewhere can be layered around it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use onehop_filters::contract::mesh::Address;
use onehop_filters::contract::{Fault, Reason};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::tls::{ClientTls, Offer};
use crate::runtime::keep_alive;

/// Opens connections. Has no clock: whoever calls it bounds the whole of connect, handshake and preface.
#[derive(Clone)]
pub struct Dialer {
    /// `None`: in the clear.
    pub tls: Option<Arc<ClientTls>>,
    /// Name to verify where the TLS section names none.
    pub name: Option<ServerName<'static>>,
}

/// Where to, and which protocols to offer in the handshake.
pub struct Dial {
    /// Endpoint.
    pub address: Address,
    /// ALPN.
    pub offer: Offer,
    /// Written before anything else, TLS included; usually nothing.
    pub preface: Vec<u8>,
}

/// An open connection.
pub struct Dialed {
    /// The connection.
    pub(super) wire: Wire,
    /// Whether the handshake chose HTTP/2. False in the clear.
    pub h2: bool,
}

impl tower::Service<Dial> for Dialer {
    type Response = Dialed;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Dialed, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Dial) -> Self::Future {
        let Self { tls, name } = self.clone();
        Box::pin(async move {
            let mut socket = connect(&to.address).await.map_err(|e| connect_failed(&e))?;
            if !to.preface.is_empty() {
                socket.write_all(&to.preface).await.map_err(|e| connect_failed(&e))?;
            }
            let raw = Raw { socket, written: 0 };
            let Some(tls) = tls else { return Ok(Dialed { wire: Wire::Plain(raw), h2: false }) };
            let name = tls.server_name(name.as_ref(), &to.address)?;
            let stream = tls.connector(to.offer).connect(name, raw).await.map_err(|e| handshake_failed(&e))?;
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(Dialed { wire: Wire::Tls(Box::new(stream)), h2 })
        })
    }
}

async fn connect(address: &Address) -> io::Result<Socket> {
    match address {
        Address::Tcp(to) => {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(Socket::Tcp(stream))
        }
        Address::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
    }
}

fn connect_failed(e: &io::Error) -> Fault {
    Fault::never_ran(Reason::ConnectFailed).detail(e.kind().to_string()).by("upstream")
}

/// A handshake failed before any byte of a request. What rustls says names rules, not secrets.
fn handshake_failed(e: &io::Error) -> Fault {
    let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let detail = tls.map_or_else(|| e.kind().to_string(), ToString::to_string);
    Fault::never_ran(Reason::TlsFailed).detail(detail).by("upstream")
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.write_all(bytes).await,
            Self::Unix(s) => s.write_all(bytes).await,
        }
    }
}

/// The socket itself. Counts what left this host, which is what proves that a request never ran.
pub(super) struct Raw {
    socket: Socket,
    written: u64,
}

impl Raw {
    /// Whether an idle connection is as it was left: no byte, no end, no error. Costs no system call while the driver
    /// has seen nothing, and drops the waker of the last owner.
    fn quiet(&self) -> bool {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let ready = match &self.socket {
            Socket::Tcp(s) => s.poll_read_ready(cx),
            Socket::Unix(s) => s.poll_read_ready(cx),
        };
        if ready.is_pending() {
            return true;
        }
        // Readiness may be stale: only the socket knows.
        let read = match &self.socket {
            Socket::Tcp(s) => s.try_read(&mut [0]),
            Socket::Unix(s) => s.try_read(&mut [0]),
        };
        read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    fn ready(&self) -> bool {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        match &self.socket {
            Socket::Tcp(s) => s.poll_read_ready(cx).is_ready(),
            Socket::Unix(s) => s.poll_read_ready(cx).is_ready(),
        }
    }

    fn count(&mut self, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = wrote {
            self.written += n as u64;
        }
        wrote
    }
}

macro_rules! on_socket {
    ($self:ident, $s:ident => $call:expr) => {
        match &mut $self.socket {
            Socket::Tcp($s) => $call,
            Socket::Unix($s) => $call,
        }
    };
}

impl AsyncRead for Raw {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_socket!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Raw {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = on_socket!(self, s => Pin::new(s).poll_write(cx, buf));
        self.count(wrote)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = on_socket!(self, s => Pin::new(s).poll_write_vectored(cx, bufs));
        self.count(wrote)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self, s => Pin::new(s).poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

/// A connection to an endpoint, with or without TLS.
pub(super) enum Wire {
    Plain(Raw),
    Tls(Box<TlsStream<Raw>>),
}

impl Wire {
    /// Bytes handed to the kernel so far, handshake included.
    pub fn written(&self) -> u64 {
        match self {
            Self::Plain(raw) => raw.written,
            Self::Tls(s) => s.get_ref().0.written,
        }
    }

    /// Makes the coming close a reset, so that a stream that was cut does not look complete. Unix sockets have none.
    pub fn reset_on_close(&self) {
        let raw = match self {
            Self::Plain(raw) => raw,
            Self::Tls(s) => s.get_ref().0,
        };
        if let Socket::Tcp(tcp) = &raw.socket {
            // The socket may be gone already; then there is nothing left to mark.
            drop(tcp.set_zero_linger());
        }
    }

    /// See [`keep_alive`].
    pub fn keep_alive(&self) {
        let raw = match self {
            Self::Plain(raw) => raw,
            Self::Tls(s) => s.get_ref().0,
        };
        if let Socket::Tcp(tcp) = &raw.socket {
            keep_alive(tcp);
        }
    }

    /// Whether the connection, found idle, can carry a request: open, and nothing was sent that nobody asked for.
    pub fn reusable(&mut self) -> bool {
        match self {
            Self::Plain(raw) => raw.quiet(),
            Self::Tls(s) => {
                let (raw, session) = s.get_mut();
                let Ok(state) = session.process_new_packets() else { return false };
                if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                    return false;
                }
                if !raw.ready() {
                    return true;
                }
                // Something arrived. A session ticket or key update is harmless: let TLS read it, and see if data follows.
                let mut byte = [0; 1];
                let mut buf = ReadBuf::new(&mut byte);
                let cx = &mut Context::from_waker(std::task::Waker::noop());
                Pin::new(s.as_mut()).poll_read(cx, &mut buf).is_pending()
            }
        }
    }
}

macro_rules! on_wire {
    ($self:ident, $s:ident => $call:expr) => {
        match &mut *$self {
            Wire::Plain($s) => $call,
            Wire::Tls($s) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_wire!(self, s => Pin::new(s).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_wire!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, s => Pin::new(s).poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

//! The way from a request that asks for another protocol to the bytes under it.

use http::Request;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::body::Incoming;
use super::h2::Tunnel;

/// Opens once the answer that agrees has been sent.
#[derive(Debug)]
pub enum Switch {
    /// The connection (RFC 9110 section 7.8).
    H1(OnUpgrade),
    /// The stream of an extended CONNECT (RFC 8441).
    H2(oneshot::Receiver<Tunnel>),
}

impl Switch {
    /// Takes it out of a request. `None`: it asks for nothing of the sort.
    pub fn of(request: &mut Request<Incoming>) -> Option<Self> {
        if request.extensions().is_empty() && !matches!(request.body(), Incoming::Connect(_)) {
            return None;
        }
        match request.body_mut() {
            // hyper leaves something in the extensions only for a request that asks for another protocol.
            Incoming::H1(_) => Some(Self::H1(hyper::upgrade::on(request))),
            body => match std::mem::replace(body, Incoming::Empty) {
                Incoming::Connect(opened) => Some(Self::H2(opened)),
                other => {
                    *body = other;
                    None
                }
            },
        }
    }

    /// The bytes both ways. `None`: the answer did not agree, or the client has left.
    pub async fn opened(self) -> Option<Box<dyn Io>> {
        match self {
            Self::H1(upgrade) => Some(Box::new(TokioIo::new(upgrade.await.ok()?))),
            Self::H2(opened) => Some(Box::new(opened.await.ok()?)),
        }
    }
}

/// A tunnel's bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

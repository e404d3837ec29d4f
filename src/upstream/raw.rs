//! Connections that carry no HTTP: bytes both ways, one caller each, never pooled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use onehop_filters::contract::mesh::Endpoint;
use onehop_filters::contract::{Fault, worker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::Wire;
use super::pool::Open;
use super::proxy_header::Client;
use super::tls::Offer;
use super::{Upstream, Way};

/// An open connection. Counts among those of its endpoint.
pub struct Connection {
    wire: Wire,
    _open: Open,
}

impl Upstream {
    /// Opens a connection to an endpoint for a client, with TLS and a PROXY header where the service wants them. Also
    /// says how long that took.
    ///
    /// # Errors
    /// It cannot be opened. Nothing of the client's was sent.
    pub async fn connect(&self, endpoint: &Arc<Endpoint>, client: Client) -> Result<(Connection, Duration), Fault> {
        let shard = &self.shards[worker::shard() % self.shards.len()];
        let settings = shard.settings();
        let mut way = Way::new(&settings, shard, endpoint, None);
        // Counted with the endpoint's others: it is not kept for anybody.
        way.client = Some(client);
        let (dialed, open, took) = way.dial(Offer::Bytes).await?;
        // It may be quiet for hours.
        dialed.wire.keep_alive();
        Ok((Connection { wire: dialed.wire, _open: open }, took))
    }
}

impl Connection {
    /// Makes the coming close a reset: what was cut must not look complete.
    pub fn reset_on_close(&self) {
        self.wire.reset_on_close();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

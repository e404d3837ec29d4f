//! One HTTP/1 connection: socket, buffers, and the shelf of idle connections it goes back to.

use std::io;
use std::sync::Weak;
use std::task::{Context, Poll};

use bytes::BytesMut;
use onehop_filters::contract::Moment;
use onehop_filters::contract::clock::recent;
use tokio::io::AsyncReadExt;

use crate::upstream::dial::Wire;
use crate::upstream::pool::{Open, Shard};

/// Room asked for when a head, or a little of a body, is expected.
const SMALL_READ: usize = 8 * 1024;
/// Room asked for in the middle of a large body.
const LARGE_READ: usize = 64 * 1024;
/// A buffer that grew beyond this is given back before the connection idles.
const KEEP: usize = 16 * 1024;

/// A connection. Owned by the exchange it carries, or idle in the pool.
pub(in crate::upstream) struct Conn {
    pub wire: Wire,
    /// Read and not yet understood.
    pub read: BytesMut,
    /// Head and size lines, reused from request to request.
    pub write: Vec<u8>,
    /// Exchanges begun.
    pub requests: u64,
    /// When it was opened.
    pub born: Moment,
    /// Since when it has been idle.
    pub idle_since: Moment,
    /// Where it belongs. Weak, because idle connections live there.
    pub shard: Weak<Shard>,
    /// Counts it as open, and knows the endpoint.
    pub open: Open,
}

impl Conn {
    pub fn new(wire: Wire, shard: Weak<Shard>, open: Open) -> Self {
        let (born, idle_since) = (recent(), Moment::ZERO);
        Self { wire, read: BytesMut::new(), write: Vec::new(), requests: 0, born, idle_since, shard, open }
    }

    /// Reads once. `expected` bytes of payload are still to come, as far as is known. 0 = the peer has ended.
    pub fn poll_read(&mut self, expected: u64, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = if expected >= SMALL_READ as u64 { LARGE_READ } else { SMALL_READ };
        if self.read.capacity() - self.read.len() < room / 2 {
            self.read.reserve(room);
        }
        // The future keeps nothing between polls.
        let read = std::pin::pin!(self.wire.read_buf(&mut self.read));
        read.poll(cx)
    }

    /// Returns an unharmed connection to its worker's pool.
    pub fn rest(mut self: Box<Self>, max_requests: u64) {
        if self.requests >= max_requests {
            return;
        }
        if self.read.capacity() > KEEP {
            self.read = BytesMut::new();
        }
        if self.write.capacity() > KEEP {
            self.write = Vec::new();
        }
        if let Some(shard) = self.shard.upgrade() {
            shard.shelve(self);
        }
    }
}

//! What the gate, the service and the driver of one connection share. All three run in the connection's own task, one
//! after the other; atomics are used because futures must be `Send`, not because anybody races.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Response, StatusCode};
use onehop_filters::contract::{Fault, Moment};
use parking_lot::Mutex;

use crate::edge::serve::Link;

/// How the body of a request is delimited, as hyper decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
}

/// The shared cell.
#[derive(Debug, Default)]
pub struct Wire {
    /// The connection's task.
    pub task: AtomicWaker,
    /// Exchanges begun and not ended: from the service call to the end (or drop) of the response body.
    pub in_flight: AtomicU32,
    pub served: AtomicU64,
    /// Exchanges the client ended before we did.
    pub premature: AtomicU64,
    pub parked: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    /// Set by the service, taken by the gate: the head it handed over has been understood. `u64::MAX`: chunked.
    pub called: AtomicBool,
    framing: AtomicU64,
    /// HTTP/1: no informational response any more: the final one is there, or the client is HTTP/1.0.
    pub final_only: AtomicBool,
    /// After 101 or a 2xx to CONNECT: bytes pass unseen.
    pub tunnel: AtomicBool,
    pub draining: AtomicBool,
    /// We close first: the client may have sent more, and a plain close would answer that with a reset.
    pub leaving: AtomicBool,
    pub reset: AtomicBool,
    /// Everything hyper wrote has left: its last call was a flush.
    pub unflushed: AtomicBool,
    /// The gate waits for the first byte of a head.
    pub idle: AtomicBool,
    /// It holds bytes of a next request back (or its end), which only a wake will release.
    pub held: AtomicBool,
    /// The final answer is there.
    pub answered: AtomicBool,
    /// A service or a body panicked.
    pub panicked: AtomicBool,
    /// When the client closed its sending side with a request in flight; 0 = it did not.
    pub eof_since: AtomicU64,
    /// When the head being read began; 0 = none.
    pub head_since: AtomicU64,
    /// Since when a write waits for the client; 0 = none does.
    pub blocked_since: AtomicU64,
    /// The gate renamed an `Upgrade` field of the head it handed over.
    pub blanked: AtomicBool,
    /// The gate's verdict against the connection.
    pub faulted: AtomicBool,
    /// Uncontended, see the module: taken when a head is refused.
    pub fault: Mutex<Option<Fault>>,
    pub has_interim: AtomicBool,
    /// Uncontended: informational responses waiting for a flush point.
    pub interim: Mutex<Vec<u8>>,
    /// Uncontended: the same for streams. Each is taken in the poll of the request that left it.
    interims: Mutex<Vec<(u32, Response<()>)>>,
}

impl Wire {
    /// A request has been understood.
    pub fn begin(link: &Arc<Link>, framing: Framing, interim: bool) -> Exchange {
        let wire = &link.wire;
        wire.framing.store(
            match framing {
                Framing::Length(n) => n.min(u64::MAX - 1),
                Framing::Chunked => u64::MAX,
            },
            Relaxed,
        );
        wire.final_only.store(!interim, Relaxed);
        wire.answered.store(false, Relaxed);
        wire.called.store(true, Relaxed);
        wire.served.fetch_add(1, Relaxed);
        wire.in_flight.fetch_add(1, Relaxed);
        Exchange { link: link.clone(), ended: false }
    }

    /// The framing of the request that was just understood, if one was.
    pub fn take_framing(&self) -> Option<Framing> {
        self.called.swap(false, Relaxed).then(|| match self.framing.load(Relaxed) {
            u64::MAX => Framing::Chunked,
            n => Framing::Length(n),
        })
    }

    pub fn informational(&self, stream: u32, status: StatusCode, headers: HeaderMap) -> bool {
        let sendable = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if stream != 0 {
            if sendable {
                let mut interim = Response::new(());
                *interim.status_mut() = status;
                *interim.headers_mut() = headers;
                self.interims.lock().push((stream, interim));
                self.has_interim.store(true, Relaxed);
            }
            return sendable;
        }
        if !sendable || self.final_only.load(Relaxed) || self.in_flight.load(Relaxed) == 0 {
            return false;
        }
        let mut queue = self.interim.lock();
        queue.extend_from_slice(b"HTTP/1.1 ");
        queue.extend_from_slice(status.as_str().as_bytes());
        queue.push(b' ');
        queue.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        queue.extend_from_slice(b"\r\n");
        for (name, value) in &headers {
            queue.extend_from_slice(name.as_str().as_bytes());
            queue.extend_from_slice(b": ");
            queue.extend_from_slice(value.as_bytes());
            queue.extend_from_slice(b"\r\n");
        }
        queue.extend_from_slice(b"\r\n");
        self.has_interim.store(true, Relaxed);
        self.task.wake();
        true
    }

    /// Takes what waits for this stream.
    pub fn take_interim(&self, stream: u32, mut tell: impl FnMut(Response<()>)) {
        let mut interims = self.interims.lock();
        for (_, interim) in interims.extract_if(.., |waiting| waiting.0 == stream) {
            tell(interim);
        }
        self.has_interim.store(!interims.is_empty(), Relaxed);
    }

    /// Drops what came too late for its answer.
    pub fn drop_interims(&self) {
        if self.has_interim.swap(false, Relaxed) {
            self.interims.lock().clear();
        }
    }

    pub fn refuse(&self, fault: Fault) {
        *self.fault.lock() = Some(fault);
        self.faulted.store(true, Relaxed);
    }

    pub fn take_fault(&self) -> Option<Fault> {
        if self.faulted.load(Relaxed) { self.fault.lock().take() } else { None }
    }

    pub fn add_in(&self, n: usize) {
        // One writer: no read-modify-write needed.
        self.bytes_in.store(self.bytes_in.load(Relaxed) + n as u64, Relaxed);
    }

    pub fn add_out(&self, n: usize) {
        self.bytes_out.store(self.bytes_out.load(Relaxed) + n as u64, Relaxed);
    }

    pub fn head_since(&self) -> Option<Moment> {
        moment(self.head_since.load(Relaxed))
    }

    pub fn eof_since(&self) -> Option<Moment> {
        moment(self.eof_since.load(Relaxed))
    }

    pub fn blocked_since(&self) -> Option<Moment> {
        moment(self.blocked_since.load(Relaxed))
    }
}

fn moment(nanos: u64) -> Option<Moment> {
    (nanos != 0).then_some(Moment(nanos))
}

/// One exchange in flight. Rides in the service future, then in the response body.
#[derive(Debug)]
pub struct Exchange {
    link: Arc<Link>,
    ended: bool,
}

impl Exchange {
    /// The response reached its end, as far as we could bring it. Dropped without, the client (or its protocol) ended it.
    pub fn ended(&mut self) {
        self.ended = true;
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let wire = &self.link.wire;
        wire.in_flight.fetch_sub(1, Relaxed);
        if !self.ended {
            wire.premature.fetch_add(1, Relaxed);
        }
        // hyper remembers that its last read was blocked and does not ask again by itself.
        if wire.held.load(Relaxed) {
            wire.task.wake();
        }
    }
}

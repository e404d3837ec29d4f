//! One worker's connections of one service: idle HTTP/1 connections, newest first, and open HTTP/2 sessions.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use onehop_filters::contract::Moment;
use onehop_filters::contract::clock::recent;
use parking_lot::Mutex;

use super::Settings;
use super::h1::Conn;
use super::h2::Session;

/// See the module. Lives on a cache line of its own.
#[repr(align(128))]
pub(super) struct Shard {
    /// Locked by its worker, briefly and without waiting; the control thread joins in only for [`Shard::forget`],
    /// [`Shard::sweep`] and counting.
    state: Mutex<State>,
}

struct State {
    slots: HashMap<u64, Slot, foldhash::fast::RandomState>,
    /// Each worker's own handle: no count that two cores write.
    settings: Arc<Settings>,
    keep: Keep,
}

/// How much idle connection is kept, and how long.
#[derive(Clone, Copy)]
pub(super) struct Keep {
    pub per_endpoint: usize,
    pub idle: Duration,
    /// Of a connection, busy or not.
    pub age: Option<Duration>,
    /// HTTP/2 sessions to one endpoint from one worker; beyond that, streams queue.
    pub sessions: usize,
}

#[derive(Default)]
struct Slot {
    /// The endpoint, where the slot is one client's: then its key is another.
    of: Option<u64>,
    idle: VecDeque<Box<Conn>>,
    sessions: Vec<Arc<Session>>,
    /// What ALPN chose last time: true = HTTP/2.
    spoken: Option<bool>,
    /// Held while a session is opened, so that a burst opens one and not one each.
    opening: Arc<tokio::sync::Mutex<()>>,
    meter: Arc<AtomicUsize>,
}

/// Counts a connection as open for as long as it lives, and remembers what it is kept under.
pub(super) struct Open {
    pub endpoint: u64,
    meter: Arc<AtomicUsize>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.meter.fetch_sub(1, Relaxed);
    }
}

/// Connections to one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open, in use or not.
    pub open: usize,
    /// Of these, HTTP/1 ones that wait for a request.
    pub idle: usize,
    /// Of these, HTTP/2 ones.
    pub h2: usize,
    /// Streams in flight on the HTTP/2 ones.
    pub streams: usize,
}

impl Shard {
    pub fn new(settings: Settings) -> Self {
        let keep = settings.keep();
        Self { state: Mutex::new(State { slots: HashMap::default(), settings: Arc::new(settings), keep }) }
    }

    pub fn adjust(&self, settings: Settings) {
        let mut state = self.state.lock();
        state.keep = settings.keep();
        let old = std::mem::replace(&mut state.settings, Arc::new(settings));
        drop(state);
        drop(old);
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.state.lock().settings.clone()
    }

    /// The newest idle connection that can still carry a request.
    pub fn checkout(&self, endpoint: u64) -> Option<Box<Conn>> {
        loop {
            let mut state = self.state.lock();
            let idle = state.keep.idle;
            let slot = state.slots.get_mut(&endpoint)?;
            let mut conn = slot.idle.pop_back()?;
            if recent().since(conn.idle_since) >= idle {
                // The newest is too old, so all are. Sockets are closed outside the lock.
                let old = std::mem::take(&mut slot.idle);
                drop(state);
                drop(old);
                return None;
            }
            let age = state.keep.age;
            drop(state);
            if age.is_some_and(|age| recent().since(conn.born) >= age) {
                continue;
            }
            if conn.wire.reusable() {
                return Some(conn);
            }
        }
    }

    /// Takes an idle connection back, unless its endpoint is gone.
    pub fn shelve(&self, mut conn: Box<Conn>) {
        conn.idle_since = recent();
        let mut state = self.state.lock();
        let keep = state.keep;
        if keep.age.is_some_and(|age| conn.idle_since.since(conn.born) >= age) {
            return drop((state, conn));
        }
        let Some(slot) = state.slots.get_mut(&conn.open.endpoint) else { return drop((state, conn)) };
        let at = conn.idle_since;
        slot.idle.push_back(conn);
        let oldest = slot.idle.front().map_or(at, |c| c.idle_since);
        let dropped = if slot.idle.len() > keep.per_endpoint || at.since(oldest) >= keep.idle {
            slot.idle.pop_front()
        } else {
            None
        };
        drop(state);
        drop(dropped);
    }

    /// Begins to count a connection that is being opened.
    pub fn open(&self, key: u64, endpoint: u64) -> Open {
        let mut state = self.state.lock();
        let slot = state.slots.entry(key).or_default();
        slot.of = (key != endpoint).then_some(endpoint);
        let meter = slot.meter.clone();
        drop(state);
        meter.fetch_add(1, Relaxed);
        Open { endpoint: key, meter }
    }

    /// What ALPN chose last time.
    pub fn spoken(&self, endpoint: u64) -> Option<bool> {
        self.state.lock().slots.get(&endpoint)?.spoken
    }

    pub fn learn(&self, endpoint: u64, h2: bool) {
        self.state.lock().slots.entry(endpoint).or_default().spoken = Some(h2);
    }

    /// The turnstile for opening sessions to an endpoint.
    pub fn opening(&self, endpoint: u64) -> Arc<tokio::sync::Mutex<()>> {
        self.state.lock().slots.entry(endpoint).or_default().opening.clone()
    }

    /// The session with the most room. `None`: another is wanted. With `crowd`, a full one will do.
    pub fn session(&self, endpoint: u64, crowd: bool) -> Option<Arc<Session>> {
        let mut state = self.state.lock();
        let most = state.keep.sessions;
        let slot = state.slots.get_mut(&endpoint)?;
        let before = slot.sessions.len();
        let closed: Vec<_> = if slot.sessions.iter().any(|s| s.closed()) {
            slot.sessions.extract_if(.., |s| s.closed()).collect()
        } else {
            Vec::new()
        };
        // Fill the first before the second: then the last can fall idle and close.
        let roomy = slot.sessions.iter().find(|s| s.room()).cloned();
        let found = roomy.or_else(|| {
            let full = crowd || (before > 0 && slot.sessions.len() >= most);
            full.then(|| slot.sessions.iter().min_by_key(|s| s.streams()).cloned()).flatten()
        });
        drop(state);
        drop(closed);
        found
    }

    pub fn add(&self, endpoint: u64, session: Arc<Session>) {
        self.state.lock().slots.entry(endpoint).or_default().sessions.push(session);
    }

    /// The endpoint is gone: idle connections close now, others after what they carry.
    pub fn forget(&self, endpoint: u64) {
        let mut state = self.state.lock();
        let slot = state.slots.remove(&endpoint);
        let of_clients: Vec<_> = if state.settings.proxy_protocol.is_some() {
            state.slots.extract_if(|_, slot| slot.of == Some(endpoint)).collect()
        } else {
            Vec::new()
        };
        drop(state);
        drop((slot, of_clients));
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self, at: Moment) {
        let mut old: Vec<Box<Conn>> = Vec::new();
        let mut done: Vec<Arc<Session>> = Vec::new();
        let mut state = self.state.lock();
        let idle = state.keep.idle;
        for slot in state.slots.values_mut() {
            while slot.idle.front().is_some_and(|c| at.since(c.idle_since) >= idle) {
                old.extend(slot.idle.pop_front());
            }
            done.extend(slot.sessions.extract_if(.., |s| s.closed() || s.idle_for(at) >= idle));
        }
        // Clients come and go; endpoints are told of by discovery.
        state.slots.retain(|_, slot| slot.of.is_none() || slot.meter.load(Relaxed) > 0);
        drop(state);
    }

    pub fn count(&self, into: &mut std::collections::BTreeMap<u64, Connections>) {
        for (key, slot) in &self.state.lock().slots {
            let sum = into.entry(slot.of.unwrap_or(*key)).or_default();
            sum.open += slot.meter.load(Relaxed);
            sum.idle += slot.idle.len();
            sum.h2 += slot.sessions.iter().filter(|s| !s.closed()).count();
            sum.streams += slot.sessions.iter().map(|s| s.streams() as usize).sum::<usize>();
        }
    }
}

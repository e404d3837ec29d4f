//! Deadlines without a tokio timer each: one coarse wheel per thread and runtime.
//!
//! Every request sets several deadlines and meets none of them. Arming here is a slot from a free list and a link in a
//! bucket, giving up is the reverse; only the ticker touches a real timer, and only when a deadline may be due. A tokio
//! timer costs about five times as many instructions.
//!
//! A deadline never fires early, and late by a tick (10 ms) and what the timer behind it adds. One that is due in less
//! than three ticks takes a tokio timer, which is precise to a millisecond.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use onehop_filters::contract::clock::recent;
use onehop_filters::contract::{Moment, now};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::Sleep;

const TICK_NANOS: u64 = 10_000_000;
/// Closer than this a tokio timer is used.
const PRECISE: Duration = Duration::from_millis(30);
/// Ticks of one turn: 5.12 s.
const BUCKETS: usize = 512;
const NONE: u32 = u32::MAX;

/// Completes once `at` has passed. [`Moment::MAX`] never comes and costs nothing.
///
/// Polling it needs a tokio runtime with time enabled, as a tokio timer does.
pub const fn deadline(at: Moment) -> Deadline {
    Deadline { at, state: State::Unarmed }
}

/// Runs a future until `at`.
///
/// # Errors
/// [`Elapsed`] if `at` came first; the future is dropped then.
pub async fn timeout<F: Future>(at: Moment, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut limit = deadline(at);
    poll_fn(move |cx| {
        if let Poll::Ready(done) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        Pin::new(&mut limit).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// A deadline came before its future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

/// See [`deadline`]. May move between tasks and threads: its slot stays in the wheel that armed it.
#[must_use]
pub struct Deadline {
    at: Moment,
    state: State,
}

enum State {
    Unarmed,
    Armed { wheel: Arc<Shared>, slot: u32 },
    Precise(Pin<Box<Sleep>>),
    Over,
}

impl Deadline {
    /// When.
    #[must_use]
    pub const fn at(&self) -> Moment {
        self.at
    }

    /// Sets another moment; also makes a completed deadline wait again.
    pub fn reset(&mut self, at: Moment) {
        // An armed slot that would only fire too early is kept: it wakes once for nothing, and arms anew then. That is
        // the usual case, an idle deadline pushed on by every request.
        if !(matches!(self.state, State::Armed { .. }) && at >= self.at) {
            self.disarm();
        }
        self.at = at;
    }

    fn disarm(&mut self) {
        if let State::Armed { wheel, slot } = std::mem::replace(&mut self.state, State::Unarmed) {
            wheel.release(slot);
        }
    }
}

impl Future for Deadline {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.at == Moment::MAX {
            return Poll::Pending;
        }
        loop {
            match &mut self.state {
                State::Over => return Poll::Ready(()),
                State::Unarmed => {
                    let now = recent();
                    let left = self.at.since(now);
                    if left.is_zero() {
                        self.state = State::Over;
                    } else if left < PRECISE {
                        self.state = State::Precise(Box::pin(tokio::time::sleep(left)));
                    } else {
                        let wheel = here();
                        let slot = wheel.arm(self.at, now, cx.waker().clone());
                        self.state = State::Armed { wheel, slot };
                        return Poll::Pending;
                    }
                }
                State::Precise(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.state = State::Unarmed;
                }
                State::Armed { wheel, slot } => {
                    if !wheel.fired(*slot, cx.waker()) {
                        return Poll::Pending;
                    }
                    self.disarm();
                }
            }
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.at).finish()
    }
}

thread_local! {
    /// The wheel of this thread and of the runtime it drives now; tests drive several in turn.
    static HERE: RefCell<Option<(Id, Arc<Shared>)>> = const { RefCell::new(None) };
}

fn here() -> Arc<Shared> {
    let runtime = Handle::current().id();
    HERE.with_borrow_mut(|here| match here {
        Some((id, wheel)) if *id == runtime => wheel.clone(),
        _ => here.insert((runtime, Arc::default())).1.clone(),
    })
}

/// A wheel and the bell that wakes its ticker.
#[derive(Default)]
struct Shared {
    /// Taken by the thread's tasks, its ticker, and by deadlines that moved to another thread: uncontended but for those.
    /// No waker is woken or dropped under it, since that may drop a task and with it a deadline of this very wheel.
    wheel: Mutex<Wheel>,
    bell: Arc<Notify>,
}

impl Shared {
    fn arm(self: &Arc<Self>, at: Moment, now: Moment, waker: Waker) -> u32 {
        let (slot, sooner, first) = {
            let mut wheel = self.wheel.lock();
            let (slot, sooner) = wheel.insert(at, now, waker);
            (slot, sooner, !std::mem::replace(&mut wheel.ticking, true))
        };
        if first {
            tokio::spawn(tick(Lease(Arc::downgrade(self)), self.bell.clone()));
        } else if sooner {
            self.bell.notify_one();
        }
        slot
    }

    fn fired(&self, slot: u32, waker: &Waker) -> bool {
        let mut wheel = self.wheel.lock();
        let entry = &mut wheel.slots[slot as usize];
        let stale = match &entry.waker {
            None => return true,
            Some(known) if known.will_wake(waker) => None,
            Some(_) => entry.waker.replace(waker.clone()),
        };
        drop(wheel);
        drop(stale);
        false
    }

    fn release(&self, slot: u32) {
        let waker = self.wheel.lock().remove(slot);
        drop(waker);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The parked ticker finds its wheel gone and ends.
        self.bell.notify_one();
    }
}

/// The ticker's hold on its wheel: if the ticker is dropped with its runtime, another may be started.
struct Lease(Weak<Shared>);

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.wheel.lock().ticking = false;
        }
    }
}

/// Sleeps until the next deadline may be due, or for ever while there is none: an idle process has no wake-ups.
async fn tick(lease: Lease, bell: Arc<Notify>) {
    let mut due = Vec::new();
    loop {
        let pause = {
            let Some(shared) = lease.0.upgrade() else { return };
            let now = now();
            let next = shared.wheel.lock().advance(now, &mut due);
            next.map(|next| next.since(now))
        };
        due.drain(..).for_each(Waker::wake);
        match pause {
            None => bell.notified().await,
            Some(pause) => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = bell.notified() => {}
                }
            }
        }
    }
}

/// A hashed wheel: buckets of ticks, linked through a slab, with a bitmap of buckets in use.
struct Wheel {
    slots: Vec<Slot>,
    /// Head of the list of free slots.
    free: u32,
    heads: Box<[u32; BUCKETS]>,
    in_use: [u64; BUCKETS / 64],
    /// Every tick up to this one has been served.
    served: u64,
    /// The tick the ticker sleeps until.
    next: u64,
    ticking: bool,
}

/// Linked in a bucket while it has a waker; then fired, until its deadline takes note; then free.
struct Slot {
    waker: Option<Waker>,
    due: u64,
    previous: u32,
    next: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: NONE,
            heads: Box::new([NONE; BUCKETS]),
            in_use: [0; BUCKETS / 64],
            served: 0,
            next: u64::MAX,
            ticking: false,
        }
    }
}

const fn bucket(tick: u64) -> usize {
    (tick % BUCKETS as u64) as usize
}

impl Wheel {
    /// Links a new slot; true if it is due before anything else, so that the ticker sleeps too long.
    fn insert(&mut self, at: Moment, now: Moment, waker: Waker) -> (u32, bool) {
        // Nothing was armed while the ticker was parked: no need to walk the ticks it slept through.
        if self.in_use == [0; BUCKETS / 64] {
            self.served = now.0 / TICK_NANOS;
        }
        // The end of its tick, never the beginning: no deadline fires early. Never a tick that was already served.
        let due = at.0.div_ceil(TICK_NANOS).max(self.served + 1);
        let slot = match self.free {
            NONE => {
                let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 deadlines fit in memory");
                self.slots.push(Slot { waker: None, due, previous: NONE, next: NONE });
                slot
            }
            slot => {
                self.free = self.slots[slot as usize].next;
                slot
            }
        };
        let b = bucket(due);
        let head = std::mem::replace(&mut self.heads[b], slot);
        self.slots[slot as usize] = Slot { waker: Some(waker), due, previous: NONE, next: head };
        if head != NONE {
            self.slots[head as usize].previous = slot;
        }
        self.in_use[b / 64] |= 1 << (b % 64);
        let sooner = due < self.next;
        self.next = self.next.min(due);
        (slot, sooner)
    }

    /// Frees a slot, linked or fired.
    fn remove(&mut self, slot: u32) -> Option<Waker> {
        let waker = self.slots[slot as usize].waker.take();
        if waker.is_some() {
            self.unlink(slot);
        }
        self.slots[slot as usize].next = std::mem::replace(&mut self.free, slot);
        waker
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { due, previous, next, .. } = self.slots[slot as usize];
        if next != NONE {
            self.slots[next as usize].previous = previous;
        }
        if previous != NONE {
            self.slots[previous as usize].next = next;
            return;
        }
        let b = bucket(due);
        self.heads[b] = next;
        if next == NONE {
            self.in_use[b / 64] &= !(1 << (b % 64));
        }
    }

    /// Takes the wakers of all that is due, and says when to look again.
    fn advance(&mut self, now: Moment, due: &mut Vec<Waker>) -> Option<Moment> {
        let tick = now.0 / TICK_NANOS;
        // After a sleep of more than one turn every bucket is visited once.
        let first = (self.served + 1).max((tick + 1).saturating_sub(BUCKETS as u64));
        for t in first..=tick {
            let mut slot = self.heads[bucket(t)];
            while slot != NONE {
                let entry = &mut self.slots[slot as usize];
                let next = entry.next;
                if entry.due <= tick {
                    due.extend(entry.waker.take());
                    self.unlink(slot);
                }
                slot = next;
            }
        }
        self.served = self.served.max(tick);
        self.next = self.next_in_use().unwrap_or(u64::MAX);
        (self.next != u64::MAX).then(|| Moment(self.next.saturating_mul(TICK_NANOS)))
    }

    /// First tick after `served` whose bucket is in use: what lies there may belong to a later turn, which costs one
    /// wake-up a turn.
    fn next_in_use(&self) -> Option<u64> {
        let start = bucket(self.served + 1);
        // The word of the first bucket is looked at twice: its upper part first, its lower part last.
        (0..=BUCKETS / 64).find_map(|n| {
            let word = (start / 64 + n) % (BUCKETS / 64);
            let mask = match n {
                0 => u64::MAX << (start % 64),
                8 => !(u64::MAX << (start % 64)),
                _ => u64::MAX,
            };
            let found = self.in_use[word] & mask;
            (found != 0).then(|| {
                let b = word * 64 + found.trailing_zeros() as usize;
                self.served + 1 + ((b + BUCKETS - start) % BUCKETS) as u64
            })
        })
    }
}

#[cfg(test)]
mod tests;

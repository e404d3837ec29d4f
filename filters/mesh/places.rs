//! Counting admission with a bounded queue: higher priority first, then first come. Exact across threads, free of locks while there is room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::contract::principal::Priority;

/// Places of one service. Outlives configs.
pub struct Places {
    /// Taken places in the upper half, queue length in the lower, in one word: whoever finds nobody waiting decides with
    /// one compare-and-swap. The lower half changes only under the lock.
    word: AtomicU64,
    /// Places there are. Changes only under the lock.
    cap: AtomicU32,
    /// Contended only at the cap: by those who have to wait and by those who make room for them.
    queue: Mutex<Queue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    taken: u32,
    waiting: u32,
}

impl Use {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    const fn of(word: u64) -> Self {
        Self { taken: (word >> 32) as u32, waiting: word as u32 }
    }
    const fn word(self) -> u64 {
        (self.taken as u64) << 32 | self.waiting as u64
    }
}

struct Queue {
    max_waiting: u32,
    next: u64,
    /// One lane per priority, the lowest first; each in order of arrival, numbers ascending. Who is in one has no place
    /// yet; who was taken out was called, or displaced: then the sender is gone without a word.
    lanes: [VecDeque<(u64, oneshot::Sender<()>)>; 3],
}

impl Queue {
    /// Sends away the youngest of those with the lowest priority, if that is lower than this one.
    fn displace(&mut self, by: Priority) -> bool {
        self.lanes[..by as usize].iter_mut().find_map(VecDeque::pop_back).is_some()
    }
}

/// What became of asking for a place.
pub enum Asked<'a> {
    /// Taken; the number of places taken now.
    Yes(u32),
    /// In the queue.
    Wait(Ticket<'a>),
    /// The queue is full, of nobody with a lower priority.
    Full,
}

/// A turn in the queue. Dropped, it leaves the queue, or gives the place back if it was called meanwhile.
pub struct Ticket<'a> {
    places: &'a Places,
    lane: usize,
    number: u64,
    called: oneshot::Receiver<()>,
    /// Its holder knows what became of it, and has the place if there is one.
    settled: bool,
}

impl Places {
    /// All free.
    pub const fn new(cap: u32, max_waiting: u32) -> Self {
        Self {
            word: AtomicU64::new(0),
            cap: AtomicU32::new(cap),
            queue: Mutex::new(Queue { max_waiting, next: 0, lanes: [const { VecDeque::new() }; 3] }),
        }
    }
    fn load(&self) -> Use {
        Use::of(self.word.load(Acquire))
    }
    fn swap(&self, from: Use, to: Use) -> bool {
        self.word.compare_exchange_weak(from.word(), to.word(), AcqRel, Acquire).is_ok()
    }
    /// Places taken and tries waiting.
    #[cfg(test)]
    pub fn counts(&self) -> (u32, u32) {
        let now = self.load();
        (now.taken, now.waiting)
    }
    /// Asks for a place.
    pub fn ask(&self, priority: Priority) -> Asked<'_> {
        let cap = || self.cap.load(Relaxed);
        // Who comes while others wait queues up.
        loop {
            let now = self.load();
            if now.taken >= cap() || now.waiting != 0 {
                break;
            }
            if self.swap(now, Use { taken: now.taken + 1, ..now }) {
                return Asked::Yes(now.taken + 1);
            }
        }
        let mut queue = self.queue.lock();
        loop {
            let now = self.load();
            if now.taken < cap() && now.waiting == 0 {
                if self.swap(now, Use { taken: now.taken + 1, ..now }) {
                    return Asked::Yes(now.taken + 1);
                }
            } else if now.waiting >= queue.max_waiting {
                // One goes, one comes: the word stays as it is.
                return if queue.displace(priority) {
                    Asked::Wait(self.line_up(&mut queue, priority))
                } else {
                    Asked::Full
                };
            } else if self.swap(now, Use { waiting: now.waiting + 1, ..now }) {
                return Asked::Wait(self.line_up(&mut queue, priority));
            }
        }
    }
    fn line_up(&self, queue: &mut Queue, priority: Priority) -> Ticket<'_> {
        let (call, called) = oneshot::channel();
        let (lane, number) = (priority as usize, queue.next);
        queue.next += 1;
        queue.lanes[lane].push_back((number, call));
        Ticket { places: self, lane, number, called, settled: false }
    }
    /// Gives a place back: to the first in the queue, if there is one.
    pub fn release(&self) {
        loop {
            let now = self.load();
            if now.waiting != 0 {
                break;
            }
            if self.swap(now, Use { taken: now.taken.saturating_sub(1), ..now }) {
                return;
            }
        }
        let mut queue = self.queue.lock();
        while {
            let now = self.load();
            !self.swap(now, Use { taken: now.taken.saturating_sub(1), ..now })
        } {}
        self.call(&mut queue);
    }
    /// Calls as many as there is room for.
    fn call(&self, queue: &mut Queue) {
        loop {
            let now = self.load();
            if now.waiting == 0 || now.taken >= self.cap.load(Relaxed) {
                return;
            }
            if !self.swap(now, Use { taken: now.taken + 1, waiting: now.waiting - 1 }) {
                continue;
            }
            let first = queue.lanes.iter_mut().rev().find_map(VecDeque::pop_front);
            let (_, call) = first.expect("the word counts the queue, and both change under its lock");
            // One who left meanwhile finds, under this lock, that he was called, and gives the place back himself.
            let _ = call.send(());
        }
    }
    /// Changes the caps of a living service: room that appears is given to those who wait; nobody is thrown out.
    pub fn resize(&self, cap: u32, max_waiting: u32) {
        let mut queue = self.queue.lock();
        self.cap.store(cap, Relaxed);
        queue.max_waiting = max_waiting;
        self.call(&mut queue);
    }
}

impl Ticket<'_> {
    /// Waits for the call: the place is then the caller's. False: somebody of a higher priority took the turn.
    pub async fn called(mut self) -> bool {
        let called = (&mut self.called).await.is_ok();
        self.settled = true;
        called
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut queue = self.places.queue.lock();
        let lane = &mut queue.lanes[self.lane];
        if let Ok(at) = lane.binary_search_by_key(&self.number, |(n, _)| *n) {
            lane.remove(at);
            while {
                let now = self.places.load();
                !self.places.swap(now, Use { waiting: now.waiting - 1, ..now })
            } {}
        } else if self.called.try_recv().is_ok() {
            drop(queue);
            self.places.release();
        }
    }
}

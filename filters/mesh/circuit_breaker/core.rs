//! Counting admission with a bounded first-come queue. Exact across threads, free of locks while there is room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::oneshot;

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
    /// In order of arrival, numbers ascending. Who is in it has no place yet; who was taken out of it has one.
    line: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// What became of asking for a place.
pub enum Asked<'a> {
    /// Taken; the number of places taken now.
    Yes(u32),
    /// In the queue.
    Wait(Ticket<'a>),
    /// The queue is full.
    Full,
}

/// A turn in the queue. Dropped, it leaves the queue, or gives the place back if it was called meanwhile.
pub struct Ticket<'a> {
    places: &'a Places,
    number: u64,
    called: oneshot::Receiver<()>,
    kept: bool,
}

impl Places {
    /// All free.
    pub const fn new(cap: u32, max_waiting: u32) -> Self {
        Self {
            word: AtomicU64::new(0),
            cap: AtomicU32::new(cap),
            queue: Mutex::new(Queue { max_waiting, next: 0, line: VecDeque::new() }),
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
    pub fn ask(&self) -> Asked<'_> {
        let cap = || self.cap.load(Relaxed);
        // Who comes while others wait goes behind them.
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
                return Asked::Full;
            } else if self.swap(now, Use { waiting: now.waiting + 1, ..now }) {
                let (call, called) = oneshot::channel();
                let number = queue.next;
                queue.next += 1;
                queue.line.push_back((number, call));
                return Asked::Wait(Ticket { places: self, number, called, kept: false });
            }
        }
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
            let (_, call) = queue.line.pop_front().expect("the word counts the queue, and both change under its lock");
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
    /// Waits for the call. The place is then the caller's.
    pub async fn called(mut self) {
        // The sender is dropped only once it has called.
        let _ = (&mut self.called).await;
        self.kept = true;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mut queue = self.places.queue.lock();
        if let Ok(at) = queue.line.binary_search_by_key(&self.number, |(n, _)| *n) {
            queue.line.remove(at);
            while {
                let now = self.places.load();
                !self.places.swap(now, Use { waiting: now.waiting - 1, ..now })
            } {}
        } else {
            drop(queue);
            self.places.release();
        }
    }
}

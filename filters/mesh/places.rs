//! Counting admission with a bounded queue: higher priority first, then first come. Exact across threads, free of locks
//! while there is room.
//!
//! A queue that does not get shorter any more only adds its length to every answer. One with a [`Pace`] then serves the
//! youngest first, who can still be answered in time, and sends the oldest away: "controlled delay" with adaptive LIFO
//! (Nichols and Jacobson 2012; Maurer 2015).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::contract::Moment;
use crate::contract::clock::recent;
use crate::contract::principal::Priority;

/// When a queue counts as overloaded, and what is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Nobody got in without waiting for so long.
    pub patience: Duration,
    /// Then nobody waits for longer than this.
    pub target: Duration,
}

/// Places of one service. Outlives configs.
pub struct Places {
    /// Taken places in the upper half, queue length in the lower, in one word: whoever finds nobody waiting decides with
    /// one compare-and-swap. The lower half changes only under the lock.
    word: AtomicU64,
    /// Places there are. Changes only under the lock.
    cap: AtomicU32,
    /// When somebody last got in without waiting ([`Moment`]).
    room_at: AtomicU64,
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
    pace: Option<Pace>,
    /// Overloaded until then, at least: somebody was sent away lately.
    hurried_until: Moment,
    /// One lane per priority, the lowest first; each in order of arrival, numbers ascending. Who is in one has no place
    /// yet; who was taken out was told something, or displaced: then the sender is gone without a word.
    lanes: [VecDeque<Waiting>; 3],
}

struct Waiting {
    number: u64,
    since: Moment,
    call: oneshot::Sender<Called>,
}

impl Queue {
    /// Sends away the youngest of those with the lowest priority, if that is lower than this one.
    fn displace(&mut self, by: Priority) -> bool {
        self.lanes[..by as usize].iter_mut().find_map(VecDeque::pop_back).is_some()
    }
    /// The pace, if the queue is overloaded.
    fn hurried(&self, room_at: Moment, now: Moment) -> Option<Pace> {
        self.pace.filter(|pace| now < self.hurried_until || now > room_at + pace.patience)
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

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// The place is the caller's.
    Place,
    /// It waited too long for an overloaded queue.
    Late,
    /// Somebody of a higher priority took the turn.
    Displaced,
}

/// A turn in the queue. Dropped, it leaves the queue, or gives the place back if it was called meanwhile.
pub struct Ticket<'a> {
    places: &'a Places,
    lane: usize,
    number: u64,
    called: oneshot::Receiver<Called>,
    /// How long it may wait, where the queue is overloaded.
    pub patience: Option<Duration>,
    /// Its holder knows what became of it, and has the place if there is one.
    settled: bool,
}

impl Places {
    /// All free.
    pub const fn new(cap: u32, max_waiting: u32, pace: Option<Pace>) -> Self {
        Self {
            word: AtomicU64::new(0),
            cap: AtomicU32::new(cap),
            room_at: AtomicU64::new(0),
            queue: Mutex::new(Queue {
                max_waiting,
                next: 0,
                pace,
                hurried_until: Moment::ZERO,
                lanes: [const { VecDeque::new() }; 3],
            }),
        }
    }
    fn load(&self) -> Use {
        Use::of(self.word.load(Acquire))
    }
    fn swap(&self, from: Use, to: Use) -> bool {
        self.word.compare_exchange_weak(from.word(), to.word(), AcqRel, Acquire).is_ok()
    }
    /// Places there are.
    pub fn cap(&self) -> u32 {
        self.cap.load(Relaxed)
    }
    /// Places taken and tries waiting.
    pub fn counts(&self) -> (u32, u32) {
        let now = self.load();
        (now.taken, now.waiting)
    }
    /// Asks for a place.
    pub fn ask(&self, priority: Priority, now: Moment) -> Asked<'_> {
        let at = now;
        let cap = || self.cap.load(Relaxed);
        // Who comes while others wait queues up.
        loop {
            let now = self.load();
            if now.taken >= cap() || now.waiting != 0 {
                break;
            }
            if self.swap(now, Use { taken: now.taken + 1, ..now }) {
                self.room_at.store(at.0, Relaxed);
                return Asked::Yes(now.taken + 1);
            }
        }
        let mut queue = self.queue.lock();
        self.shed(&mut queue, at);
        loop {
            let now = self.load();
            if now.taken < cap() && now.waiting == 0 {
                if self.swap(now, Use { taken: now.taken + 1, ..now }) {
                    self.room_at.store(at.0, Relaxed);
                    return Asked::Yes(now.taken + 1);
                }
            } else if now.waiting >= queue.max_waiting {
                // One goes, one comes: the word stays as it is.
                return if queue.displace(priority) {
                    Asked::Wait(self.line_up(&mut queue, priority, at))
                } else {
                    Asked::Full
                };
            } else if self.swap(now, Use { waiting: now.waiting + 1, ..now }) {
                return Asked::Wait(self.line_up(&mut queue, priority, at));
            }
        }
    }
    fn line_up(&self, queue: &mut Queue, priority: Priority, now: Moment) -> Ticket<'_> {
        let (call, called) = oneshot::channel();
        let (lane, number) = (priority as usize, queue.next);
        queue.next += 1;
        queue.lanes[lane].push_back(Waiting { number, since: now, call });
        let patience = queue.hurried(self.room_at(), now).map(|pace| pace.target);
        Ticket { places: self, lane, number, called, patience, settled: false }
    }
    fn room_at(&self) -> Moment {
        Moment(self.room_at.load(Relaxed))
    }
    /// Sends away those who have waited too long for an overloaded queue.
    fn shed(&self, queue: &mut Queue, now: Moment) {
        let Some(pace) = queue.hurried(self.room_at(), now) else { return };
        let mut late = 0;
        for lane in &mut queue.lanes {
            while lane.front().is_some_and(|w| now > w.since + pace.target)
                && let Some(waiting) = lane.pop_front()
            {
                let _ = waiting.call.send(Called::Late);
                late += 1;
            }
        }
        if late > 0 {
            queue.hurried_until = now + pace.patience;
            self.left(late);
        }
    }
    /// So many left the queue. Under its lock.
    fn left(&self, n: u32) {
        while {
            let now = self.load();
            !self.swap(now, Use { waiting: now.waiting - n, ..now })
        } {}
    }
    /// Somebody gave up because it took too long: the queue is overloaded.
    pub fn gave_up(&self, now: Moment) {
        let mut queue = self.queue.lock();
        if let Some(pace) = queue.pace {
            queue.hurried_until = now + pace.patience;
        }
    }
    /// Another pace for a queue that has one.
    pub fn set_pace(&self, pace: Pace) {
        self.queue.lock().pace = Some(pace);
    }
    /// Gives a place back: to the first in the queue, if there is one; to the last if it is overloaded.
    pub fn release(&self, now: Moment) {
        let at = now;
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
        self.call(&mut queue, at);
    }
    /// Calls as many as there is room for.
    fn call(&self, queue: &mut Queue, at: Moment) {
        self.shed(queue, at);
        let hurried = queue.hurried(self.room_at(), at).is_some();
        let take = if hurried { VecDeque::pop_back } else { VecDeque::pop_front };
        loop {
            let now = self.load();
            if now.waiting == 0 || now.taken >= self.cap.load(Relaxed) {
                return;
            }
            if !self.swap(now, Use { taken: now.taken + 1, waiting: now.waiting - 1 }) {
                continue;
            }
            let next = queue.lanes.iter_mut().rev().find_map(take);
            let next = next.expect("the word counts the queue, and both change under its lock");
            // One who left meanwhile finds, under this lock, that he was called, and gives the place back himself.
            let _ = next.call.send(Called::Place);
        }
    }
    /// Changes the caps of a living service: room that appears is given to those who wait; nobody is thrown out.
    pub fn resize(&self, cap: u32, max_waiting: u32, now: Moment) {
        let mut queue = self.queue.lock();
        self.cap.store(cap, Relaxed);
        queue.max_waiting = max_waiting;
        self.call(&mut queue, now);
    }
}

impl Ticket<'_> {
    /// Waits for the call.
    pub async fn called(mut self) -> Called {
        let called = (&mut self.called).await.unwrap_or(Called::Displaced);
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
        if let Ok(at) = lane.binary_search_by_key(&self.number, |w| w.number) {
            lane.remove(at);
            self.places.left(1);
        } else if self.called.try_recv() == Ok(Called::Place) {
            drop(queue);
            self.places.release(recent());
        }
    }
}

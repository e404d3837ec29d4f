//! The one clock of the data plane. Pure cores never read it: they are given a [`Moment`].

use std::cell::Cell;
use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::Duration;

/// Monotonic nanoseconds since the process first asked. Fits an atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

static START: OnceLock<u64> = OnceLock::new();

/// What this thread knows of its last reading: [`SLEEPS_UNSEEN`], [`WOKE`], or the reading itself.
const SLEEPS_UNSEEN: u64 = u64::MAX;
const WOKE: u64 = 0;

thread_local! {
    static LAST: Cell<u64> = const { Cell::new(SLEEPS_UNSEEN) };
}

/// Reads the clock (a vdso call, no system call; without `Instant`'s checked arithmetic it costs half).
#[must_use]
pub fn now() -> Moment {
    let now = monotonic();
    let now = now.saturating_sub(*START.get_or_init(|| now));
    if LAST.get() != SLEEPS_UNSEEN {
        LAST.set(now);
    }
    Moment(now)
}

/// The last reading of this thread since it woke up, or a new one: behind [`now`] by no more than the work of one turn
/// of the event loop. For limits that are met rarely and kept in milliseconds; a latency is measured with [`now`].
#[must_use]
pub fn recent() -> Moment {
    match LAST.get() {
        WOKE | SLEEPS_UNSEEN => now(),
        last => Moment(last),
    }
}

/// The calling thread has slept: what it read before is old. A thread that never says so has no [`recent`] but [`now`].
pub fn woke() {
    LAST.set(WOKE);
}

fn monotonic() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock starts near zero at boot and a system does not run for 584 years.
    time.tv_sec.unsigned_abs().wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.unsigned_abs())
}

impl Moment {
    /// The start of the process.
    pub const ZERO: Self = Self(0);
    /// Never.
    pub const MAX: Self = Self(u64::MAX);
    /// Time since `earlier`, zero if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading after `earlier`.
    fn after(earlier: Moment) -> Moment {
        loop {
            let at = now();
            if at > earlier {
                return at;
            }
        }
    }

    #[test]
    fn recent_is_the_last_reading_since_the_thread_woke() {
        let test = || {
            let first = after(Moment::ZERO);
            let second = after(first);
            assert!(recent() >= second, "a thread that never tells of its sleep has no old reading");
            woke();
            let read = recent();
            assert!(read >= second, "the first after a sleep is new");
            assert_eq!(recent(), read);
            let last = after(read);
            assert_eq!(recent(), last);
            woke();
            assert!(recent() >= last);
        };
        std::thread::spawn(test).join().expect("no assertion failed");
    }
}

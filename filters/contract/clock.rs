//! The one clock of the data plane. Pure cores never read it: they are given a [`Moment`].

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::Duration;

/// Monotonic nanoseconds since the process first asked. Fits an atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

static START: OnceLock<u64> = OnceLock::new();

/// Reads the clock (a vdso call, no system call; without `Instant`'s checked arithmetic it costs half).
#[must_use]
pub fn now() -> Moment {
    let now = monotonic();
    Moment(now.saturating_sub(*START.get_or_init(|| now)))
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

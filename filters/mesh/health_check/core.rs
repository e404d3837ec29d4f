//! Counting passes and failures; pure.

/// `EndpointState::health`.
pub const UNKNOWN: u8 = 0;
/// See [`UNKNOWN`].
pub const HEALTHY: u8 = 1;
/// See [`UNKNOWN`].
pub const UNHEALTHY: u8 = 2;

/// Where an endpoint stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// What probes found.
    pub health: u8,
    /// Probes in a row that speak against `health`.
    against: u32,
    /// Whether unknown counts as unhealthy.
    wary: bool,
}

impl Standing {
    /// Goes on from what is known.
    pub const fn new(health: u8) -> Self {
        Self { health, against: 0, wary: false }
    }
    /// Goes on from `health`; with `wary`, what is unhealthy was never probed, and its first pass is enough.
    pub const fn of(health: u8, wary: bool) -> Self {
        if wary && health == UNHEALTHY { Self { health: UNKNOWN, against: 0, wary } } else { Self::new(health) }
    }
    /// What is written to the endpoint.
    pub const fn shown(&self) -> u8 {
        if self.wary && self.health == UNKNOWN { UNHEALTHY } else { self.health }
    }
    /// Feeds a probe; true if `health` changed.
    pub const fn feed(&mut self, passed: bool, healthy: u32, unhealthy: u32) -> bool {
        if passed == (self.health == HEALTHY) && self.health != UNKNOWN {
            self.against = 0;
            return false;
        }
        if passed && self.health == UNKNOWN {
            *self = Self::new(HEALTHY);
            return true;
        }
        self.against += 1;
        let limit = if passed { healthy } else { unhealthy };
        if self.against < limit {
            return false;
        }
        *self = Self::new(if passed { HEALTHY } else { UNHEALTHY });
        true
    }
}

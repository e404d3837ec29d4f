//! What a session says, and how long it is good; pure.

use std::time::Duration;

use super::config::Settings;

/// A session as it is sealed. Times are seconds of the wall clock, which instances share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Id of the endpoint.
    pub endpoint: u64,
    /// When it began.
    pub created: u64,
    /// When it was last written.
    pub used: u64,
}

/// Part of `idleTimeout` after which a session that is used is written anew: not with every answer, and early enough
/// that it cannot end while it is used.
const RENEW: u64 = 8;

impl Session {
    /// One that begins now.
    pub const fn begin(endpoint: u64, now: u64) -> Self {
        Self { endpoint, created: now, used: now }
    }

    /// The bytes that are sealed.
    pub fn write(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.endpoint.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.created.to_be_bytes());
        bytes[16..].copy_from_slice(&self.used.to_be_bytes());
        bytes
    }

    /// What [`Session::write`] wrote.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        (bytes.len() == 24).then_some(())?;
        Some(Self { endpoint: word(0)?, created: word(8)?, used: word(16)? })
    }

    /// Whether it is good. Clocks of instances may differ by a little: one from the future is as old as it can be.
    pub fn lives(self, settings: &Settings, now: u64) -> bool {
        let within = |limit: Option<Duration>, since: u64| {
            limit.is_none_or(|limit| Duration::from_secs(now.saturating_sub(since)) <= limit)
        };
        within(settings.absolute, self.created) && within(settings.idle, self.used)
    }

    /// Whether a request that used it writes it anew.
    pub fn is_stale(self, settings: &Settings, now: u64) -> bool {
        settings.idle.is_some_and(|idle| now.saturating_sub(self.used) >= (idle.as_secs() / RENEW).max(1))
    }
}

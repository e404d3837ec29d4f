//! Sessions that ended before their time. Pure and bounded: what does not fit makes older sessions invalid, never valid.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;

/// Most entries at once.
const MOST: usize = 20_000;

/// What ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// One of ours, by its own id: logged out here.
    Session(String),
    /// All that the issuer began under this `sid`.
    Sid(String),
    /// All of a user.
    Subject(String),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Written at a logout, read by requests whose session was opened before the last one.
    entries: RwLock<Entries>,
    /// Rises with each logout: a session that was looked up under it need not be looked up again.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    /// With the time of the logout, in Unix seconds.
    when: HashMap<Which, u64>,
    /// Sessions that began at this time or before are over: entries about them were dropped.
    floor: u64,
}

impl Revoked {
    /// Ends sessions that began at `now` or before. Entries older than `max_age` seconds say nothing any more.
    pub fn add(&self, which: Which, now: u64, max_age: u64) {
        let mut entries = self.entries.write();
        if entries.when.len() >= MOST && !entries.when.contains_key(&which) {
            entries.when.retain(|_, when| *when + max_age > now);
            if entries.when.len() >= MOST {
                // The older half goes; sessions as old as they were go with them.
                let mut times: Vec<u64> = entries.when.values().copied().collect();
                times.sort_unstable();
                let floor = times[times.len() / 2];
                entries.floor = entries.floor.max(floor);
                entries.when.retain(|_, when| *when > floor);
            }
        }
        let when = entries.when.entry(which).or_default();
        *when = now.max(*when);
        drop(entries);
        self.generation.fetch_add(1, Relaxed);
    }

    /// Changes when anything is added.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Whether a session that began at `since` is over.
    pub fn has(&self, since: u64, which: &[Which]) -> bool {
        let entries = self.entries.read();
        (entries.floor > 0 && since <= entries.floor)
            || which.iter().any(|w| entries.when.get(w).is_some_and(|when| since <= *when))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: impl ToString) -> Which {
        Which::Subject(name.to_string())
    }

    #[test]
    fn what_began_later_lives() {
        let revoked = Revoked::default();
        let before = revoked.generation();
        revoked.add(subject("ann"), 100, 60);
        assert_ne!(revoked.generation(), before);
        assert!(revoked.has(99, &[Which::Sid("x".into()), subject("ann")]));
        assert!(revoked.has(100, &[subject("ann")]), "in the same second: over");
        assert!(!revoked.has(101, &[subject("ann")]), "logged in again");
        assert!(!revoked.has(99, &[subject("bob"), Which::Sid("ann".into())]));
        revoked.add(subject("ann"), 50, 60);
        assert!(revoked.has(100, &[subject("ann")]), "a late message does not bring it back");
    }

    #[test]
    fn too_many_end_older_sessions_rather_than_reviving_them() {
        let revoked = Revoked::default();
        for n in 0..MOST as u64 + 10 {
            revoked.add(subject(n), 1000 + n, 1_000_000);
        }
        for n in [0, 1, MOST as u64 / 2, MOST as u64 + 9] {
            assert!(revoked.has(1000 + n, &[subject(n)]), "{n}");
        }
        assert!(revoked.has(1000, &[subject("nobody")]), "as old as what was dropped");
        assert!(!revoked.has(1000 + MOST as u64, &[subject("nobody")]));
        assert!(revoked.entries.read().when.len() <= MOST);
    }

    #[test]
    fn what_is_long_over_makes_room_for_nothing_else() {
        let revoked = Revoked::default();
        for n in 0..MOST as u64 {
            revoked.add(subject(n), 1000, 60);
        }
        revoked.add(subject("new"), 5000, 60);
        assert!(!revoked.has(1000, &[subject("nobody")]), "no floor was needed");
        assert_eq!(revoked.entries.read().when.len(), 1);
    }
}

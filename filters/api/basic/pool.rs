//! Where passwords are hashed: on blocking threads, few at once in the whole process, so that a flood of guesses takes
//! neither the workers nor all cores, and those who wait are few and wait briefly.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that wait at once.
const MAX_WAITING: usize = 64;
/// Of those, from one address: one guesser does not keep everybody else out.
const MAX_PER_ADDRESS: u32 = 8;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Turns to hash, and places to wait for one.
pub struct Pool {
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// Who waits. Contended only while passwords are hashed, held for a map look-up.
    waiting: Mutex<HashMap<IpAddr, u32>>,
}

/// The one pool of the process: half the cores.
pub static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Arc::new(Pool::new(cores.div_ceil(2), MAX_WAITING))
});

impl Pool {
    pub fn new(turns: usize, places: usize) -> Self {
        let semaphore = |n| Arc::new(Semaphore::new(n));
        Self { turns: semaphore(turns), places: semaphore(places), waiting: Mutex::default() }
    }

    /// Waits for a turn; `None` if too many wait, or for too long.
    pub async fn turn(self: &Arc<Self>, ip: IpAddr) -> Option<Turn> {
        let place = Place::take(self, ip)?;
        let turn = tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await.ok()?.ok()?;
        Some(Turn { _turn: turn, _place: place })
    }
}

/// Holds a turn until the hashing is done, whether or not anybody still waits for it.
pub struct Turn {
    _turn: OwnedSemaphorePermit,
    _place: Place,
}

impl Turn {
    /// Runs on a blocking thread. `None` if that thread panicked or the runtime ended.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(self);
            result
        });
        done.await.ok()
    }
}

/// A place in the queue.
struct Place {
    pool: Arc<Pool>,
    ip: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Place {
    fn take(pool: &Arc<Pool>, ip: IpAddr) -> Option<Self> {
        let place = pool.places.clone().try_acquire_owned().ok()?;
        let mut waiting = pool.waiting.lock();
        let count = waiting.entry(ip).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        drop(waiting);
        Some(Self { pool: pool.clone(), ip, _place: place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.pool.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_does_not_take_every_place() {
        let pool = Arc::new(Pool::new(1, 12));
        let (a, b) = ("192.0.2.1".parse().expect("an address"), "192.0.2.2".parse().expect("an address"));
        let places: Vec<_> = (0..MAX_PER_ADDRESS).map(|_| Place::take(&pool, a).expect("a place")).collect();
        assert!(Place::take(&pool, a).is_none());
        let others: Vec<_> = (0..4).map(|_| Place::take(&pool, b).expect("a place")).collect();
        assert!(Place::take(&pool, b).is_none(), "the queue has an end");
        drop((places, others));
        assert!(pool.waiting.lock().is_empty(), "nothing is kept of those who left");
        let turn = pool.turn(a).await.expect("a turn");
        assert_eq!(turn.run(|| 7).await, Some(7));
        assert_eq!((pool.turns.available_permits(), pool.places.available_permits()), (1, 12));
    }

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_its_work() {
        let pool = Arc::new(Pool::new(1, 4));
        let ip = "192.0.2.1".parse().expect("an address");
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let turn = pool.turn(ip).await.expect("a turn");
        let work = turn.run(move || wait.recv().is_ok());
        // The caller leaves; its work goes on and holds the turn.
        let left = tokio::time::timeout(Duration::from_millis(20), work).await;
        assert!(left.is_err());
        assert_eq!(pool.turns.available_permits(), 0);
        go.send(()).expect("still working");
        let free = async {
            while pool.turns.available_permits() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), free).await.expect("the turn came back");
    }
}

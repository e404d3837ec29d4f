//! One question for all who wait for its answer.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Questions under way at once: tokens that strangers invent must not become a flood upon the issuer.
pub const MAX_FLIGHTS: usize = 256;

type Key = [u8; 32];

/// Questions under way, by token. The lock is taken only for tokens that nothing is remembered of, and for a map
/// look-up; workers contend for it then.
pub struct Flights<T> {
    open: Mutex<HashMap<Key, watch::Receiver<Option<T>>>>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { open: Mutex::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Joins the flight of this key, or starts one. It goes on though whoever started it leaves: others may wait for it.
    /// `None`: too many are under way, or it was lost.
    pub async fn join<F>(self: &Arc<Self>, key: Key, start: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut news = {
            let mut open = self.open.lock();
            match open.get(&key) {
                Some(news) => news.clone(),
                None if open.len() >= MAX_FLIGHTS => return None,
                None => {
                    let (tell, news) = watch::channel(None);
                    open.insert(key, news.clone());
                    let landing = Landing { flights: self.clone(), key };
                    let flight = start();
                    tokio::spawn(async move {
                        let result = flight.await;
                        // Whoever comes from now on finds the result where the flight left it.
                        drop(landing);
                        tell.send_replace(Some(result));
                    });
                    news
                }
            }
        };
        let landed = news.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }

    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.open.lock().len()
    }
}

/// Takes the flight off the map, however it ends.
struct Landing<T> {
    flights: Arc<Flights<T>>,
    key: Key,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        self.flights.open.lock().remove(&self.key);
    }
}

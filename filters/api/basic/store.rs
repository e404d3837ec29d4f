//! The users of an identity as they live on, and what was found of their passwords.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use quick_cache::sync::Cache;

use super::users::{self, Hash, Users};
use crate::contract::{Moment, now};

/// Good credentials remembered.
const GOOD: usize = 10_000;
/// Bad ones, apart: guesses must not push out what is good.
const BAD: usize = 1_000;
/// How long a bad credential is remembered: a client that repeats itself costs one hash, a corrected file acts soon.
const BAD_LIFE: Duration = Duration::from_secs(30);
/// How often a file is looked at.
const POLL: Duration = Duration::from_secs(5);

static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// A name and a password. Never shown.
pub struct Credential {
    pub name: Box<str>,
    pub password: Box<str>,
}

/// What was found of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good(Box<str>),
    Bad,
}

#[derive(Clone)]
struct Remembered {
    verdict: Arc<Verdict>,
    generation: u64,
    since: Moment,
}

/// By a keyed hash of the credential: what is in memory can be tried against guesses only with this process's own key.
type Key = [u8; 32];

pub struct Store {
    users: ArcSwap<Users>,
    good: Cache<Key, Remembered>,
    bad: Cache<Key, Remembered>,
    key: hmac::Key,
    seed: u64,
}

impl Store {
    pub fn new(table: BTreeMap<Box<str>, Hash>) -> Self {
        let mut random = [0u8; 40];
        aws_lc_rs::rand::fill(&mut random).expect("the system has randomness");
        let (key, seed) = random.split_at(32);
        Self {
            users: ArcSwap::from_pointee(Users::new(table, GENERATIONS.fetch_add(1, Relaxed))),
            good: Cache::new(GOOD),
            bad: Cache::new(BAD),
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            seed: u64::from_le_bytes(seed.try_into().expect("eight bytes are left")),
        }
    }

    /// Takes a file's users into use; every verdict about the old ones is void.
    pub fn install(&self, text: &str) -> Result<(), String> {
        let table = users::file(text)?;
        self.users.store(Arc::new(Users::new(table, GENERATIONS.fetch_add(1, Relaxed))));
        Ok(())
    }

    pub fn key(&self, credential: &Credential) -> Key {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(credential.name.as_bytes());
        // A name has no NUL.
        context.update(b"\0");
        context.update(credential.password.as_bytes());
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// What is known of a credential; good news lasts for `life`.
    pub fn remembered(&self, key: &Key, life: Duration) -> Option<Arc<Verdict>> {
        let (now, generation) = (now(), self.users.load().generation);
        for (cache, life) in [(&self.good, life), (&self.bad, BAD_LIFE)] {
            if let Some(found) = cache.get(key) {
                if found.generation == generation && now.since(found.since) < life {
                    return Some(found.verdict);
                }
                cache.remove(key);
            }
        }
        None
    }

    pub fn remember(&self, key: Key, verdict: Verdict, generation: u64) -> Arc<Verdict> {
        let verdict = Arc::new(verdict);
        let cache = if matches!(*verdict, Verdict::Good(_)) { &self.good } else { &self.bad };
        cache.insert(key, Remembered { verdict: verdict.clone(), generation, since: now() });
        verdict
    }

    /// Hashes; on a blocking thread. The generation is that of the users it was compared with.
    pub fn judge(&self, credential: &Credential) -> (Verdict, u64) {
        let users = self.users.load_full();
        let good = users.find(&credential.name, self.seed).is_some_and(|(hash, counts)| {
            // Hashed in any case.
            let fits = hash.fits(credential.password.as_bytes());
            fits && counts
        });
        let verdict = if good { Verdict::Good(credential.name.clone()) } else { Verdict::Bad };
        (verdict, users.generation)
    }
}

/// Reads a file of bounded size.
pub fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(users::MAX_FILE + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > users::MAX_FILE { Err("larger than 4 MiB".to_owned()) } else { Ok(text) }
}

/// SHA-256.
pub fn digest_of(text: &str) -> Key {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Takes a changed file into use until the store is gone. `seen` is what it held when the store was made.
pub async fn follow(store: Weak<Store>, path: PathBuf, name: String, mut seen: Option<Key>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(store) = store.upgrade() else { return };
        reread(&store, &path, &name, &mut seen);
    }
}

/// Looks at a file once. A bad one is not used, and said to be bad once.
pub fn reread(store: &Store, path: &Path, name: &str, seen: &mut Option<Key>) {
    let (now, result) = match read(path) {
        Ok(text) => {
            let now = Some(digest_of(&text));
            (now, if now == *seen { return } else { store.install(&text) })
        }
        Err(_) if seen.is_none() => return,
        Err(e) => (None, Err(e)),
    };
    *seen = now;
    match result {
        Ok(()) => tracing::info!(identity = name, "users were read again from {}", path.display()),
        Err(e) => tracing::warn!(identity = name, "the last good users stay in use: {}: {e}", path.display()),
    }
}

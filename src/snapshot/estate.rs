//! What must outlive a config is not owned by the config. The estate holds weak references, snapshots hold strong ones:
//! an object lives exactly as long as some snapshot uses it, and there is no diff code.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use onehop_filters::contract::Keeper;
use parking_lot::Mutex;

type Kept = Arc<dyn Any + Send + Sync>;

/// Everything kept across configs, by type and name, with the shape it was built to.
#[derive(Default)]
pub struct Estate {
    /// Contended by nobody: configs are compiled one at a time, on the control thread.
    kept: Mutex<HashMap<(TypeId, String), (String, Weak<dyn Any + Send + Sync>)>>,
}

/// One config being built. Dropped without [`Staging::publish`], it leaves no trace.
pub struct Staging<'a> {
    estate: &'a Estate,
    made: HashMap<(TypeId, String), (String, Kept)>,
    acts: Vec<Box<dyn FnOnce() + Send>>,
    tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Estate {
    /// Begins a config.
    #[must_use]
    pub fn stage(&self) -> Staging<'_> {
        Staging { estate: self, made: HashMap::new(), acts: Vec::new(), tasks: Vec::new() }
    }

    /// Objects alive, for tests and `/config`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.lock().values().filter(|(_, w)| w.strong_count() > 0).count()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Staging<'_> {
    /// The config is good: remember what is new, adjust what changed, start the background tasks.
    pub fn publish(self, control: &tokio::runtime::Handle) {
        {
            let mut kept = self.estate.kept.lock();
            kept.retain(|_, (_, weak)| weak.strong_count() > 0);
            for (key, (shape, made)) in self.made {
                kept.insert(key, (shape, Arc::downgrade(&made)));
            }
        }
        for act in self.acts {
            act();
        }
        for task in self.tasks {
            control.spawn(task);
        }
    }
}

impl Keeper for Staging<'_> {
    fn find(&self, kind: TypeId, key: &str, shape: &str) -> Option<Kept> {
        let key = (kind, key.to_owned());
        if let Some((s, made)) = self.made.get(&key) {
            return (s == shape).then(|| made.clone());
        }
        self.estate.kept.lock().get(&key).filter(|(s, _)| s == shape).and_then(|(_, weak)| weak.upgrade())
    }
    fn stage(&mut self, kind: TypeId, key: String, shape: String, made: Kept) {
        self.made.insert((kind, key), (shape, made));
    }
    fn at_publish(&mut self, act: Box<dyn FnOnce() + Send>) {
        self.acts.push(act);
    }
    fn background(&mut self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.push(task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;

    fn keep(staging: &mut Staging<'_>, name: &str, shape: &str, value: u32) -> Arc<AtomicU32> {
        let kind = TypeId::of::<AtomicU32>();
        if let Some(found) = staging.find(kind, name, shape) {
            return found.downcast().expect("the key holds the type");
        }
        let made = Arc::new(AtomicU32::new(value));
        staging.stage(kind, name.to_owned(), shape.to_owned(), made.clone());
        made
    }

    #[tokio::test]
    async fn same_shape_same_object_other_shape_other_object() {
        let estate = Estate::default();
        let mut first = estate.stage();
        let a = keep(&mut first, "quota", "60/min", 1);
        first.publish(&tokio::runtime::Handle::current());
        let mut second = estate.stage();
        assert!(Arc::ptr_eq(&a, &keep(&mut second, "quota", "60/min", 2)));
        let other = keep(&mut second, "quota", "by ip", 3);
        assert!(!Arc::ptr_eq(&a, &other));
    }

    #[tokio::test]
    async fn a_rejected_config_leaves_no_trace() {
        let estate = Estate::default();
        let ran = Arc::new(AtomicU32::new(0));
        let mut bad = estate.stage();
        let made = keep(&mut bad, "quota", "x", 7);
        let seen = ran.clone();
        bad.at_publish(Box::new(move || {
            seen.fetch_add(1, Relaxed);
        }));
        drop(bad);
        assert!(estate.is_empty());
        assert_eq!(ran.load(Relaxed), 0);
        let mut good = estate.stage();
        assert!(!Arc::ptr_eq(&made, &keep(&mut good, "quota", "x", 8)));
    }

    #[tokio::test]
    async fn what_no_snapshot_uses_is_gone() {
        let estate = Estate::default();
        let mut first = estate.stage();
        let a = keep(&mut first, "jwks", "url", 1);
        first.publish(&tokio::runtime::Handle::current());
        assert_eq!(estate.len(), 1);
        drop(a);
        assert!(estate.is_empty());
    }

    /// One config: what it keeps, by name and shape, and whether it is good.
    fn config() -> impl Strategy<Value = (Vec<(usize, usize)>, bool)> {
        (proptest::collection::vec((0..4usize, 0..3usize), 0..6), proptest::bool::weighted(0.75))
    }

    proptest! {
        /// What a config keeps is what the newest good config kept under that name and shape, for as long as a snapshot
        /// holds it; a rejected one is as if it had not been. Acts run once, with the good ones only.
        #[test]
        fn kept_is_what_the_newest_good_config_kept(configs in proptest::collection::vec(config(), 1..12)) {
            let control = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let estate = Estate::default();
            let acts = Arc::new(AtomicU32::new(0));
            let mut running: HashMap<usize, (usize, Arc<AtomicU32>)> = HashMap::new();
            for (n, (wanted, good)) in (0u32..).zip(configs) {
                let mut staging = estate.stage();
                let mut next: HashMap<usize, (usize, Arc<AtomicU32>)> = HashMap::new();
                for (name, shape) in wanted {
                    let made = keep(&mut staging, &name.to_string(), &shape.to_string(), n);
                    let known = next.get(&name).or_else(|| running.get(&name)).filter(|(s, _)| *s == shape);
                    let same = known.is_some_and(|(_, known)| Arc::ptr_eq(known, &made));
                    prop_assert_eq!(same, known.is_some(), "name {} shape {} of config {}", name, shape, n);
                    next.insert(name, (shape, made));
                }
                let before = acts.load(Relaxed);
                let count = acts.clone();
                staging.at_publish(Box::new(move || {
                    count.fetch_add(1, Relaxed);
                }));
                if good {
                    staging.publish(control.handle());
                    // The snapshot before is let go of.
                    running = next;
                } else {
                    drop(staging);
                    drop(next);
                }
                prop_assert_eq!(acts.load(Relaxed) - before, u32::from(good));
                prop_assert_eq!(estate.len(), running.len());
            }
        }
    }
}

//! The one pointer that a swap changes, and how a request reads it without touching anything another core writes.
//!
//! Each worker keeps its own [`View`]: an `Arc` of its own around the shared snapshot, refreshed when the pointer has
//! changed. A request clones the worker's `Arc`, whose count no other core touches. Old snapshots are handed to the
//! control thread, which is the last to let go of them, so that no worker pays for freeing a big configuration.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use arc_swap::ArcSwap;
use onehop_filters::contract::{Moment, now};
use parking_lot::Mutex;

use super::Snapshot;

/// For how long, beyond the drain, a listener that left can still be asked for: its connections hear of the end a
/// moment after the swap, and a request may be on its way.
const FAREWELL: Duration = Duration::from_secs(5);

/// Holder of the current snapshot.
pub struct Cell {
    id: u64,
    current: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that requests may still hold. Contended by nobody: only the control thread publishes and sweeps.
    retired: Mutex<Vec<Arc<Snapshot>>>,
    /// Taken by requests only on connections of a listener that is gone.
    departed: Mutex<Vec<Departed>>,
}

/// A listener that the current snapshot does not have, with the last one that did.
struct Departed {
    listener: Arc<str>,
    last: Arc<Snapshot>,
    until: Moment,
}

/// One worker's hold on a snapshot.
pub struct View(Arc<Snapshot>);

impl std::ops::Deref for View {
    type Target = Snapshot;
    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

struct Local {
    cell: u64,
    cache: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    view: Arc<View>,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

static CELLS: AtomicU64 = AtomicU64::new(0);

impl Cell {
    /// A cell with its first snapshot.
    #[must_use]
    pub fn new(first: Snapshot) -> Self {
        let id = CELLS.fetch_add(1, Ordering::Relaxed);
        Self {
            id,
            current: Arc::new(ArcSwap::from_pointee(first)),
            retired: Mutex::default(),
            departed: Mutex::default(),
        }
    }

    /// The calling worker's view of the current snapshot. Keep it for the whole request, retries included.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        LOCAL.with_borrow_mut(|slot| {
            if let Some(local) = slot
                && local.cell == self.id
            {
                let now = local.cache.load();
                if !Arc::ptr_eq(now, &local.view.0) {
                    local.view = Arc::new(View(now.clone()));
                }
                return local.view.clone();
            }
            let mut cache = arc_swap::Cache::new(self.current.clone());
            let view = Arc::new(View(cache.load().clone()));
            *slot = Some(Local { cell: self.id, cache, view: view.clone() });
            view
        })
    }

    /// The view for a request on a connection of this listener. Who was let in by a listener that has left since is
    /// served as it was when it left: its connection is about to be told, and a reload fails no request.
    #[must_use]
    pub fn view_for(&self, listener: &str) -> Arc<View> {
        let view = self.view();
        if view.listener(listener).is_some() {
            return view;
        }
        let departed = self.departed.lock();
        let last = departed.iter().find(|d| &*d.listener == listener).map(|d| d.last.clone());
        last.map_or(view, |last| Arc::new(View(last)))
    }

    /// The current snapshot, for the control thread.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot. Requests under way keep theirs. One at a time.
    pub fn publish(&self, next: Snapshot) {
        let next = Arc::new(next);
        let old = self.current.load_full();
        let until = now() + old.lifecycle.drain + FAREWELL;
        {
            // Before the swap: a request that does not find its listener looks here at once.
            let mut departed = self.departed.lock();
            departed.retain(|d| next.listener(&d.listener).is_none());
            let gone = old.listeners.iter().map(|l| &l.plan.name).filter(|name| next.listener(name).is_none());
            departed.extend(gone.map(|name| Departed { listener: name.clone(), last: old.clone(), until }));
        }
        drop(self.current.swap(next));
        self.retired.lock().push(old);
    }

    /// Frees retired snapshots that nobody reads any more; returns how many are still read. For the control thread.
    pub fn sweep(&self) -> usize {
        let now = now();
        self.departed.lock().retain(|d| d.until > now);
        let free: Vec<_> = {
            let mut retired = self.retired.lock();
            let (free, held) = retired.drain(..).partition(|s| Arc::strong_count(s) == 1);
            *retired = held;
            free
        };
        drop(free);
        self.retired.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use onehop_filters::contract::metrics::Registry;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, Source};
    use crate::observe::metrics::EngineMetrics;
    use crate::snapshot::compile::{Compiler, compile};
    use crate::snapshot::estate::Estate;

    /// A snapshot with these listeners.
    fn snapshot(generation: u64, listeners: &[&str]) -> Snapshot {
        let listeners: Vec<_> = listeners.iter().map(|l| format!("{l}: {{ bind: \"127.0.0.1:0\" }}")).collect();
        let text = format!(
            "version: 1\nadmin: {{ bind: none }}\nlisteners: {{ {} }}\nroutes: [{{ name: a, respond: {{}} }}]\n",
            listeners.join(", ")
        );
        let source = Source::Text { name: "test".to_owned(), text, dir: "/".into() };
        let plan = config::load(&[source], &[]).expect("a valid config");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (metrics, estate) = (Arc::new(Registry::default()), Estate::default());
        let mut compiler = Compiler {
            entries: &[],
            metrics: &metrics,
            engine: &EngineMetrics::new(&metrics),
            staging: &mut estate.stage(),
            control: runtime.handle(),
        };
        compile(&mut compiler, &plan, generation).unwrap_or_else(|_| panic!("it compiles"))
    }

    #[derive(Clone, Debug)]
    enum Act {
        Publish,
        /// A request begins.
        View,
        /// The request of this number, counted round, ends.
        End(usize),
        Sweep,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![Just(Act::Publish), Just(Act::View), (0..8usize).prop_map(Act::End), Just(Act::Sweep),]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// A request sees the newest snapshot and keeps it; a snapshot lives exactly as long as it is current or seen.
        #[test]
        fn snapshots_live_as_long_as_they_are_seen(acts in proptest::collection::vec(act(), 1..24)) {
            let cell = Cell::new(snapshot(0, &["web"]));
            let mut all: Vec<Weak<Snapshot>> = vec![Arc::downgrade(&cell.load())];
            let mut open: Vec<(u64, Arc<View>)> = Vec::new();
            for act in acts {
                match act {
                    Act::Publish => {
                        cell.publish(snapshot(all.len() as u64, &["web"]));
                        all.push(Arc::downgrade(&cell.load()));
                    }
                    Act::View => {
                        let view = cell.view();
                        prop_assert_eq!(view.generation, all.len() as u64 - 1);
                        open.push((view.generation, view));
                    }
                    Act::End(n) if !open.is_empty() => drop(open.swap_remove(n % open.len())),
                    Act::End(_) => {}
                    Act::Sweep => {
                        // What a worker that serves requests does with its own hold.
                        drop(cell.view());
                        cell.sweep();
                        for (generation, snapshot) in (0u64..).zip(&all) {
                            let seen = open.iter().any(|(g, _)| *g == generation);
                            let current = generation == all.len() as u64 - 1;
                            prop_assert_eq!(snapshot.upgrade().is_some(), seen || current, "generation {}", generation);
                        }
                    }
                }
                prop_assert!(open.iter().all(|(g, view)| view.generation == *g));
            }
        }
    }

    #[test]
    fn a_listener_that_left_is_still_answered_for() {
        let cell = Cell::new(snapshot(0, &["stays", "goes"]));
        cell.publish(snapshot(1, &["stays"]));
        cell.publish(snapshot(2, &["stays"]));
        assert_eq!(cell.view_for("goes").generation, 0);
        assert_eq!(cell.view_for("stays").generation, 2);
        assert_eq!(cell.view_for("never was").generation, 2);
        cell.publish(snapshot(3, &["stays", "goes"]));
        assert_eq!(cell.view_for("goes").generation, 3, "it came back");
        assert_eq!(cell.departed.lock().len(), 0);
    }

    #[test]
    fn the_farewell_ends() {
        let cell = Cell::new(snapshot(0, &["stays", "goes"]));
        cell.publish(snapshot(1, &["stays"]));
        for departed in &mut *cell.departed.lock() {
            departed.until = Moment::ZERO;
        }
        drop(cell.view());
        assert_eq!(cell.sweep(), 0, "nothing holds the old snapshot any more");
        assert_eq!(cell.view_for("goes").generation, 1);
    }
}

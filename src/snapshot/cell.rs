//! The one pointer that a swap changes, and how a request reads it without touching anything another core writes.
//!
//! Each worker keeps its own [`View`]: an `Arc` of its own around the shared snapshot, refreshed when the pointer has
//! changed. A request clones the worker's `Arc`, whose count no other core touches. Old snapshots are handed to the
//! control thread, which is the last to let go of them, so that no worker pays for freeing a big configuration.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Snapshot;

/// Holder of the current snapshot.
pub struct Cell {
    id: u64,
    current: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that requests may still hold. Contended by nobody: only the control thread publishes and sweeps.
    retired: Mutex<Vec<Arc<Snapshot>>>,
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
        Self { id, current: Arc::new(ArcSwap::from_pointee(first)), retired: Mutex::new(Vec::new()) }
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

    /// The current snapshot, for the control thread.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot. Requests under way keep theirs.
    pub fn publish(&self, next: Snapshot) {
        let old = self.current.swap(Arc::new(next));
        self.retired.lock().push(old);
    }

    /// Frees retired snapshots that nobody reads any more; returns how many are still read. For the control thread.
    pub fn sweep(&self) -> usize {
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

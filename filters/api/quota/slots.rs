//! A map of cells that is read without a lock and written under one.
//!
//! The table is open-addressed and only ever gains cells: a slot that is set stays set, so that a reader needs no more than
//! the pointer to the table and one look per slot. A cell that is forgotten is marked, and left out when the table is built
//! anew, which is when it has to grow or too many are marked. Cells are shared between the old table and the new one, so
//! that nothing charged meanwhile is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;

use crate::api::caller::{Id, Key};

/// Slots of the first table.
const FEWEST: usize = 8;

/// What one caller used.
pub struct Cell {
    key: Key,
    /// The caller, for what is saved.
    pub id: Id,
    /// See [`super::core`].
    pub value: AtomicU64,
    forgotten: AtomicBool,
}

/// A cell that may be there, borrowed from the table of the moment.
pub struct Found {
    table: Guard<Option<Arc<Table>>>,
    key: Key,
}

impl Found {
    /// What it counts.
    pub fn value(&self) -> Option<&AtomicU64> {
        self.table.as_ref()?.find(self.key).map(|cell| &cell.value)
    }
}

/// The cells of some keys.
#[derive(Default)]
pub struct Slots {
    table: ArcSwapOption<Table>,
    /// Workers contend for it only when they see callers of the same part for the first time.
    writer: Mutex<Writer>,
}

struct Table {
    /// A power of two of them, a quarter of which at least is free: a search ends.
    slots: Box<[OnceLock<Arc<Cell>>]>,
}

/// What only whoever adds or forgets cells needs.
#[derive(Default)]
pub struct Writer {
    /// Cells that are not forgotten.
    live: usize,
    /// Slots that are set.
    set: usize,
    /// Where the next sample begins.
    hand: usize,
}

impl Table {
    fn of(size: usize) -> Self {
        Self { slots: (0..size).map(|_| OnceLock::new()).collect() }
    }

    fn find(&self, key: Key) -> Option<&Arc<Cell>> {
        let from = key.place();
        (0..self.slots.len())
            .map_while(|step| self.slots[from.wrapping_add(step) & (self.slots.len() - 1)].get())
            .find(|cell| cell.key == key && !cell.forgotten.load(Ordering::Acquire))
    }

    fn add(&self, cell: Arc<Cell>) {
        let mut at = cell.key.place();
        let mut cell = Some(cell);
        while let Some(homeless) = cell.take() {
            cell = self.slots[at & (self.slots.len() - 1)].set(homeless).err();
            at = at.wrapping_add(1);
        }
    }

    fn live(&self) -> impl Iterator<Item = &Arc<Cell>> {
        self.slots.iter().filter_map(OnceLock::get).filter(|cell| !cell.forgotten.load(Ordering::Acquire))
    }
}

impl Slots {
    /// The cell of a key, if there is one. Takes no lock; a charge that meets a cell which is being forgotten is forgotten
    /// with it.
    pub fn find(&self, key: Key) -> Found {
        Found { table: self.table.load(), key }
    }

    /// The cell of a key, which is made if there is none: `room` forgets others first if there are `most`, and `value` is
    /// what it begins with. Also whether it is new.
    pub fn enter(
        &self,
        key: Key,
        id: Id,
        most: usize,
        room: impl FnOnce(&Self, &mut Writer),
        value: impl FnOnce() -> u64,
    ) -> (Arc<Cell>, bool) {
        let mut writer = self.writer.lock();
        if let Some(cell) = self.table.load().as_ref().and_then(|table| table.find(key)) {
            return (cell.clone(), false);
        }
        if writer.live >= most {
            room(self, &mut writer);
        }
        let cell = Arc::new(Cell { key, id, value: AtomicU64::new(value()), forgotten: AtomicBool::new(false) });
        self.grown(&mut writer).add(cell.clone());
        writer.live += 1;
        writer.set += 1;
        (cell, true)
    }

    /// A table with room for one more, which becomes the current one.
    fn grown(&self, writer: &mut Writer) -> Arc<Table> {
        let current = self.table.load_full();
        if let Some(table) = current.as_ref().filter(|table| (writer.set + 1) * 4 <= table.slots.len() * 3) {
            return table.clone();
        }
        // Half empty at first, so that building anew is paid for by as many cells as are moved.
        let table = Arc::new(Table::of(((writer.live + 1) * 2).next_power_of_two().max(FEWEST)));
        current.iter().flat_map(|old| old.live()).for_each(|cell| table.add(cell.clone()));
        writer.set = writer.live;
        self.table.store(Some(table.clone()));
        table
    }

    /// A few cells, others each time.
    pub fn sample(&self, writer: &mut Writer, n: usize) -> Vec<Arc<Cell>> {
        let Some(table) = self.table.load_full() else { return Vec::new() };
        let size = table.slots.len();
        let mut sample = Vec::with_capacity(n);
        for _ in 0..size {
            let cell = table.slots[writer.hand & (size - 1)].get();
            writer.hand = writer.hand.wrapping_add(1);
            sample.extend(cell.filter(|cell| !cell.forgotten.load(Ordering::Acquire)).cloned());
            if sample.len() == n {
                break;
            }
        }
        sample
    }

    /// Forgets one cell.
    pub fn forget(writer: &mut Writer, cell: &Cell) {
        if !cell.forgotten.swap(true, Ordering::AcqRel) {
            writer.live -= 1;
        }
    }

    /// Forgets all cells that are not worth keeping; gives how many.
    pub fn retain(&self, writer: &mut Writer, keep: impl Fn(u64) -> bool) -> usize {
        let before = writer.live;
        if let Some(table) = self.table.load_full() {
            for cell in table.live().filter(|cell| !keep(cell.value.load(Ordering::Relaxed))) {
                Self::forget(writer, cell);
            }
        }
        before - writer.live
    }

    /// Looks at every cell, while none is added or forgotten.
    pub fn each(&self, mut look: impl FnMut(&Cell)) {
        let _writer = self.writer.lock();
        self.table.load().iter().flat_map(|table| table.live()).for_each(|cell| look(cell));
    }

    /// Cells.
    pub fn len(&self) -> usize {
        self.writer.lock().live
    }
}

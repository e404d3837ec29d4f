//! A map of cells that is read without a lock and written under one.
//!
//! The table is open-addressed and only ever gains cells: a slot that is set stays set, so that a reader needs the pointer
//! to the table and, as cells stand in it, one line of memory. A cell that is forgotten, or stands in a newer table, counts
//! [`MOVED`]; whoever meets that asks again under the lock, which it gets once the new table is in force. So nothing is ever
//! charged to a cell that no longer counts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::core::MOVED;
use crate::api::caller::{Id, Key};

/// Slots of the first table.
const FEWEST: usize = 8;
/// How many cells are looked at to find one that can be forgotten.
const SAMPLE: usize = 16;

/// What one caller used.
struct Cell {
    key: Key,
    /// The caller, for what is saved.
    id: Id,
    value: AtomicU64,
}

/// The cells of some keys.
#[derive(Default)]
pub struct Slots {
    table: ArcSwapOption<Table>,
    /// Workers contend for it only when they see callers of the same part for the first time.
    writer: Mutex<Writer>,
}

/// A power of two of slots, an eighth of which at least is free: a search ends.
struct Table(Box<[OnceLock<Cell>]>);

/// What only whoever adds or forgets cells needs.
#[derive(Default)]
struct Writer {
    /// Cells that count.
    live: usize,
    /// Slots that are set.
    set: usize,
    /// Where the next sample begins.
    hand: usize,
}

/// How much may be forgotten by whom.
pub struct Bounds<F, D> {
    /// Most cells.
    pub most: usize,
    /// Whether forgetting a cell of this value changes nothing.
    pub is_full: F,
    /// Orders values by how much forgetting them would give away.
    pub debt: D,
}

/// What came of an entry.
pub struct Entered<T> {
    /// What the act gave.
    pub given: T,
    /// Whether the cell was made.
    pub new: bool,
    /// How many others were forgotten for it,
    pub forgotten: usize,
    /// and whether one of them owed something.
    pub evicted: bool,
}

impl Cell {
    fn counts(&self) -> bool {
        self.value.load(Ordering::Acquire) != MOVED
    }
}

impl Table {
    fn of(size: usize) -> Self {
        Self((0..size).map(|_| OnceLock::new()).collect())
    }

    fn slot(&self, at: usize) -> &OnceLock<Cell> {
        &self.0[at & (self.0.len() - 1)]
    }

    fn find(&self, key: Key) -> Option<&Cell> {
        let from = key.place();
        (0..self.0.len())
            .map_while(|step| self.slot(from.wrapping_add(step)).get())
            .find(|cell| cell.key == key && cell.counts())
    }

    /// Takes the first free slot from the key's own place on.
    fn add(&self, cell: Cell) {
        let mut at = cell.key.place();
        let mut homeless = Some(cell);
        while let Some(cell) = homeless {
            homeless = self.slot(at).set(cell).err();
            at = at.wrapping_add(1);
        }
    }

    fn live(&self) -> impl Iterator<Item = &Cell> {
        self.0.iter().filter_map(OnceLock::get).filter(|cell| cell.counts())
    }
}

impl Slots {
    /// Acts on the cell of a key, without a lock. `None`: it is not there, or on its way to another table.
    pub fn find<T>(&self, key: Key, act: impl Fn(&AtomicU64) -> Option<T>) -> Option<T> {
        act(&self.table.load().as_ref()?.find(key)?.value)
    }

    /// The same, once no cell is on its way.
    pub fn find_settled<T>(&self, key: Key, act: impl Fn(&AtomicU64) -> Option<T>) -> Option<T> {
        let _writer = self.writer.lock();
        self.find(key, act)
    }

    /// Acts on the cell of a key, which is made if there is none, with what `first` gives. Others are forgotten first if
    /// there are too many.
    pub fn enter<T>(
        &self,
        (key, id): (Key, Id),
        bounds: Bounds<impl Fn(u64) -> bool, impl Fn(u64) -> u64>,
        first: impl FnOnce() -> u64,
        act: impl Fn(&AtomicU64) -> Option<T>,
    ) -> Entered<T> {
        let mut writer = self.writer.lock();
        let (mut new, mut forgotten, mut evicted) = (false, 0, false);
        let given = self.find(key, &act).unwrap_or_else(|| {
            if writer.live >= bounds.most {
                let before = writer.live;
                evicted = self.make_room(&mut writer, &bounds);
                forgotten = before - writer.live;
            }
            self.grow(&mut writer);
            let table = self.table.load();
            let table = table.as_ref().expect("it has grown");
            table.add(Cell { key, id, value: AtomicU64::new(first()) });
            writer.live += 1;
            writer.set += 1;
            new = true;
            let cell = table.find(key).expect("it was added, and nobody else forgets");
            act(&cell.value).expect("cells move under the lock only")
        });
        Entered { given, new, forgotten, evicted }
    }

    /// Makes sure that a slot is free.
    fn grow(&self, writer: &mut Writer) {
        let current = self.table.load_full();
        if current.as_ref().is_some_and(|table| (writer.set + 1) * 8 <= table.0.len() * 7) {
            return;
        }
        // A fifth free at first, so that as many come as pay for the move.
        let size = (writer.live + writer.live / 4 + 2).next_power_of_two().max(FEWEST);
        let table = Table::of(size);
        for old in current.iter().flat_map(|table| table.0.iter().filter_map(OnceLock::get)) {
            let value = old.value.swap(MOVED, Ordering::AcqRel);
            if value != MOVED {
                table.add(Cell { key: old.key, id: old.id, value: AtomicU64::new(value) });
            }
        }
        writer.set = writer.live;
        self.table.store(Some(std::sync::Arc::new(table)));
    }

    /// Forgets full buckets, which changes nothing; if a sample has none, the fullest of it: true. That one gains at most
    /// its refill, where refusing new keys would let one flood of keys shut out everybody else.
    fn make_room(&self, writer: &mut Writer, bounds: &Bounds<impl Fn(u64) -> bool, impl Fn(u64) -> u64>) -> bool {
        let table = self.table.load();
        let Some(table) = table.as_ref() else { return false };
        let mut sample: [Option<(u64, usize)>; SAMPLE] = [None; SAMPLE];
        let mut seen = 0;
        for _ in 0..table.0.len() {
            let at = writer.hand;
            writer.hand = at.wrapping_add(1);
            let value = table.slot(at).get().map_or(MOVED, |cell| cell.value.load(Ordering::Acquire));
            if value != MOVED {
                sample[seen] = Some((value, at));
                seen += 1;
            }
            if seen == SAMPLE {
                break;
            }
        }
        let mut forget = |cell: &Cell| {
            cell.value.store(MOVED, Ordering::Release);
            writer.live -= 1;
        };
        let fullest = sample.iter().flatten().min_by_key(|(value, _)| (bounds.debt)(*value));
        match fullest {
            // Looking at all of them is worth it only where a sample says that some are full.
            Some((value, _)) if (bounds.is_full)(*value) => {
                let full = |cell: &&Cell| (bounds.is_full)(cell.value.load(Ordering::Acquire));
                table.live().filter(full).for_each(&mut forget);
                false
            }
            Some((_, at)) => {
                table.slot(*at).get().into_iter().for_each(&mut forget);
                true
            }
            None => false,
        }
    }

    /// Looks at every cell, while none is added or forgotten.
    pub fn each(&self, mut look: impl FnMut(&Id, &AtomicU64)) {
        let _writer = self.writer.lock();
        self.table.load().iter().flat_map(|table| table.live()).for_each(|cell| look(&cell.id, &cell.value));
    }

    /// Cells.
    pub fn len(&self) -> usize {
        self.writer.lock().live
    }
}

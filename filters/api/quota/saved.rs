//! What of the counters is saved, and how it reads in a file.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::core::Rate;
use crate::api::caller::Id;
use crate::contract::{Moment, now};

/// Something with counters that a restart must not lose.
pub trait Persist: Send + Sync {
    /// Its counters now.
    fn table(&self) -> Table;
}

/// The counters of one limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What the numbers are.
    form: Form,
    /// By caller, in hex. Rolling: nanoseconds of the epoch at which the bucket is full again. Calendar: the cell.
    cells: BTreeMap<String, u64>,
}

/// What the numbers of a table are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// Of a calendar.
    #[default]
    Calendar,
    /// Of a rolling window with this rate.
    Rolling {
        /// See [`Rate::parts`].
        interval: (u64, u32),
    },
}

impl Table {
    /// The numbers of this process's clock in those of the calendar; what owes nothing is left out.
    pub fn of(form: Form, values: Vec<(Id, u64)>, now: Moment) -> Self {
        let epoch = epoch_nanos();
        let cells = values.into_iter().filter_map(|(id, value)| {
            let value = match form {
                Form::Calendar if value == 0 => return None,
                Form::Calendar => value,
                Form::Rolling { .. } => epoch.saturating_add(value.checked_sub(now.0).filter(|debt| *debt > 0)?),
            };
            Some((hex(id), value))
        });
        Self { form, cells: cells.collect() }
    }

    /// The numbers of the calendar in those of this process's clock, at a rate that may have changed meanwhile. Counters
    /// of another form are not comparable and begin anew.
    pub fn live(self, rate: Option<Rate>) -> HashMap<Id, u64> {
        let (epoch, now) = (epoch_nanos(), now());
        let convert = |value: u64| match (self.form, rate) {
            (Form::Calendar, None) => Some(value),
            (Form::Rolling { interval }, Some(rate)) => {
                let tat = now.0 + value.checked_sub(epoch)?;
                Some(Rate::of_parts(interval).retuned(tat, rate, now))
            }
            _ => None,
        };
        self.cells.iter().filter_map(|(id, value)| Some((unhex(id)?, convert(*value)?))).collect()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}

fn epoch_nanos() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

fn hex(id: Id) -> String {
    use std::fmt::Write;
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Id> {
    let mut id = Id::default();
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in id.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(id)
}

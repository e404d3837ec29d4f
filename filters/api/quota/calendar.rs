//! Periods of the calendar, pure: which minute, hour, day, week or month of a time zone a moment is in.
//!
//! Periods follow each other without gap or overlap, whatever the zone does: a day on which clocks change has 23 or 25
//! hours, and an hour that comes twice is two hours.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A unit of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day, from midnight.
    Day,
    /// A week, from Monday (ISO 8601).
    Week,
    /// A month, from its first day.
    Month,
}

impl Unit {
    /// Its name in the config.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// Seconds of an ordinary one; months have no ordinary length.
    pub const fn seconds(self) -> Option<u64> {
        match self {
            Self::Minute => Some(60),
            Self::Hour => Some(3600),
            Self::Day => Some(86_400),
            Self::Week => Some(7 * 86_400),
            Self::Month => None,
        }
    }

    /// The unit of this name, or of this ordinary length.
    pub fn of(text: &str) -> Option<Self> {
        let all = [Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month];
        all.into_iter().find(|u| u.name() == text)
    }
}

/// One period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Minutes from the epoch to its start, modulo 2^24 - 1, plus one: unique for 31 years, and never zero.
    pub number: u32,
    /// Its first second.
    pub start: i64,
    /// The first second after it.
    pub end: i64,
}

/// Numbers of periods are modulo this.
const NUMBERS: i64 = (1 << 24) - 1;

impl Period {
    /// From its bounds, in seconds of the epoch.
    pub fn new(start: i64, end: i64) -> Self {
        let number = start.div_euclid(60).rem_euclid(NUMBERS) + 1;
        Self { number: u32::try_from(number).unwrap_or(1), start, end }
    }

    /// Whether the period with that number comes after this one. Zero is none.
    pub const fn is_before(&self, number: u32) -> bool {
        let ahead = (number as i64 - self.number as i64).rem_euclid(NUMBERS);
        number != 0 && ahead != 0 && ahead < NUMBERS / 2
    }
}

/// A unit in a time zone.
pub struct Calendar {
    unit: Unit,
    zone: TimeZone,
    /// The period of the latest request: looked up once per period, not once per request.
    current: ArcSwap<Period>,
}

impl Calendar {
    /// In the zone of this IANA name; UTC without one.
    ///
    /// # Errors
    /// There is no such zone.
    pub fn new(unit: Unit, zone: Option<&str>) -> Result<Self, String> {
        let zone = match zone {
            None | Some("UTC") => TimeZone::UTC,
            Some(name) => {
                // The system's database is newer, the bundled one is always there.
                let found = jiff::tz::db().get(name).or_else(|_| TimeZoneDatabase::bundled().get(name));
                found.map_err(|_| format!("there is no time zone `{name}`"))?
            }
        };
        Ok(Self { unit, zone, current: ArcSwap::new(Arc::new(Period::new(0, 0))) })
    }

    /// The period of a moment, in seconds of the epoch.
    pub fn period(&self, second: i64) -> Period {
        let current = **self.current.load();
        if (current.start..current.end).contains(&second) {
            return current;
        }
        let found = self.find(second);
        self.current.store(Arc::new(found));
        found
    }

    fn find(&self, second: i64) -> Period {
        // Out of jiff's years, for which no clock is set, all time is one period.
        self.bounds(second).map_or(Period::new(i64::MIN, i64::MAX), |(start, end)| Period::new(start, end))
    }

    fn bounds(&self, second: i64) -> Option<(i64, i64)> {
        let at = Timestamp::from_second(second).ok()?;
        if let Unit::Minute | Unit::Hour = self.unit {
            return Some(self.even(at, i64::try_from(self.unit.seconds()?).ok()?));
        }
        let today = at.to_zoned(self.zone.clone()).date();
        let (first, next) = match self.unit {
            Unit::Week => {
                let since = today.weekday().since(Weekday::Monday);
                let monday = today.checked_sub(i32::from(since).days()).ok()?;
                (monday, monday.checked_add(1.week()).ok()?)
            }
            Unit::Month => (today.first_of_month(), today.first_of_month().checked_add(1.month()).ok()?),
            _ => (today, today.tomorrow().ok()?),
        };
        Some((self.midnight(first)?, self.midnight(next)?))
    }

    /// The first moment of a day. Where clocks skip midnight, the day begins when they have.
    fn midnight(&self, date: Date) -> Option<i64> {
        Some(date.to_zoned(self.zone.clone()).ok()?.start_of_day().ok()?.timestamp().as_second())
    }

    /// Stretches of `length` seconds of local time, cut where the clocks change.
    fn even(&self, at: Timestamp, length: i64) -> (i64, i64) {
        let second = at.as_second();
        let offset = i64::from(self.zone.to_offset(at).seconds());
        let start = second - (second + offset).rem_euclid(length);
        let end = start + length;
        // `preceding` is exclusive, a change at this very second counts.
        let later = at.saturating_add(SignedDuration::from_secs(1)).unwrap_or(at);
        let before = self.zone.preceding(later).next().map(|t| t.timestamp().as_second());
        let after = self.zone.following(at).next().map(|t| t.timestamp().as_second());
        (before.map_or(start, |change| start.max(change)), after.map_or(end, |change| end.min(change)))
    }
}

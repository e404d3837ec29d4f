//! Periods of the calendar and what is counted in them.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use proptest::prelude::*;

use super::super::calendar::{Calendar, Period, Unit};
use super::super::core::{Meter, Tally};
use super::*;

fn second(text: &str) -> i64 {
    text.parse::<Timestamp>().expect("a time").as_second()
}

fn bounds(unit: Unit, zone: &str, at: &str) -> (String, String) {
    let period = Calendar::new(unit, Some(zone)).expect("a zone").period(second(at));
    let show = |s: i64| Timestamp::from_second(s).expect("in range").to_string();
    (show(period.start), show(period.end))
}

#[test]
fn periods_are_those_of_the_zone() {
    let is = |unit, zone, at, start: &str, end: &str| {
        assert_eq!(bounds(unit, zone, at), (start.to_owned(), end.to_owned()), "{unit:?} {zone} {at}");
    };
    is(Unit::Month, "UTC", "2026-11-22T19:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z");
    is(Unit::Month, "Europe/Berlin", "2026-12-31T23:30:00Z", "2026-12-31T23:00:00Z", "2027-01-31T23:00:00Z");
    is(Unit::Week, "UTC", "2026-11-22T23:59:59Z", "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z");
    is(Unit::Minute, "UTC", "2026-11-22T23:59:59Z", "2026-11-22T23:59:00Z", "2026-11-23T00:00:00Z");
    // The day on which clocks go forward has 23 hours, the other one 25.
    is(Unit::Day, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
    is(Unit::Day, "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    // An hour that comes twice is two hours.
    is(Unit::Hour, "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z");
    is(Unit::Hour, "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z");
    // Midnight that does not exist (Cairo, 2026-04-24): the day begins at one.
    is(Unit::Day, "Africa/Cairo", "2026-04-24T12:00:00Z", "2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z");
    // Half an hour of daylight saving, and an offset of 45 minutes.
    is(Unit::Hour, "Asia/Kathmandu", "2026-04-24T12:00:00Z", "2026-04-24T11:15:00Z", "2026-04-24T12:15:00Z");
    assert!(Calendar::new(Unit::Day, Some("Mars/Base")).is_err());
}

#[test]
fn a_clock_set_back_gives_nothing_away() {
    let calendar = Calendar::new(Unit::Hour, None).expect("UTC");
    let meter = |at: &str| {
        let period = calendar.period(second(at));
        Meter::Calendar(Tally { limit: 2, period, left: Duration::from_secs(1) })
    };
    let cell = AtomicU64::new(0);
    assert!(meter("2026-01-01T10:59:00Z").charge(&cell, 2).allowed);
    assert!(!meter("2026-01-01T10:59:30Z").charge(&cell, 1).allowed);
    assert!(meter("2026-01-01T11:00:00Z").charge(&cell, 1).allowed, "a new hour");
    // One second back, into the hour before: still the new hour's count.
    assert!(meter("2026-01-01T10:59:59Z").charge(&cell, 1).allowed);
    assert!(!meter("2026-01-01T10:59:59Z").charge(&cell, 1).allowed);
    assert!(!meter("2026-01-01T11:30:00Z").charge(&cell, 1).allowed);
    // What belongs to another period is not moved to this one.
    meter("2026-01-01T12:00:00Z").charge(&cell, 1);
    meter("2026-01-01T11:00:00Z").force(&cell, 100);
    meter("2026-01-01T11:00:00Z").refund(&cell, 100);
    assert_eq!(meter("2026-01-01T12:00:00Z").peek(&cell, 0).remaining, 1);
}

#[test]
fn a_calendar_quota_counts_and_tells() {
    let quota = one(json!([
        {"by": "ip", "limit": 3, "per": "month", "calendar": {"timeZone": "Europe/Berlin"}},
        {"by": "ip", "limit": 2, "per": "1d", "calendar": true, "name": "today"},
    ]));
    let mut rq = request("GET", "/");
    assert!(run(&quota, &mut rq).is_none());
    assert_eq!(reply(&rq, "ratelimit-policy"), "\"ip-month\";q=3, \"today\";q=2;w=86400");
    assert!(reply(&rq, "ratelimit").starts_with("\"ip-month\";r=2;t="), "{}", reply(&rq, "ratelimit"));
    assert!(run(&quota, &mut rq).is_none());
    let fault = run(&quota, &mut rq).expect("over today's limit");
    assert!(header(&fault, "ratelimit").starts_with("\"today\";r=0;t="));
    let wait: u64 = header(&fault, "retry-after").parse().expect("seconds");
    assert!((1..=86_400).contains(&wait));
}

proptest! {
    /// Every moment is in its period; periods follow each other without gap or overlap; their numbers rise.
    #[test]
    fn periods_tile_time(
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo",
            "Pacific/Apia", "America/Sao_Paulo", "Asia/Tehran",
        ]),
        unit in prop::sample::select(vec![Unit::Minute, Unit::Hour, Unit::Day, Unit::Week, Unit::Month]),
        // 2000 to 2037.
        at in 946_684_800i64..2_114_380_800,
    ) {
        let calendar = Calendar::new(unit, Some(zone)).expect("a zone");
        let period = calendar.period(at);
        prop_assert!(period.start <= at && at < period.end, "{at} in {period:?}");
        let next = calendar.period(period.end);
        prop_assert_eq!(next.start, period.end);
        prop_assert!(period.is_before(next.number) && !next.is_before(period.number));
        prop_assert_eq!(calendar.period(period.start), period, "its first second finds it");
        prop_assert_eq!(calendar.period(period.end - 1), period, "and its last");
        let zoned = Timestamp::from_second(period.start).expect("in range").to_zoned(TimeZone::get(zone).expect("known"));
        match unit {
            Unit::Month => prop_assert_eq!(zoned.day(), 1),
            Unit::Week => prop_assert_eq!(zoned.weekday(), jiff::civil::Weekday::Monday),
            Unit::Day => prop_assert_eq!(zoned.clone(), zoned.start_of_day().expect("in range")),
            Unit::Hour | Unit::Minute => prop_assert!(zoned.checked_add(1.second()).is_ok()),
        }
    }

    /// No period admits more than its limit, whatever is charged and taken back.
    #[test]
    fn a_period_holds_its_limit(limit in 1u64..100, costs in prop::collection::vec((0u64..20, any::<bool>()), 1..100)) {
        let meter = Meter::Calendar(Tally { limit, period: Period::new(0, 60), left: Duration::ZERO });
        let (cell, mut used) = (AtomicU64::new(0), 0);
        for (cost, back) in costs {
            let charge = meter.charge(&cell, cost);
            prop_assert_eq!(charge.allowed, cost == 0 || used + cost <= limit);
            if charge.allowed {
                used += cost;
                if back {
                    meter.refund(&cell, cost);
                    used -= cost;
                }
            }
            prop_assert_eq!(meter.peek(&cell, 0).remaining, limit - used);
        }
    }
}

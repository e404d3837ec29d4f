//! A configuration is swapped under load, and nobody notices but those it is about.
#![allow(clippy::disallowed_types, reason = "seen from outside, the process is timed by the machine's clock")]

mod common;
#[path = "swap/many.rs"]
mod many;
#[path = "swap/property.rs"]
mod property;
#[path = "swap/watching.rs"]
mod watching;

use std::collections::BTreeMap;

use common::Onehop;

/// All series of `/metrics`, by name and labels.
pub fn series(hop: &Onehop) -> BTreeMap<String, f64> {
    parse(&hop.admin_get("/metrics").body())
}

/// Lines of the text format.
pub fn parse(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.rsplit_once(' ')).filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?))).collect()
}

/// Counters, and what of histograms counts, never fall and never leave.
#[track_caller]
pub fn assert_monotonic(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) {
    let counts = |name: &str| {
        let family = name.split('{').next().unwrap_or_default();
        family.starts_with("onehop_") && family.ends_with("_total")
            || ["_bucket", "_count", "_sum"].iter().any(|end| family.ends_with(end))
    };
    for (name, old) in before.iter().filter(|(name, _)| counts(name)) {
        let new = after.get(name).unwrap_or_else(|| panic!("{name} is gone"));
        assert!(new >= old, "{name} fell from {old} to {new}");
    }
}

/// Asks until the answer is right.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(15);
    while !holds() {
        assert!(tokio::time::Instant::now() < limit, "not in time: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

//! The decision trail, for people and programs: a `Server-Timing` field, a table, JSON.

use std::fmt::Write as _;
use std::time::Duration;

use http::HeaderValue;
use onehop_filters::contract::trail::{Decision, Outcome, Trail};
use serde_json::{Value, json};

/// `Server-Timing` (W3C Server Timing, section 3): `name;dur=MILLISECONDS;desc="..."` for each decision, `total` last.
#[must_use]
pub fn header(trail: &Trail, total: Option<Duration>) -> HeaderValue {
    let mut out = String::with_capacity(64 * (trail.decisions().len() + 1));
    for decision in trail.decisions() {
        entry(&mut out, decision.by, Some(Duration::from_nanos(decision.nanos.into())).filter(|d| !d.is_zero()));
        out.push_str(";desc=\"");
        out.extend(words(decision).chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).flat_map(|c| {
            // RFC 9110 section 5.6.4: a quoted-string escapes these two.
            matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c])
        }));
        out.push('"');
    }
    if trail.dropped() > 0 {
        entry(&mut out, "dropped", None);
        let _ = write!(out, ";desc=\"{}\"", trail.dropped());
    }
    if let Some(total) = total {
        entry(&mut out, "total", Some(total));
    }
    HeaderValue::try_from(out).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn entry(out: &mut String, name: &str, took: Option<Duration>) {
    if !out.is_empty() {
        out.push_str(", ");
    }
    // A metric name is a token (RFC 9110 section 5.6.2); whatever is not one of its letters becomes `-`.
    let token = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    if name.is_empty() {
        out.push('-');
    }
    out.extend(name.chars().map(token));
    if let Some(took) = took {
        let _ = write!(out, ";dur={}", millis(took));
    }
}

/// Milliseconds with microseconds kept.
fn millis(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// What was decided, in a few words.
fn words(decision: &Decision) -> String {
    let mut text = word(decision.outcome).to_owned();
    if !decision.why.is_empty() {
        text.push(' ');
        text.push_str(decision.why);
    }
    if decision.value != 0 {
        let _ = write!(text, " {}", decision.value);
    }
    text
}

/// The stable word of an outcome.
#[must_use]
pub const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Reply => "reply",
        Outcome::Refuse => "refuse",
        Outcome::Pick => "pick",
        Outcome::Answer => "answer",
        Outcome::Fail => "fail",
        Outcome::Retry => "retry",
        Outcome::Fallback => "fallback",
    }
}

/// A table with one line per decision. Costs stand there if they were measured.
#[must_use]
pub fn table(trail: &Trail) -> String {
    let wide = trail.decisions().iter().map(|d| d.by.chars().count()).max().unwrap_or(0).max(6);
    let why = trail.decisions().iter().map(|d| d.why.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for d in trail.decisions() {
        let value = if d.value == 0 { String::new() } else { d.value.to_string() };
        let cost = match d.nanos {
            0 => String::new(),
            n if n < 10_000 => format!("{n} ns"),
            n if n < 10_000_000 => format!("{} us", n / 1000),
            n => format!("{} ms", n / 1_000_000),
        };
        let line = format!("  {:wide$}  {:8}  {:why$}  {value:>6}  {cost:>8}", d.by, word(d.outcome), d.why);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    if trail.dropped() > 0 {
        let _ = writeln!(out, "  ... and {} more", trail.dropped());
    }
    out
}

/// An array with one object per decision.
#[must_use]
pub fn json(trail: &Trail) -> Value {
    let decisions = trail.decisions().iter().map(|d| {
        let mut entry = json!({ "by": d.by, "outcome": word(d.outcome) });
        if !d.why.is_empty() {
            entry["why"] = d.why.into();
        }
        if d.value != 0 {
            entry["value"] = d.value.into();
        }
        if d.nanos != 0 {
            entry["nanos"] = d.nanos.into();
        }
        entry
    });
    decisions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail() -> Trail {
        let mut trail = Trail::default();
        trail.note("jwt", Outcome::Pass, "cached", 0, Duration::from_micros(12));
        trail.note("quota", Outcome::Refuse, "over-\"quota\"", 3, Duration::ZERO);
        trail
    }

    #[test]
    fn as_a_field() {
        assert_eq!(
            header(&trail(), Some(Duration::from_micros(1500))),
            r#"jwt;dur=0.012;desc="pass cached", quota;desc="refuse over-\"quota\" 3", total;dur=1.5"#
        );
        assert_eq!(header(&Trail::default(), None), "");
        let mut odd = Trail::default();
        odd.note("a b;c", Outcome::Pick, "gr\u{fc}n\n", 0, Duration::ZERO);
        assert_eq!(header(&odd, None), r#"a-b-c;desc="pick gr?n?""#);
    }

    #[test]
    fn as_a_table() {
        let text = table(&trail());
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("jwt     pass      cached") && text.contains("12 us"), "{text}");
        assert!(text.lines().nth(1).expect("two").ends_with("       3"), "{text}");
    }

    #[test]
    fn as_json() {
        assert_eq!(
            json(&trail()),
            json!([
                {"by": "jwt", "outcome": "pass", "why": "cached", "nanos": 12_000},
                {"by": "quota", "outcome": "refuse", "why": "over-\"quota\"", "value": 3},
            ])
        );
    }

    #[test]
    fn what_did_not_fit_is_told() {
        let mut trail = Trail::default();
        for _ in 0..30 {
            trail.note("x", Outcome::Pass, "", 0, Duration::ZERO);
        }
        assert!(table(&trail).ends_with("... and 6 more\n"));
        assert!(header(&trail, None).to_str().expect("ASCII").ends_with("dropped;desc=\"6\""));
    }
}

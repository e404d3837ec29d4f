//! A sealed text in cookies: found, cut into parts that browsers take, written and forgotten.
//!
//! A text that fits stands in the cookie of the configured name. A longer one stands in `NAME.0`, `NAME.1`, ...; the first
//! says how many there are, so that the rest of an older, longer one is never taken for a part of a newer one.

use std::borrow::Cow;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// Most bytes of one part. Browsers take 4096 for name and value (RFC 6265 section 6.1).
const PART: usize = 3800;
/// Most parts. With other fields they must fit into the head of a request, 32 KiB by default.
pub const MAX_PARTS: usize = 6;

/// Where a text stands and under which conditions browsers keep it.
#[derive(Debug)]
pub struct Jar {
    pub name: Box<str>,
    pub secure: bool,
    pub same_site: &'static str,
}

impl Jar {
    /// The text in a request. A name that stands twice is not guessed between.
    pub fn find<'h>(&self, headers: &'h HeaderMap) -> Option<Cow<'h, str>> {
        let mut whole = None;
        let mut parts: [Option<&str>; MAX_PARTS] = [None; MAX_PARTS];
        for (name, value) in pairs(headers) {
            let Some(rest) = name.strip_prefix(&*self.name) else { continue };
            let place = match (rest, rest.strip_prefix('.')) {
                ("", _) => &mut whole,
                (_, Some(n)) => match n.parse::<usize>().ok().and_then(|n| parts.get_mut(n)) {
                    Some(part) => part,
                    None => continue,
                },
                _ => continue,
            };
            if place.replace(value).is_some() {
                return None;
            }
        }
        if let Some(whole) = whole {
            return Some(Cow::Borrowed(whole));
        }
        let (count, first) = parts[0]?.split_once('~')?;
        let count: usize = count.parse().ok().filter(|n| (2..=MAX_PARTS).contains(n))?;
        let mut text = first.to_owned();
        for part in &parts[1..count] {
            text.push_str((*part)?);
        }
        Some(Cow::Owned(text))
    }

    /// `Set-Cookie` lines that keep a text for some seconds, and make the browser forget what the request carried and
    /// the text does not need. `None`: the text is too long.
    pub fn keep(&self, headers: &HeaderMap, text: &str, seconds: u64) -> Option<Vec<HeaderValue>> {
        let values: Vec<(String, String)> = if text.len() <= PART {
            vec![(self.name.to_string(), text.to_owned())]
        } else {
            let count = text.len().div_ceil(PART);
            if count > MAX_PARTS {
                return None;
            }
            let parts = text.as_bytes().chunks(PART).enumerate().map(|(n, part)| {
                let part = String::from_utf8_lossy(part);
                let value = if n == 0 { format!("{count}~{part}") } else { part.into_owned() };
                (format!("{}.{n}", self.name), value)
            });
            parts.collect()
        };
        let mut lines: Vec<HeaderValue> =
            values.iter().filter_map(|(name, value)| self.line(name, value, seconds)).collect();
        let stale = self.own(headers).filter(|name| !values.iter().any(|(kept, _)| kept == name));
        lines.extend(stale.filter_map(|name| self.line(name, "", 0)));
        Some(lines)
    }

    /// `Set-Cookie` lines that make the browser forget the text.
    pub fn forget(&self, headers: &HeaderMap) -> Vec<HeaderValue> {
        self.own(headers).filter_map(|name| self.line(name, "", 0)).collect()
    }

    /// Names in the request that are parts of the text.
    fn own<'h>(&self, headers: &'h HeaderMap) -> impl Iterator<Item = &'h str> {
        pairs(headers).map(|(name, _)| name).filter(move |name| {
            let rest = name.strip_prefix(&*self.name);
            rest.is_some_and(|rest| {
                let part = rest.strip_prefix('.').is_some_and(|n| n.parse::<u16>().is_ok());
                rest.is_empty() || part
            })
        })
    }

    fn line(&self, name: &str, value: &str, seconds: u64) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let line = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly{secure}; SameSite={}", self.same_site);
        HeaderValue::try_from(line).ok()
    }
}

/// Cookies of a request (RFC 6265 section 4.2.1). A line that is not text carries none of ours.
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';').filter_map(|pair| pair.trim().split_once('=')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jar() -> Jar {
        Jar { name: "__Host-sid".into(), secure: true, same_site: "Lax" }
    }

    /// What a browser sends after these lines, given what it had.
    fn browser(had: &HeaderMap, lines: &[HeaderValue]) -> HeaderMap {
        let mut kept: Vec<(String, String)> =
            pairs(had).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for line in lines {
            let line = line.to_str().expect("text");
            let (pair, rest) = line.split_once(';').expect("attributes");
            assert!(pair.len() <= 4096, "{}", pair.len());
            let (name, value) = pair.split_once('=').expect("a pair");
            kept.retain(|(n, _)| n != name);
            if !rest.contains("Max-Age=0;") {
                kept.push((name.to_owned(), value.to_owned()));
            }
        }
        let line = kept.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("; ");
        let mut headers = HeaderMap::new();
        if !line.is_empty() {
            headers.insert(COOKIE, line.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn a_line_says_all_that_keeps_it_safe() {
        let lines = jar().keep(&HeaderMap::new(), "abc", 60).expect("short");
        assert_eq!(lines, ["__Host-sid=abc; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Lax"]);
    }

    #[test]
    fn long_and_short_ones_replace_each_other() {
        let (jar, mut had) = (jar(), HeaderMap::new());
        for length in [10, 20_000, 9_000, 4_000, 3_800, 3_801, 22_800, 1] {
            let text = "x".repeat(length);
            had = browser(&had, &jar.keep(&had, &text, 60).expect("fits"));
            assert_eq!(jar.find(&had).as_deref(), Some(text.as_str()), "{length}");
            assert_eq!(pairs(&had).count(), length.div_ceil(PART), "nothing stale: {length}");
        }
        assert!(jar.keep(&had, &"x".repeat(22_801), 60).is_none(), "too long");
        had = browser(&had, &jar.keep(&had, &"x".repeat(9_000), 60).expect("fits"));
        had = browser(&had, &jar.forget(&had));
        assert_eq!(pairs(&had).count(), 0);
    }

    #[test]
    fn what_is_doubtful_is_nothing() {
        for cookies in [
            "__Host-sid=a; __Host-sid=b",
            "__Host-sid.0=3~a; __Host-sid.1=b",
            "__Host-sid.0=abc; __Host-sid.1=b",
            "__Host-sid.0=9~a",
            "__Host-sid.0=0~a",
            "__Host-sid.0=1~a",
            "__Host-sid.1=b",
            "__Host-sidx=1; __Host-sid.login.abc=1",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, HeaderValue::from_static(cookies));
            assert_eq!(jar().find(&headers), None, "{cookies}");
        }
    }

    proptest! {
        #[test]
        fn no_cookie_line_panics(line in "[ -~]{0,200}") {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, line.parse().expect("visible"));
            let _ = (jar().find(&headers), jar().forget(&headers), jar().keep(&headers, "x", 1));
        }
    }
}

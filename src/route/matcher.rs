//! What an entry asks of a request besides host and literal path: path regex, method, fields, query, claims.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Map, Value as Json};

use crate::config::plan::{Match, ValueMatch};

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Lower-case, without port.
    pub host: &'a str,
    /// Normalised (see [`super::path`]).
    pub path: &'a str,
    /// As received.
    pub query: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// Request fields.
    pub headers: &'a HeaderMap,
    /// Claims of the user; `None` = nobody is known, and no condition on claims holds.
    pub claims: Option<&'a Map<String, Json>>,
}

/// A compiled regex may take this much memory, and as much again for its lazy DFA.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Compiles an anchored, linear-time regex. Bytes are matched as they are: `\w`, `.` and case folding mean ASCII.
pub(super) fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    let build = |text: &str| {
        RegexBuilder::new(text).unicode(false).size_limit(REGEX_SIZE_LIMIT).dfa_size_limit(REGEX_SIZE_LIMIT).build()
    };
    // Alone first: `a)|(b` would break out of the anchoring group and compile.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

/// Conditions beyond host and path; all must hold.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    pub(super) methods: Vec<Method>,
    pub(super) headers: Vec<(HeaderName, Value)>,
    pub(super) query: Vec<(String, Value)>,
    pub(super) cookies: Vec<(String, Value)>,
    pub(super) claims: Vec<(String, Value)>,
}

#[derive(Debug)]
pub(super) enum Value {
    Exact(Box<str>),
    Regex(Box<Regex>),
    Present,
}

impl Conditions {
    /// `None` where nothing is asked.
    pub(super) fn compile(rule: &Match) -> Result<Option<Self>, (String, regex::Error)> {
        let none = rule.methods.is_empty() && rule.headers.is_empty();
        if none && rule.query.is_empty() && rule.cookies.is_empty() && rule.claims.is_empty() {
            return Ok(None);
        }
        let value = |v: &ValueMatch| {
            Ok(match v {
                ValueMatch::Exact(text) => Value::Exact(text.as_str().into()),
                ValueMatch::Regex(pattern) => Value::Regex(Box::new(regex(pattern).map_err(|e| (pattern.clone(), e))?)),
                ValueMatch::Present => Value::Present,
            })
        };
        Ok(Some(Self {
            methods: rule.methods.clone(),
            headers: rule.headers.iter().map(|(n, v)| Ok((n.clone(), value(v)?))).collect::<Result<_, _>>()?,
            query: rule.query.iter().map(|(n, v)| Ok((n.clone(), value(v)?))).collect::<Result<_, _>>()?,
            cookies: rule.cookies.iter().map(|(n, v)| Ok((n.clone(), value(v)?))).collect::<Result<_, _>>()?,
            claims: rule.claims.iter().map(|(n, v)| Ok((n.clone(), value(v)?))).collect::<Result<_, _>>()?,
        }))
    }

    pub(super) fn hold(&self, probe: &Probe<'_>) -> bool {
        self.failure(probe).is_none()
    }

    /// The first condition that does not hold.
    pub(super) fn failure(&self, probe: &Probe<'_>) -> Option<Failure<'_>> {
        self.failure_but_claims(probe).or_else(|| {
            let holds = |name: &str, value| probe.claims.is_some_and(|claims| claim_holds(claims, name, value));
            let (name, _) = self.claims.iter().find(|(name, value)| !holds(name, value))?;
            Some(if probe.claims.is_some() { Failure::Claim(name) } else { Failure::Nobody(name) })
        })
    }

    /// As [`Self::failure`], taking every claim for granted.
    pub(super) fn failure_but_claims(&self, probe: &Probe<'_>) -> Option<Failure<'_>> {
        if !self.methods.is_empty() && !self.methods.contains(probe.method) {
            return Some(Failure::Method);
        }
        if let Some((name, _)) = self.headers.iter().find(|(name, value)| !header_holds(probe.headers, name, value)) {
            return Some(Failure::Header(name));
        }
        if let Some((name, _)) = self.cookies.iter().find(|(name, value)| !cookie_holds(probe.headers, name, value)) {
            return Some(Failure::Cookie(name));
        }
        let (name, _) = self.query.iter().find(|(name, value)| !query_holds(probe.query, name, value))?;
        Some(Failure::Query(name))
    }
}

pub(super) enum Failure<'a> {
    Method,
    Header(&'a HeaderName),
    Query(&'a str),
    Cookie(&'a str),
    Claim(&'a str),
    /// The claim of a user, and there is none.
    Nobody(&'a str),
}

/// A repeated field matches if one of its lines does, or all of them joined with `,` (RFC 9110 section 5.2): upstreams
/// read it either way, and so does the Gateway API.
fn header_holds(headers: &HeaderMap, name: &HeaderName, wanted: &Value) -> bool {
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else { return false };
    let single = lines.next().is_none();
    let all = || headers.get_all(name).iter();
    match wanted {
        Value::Present => true,
        Value::Exact(text) if single => first.as_bytes() == text.as_bytes(),
        Value::Regex(regex) if single => regex.is_match(first.as_bytes()),
        Value::Exact(text) => {
            all().any(|line| line.as_bytes() == text.as_bytes()) || joined_equals(all(), text.as_bytes())
        }
        Value::Regex(regex) => {
            all().any(|line| regex.is_match(line.as_bytes())) || {
                let lines: Vec<&[u8]> = all().map(HeaderValue::as_bytes).collect();
                regex.is_match(&lines.join(&b','))
            }
        }
    }
}

fn joined_equals<'a>(lines: impl Iterator<Item = &'a HeaderValue>, wanted: &[u8]) -> bool {
    let mut rest = wanted;
    for (n, line) in lines.enumerate() {
        let tail = if n == 0 { Some(rest) } else { rest.strip_prefix(b",") };
        match tail.and_then(|t| t.strip_prefix(line.as_bytes())) {
            Some(tail) => rest = tail,
            None => return false,
        }
    }
    rest.is_empty()
}

/// Any cookie of this name: which one of several a service reads is its own choice (RFC 6265 section 5.4 orders them by
/// path, servers do not agree on more).
fn cookie_holds(headers: &HeaderMap, name: &str, wanted: &Value) -> bool {
    let lines = headers.get_all(http::header::COOKIE).iter();
    // Over HTTP/2 each cookie may have a field of its own (RFC 9113 section 8.2.3).
    let mut pairs = lines.flat_map(|line| line.as_bytes().split(|b| *b == b';')).filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|b| *b == b'=')?;
        Some((pair[..at].trim_ascii_end(), pair[at + 1..].trim_ascii_start()))
    });
    pairs.any(|(found, value)| {
        found == name.as_bytes()
            && match wanted {
                Value::Present => true,
                Value::Exact(text) => value == text.as_bytes(),
                Value::Regex(regex) => regex.is_match(value),
            }
    })
}

/// The first parameter of this name counts, percent-decoded; `+` is a plus.
fn query_holds(query: Option<&str>, name: &str, wanted: &Value) -> bool {
    let Some(found) = query.and_then(|q| {
        q.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| decodes_to(key, name))
    }) else {
        return false;
    };
    match wanted {
        Value::Present => true,
        Value::Exact(text) => decodes_to(found.1, text),
        Value::Regex(regex) if found.1.contains('%') => regex.is_match(&decode(found.1).collect::<Vec<u8>>()),
        Value::Regex(regex) => regex.is_match(found.1.as_bytes()),
    }
}

/// A claim that is a list holds the condition if one of its items does; numbers and booleans count as their text.
fn claim_holds(claims: &Map<String, Json>, name: &str, wanted: &Value) -> bool {
    let Some(claim) = claim(claims, name) else { return false };
    let items = match claim {
        Json::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let is = |test: &dyn Fn(&str) -> bool| {
        items.iter().any(|item| match item {
            Json::String(text) => test(text),
            Json::Number(number) => test(&number.to_string()),
            Json::Bool(truth) => test(if *truth { "true" } else { "false" }),
            _ => false,
        })
    };
    match wanted {
        Value::Present => !claim.is_null(),
        Value::Exact(text) => is(&|item| *item == **text),
        Value::Regex(regex) => is(&|item| regex.is_match(item.as_bytes())),
    }
}

/// The claim of this very name (names that are URLs have dots), else the one that the part behind a dot names inside it.
fn claim<'c>(claims: &'c Map<String, Json>, name: &str) -> Option<&'c Json> {
    claims.get(name).or_else(|| {
        let inside = |(dot, _): (usize, &str)| claim(claims.get(&name[..dot])?.as_object()?, &name[dot + 1..]);
        name.match_indices('.').find_map(inside)
    })
}

fn decodes_to(raw: &str, wanted: &str) -> bool {
    raw == wanted || (raw.contains('%') && decode(raw).eq(wanted.bytes()))
}

/// Percent-decoded bytes; a broken escape stands for itself.
fn decode(raw: &str) -> impl Iterator<Item = u8> {
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let bytes = raw.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        if byte == b'%'
            && let (Some(high), Some(low)) = (hex(bytes.get(at + 1)), hex(bytes.get(at + 2)))
        {
            at += 3;
            return Some(high << 4 | low);
        }
        at += 1;
        Some(byte)
    })
}

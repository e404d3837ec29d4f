//! Templates, matching and negotiation: pure.

use http::StatusCode;

/// What a page may say.
pub struct Facts<'a> {
    pub status: StatusCode,
    /// Empty if the answer is an endpoint's.
    pub reason: &'a str,
    pub title: &'a str,
    pub request_id: &'a str,
}

/// What a page is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Status(u16),
    /// 4 or 5.
    Class(u16),
    Reason(&'static str),
}

impl Which {
    pub fn fits(&self, status: StatusCode, reason: &str) -> bool {
        match self {
            Self::Status(code) => status.as_u16() == *code,
            Self::Class(class) => status.as_u16() / 100 == *class,
            Self::Reason(wanted) => reason == *wanted,
        }
    }
}

/// How values are written into a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    Html,
    Json,
}

/// A text with places for facts.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    escape: Escape,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Status,
    Reason,
    Title,
    RequestId,
}

/// Names that may stand in `${}`.
pub const NAMES: [&str; 4] = ["status", "reason", "title", "requestId"];

impl Template {
    /// # Errors
    /// The name that is not known.
    pub fn compile(text: &str, escape: Escape) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, tail) = after.split_once('}').ok_or_else(|| after.chars().take(20).collect::<String>())?;
            parts.push(Part::Text(before.into()));
            parts.push(match name.trim() {
                "status" => Part::Status,
                "reason" => Part::Reason,
                "title" => Part::Title,
                "requestId" => Part::RequestId,
                other => return Err(other.to_owned()),
            });
            rest = tail;
        }
        parts.push(Part::Text(rest.into()));
        Ok(Self { parts, escape })
    }

    pub fn render(&self, facts: &Facts<'_>) -> String {
        let mut out = String::with_capacity(256);
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Status => out.push_str(facts.status.as_str()),
                Part::Reason => self.write(&mut out, facts.reason),
                Part::Title => self.write(&mut out, facts.title),
                // A trusted caller chose it, and it may hold anything that a field may.
                Part::RequestId => self.write(&mut out, facts.request_id),
            }
        }
        out
    }

    fn write(&self, out: &mut String, text: &str) {
        for c in text.chars() {
            match (self.escape, c) {
                (Escape::Html, '&') => out.push_str("&amp;"),
                (Escape::Html, '<') => out.push_str("&lt;"),
                (Escape::Html, '>') => out.push_str("&gt;"),
                (Escape::Html, '"') => out.push_str("&quot;"),
                (Escape::Html, '\'') => out.push_str("&#39;"),
                (Escape::Json, '"' | '\\') => out.extend(['\\', c]),
                (_, c) if c.is_control() => out.push(' '),
                (_, c) => out.push(c),
            }
        }
    }
}
